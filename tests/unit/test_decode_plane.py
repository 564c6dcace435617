"""A decode process whose next stage, coordinator or versions aren't as they should be."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import grpc
import pytest

from commonweight.identity import NodeIdentity, recover_address
from commonweight.model.inference import InferenceStage
from commonweight.rules.answer import Answer, answer_receipt
from commonweight.rules.canonical import canonical_json
from commonweight.rules.receipt import Domain
from commonweight.wire.channel import serve
from commonweight.wire.generated import control_pb2, decode_pb2_grpc, worker_pb2
from commonweight.wire.generated import decode_pb2 as pb
from commonweight.wire.messages import answer_from_proto, answer_to_proto
from commonweight.wire.tls import make_certificate, server_credentials
from node.answers import OpenTrace, answer_path
from node.decode_plane import DecodePlane, Version
from node.decoder import MAX_UNWRITTEN, Decoder
from node.decoding import DecodeConfig, Decoding
from node.published import META_FILE, PARAMETERS_FILE, version_path
from node.sessions import Room
from tests.unit.tiny import tiny_spec

pytestmark = pytest.mark.asyncio

SPEC = tiny_spec(stages=2)
IDENTITY = NodeIdentity(b"\x21" * 32)
MINE, NEXT = make_certificate(IDENTITY), make_certificate(NodeIdentity(b"\x22" * 32))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> "asyncio.Queue[tuple[str, str]]":
    """Links that were lost: code and message."""
    said: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    monkeypatch.setattr(
        "node.decode_plane.emit", lambda _name, /, **fields: said.put_nowait((fields["code"], fields["message"]))
    )
    monkeypatch.setattr("node.decode_plane.os._exit", lambda code: said.put_nowait(("exit", str(code))))
    return said


@asynccontextmanager
async def linked_to(address: str) -> AsyncIterator[None]:
    """The first stage, told that the next one is there."""
    ended: list[OpenTrace] = []
    version = Version.of(InferenceStage.initial(SPEC, 0), 30, Room(1 << 20), MINE, time.monotonic, ended.append)
    after = control_pb2.Neighbour(peer_id=NEXT.peer_id, data_address=address, certificate=NEXT.der)
    try:
        async with asyncio.timeout(30):
            await version.meet(control_pb2.DecodePeers(round=30, next=after))
            yield
    finally:
        await version.drop()


class OddStage(decode_pb2_grpc.StageDecodeServicer):
    """Begins with a failure instead of a hello, and keeps the stream open."""

    async def Feed(self, requests: AsyncIterator[pb.DecodeFrame], context: grpc.aio.ServicerContext) -> None:
        await context.read()
        await context.write(pb.DecodeAnswer(failed=pb.SessionFailed(session=b"s" * 16)))
        await asyncio.Event().wait()


async def test_a_next_stage_that_doesn_t_begin_with_a_hello_is_left_and_tried_again(
    told: "asyncio.Queue[tuple[str, str]]",
) -> None:
    server, port = await serve(
        [(decode_pb2_grpc.add_StageDecodeServicer_to_server, OddStage())],
        "127.0.0.1:0",
        server_credentials(NEXT, lambda: [MINE.der]),
    )
    try:
        async with linked_to(f"127.0.0.1:{port}"):
            for _ in range(2):
                code, message = await told.get()
                assert code == "WIRE_MALFORMED"
                assert "began with failed" in message
    finally:
        await server.stop(grace=0)


async def test_an_address_that_is_none_doesn_t_end_the_process(told: "asyncio.Queue[tuple[str, str]]") -> None:
    async with linked_to("nowhere"):
        for _ in range(2):
            code, message = await told.get()
            assert (code, "The address of stage 1" in message) == ("WIRE_MALFORMED", True), message


class Link:
    """To the control process."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: Any) -> None:
        self.sent.put_nowait(message)


async def test_a_version_that_was_never_served_makes_way_before_the_one_that_is() -> None:
    link: Any = Link()
    decoder, plane = Decoder(link), DecodePlane(MINE)
    decoder._plane = plane

    async def load(round_: int) -> list[int]:
        spec = canonical_json(SPEC.model_dump())
        await decoder._load(worker_pb2.DecoderLoad(spec=spec, stage=1, round=round_, device="cpu", cache_bytes=1))
        assert link.sent.get_nowait().loaded.round == round_
        return sorted(plane.versions)

    async def serve_version(round_: int) -> None:
        await decoder._meet(control_pb2.DecodePeers(round=round_))

    assert await load(10) == [10]
    await serve_version(10)
    assert await load(20) == [10, 20]
    assert await load(30) == [10, 30]  # some stage couldn't load 20
    await serve_version(30)
    assert await load(40) == [30, 40]


class Process:
    """A decode process that says what it is told to say."""

    port = 1

    def __init__(self) -> None:
        self.commands: asyncio.Queue[worker_pb2.DecoderCommand] = asyncio.Queue()
        self.events: asyncio.Queue[worker_pb2.DecoderEvent] = asyncio.Queue()

    async def send(self, command: worker_pb2.DecoderCommand) -> None:
        self.commands.put_nowait(command)

    async def receive(self) -> worker_pb2.DecoderEvent:
        return await self.events.get()

    async def stop(self) -> None:
        pass


async def test_the_control_process_keeps_the_version_that_is_served(tmp_path: Path) -> None:
    config = DecodeConfig(tmp_path, "127.0.0.1:0", None, 1, "cpu")
    assignment = control_pb2.Assignment(stage=0)

    process = Process()
    start = AsyncMock(return_value=process)

    async def publish(decoding: Decoding, round_: int, needed: tuple[int, ...] = ()) -> list[int]:
        checkpoint = version_path(tmp_path / "stage-0", round_)
        checkpoint.mkdir(parents=True, exist_ok=True)
        for name in (META_FILE, PARAMETERS_FILE):
            (checkpoint / name).touch()
        await decoding.publish(assignment, control_pb2.Publish(round=round_, load=True), needed)
        kept = (tmp_path / "published" / "stage-0").iterdir()
        return sorted(int(path.name.removeprefix("round-")) for path in kept)

    decoding = Decoding(config, IDENTITY, start)
    assert await publish(decoding, 10) == [10]
    await decoding.meet(control_pb2.DecodePeers(round=10))
    assert await publish(decoding, 20) == [10, 20]
    assert await publish(decoding, 30) == [10, 20, 30]
    assert await publish(decoding, 40) == [10, 30, 40]
    running = asyncio.create_task(decoding.run())
    async with asyncio.timeout(30):
        commands = [await process.commands.get() for _ in range(3)]
    assert [command.load.round for command in commands] == [10, 40, 0]
    assert commands[2].peers.round == 10
    assert commands[0].load.answers_dir == str(tmp_path / "answers" / "stage-0")
    running.cancel()
    restarted = Decoding(config, IDENTITY, start)  # it is told of the served and of the published version again
    assert await publish(restarted, 10) == [10, 30, 40]
    assert await publish(restarted, 50) == [10, 40, 50]
    await restarted.meet(control_pb2.DecodePeers(round=50))
    assert await publish(restarted, 60, needed=(10,)) == [10, 40, 50, 60]
    assert await publish(restarted, 70) == [50, 60, 70]


NONCE = b"n" * 16
PART = Answer(10, b"s" * 16, NONCE, 2, 3, b"i" * 32, b"t" * 32, b"p" * 32, 0.5, 7)
ASSIGNMENT = control_pb2.Assignment(spec=b"", stage=1, model_id=b"m" * 32, chain_id=1, settlement="0x" + "5b" * 20)


async def test_a_part_is_signed_and_said_again_until_it_is_recorded(tmp_path: Path) -> None:
    process, said = Process(), asyncio.Queue[control_pb2.NodeMessage]()
    decoding = Decoding(
        DecodeConfig(tmp_path, "127.0.0.1:0", None, 1, "cpu"), IDENTITY, AsyncMock(return_value=process)
    )
    decoding.begin(ASSIGNMENT, said.put_nowait)
    decoding._wanted.set()  # as by a version that is to be loaded
    running = asyncio.create_task(decoding.run())
    try:
        async with asyncio.timeout(30):
            process.events.put_nowait(worker_pb2.DecoderEvent(answer=answer_to_proto(PART)))
            signed = (await said.get()).answer
            assert answer_from_proto(signed.part) == PART
            receipt = answer_receipt(b"m" * 32, 1, PART.version, PART.session, PART.prompt_tokens, PART.fed, PART.trace)
            digest = receipt.digest(Domain(1, ASSIGNMENT.settlement))
            assert recover_address(digest, signed.signature) == IDENTITY.address
            decoding.begin(ASSIGNMENT, said.put_nowait)  # the next attachment
            assert (await said.get()).answer == signed
        decoding.recorded(control_pb2.AnswerRecorded(session=PART.session))
        decoding.begin(ASSIGNMENT, said.put_nowait)
        assert said.empty()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_trace_is_written_and_told_and_a_full_disk_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, lost = Link(), asyncio.Queue[str]()
    monkeypatch.setattr("node.answers.emit", lambda name, **fields: lost.put_nowait(f"{name} {fields['session']}"))
    decoder = Decoder(cast(Any, link))
    decoder._plane = DecodePlane(MINE)
    spec = canonical_json(SPEC.model_dump())
    load = worker_pb2.DecoderLoad(spec=spec, stage=1, device="cpu", cache_bytes=1, answers_dir=str(tmp_path))
    await decoder._load(load)

    def trace(session: bytes) -> OpenTrace:
        trace = OpenTrace(10, session, NONCE, 2, 0.5, 7)
        trace.take([1, 258], b"code")
        trace.choose(9, 0.25)
        return trace

    writing = asyncio.create_task(decoder._write_traces())
    try:
        async with asyncio.timeout(30):
            for session in (b"a" * 16, b"a" * 16, b"b" * 16):  # the second takes the first one's id
                decoder._keep(trace(session))
            assert await lost.get() == f"answer.lost {'61' * 16}"
            _, first, second = [await link.sent.get() for _ in range(3)]
            decoder._reserve_bytes = 1 << 62
            decoder._keep(trace(b"c" * 16))
            assert await lost.get() == f"answer.lost {'63' * 16}"
    finally:
        writing.cancel()
    ids, choice = struct.pack("<II", 1, 258), struct.pack("<If", 9, 0.25)
    assert answer_path(tmp_path, 10, b"b" * 16).read_bytes() == ids + b"code" + choice
    assert not answer_path(tmp_path, 10, b"c" * 16).exists()
    hashes = (sha256(piece).digest() for piece in (ids, b"code", choice))
    assert answer_from_proto(first.answer) == Answer(10, b"a" * 16, NONCE, 2, 2, *hashes, temperature=0.5, seed=7)
    assert second.answer.session == b"b" * 16


async def test_traces_that_the_disk_is_too_slow_for_are_lost_and_never_the_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    monkeypatch.setattr("node.answers.emit", lambda name, **fields: lost.append(fields["session"]))
    decoder = Decoder(cast(Any, Link()))
    decoder._answers = tmp_path
    for number in range(MAX_UNWRITTEN + 1):
        decoder._keep(OpenTrace(10, number.to_bytes(16), NONCE, 1, 0.0, 0, fed=1))
    assert lost == [MAX_UNWRITTEN.to_bytes(16).hex()]


async def test_traces_wait_for_the_disk_by_their_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    monkeypatch.setattr("node.answers.emit", lambda name, **fields: lost.append(fields["session"]))
    monkeypatch.setattr("node.decoder.MAX_UNWRITTEN_BYTES", 10)
    link = Link()
    decoder = Decoder(cast(Any, link))
    decoder._answers = tmp_path

    def keep(session: bytes, size: int) -> None:
        decoder._keep(OpenTrace(10, session * 16, NONCE, 1, 0.0, 0, fed=1, taken=bytearray(size)))

    for session, size in ((b"a", 99), (b"b", 1)):  # one alone may be larger
        keep(session, size)
    assert lost == ["62" * 16]
    writing = asyncio.create_task(decoder._write_traces())
    try:
        async with asyncio.timeout(30):
            for session, size in ((b"c", 6), (b"d", 4)):
                await link.sent.get()
                keep(session, size)
            await link.sent.get()
    finally:
        writing.cancel()
    assert lost == ["62" * 16]
    assert decoder._unwritten_bytes == 0
