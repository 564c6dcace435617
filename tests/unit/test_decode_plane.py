"""A decode process whose next stage, coordinator or versions aren't as they should be."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest

from commonweight.identity import NodeIdentity
from commonweight.model.inference import InferenceStage
from commonweight.rules.canonical import canonical_json
from commonweight.wire.channel import serve
from commonweight.wire.generated import control_pb2, decode_pb2_grpc, worker_pb2
from commonweight.wire.generated import decode_pb2 as pb
from commonweight.wire.tls import make_certificate, server_credentials
from node.decode_plane import DecodePlane, Version
from node.decoder import Decoder
from node.decoding import DecodeConfig, Decoding
from node.published import META_FILE, PARAMETERS_FILE, version_path
from node.sessions import Room
from tests.unit.tiny import tiny_spec

pytestmark = pytest.mark.asyncio

SPEC = tiny_spec(stages=2)
MINE, NEXT = (make_certificate(NodeIdentity(bytes([n]) * 32)) for n in (0x21, 0x22))


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
    version = Version.of(InferenceStage.initial(SPEC, 0), 30, Room(1 << 20), MINE, time.monotonic)
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
        self.sent: list[Any] = []

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_a_version_that_was_never_served_makes_way_before_the_one_that_is() -> None:
    link: Any = Link()
    decoder, plane = Decoder(link), DecodePlane(MINE)
    decoder._plane = plane

    async def load(round_: int) -> list[int]:
        spec = canonical_json(SPEC.model_dump())
        await decoder._load(worker_pb2.DecoderLoad(spec=spec, stage=1, round=round_, device="cpu", cache_bytes=1))
        assert link.sent[-1].loaded.round == round_
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
    """A decode process that does nothing."""

    def __init__(self) -> None:
        self.commands: asyncio.Queue[worker_pb2.DecoderCommand] = asyncio.Queue()

    async def send(self, command: worker_pb2.DecoderCommand) -> None:
        self.commands.put_nowait(command)

    async def receive(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        pass


async def test_the_control_process_keeps_the_version_that_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DecodeConfig(tmp_path, "127.0.0.1:0", None, 1, "cpu", 1)
    assignment = control_pb2.Assignment(stage=0)

    async def publish(decoding: Decoding, round_: int) -> list[int]:
        checkpoint = version_path(tmp_path / "stage-0", round_)
        checkpoint.mkdir(parents=True, exist_ok=True)
        for name in (META_FILE, PARAMETERS_FILE):
            (checkpoint / name).touch()
        await decoding.publish(assignment, control_pb2.Publish(round=round_, load=True))
        kept = (tmp_path / "published" / "stage-0").iterdir()
        return sorted(int(path.name.removeprefix("round-")) for path in kept)

    decoding = Decoding(config, MINE)
    assert await publish(decoding, 10) == [10]
    await decoding.meet(control_pb2.DecodePeers(round=10))
    assert await publish(decoding, 20) == [10, 20]
    assert await publish(decoding, 30) == [10, 30]
    process = Process()
    monkeypatch.setattr("node.decoding.DecoderProcess.start", AsyncMock(return_value=process))
    running = asyncio.create_task(decoding.run())
    async with asyncio.timeout(30):
        commands = [await process.commands.get() for _ in range(3)]
    assert [command.load.round for command in commands] == [10, 30, 0]
    assert commands[2].peers.round == 10
    running.cancel()
    restarted = Decoding(config, MINE)  # it is told of the served and of the published version again
    assert await publish(restarted, 10) == [10, 30]
    assert await publish(restarted, 40) == [10, 40]
    await restarted.meet(control_pb2.DecodePeers(round=40))
    assert await publish(restarted, 50) == [40, 50]
