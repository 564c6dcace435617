"""A replica gets a version and a gradient of its stage from others, whatever some of them do."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from commonweight.errors import CheckpointError, StateUnavailable
from commonweight.identity import NodeIdentity
from commonweight.model.hashing import tensors_hash
from commonweight.model.stage import Stage
from commonweight.rules.canonical import canonical_json
from commonweight.wire import state as wire_state
from commonweight.wire.evidence import Source
from commonweight.wire.generated import state_pb2 as pb
from commonweight.wire.tls import make_certificate
from node import dealing, download
from node.checkpoint import Checkpoints
from node.fetching import fetch_gradient, fetch_version
from node.published import MOMENTS_FILE, PARAMETERS_FILE, version_path
from tests.integration.replicas import (
    DEADLINE_S,
    NEWCOMER,
    ROUND,
    SPEC,
    STAGE,
    Gated,
    Kept,
    LiesOnce,
    Replica,
    SilentAboutChunks,
    SilentAboutManifests,
    Watched,
    replicas,
    train,
)

pytestmark = pytest.mark.asyncio
torch.set_num_threads(1)

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return train(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, kept: Kept) -> Kept:
    """Another state, under the same name."""
    other = train(tmp_path_factory.mktemp("other"), seed=1)
    assert other.version.state_root != kept.version.state_root
    shutil.copy(kept.checkpoint / "meta.json", other.checkpoint / "meta.json")
    return other


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told: Told = []
    monkeypatch.setattr(download, "emit", lambda name, **fields: told.append((name, fields)))
    monkeypatch.setattr(download, "MANIFEST_PATIENCE_S", 0.3)
    return told


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked for twice because the machine is slow."""
    monkeypatch.setattr(dealing, "IN_FLIGHT_S", DEADLINE_S)


async def fetch(kept: Kept, folder: Path, running: list[Replica], *more: Source) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await fetch_version(NEWCOMER, kept.version, folder, [*(each.source for each in running), *more])


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def check(kept: Kept, folder: Path) -> None:
    """The version is there, and nothing else."""
    assert names(folder) == [version_path(folder, ROUND).name]
    stage = Stage(SPEC, STAGE)
    Checkpoints(folder, SPEC, STAGE).load(stage, ROUND)
    assert stage.state_root() == kept.version.state_root


def asked(running: list[Replica]) -> Counter[tuple[int, int]]:
    return Counter(chunk for each in running for chunk in each.offering.chunks)


def all_chunks(kept: Kept) -> set[tuple[int, int]]:
    return {(file, index) for file, count in enumerate(kept.chunks) for index in range(count)}


def dropped(told: Told) -> dict[str, str]:
    """By PeerId the code."""
    return {fields["peer"]: fields["code"] for name, fields in told if name == "state.peer_dropped"}


@pytest.mark.usefixtures("patient")
async def test_a_version_comes_from_several_sources_each_chunk_once(tmp_path: Path, kept: Kept, told: Told) -> None:
    barrier = asyncio.Barrier(3)

    class Together(Watched):
        """Brings its first chunk when the others do."""

        async def before(self, request: pb.ChunkRequest) -> None:
            if len(self.chunks) == 1:
                await barrier.wait()

    async with replicas((kept, Together), (kept, Together), (kept, Together)) as running:
        await fetch(kept, tmp_path, running)
        assert asked(running) == Counter(all_chunks(kept))
    check(kept, tmp_path)
    assert not dropped(told)
    first, last = told[0][1], told[-1][1]
    total = sum((kept.checkpoint / name).stat().st_size for name in (PARAMETERS_FILE, MOMENTS_FILE))
    assert (told[0][0], first["done_bytes"], first["total_bytes"], first["eta_s"]) == ("state.fetching", 0, total, None)
    assert (told[-1][0], last["what"], last["fetched_bytes"]) == ("state.fetched", f"version {ROUND}", total)


async def test_progress_is_told_now_and_then(
    tmp_path: Path, kept: Kept, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicas((kept, Watched)) as running:
        for progress_s in (DEADLINE_S, 0.0):
            told.clear()
            monkeypatch.setattr(download, "PROGRESS_S", progress_s)
            await fetch(kept, tmp_path / f"every-{progress_s:g}", running)
            progress = [fields for name, fields in told if name == "state.fetching"]
            assert len(progress) == 1 if progress_s else len(progress) > 1
            done = [fields["done_bytes"] for fields in progress]
            assert done == sorted(done)
            assert all(fields["sources"] == 1 for fields in progress)
    assert done[0] == 0 < done[-1] < progress[0]["total_bytes"]
    assert progress[-1]["bytes_per_s"] > 0
    assert progress[-1]["eta_s"] >= 0


async def test_a_gradient_comes_by_its_hash_and_leads_to_the_next_version(tmp_path: Path, kept: Kept) -> None:
    path = tmp_path / "gradient"
    async with replicas((kept, Watched), (kept, LiesOnce)) as running:
        async with asyncio.timeout(DEADLINE_S):
            await fetch_gradient(NEWCOMER, kept.gradient, path, [each.source for each in running])
        assert len(asked(running)) > 2
    assert names(tmp_path) == ["gradient"]
    gradient = safetensors.torch.load_file(path)
    assert tensors_hash(gradient) == kept.gradient.gradient_hash
    stage = Stage(SPEC, STAGE)
    for name, parameter in stage.module.named_parameters():
        parameter.grad = gradient[name]
    stage.step()
    assert stage.state_root() == kept.version.state_root


async def test_who_lies_in_one_chunk_is_dropped_and_the_chunk_fetched_elsewhere(
    tmp_path: Path, kept: Kept, told: Told
) -> None:
    async with replicas((kept, LiesOnce), (kept, Watched), (kept, Watched)) as running:
        liar, *honest = running
        await fetch(kept, tmp_path, running)
        lie = liar.offering.chunks[1]
        assert lie in asked(honest)
        assert dropped(told) == {liar.source.peer_id: "WIRE_COMMITMENT"}
    check(kept, tmp_path)


def damage(path: Path) -> None:
    """Change one number, far from where the names are."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("file", [PARAMETERS_FILE, MOMENTS_FILE])
async def test_whose_manifest_leads_elsewhere_is_dropped_and_what_was_right_isnt_fetched_again(
    tmp_path: Path, kept: Kept, told: Told, file: str
) -> None:
    lie = kept.copy(tmp_path / "lie")
    damage(lie.checkpoint / file)
    wrong = (int(file == MOMENTS_FILE), kept.chunks[int(file == MOMENTS_FILE)] - 1)
    async with replicas((lie, Watched), (lie, Watched), (kept, Watched)) as running:
        await fetch(kept, tmp_path / "new", running)
        *liars, honest = running
        assert dropped(told) == {each.source.peer_id: "WIRE_COMMITMENT" for each in liars}
        assert asked(running) == Counter(all_chunks(kept)) + Counter([wrong])
        assert wrong in asked(liars)
        assert wrong in asked([honest])
    check(kept, tmp_path / "new")


async def test_whose_whole_state_is_another_is_dropped(tmp_path: Path, kept: Kept, other: Kept, told: Told) -> None:
    async with replicas((other, Watched), (other, Watched), (kept, Watched)) as running:
        await fetch(kept, tmp_path, running)
        assert dropped(told) == {each.source.peer_id: "WIRE_COMMITMENT" for each in running[:2]}
        assert asked(running[:2])
    check(kept, tmp_path)


async def test_the_manifest_that_most_gave_is_followed_first(tmp_path: Path, kept: Kept, other: Kept) -> None:
    async with replicas((other, Watched), (kept, Watched), (kept, Watched)) as running:
        await fetch(kept, tmp_path, running)
        assert not running[0].offering.chunks
        assert running[0].offering.manifests == 1
    check(kept, tmp_path)


@pytest.mark.parametrize("silent", [SilentAboutManifests, SilentAboutChunks])
async def test_who_never_answers_holds_nothing_up(
    tmp_path: Path, kept: Kept, silent: Callable[[Path], Watched]
) -> None:
    async with replicas((kept, silent), (kept, Watched)) as running:
        await fetch(kept, tmp_path, running)
        assert running[0].offering.chunks or running[0].offering.manifests
        assert asked(running[1:]) == Counter(all_chunks(kept))
    check(kept, tmp_path)


async def test_whose_false_state_never_comes_doesnt_keep_the_right_one_waiting(
    tmp_path: Path, kept: Kept, other: Kept, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PUT_OFF_S", 0.3)
    followed = asyncio.Event()

    class First(SilentAboutChunks):
        async def before(self, request: pb.ChunkRequest) -> None:
            followed.set()
            await super().before(request)

    class Second(Watched):
        async def Manifest(self, request: pb.Kept, context: Any) -> pb.StateManifest:
            await followed.wait()
            return await super().Manifest(request, context)

    async with replicas((other, First), (kept, Second)) as running:
        first, second = running
        await fetch(kept, tmp_path, running)
        assert first.offering.chunks, "its manifest was followed"
        assert not dropped(told)
        assert {*second.offering.chunks} == all_chunks(kept)
    check(kept, tmp_path)


@contextlib.asynccontextmanager
async def half_open() -> Any:
    """A source whose port takes connections, and says nothing on them; how often one was opened."""
    opened: list[Any] = []
    server = await asyncio.start_server(lambda *streams: opened.append(streams), "127.0.0.1", 0)
    certificate = make_certificate(NodeIdentity(b"\x71" * 32))
    port = server.sockets[0].getsockname()[1]
    try:
        yield Source(certificate.peer_id, f"127.0.0.1:{port}", certificate.der), opened
    finally:
        server.close()
        for _, writer in opened:
            writer.transport.abort()
        await server.wait_closed()


async def test_a_connection_that_only_half_opens_holds_nothing_up(tmp_path: Path, kept: Kept) -> None:
    async with replicas((kept, Watched)) as running, half_open() as (source, opened):
        await fetch(kept, tmp_path, running, source)
        assert opened
    check(kept, tmp_path)


async def test_without_an_honest_source_there_is_an_error_that_names_all(
    tmp_path: Path, kept: Kept, other: Kept, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_state, "MANIFEST_S", 0.5)
    monkeypatch.setattr(wire_state, "CHUNK_S", 0.3)
    folder = tmp_path / "new"
    empty = Kept(tmp_path / "empty", kept.version, kept.gradient)
    kinds = [(other, Watched), (kept, SilentAboutManifests), (kept, SilentAboutChunks), (empty, Watched)]
    async with replicas(*kinds) as running, half_open() as (source, _):
        with pytest.raises(StateUnavailable, match="of 5 sources none is left") as caught:
            await fetch(kept, folder, running, source)
        codes = ["WIRE_COMMITMENT", "WIRE_UNREACHABLE", "WIRE_UNREACHABLE", "WIRE_NO_STATE", "WIRE_UNREACHABLE"]
        everyone = [each.source.peer_id for each in running] + [source.peer_id]
        assert dropped(told) == dict(zip(everyone, codes, strict=True))
        assert all(peer in caught.value.args[0] for peer in everyone)
    assert not version_path(folder, ROUND).exists()
    async with replicas((kept, Watched)) as running:
        await fetch(kept, folder, running)
    check(kept, folder)


async def test_nobody_to_ask_is_an_error(tmp_path: Path, kept: Kept) -> None:
    with pytest.raises(StateUnavailable, match="of 0 sources"):
        await fetch(kept, tmp_path, [])


async def test_a_checkpoint_of_the_same_round_is_replaced_and_other_downloads_are_removed(
    tmp_path: Path, kept: Kept, other: Kept
) -> None:
    shutil.copytree(other.checkpoint, version_path(tmp_path, ROUND))
    (tmp_path / ".fetching-round-00000007").mkdir()
    async with replicas((kept, Watched)) as running:
        await fetch(kept, tmp_path, running)
    check(kept, tmp_path)


async def test_a_version_that_is_removed_while_it_is_fetched_is_fetched(tmp_path: Path, kept: Kept) -> None:
    """The trainer removes old versions; what is being fetched is open, and can be read to its end."""
    mine = kept.copy(tmp_path / "mine")
    async with replicas((mine, Gated)) as running:
        offering = running[0].offering
        assert isinstance(offering, Gated)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fetch(kept, tmp_path / "new", running))
            await offering.held_up.wait()
            shutil.rmtree(mine.checkpoint)
            offering.gate.set()
    check(kept, tmp_path / "new")


async def test_who_is_revoked_gets_nothing_more_over_its_open_connection(
    tmp_path: Path, kept: Kept, told: Told
) -> None:
    async with replicas((kept, Gated)) as running:
        (replica,) = running
        offering = replica.offering
        assert isinstance(offering, Gated)
        offering.free = 1
        fetching = asyncio.create_task(fetch(kept, tmp_path, running))
        await offering.held_up.wait()
        offering.revoke(NEWCOMER.der)
        offering.gate.set()
        with pytest.raises(StateUnavailable, match="no longer admitted"):
            await fetching
        assert dropped(told) == {replica.source.peer_id: "WIRE_REFUSED"}
        assert not version_path(tmp_path, ROUND).exists()
        offering.grant(NEWCOMER.der)
        await fetch(kept, tmp_path, running)
        assert asked(running)[0, 0] == 1, "it had come before"
    check(kept, tmp_path)


async def test_who_isnt_admitted_gets_nothing(
    tmp_path: Path, kept: Kept, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_state, "MANIFEST_S", 0.5)
    async with replicas((kept, Watched), granted=()) as running:
        with pytest.raises(StateUnavailable, match="doesn't answer"):
            await fetch(kept, tmp_path, running)
        assert dropped(told) == {running[0].source.peer_id: "WIRE_UNREACHABLE"}
        assert not running[0].offering.manifests


async def test_a_source_with_somebody_elses_certificate_is_dropped(tmp_path: Path, kept: Kept, told: Told) -> None:
    async with replicas((kept, Watched)) as running:
        (source,) = (each.source for each in running)
        impostor = Source(NEWCOMER.peer_id, source.address, source.certificate)
        await fetch(kept, tmp_path, running, impostor)
        assert dropped(told) == {NEWCOMER.peer_id: "WIRE_IDENTITY"}
    check(kept, tmp_path)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


async def child(module: str, work: dict[str, Any], **environment: str) -> asyncio.subprocess.Process:
    """A process that runs a module of these tests and reads what it is to do from its standard input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.integration.{module}",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | environment,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(work).encode() + b"\n")
    return process


async def test_a_source_that_is_stopped_in_the_middle_holds_nothing_up(tmp_path: Path, kept: Kept) -> None:
    work = {"directory": str(kept.directory), "stage": STAGE, "granted": NEWCOMER.der.hex(), "free": 2}
    process = await child("replica_process", work)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S), replicas((kept, Gated)) as running:
            listening = json.loads(await process.stdout.readline())
            stopped = Source(listening["peer_id"], listening["address"], bytes.fromhex(listening["certificate"]))
            offering = running[0].offering
            assert isinstance(offering, Gated)
            fetching = asyncio.create_task(fetch(kept, tmp_path, running, stopped))
            assert json.loads(await process.stdout.readline()) == {"chunks": 3}
            process.send_signal(signal.SIGSTOP)
            offering.gate.set()
            await fetching
            assert is_stopped(process.pid)
            assert len(asked(running)) >= len(all_chunks(kept)) - 2
    finally:
        process.kill()
        await process.wait()
    check(kept, tmp_path)


@pytest.mark.usefixtures("patient")
async def test_a_download_goes_on_where_it_was_killed(tmp_path: Path, kept: Kept) -> None:
    had = 5
    async with replicas((kept, Watched), (kept, Watched)) as running:
        work = {
            "spec": canonical_json(SPEC.model_dump()).decode(),
            "stage": STAGE,
            "round": ROUND,
            "state_root": kept.version.state_root.hex(),
            "frozen_hash": kept.version.frozen_hash.hex(),
            "folder": str(tmp_path),
            "certificate": NEWCOMER.der.hex(),
            "private_key": NEWCOMER.private_key_pem.decode(),
            "sources": [[each.source.address, each.source.certificate.hex()] for each in running],
        }
        process = await child("fetch_process", work, COMMONWEIGHT_FAILPOINT=f"state.chunk:{had}")
        async with asyncio.timeout(DEADLINE_S):
            assert await process.wait() == -signal.SIGKILL
        assert asked(running).total() >= had
    assert not version_path(tmp_path, ROUND).exists()
    async with replicas((kept, Watched), (kept, Watched)) as running:
        await fetch(kept, tmp_path, running)
        assert asked(running).total() == len(all_chunks(kept)) - had
    check(kept, tmp_path)


async def test_what_was_damaged_between_two_tries_is_fetched_again(tmp_path: Path, kept: Kept) -> None:
    partial = tmp_path / f".fetching-{kept.checkpoint.name}"
    partial.mkdir()
    for name in (PARAMETERS_FILE, MOMENTS_FILE):
        shutil.copy(kept.checkpoint / name, partial / name)
    damage(partial / MOMENTS_FILE)
    async with replicas((kept, Watched)) as running:
        await fetch(kept, tmp_path, running)
        assert running[0].offering.chunks == [(1, kept.chunks[1] - 1)]
    check(kept, tmp_path)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A real one where we may mount it, else files that may not grow. The system's words for it."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
        try:
            yield "No space left"
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        yield "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_an_error_before_anything_is_fetched_and_leaves_nothing(
    tmp_path: Path, kept: Kept
) -> None:
    with small_disk(tmp_path) as words:
        earlier = version_path(tmp_path, 0)
        earlier.mkdir()
        async with replicas((kept, Watched)) as running:
            with pytest.raises(CheckpointError, match=f"version {ROUND} can't be written.*{words}.*Free disk space"):
                await fetch(kept, tmp_path, running)
            assert not running[0].offering.chunks
        assert names(tmp_path) == [earlier.name]


async def test_a_disk_that_fails_in_the_middle_leaves_nothing(
    tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(download.Partial, "write", fail)
    async with replicas((kept, Watched)) as running:
        with pytest.raises(CheckpointError, match="Input/output error"):
            await fetch(kept, tmp_path, running)
    assert names(tmp_path) == []


async def test_a_disk_that_reads_otherwise_than_was_written_is_no_sources_fault(
    tmp_path: Path, kept: Kept, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = download.Partial.write

    def forget(partial: Any, chunk: Any, data: bytes) -> None:
        write(partial, chunk, bytes(len(data)) if (chunk.file, chunk.index) == (1, 1) else data)

    monkeypatch.setattr(download.Partial, "write", forget)
    async with replicas((kept, Watched)) as running:
        with pytest.raises(CheckpointError, match="reads otherwise"):
            await fetch(kept, tmp_path, running)
    assert not dropped(told)
    assert names(tmp_path) == []
