"""Whom a node offers its stage's state, and what it costs it. Over real connections."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from commonweight.errors import (
    IdentityMismatch,
    MalformedMessage,
    MessageTooLarge,
    PeerUnreachable,
    Refused,
    StateUnavailable,
)
from commonweight.identity import NodeIdentity
from commonweight.rules.canonical import canonical_json
from commonweight.wire import state as wire_state
from commonweight.wire.channel import PIPE_FRAME_BYTES
from commonweight.wire.evidence import EvidenceClient, Source
from commonweight.wire.generated import state_pb2 as pb
from commonweight.wire.state import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    Chunk,
    FileManifest,
    Manifest,
    StateConnection,
    manifest_from_proto,
)
from commonweight.wire.tls import Certificate, make_certificate
from node import evidence as evidence_module
from node import offering as offering_module
from node.evidence import Evidence
from node.offering import Offering
from node.published import META_FILE, MOMENTS_FILE, PARAMETERS_FILE, version_path
from node.traces import Traces
from tests.unit.sealing import ASSIGNMENT, AUDITOR, STAGE, draws_at, find, grant

pytestmark = pytest.mark.asyncio

NODE = make_certificate(NodeIdentity(b"\x31" * 32))
NEWCOMER, STRANGER = (make_certificate(NodeIdentity(bytes([number]) * 32)) for number in (0x33, 0x34))
PARAMETERS, MOMENTS, GRADIENT = b"parameters" * 250_000, b"moments" * 500_000, b"gradient" * 250_000
ROOT, HASH = b"\x01" * 32, b"\x02" * 32
VERSION, ROUND_GRADIENT = pb.Kept(round=7, state_root=ROOT), pb.Kept(round=6, gradient=HASH)
LIMIT = 1 << 30


def keep(directory: Path, round_: int, root: bytes = ROOT) -> Path:
    path = version_path(directory / f"stage-{STAGE}", round_)
    path.mkdir(parents=True)
    meta = {"format": "commonweight.checkpoint/2", "model": "0x" + "00" * 32, "stage": STAGE, "round": round_}
    (path / META_FILE).write_bytes(canonical_json(meta | {"state_root": "0x" + root.hex()}))
    (path / PARAMETERS_FILE).write_bytes(PARAMETERS)
    (path / MOMENTS_FILE).write_bytes(MOMENTS)
    return path


@asynccontextmanager
async def a_node(directory: Path, *, assigned: bool = True) -> AsyncIterator[tuple[Evidence, Offering, Source]]:
    """With version 7 and the gradient that led to it; NEWCOMER may fetch, and AUDITOR is admitted to audit."""
    keep(directory, 7)
    gradients = Traces(directory / f"stage-{STAGE}" / "gradients", 0).begin(6)
    gradients.add(HASH, memoryview(GRADIENT))
    gradients.finish()
    audit = find(STAGE)
    draws_at(directory, audit.round)
    evidence, offering = Evidence(directory, NODE), Offering(directory)
    await evidence.listen("127.0.0.1:0", offering)
    evidence.begin(ASSIGNMENT)
    await evidence.grant(grant(audit))
    if assigned:
        offering.begin(STAGE)
    offering.grant(NEWCOMER.der)
    try:
        yield evidence, offering, Source(NODE.peer_id, f"127.0.0.1:{evidence.port}", NODE.der)
    finally:
        await evidence.close()
        offering.close()


@asynccontextmanager
async def connected(source: Source, certificate: Certificate = NEWCOMER) -> AsyncIterator[StateConnection]:
    connection = StateConnection(source, certificate)
    try:
        yield connection
    finally:
        await connection.close()


async def fetch(connection: StateConnection, kept: pb.Kept, files: int) -> list[bytes]:
    manifest = await connection.manifest(kept, files, LIMIT)
    found = [b""] * files
    for chunk in manifest.chunks:
        found[chunk.file] += await connection.chunk(kept, chunk)
    return found


async def test_a_replica_gets_versions_and_gradients(tmp_path: Path) -> None:
    async with a_node(tmp_path) as (_, _, source), connected(source) as connection:
        assert await fetch(connection, VERSION, 2) == [PARAMETERS, MOMENTS]
        assert await fetch(connection, ROUND_GRADIENT, 1) == [GRADIENT]


async def test_an_auditor_gets_no_state_and_a_replica_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_module, "GRANT_S", 0.1)
    async with a_node(tmp_path) as (_, _, source):
        async with connected(source, AUDITOR) as connection:
            with pytest.raises(Refused, match="no longer admitted"):
                await connection.manifest(VERSION, 2, LIMIT)
            with pytest.raises(Refused, match="no longer admitted"):
                await connection.chunk(VERSION, Chunk(0, 0, CHUNK_BYTES, bytes(32)))
        async with EvidenceClient(NEWCOMER) as client:
            with pytest.raises(Refused, match="granted to the caller"):
                await client.fetch_state(
                    source, find(STAGE).round, "moments", after=False, max_bytes=LIMIT, timeout_s=10
                )


async def test_nobody_else_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_state, "MANIFEST_S", 0.5)
    async with a_node(tmp_path) as (_, _, source), connected(source, STRANGER) as connection:
        with pytest.raises(PeerUnreachable):
            await connection.manifest(VERSION, 2, LIMIT)


async def test_a_certificate_that_is_none_is_granted_nothing(tmp_path: Path) -> None:
    offering = Offering(tmp_path)
    with pytest.raises(IdentityMismatch):
        offering.grant(b"no certificate")
    assert not offering.admitted()


@pytest.mark.parametrize(
    ("kept", "match"),
    [
        (pb.Kept(round=8, state_root=ROOT), "isn't kept here: version 8"),
        (pb.Kept(round=7, state_root=HASH), "has the state root 0x01"),
        (pb.Kept(round=7, gradient=HASH), "isn't kept here: the gradient 0202"),
        (pb.Kept(round=6, gradient=ROOT), "isn't kept here: the gradient 0101"),
    ],
)
async def test_what_isnt_kept_is_said_to_be_missing(tmp_path: Path, kept: pb.Kept, match: str) -> None:
    async with a_node(tmp_path) as (_, _, source), connected(source) as connection:
        with pytest.raises(StateUnavailable, match=match):
            await connection.manifest(kept, 2, LIMIT)


async def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async with a_node(tmp_path) as (_, _, source), connected(source) as connection:
        for file, index in ((2, 0), (0, 3), (1, 4), (2, 4), (0, 2**32 - 1), (2**32 - 1, 0)):
            with pytest.raises(Refused, match=rf"WIRE_MALFORMED.*no chunk {index} of file {file}"):
                await connection.chunk(VERSION, Chunk(file, index, 1, bytes(32)))
        for kept in (
            pb.Kept(round=7),
            pb.Kept(round=7, state_root=b""),
            pb.Kept(round=7, state_root=ROOT[1:]),
            pb.Kept(round=6, gradient=bytes(1 << 20)),
        ):
            with pytest.raises(Refused, match="by its state root"):
                await connection.manifest(kept, 2, LIMIT)


async def test_a_node_without_a_stage_offers_nothing(tmp_path: Path) -> None:
    async with a_node(tmp_path, assigned=False) as (_, _, source), connected(source) as connection:
        with pytest.raises(Refused, match="doesn't hold a stage yet"):
            await connection.manifest(VERSION, 2, LIMIT)


async def test_a_file_that_was_cut_is_missing(tmp_path: Path) -> None:
    async with a_node(tmp_path) as (_, _, source), connected(source) as connection:
        manifest = await connection.manifest(VERSION, 2, LIMIT)
        path = version_path(tmp_path / f"stage-{STAGE}", 7) / MOMENTS_FILE
        path.write_bytes(MOMENTS[:CHUNK_BYTES])
        assert await connection.chunk(VERSION, manifest.chunks[3])
        with pytest.raises(StateUnavailable, match="has been cut"):
            await connection.chunk(VERSION, manifest.chunks[4])


async def test_few_are_read_at_a_time_and_a_version_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many calls there are, and whoever hangs up."""
    reading, most, hashed = 0, 0, 0
    lock, calls = threading.Lock(), 16
    read, manifest_of = offering_module._Piece.read, offering_module._Piece.manifest

    def counting(piece: Any, index: int) -> bytes:
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
        try:
            return read(piece, index)
        finally:
            with lock:
                reading -= 1

    def hashing(piece: Any) -> FileManifest:
        nonlocal hashed
        hashed += 1
        return manifest_of(piece)

    monkeypatch.setattr(offering_module._Piece, "manifest", hashing)
    async with a_node(tmp_path) as (_, offering, source), connected(source) as connection:
        async with connected(source) as impatient:
            hasty = asyncio.create_task(impatient.manifest(VERSION, 2, LIMIT))
            await asyncio.sleep(0)
            hasty.cancel()
        manifests = await asyncio.gather(*(connection.manifest(VERSION, 2, LIMIT) for _ in range(calls)))
        assert hashed == 2, "one of each file"
        monkeypatch.setattr(offering_module._Piece, "read", counting)
        chunk = manifests[0].chunks[0]
        await asyncio.gather(*(connection.chunk(VERSION, chunk) for _ in range(calls)))
        assert 1 <= most <= offering_module.MAX_READS
        assert len(offering._held) == 1


async def test_who_calls_too_often_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its earlier calls are answered."""
    count, entered, all_in, release, users = 12, 0, asyncio.Event(), threading.Event(), []
    read, begin = offering_module._Piece.read, Offering.Chunk

    def blocking(piece: Any, index: int) -> bytes:
        assert release.wait(20)
        (held,) = offering._held.values()
        users.append(held.users)
        return read(piece, index)

    async def entering(offering: Offering, request: pb.ChunkRequest, context: Any) -> pb.StateChunk:
        nonlocal entered
        entered += 1
        if entered == count:
            all_in.set()
        return await begin(offering, request, context)

    monkeypatch.setattr(Offering, "Chunk", entering)
    async with a_node(tmp_path) as (_, offering, source), connected(source) as connection:
        manifest = await connection.manifest(VERSION, 2, LIMIT)
        monkeypatch.setattr(offering_module._Piece, "read", blocking)
        calls = [asyncio.create_task(connection.chunk(VERSION, manifest.chunks[0])) for _ in range(count)]
        async with asyncio.timeout(20):
            await all_in.wait()
            release.set()
            assert len(await asyncio.gather(*calls)) == count
            assert len(users) == count
            assert max(users) <= offering_module.MAX_CALLS_PER_PEER
            for _ in range(offering_module.MAX_CALLS_PER_PEER):
                await offering._calls[NEWCOMER.der].acquire()  # all have been given back


async def test_who_hangs_up_may_call_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, reading, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
    read = offering_module._Piece.read

    def blocking(piece: Any, index: int) -> bytes:
        loop.call_soon_threadsafe(reading.set)
        assert release.wait(20)
        return read(piece, index)

    async with a_node(tmp_path) as (_, _, source), connected(source) as connection, asyncio.timeout(20):
        manifest = await connection.manifest(VERSION, 2, LIMIT)
        monkeypatch.setattr(offering_module._Piece, "read", blocking)
        for _ in range(2 * offering_module.MAX_CALLS_PER_PEER):
            release.clear()
            reading.clear()
            call = asyncio.create_task(connection.chunk(VERSION, manifest.chunks[0]))
            await reading.wait()
            call.cancel()
            release.set()
            await asyncio.gather(call, return_exceptions=True)
            assert call.cancelled()
        assert await connection.chunk(VERSION, manifest.chunks[0]) == PARAMETERS[:CHUNK_BYTES]


async def test_files_are_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offering_module, "MAX_HELD", 3)
    for round_ in (8, 9, 10):
        keep(tmp_path, round_)
    async with a_node(tmp_path) as (_, offering, source), connected(source) as connection:
        held = []
        for round_ in (7, 8, 9, 8, 10, 9):
            await connection.manifest(pb.Kept(round=round_, state_root=ROOT), 2, LIMIT)
            held.append([name for _, name, _ in offering._held])
        assert held == [[7], [7, 8], [7, 8, 9], [7, 9, 8], [9, 8, 10], [8, 10, 9]]
        files = [piece.file for each in offering._held.values() for piece in each.pieces]
        offering.revoke(NEWCOMER.der)
        assert not offering._held
        assert all(file.closed for file in files)


async def test_files_that_nobody_asks_for_are_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offering_module, "IDLE_S", 0.05)
    close, closed = offering_module._close, asyncio.Event()

    def closing(held: Any) -> None:
        close(held)
        closed.set()

    monkeypatch.setattr(offering_module, "_close", closing)
    async with a_node(tmp_path) as (_, offering, source), connected(source) as connection:
        await connection.manifest(VERSION, 2, LIMIT)
        async with asyncio.timeout(20):
            await closed.wait()
        assert not offering._held


HASHES = b"h" * 32


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([(1, HASHES)], MalformedMessage),
        ([(1, HASHES)] * 3, MalformedMessage),
        ([(1, HASHES), (0, b"")], MalformedMessage),
        ([(1, HASHES), (1, b"")], MalformedMessage),
        ([(1, HASHES), (1, HASHES[:-1])], MalformedMessage),
        ([(1, HASHES), (CHUNK_BYTES + 1, HASHES)], MalformedMessage),
        ([(1, HASHES), (CHUNK_BYTES, HASHES * 2)], MalformedMessage),
        ([(1, HASHES), (10 * CHUNK_BYTES, HASHES * 10)], MessageTooLarge),
        ([(1, HASHES), (2**63, HASHES)], MessageTooLarge),
    ],
)
async def test_a_manifest_that_is_none_is_refused(files: list[tuple[int, bytes]], error: type[Exception]) -> None:
    message = pb.StateManifest(files=[pb.FileManifest(size=size, chunk_hashes=hashes) for size, hashes in files])
    with pytest.raises(error):
        manifest_from_proto(message, 2, 10 * CHUNK_BYTES)


async def test_the_largest_manifest_fits_a_message() -> None:
    manifest = Manifest((FileManifest(MAX_CHUNKS * CHUNK_BYTES, (bytes(32),) * MAX_CHUNKS),))
    assert len(manifest.to_proto().SerializeToString()) < PIPE_FRAME_BYTES
    assert manifest_from_proto(manifest.to_proto(), 1, manifest.size) == manifest


async def test_manifests_share_the_chunks_that_are_alike_in_their_place() -> None:
    one = Manifest((FileManifest(2 * CHUNK_BYTES, (b"a", b"b")), FileManifest(5, (b"c",))))
    assert set(one.shared_with(one)) == {0, 1, 2}
    assert one.shared_with(Manifest((FileManifest(2 * CHUNK_BYTES, (b"b", b"a")), one.files[1]))) == {2}
    assert one.shared_with(Manifest((one.files[0], FileManifest(6, (b"c",))))) == {0, 1}
