"""Published versions are kept whole beside the checkpoints that training goes on from, and are what their roots say."""

from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import safetensors.torch
import torch

from commonweight.errors import CheckpointError
from commonweight.model.hashing import tensors_hash
from commonweight.model.stage import Stage, train_round
from node import published
from node.checkpoint import Checkpoints
from node.published import keep_published
from tests.unit.tiny import random_batches, tiny_spec

torch.set_num_threads(1)

SPEC = tiny_spec(stages=1, n_layers=2)


@pytest.fixture
def train(tmp_path: Path) -> Callable[[], Stage]:
    """Trains and saves one more round."""
    stage, checkpoints = Stage(SPEC, 0), Checkpoints(tmp_path / "stage", SPEC, 0)

    def train() -> Stage:
        train_round([stage], random_batches(SPEC, stage.round))
        checkpoints.save(stage)
        return stage

    return train


def keep(folder: Path, round_: int, beside: int | None = None, needed: Collection[int] = ()) -> frozenset[int]:
    return keep_published(folder / "stage", folder / "published", round_, beside, needed)


def kept(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "published", SPEC, 0)


def test_a_published_version_outlives_the_checkpoint_and_has_its_parameters(
    tmp_path: Path, train: Callable[[], Stage]
) -> None:
    parameters = {name: p.detach().clone() for name, p in train().module.named_parameters()}
    keep(tmp_path, 1)
    for _ in range(3):
        train()
    assert Checkpoints(tmp_path / "stage", SPEC, 0).rounds() == (2, 3, 4)
    found = kept(tmp_path).parameters(1)
    assert found.keys() == parameters.keys()
    assert all(torch.equal(found[name], parameters[name]) for name in parameters)


@pytest.mark.parametrize("k", [6, 16], ids=["subspace", "dense"])
def test_parameters_are_checked_against_the_state_root(tmp_path: Path, k: int) -> None:
    spec = tiny_spec(stages=1, boundary_dim=k)
    checkpoints, stage = Checkpoints(tmp_path, spec, 0), Stage(spec, 0)
    checkpoints.save(stage)
    assert checkpoints.parameters(0).keys() == dict(stage.module.named_parameters()).keys()
    file = checkpoints.path_of(0) / "parameters.safetensors"
    good = file.read_bytes()
    at = good.index(tensors_hash(stage.moments()))
    for position in (at, at + 31, len(good) - 1):
        raw = bytearray(good)
        raw[position] ^= 1
        file.write_bytes(raw)
        with pytest.raises(CheckpointError, match="changed or damaged"):
            checkpoints.parameters(0)
    safetensors.torch.save_file(stage.parameters(), file)
    with pytest.raises(CheckpointError, match="changed or damaged"):
        checkpoints.parameters(0)


def test_the_last_three_are_kept_and_cost_no_space(tmp_path: Path, train: Callable[[], Stage]) -> None:
    for round_ in (1, 2, 3, 4):
        train()
        keep(tmp_path, round_)
        assert keep(tmp_path, round_) == set(kept(tmp_path).rounds())
    assert kept(tmp_path).rounds() == (2, 3, 4)
    linked = list((tmp_path / "published" / "round-00000004").iterdir())
    assert sorted(file.name for file in linked) == ["meta.json", "parameters.safetensors"]
    assert all(file.samefile(tmp_path / "stage" / "round-00000004" / file.name) for file in linked)


def test_the_one_that_is_served_stays_however_old_it_is(tmp_path: Path, train: Callable[[], Stage]) -> None:
    for round_ in (1, 2, 3, 4):
        train()
        keep(tmp_path, round_, beside=1)
    assert kept(tmp_path).rounds() == (1, 3, 4)


def test_what_audited_answers_need_stays_beside_the_others(tmp_path: Path, train: Callable[[], Stage]) -> None:
    for round_ in range(1, 7):
        train()
        keep(tmp_path, round_, needed=(2, 77))
    assert kept(tmp_path).rounds() == (2, 4, 5, 6)
    assert keep(tmp_path, 6) == {4, 5, 6}


def test_without_hard_links_it_is_copied(
    tmp_path: Path, train: Callable[[], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(source: Path, target: Path) -> None:
        tried.append(target)
        raise OSError("no links here")

    train()
    monkeypatch.setattr(published.os, "link", refuse)
    keep(tmp_path, 1)
    assert len(tried) == 2
    assert kept(tmp_path).parameters(1)


def test_one_that_was_never_finished_is_begun_anew(tmp_path: Path, train: Callable[[], Stage]) -> None:
    train()
    unfinished = tmp_path / "published" / ".keeping-round-00000001"
    unfinished.mkdir(parents=True)
    (unfinished / "parameters.safetensors").write_bytes(b"half")
    keep(tmp_path, 1)
    assert not unfinished.exists()
    assert kept(tmp_path).parameters(1)


def test_a_version_that_is_gone_is_named_and_harms_no_other(tmp_path: Path, train: Callable[[], Stage]) -> None:
    train()
    keep(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no checkpoint of round 9"):
        keep(tmp_path, 9)
    assert kept(tmp_path).rounds() == (1,)
