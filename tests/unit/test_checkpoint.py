"""A checkpoint is whole, of this model and stage, or refused."""

import contextlib
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from commonweight.errors import CheckpointError
from commonweight.model.stage import Stage, train_round
from node.checkpoint import Checkpoints
from tests.unit.tiny import random_batches, tiny_spec

torch.set_num_threads(1)

SPEC = tiny_spec(stages=1, n_layers=2, grad_clip="1")


def trained(rounds: int) -> Stage:
    stage = Stage(SPEC, 0)
    for round_ in range(rounds):
        train_round([stage], random_batches(SPEC, round_))
    return stage


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    straight = trained(2)
    checkpoints = Checkpoints(tmp_path, SPEC, 0)
    assert checkpoints.save(straight) == straight.state_root()
    names = sorted(file.name for file in checkpoints.path_of(straight.round).iterdir())
    assert names == ["meta.json", "moments.safetensors", "parameters.safetensors"]
    resumed = Stage(SPEC, 0)
    Checkpoints(tmp_path, SPEC, 0).load(resumed, 2)
    assert resumed.state_root() == straight.state_root()
    for stage in (straight, resumed):
        train_round([stage], random_batches(SPEC, 2))
    assert (resumed.round, resumed.state_root()) == (3, straight.state_root())


def test_the_last_three_are_kept_and_the_same_round_is_replaced(tmp_path):
    checkpoints, stage = Checkpoints(tmp_path, SPEC, 0), Stage(SPEC, 0)
    assert checkpoints.rounds() == ()
    for round_ in range(4):
        checkpoints.save(stage)
        assert checkpoints.rounds() == tuple(range(max(0, round_ - 2), round_ + 1))
        train_round([stage], random_batches(SPEC, round_))
    checkpoints.save(stage)
    checkpoints.save(stage)
    assert checkpoints.rounds() == (2, 3, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"round-0000000{round_}" for round_ in (2, 3, 4)]


def test_what_was_never_finished_is_ignored_and_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, SPEC, 0)
    checkpoints.save(trained(0))
    leftover = tmp_path / ".writing-round-00000001"
    leftover.mkdir()
    (leftover / "moments.safetensors").write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    assert checkpoints.rounds() == (0,)
    assert Checkpoints(tmp_path, SPEC, 0).rounds() == (0,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "round-00000000"]


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("position", [3, 20, -1, -4000])
@pytest.mark.parametrize("part", ["parameters", "moments"])
def test_a_damaged_state_is_refused_and_the_stage_left_alone(tmp_path, part, position):
    checkpoints = Checkpoints(tmp_path, SPEC, 0)
    checkpoints.save(trained(0))
    checkpoints.save(trained(1))
    _flip(checkpoints.path_of(1) / f"{part}.safetensors", position)
    stage = trained(2)
    root = stage.state_root()
    with pytest.raises(CheckpointError, match="go on from round 0"):
        checkpoints.load(stage, 1)
    assert (stage.round, stage.state_root()) == (2, root)
    checkpoints.load(stage, 0)
    assert stage.state_root() == Stage(SPEC, 0).state_root()


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, SPEC, 0)
    checkpoints.save(trained(1))
    meta = checkpoints.path_of(1) / "meta.json"
    stage, good = Stage(SPEC, 0), json.loads(meta.read_text())
    for change, message in (
        ({"model": "0x" + "11" * 32}, "is of model 0x11"),
        ({"stage": 1}, "is of stage 1, not 0"),
        ({"round": 2}, "is of round 2, not 1"),
        ({"state_root": "0x" + "22" * 32}, "instead of 0x22.*another provider"),
        ({"format": "commonweight.checkpoint/1"}, "format"),
        ({"round": True}, "round"),
    ):
        meta.write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load(stage, 1)
    meta.write_text("{")
    with pytest.raises(CheckpointError, match="not canonical JSON"):
        checkpoints.load(stage, 1)
    meta.write_text(json.dumps(good))
    for file in (meta, meta.with_name("moments.safetensors"), meta.with_name("parameters.safetensors")):
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(CheckpointError, match="no whole checkpoint of round 1"):
            checkpoints.load(stage, 1)
        file.write_bytes(kept)
    with pytest.raises(CheckpointError, match="no whole checkpoint of round 9"):
        checkpoints.load(stage, 9)

    other = tiny_spec(stages=1, n_layers=2, grad_clip="1", learning_rate="0.02")
    with pytest.raises(CheckpointError, match="is of model"):
        Checkpoints(tmp_path, other, 0).load(Stage(other, 0), 1)


def test_a_folder_that_cant_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="may write to"):
        Checkpoints(tmp_path / "file", SPEC, 0)


@contextlib.contextmanager
def _file_size_limit(_: Path) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a state is larger
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _filled(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    filler.write_bytes(filler.read_bytes()[:-20_000])  # room for the start of a state
    try:
        yield
    finally:
        filler.unlink()


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture
def disk(tmp_path) -> Iterator[tuple[Path, Callable[[Path], AbstractContextManager[None]], str]]:
    """A folder, how to make its disk full, and the system's words for it: a real disk where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if _mount(folder):
        try:
            yield folder, _filled, "No space left"
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        yield folder, _file_size_limit, "File too large"


def _assert_a_full_disk_keeps_the_earlier(folder, full, words):
    checkpoints, stage = Checkpoints(folder / "stage", SPEC, 0), Stage(SPEC, 0)
    checkpoints.save(stage)
    train_round([stage], random_batches(SPEC))
    with full(folder), pytest.raises(CheckpointError, match=f"{words}.*earlier ones are kept .round 0"):
        checkpoints.save(stage)
    assert [path.name for path in (folder / "stage").iterdir()] == ["round-00000000"]
    checkpoints.load(Stage(SPEC, 0), 0)
    checkpoints.save(stage)
    assert checkpoints.rounds() == (0, 1)


def test_a_full_disk_keeps_the_earlier_checkpoints(disk):
    _assert_a_full_disk_keeps_the_earlier(*disk)


def test_a_file_that_may_not_grow_keeps_the_earlier_checkpoints(tmp_path):
    _assert_a_full_disk_keeps_the_earlier(tmp_path, _file_size_limit, "File too large")
