"""Peers that don't read what they are told, or say more than anybody reads: memory stays bounded, and they are told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from commonweight.events import Event
from commonweight.identity import NodeIdentity
from commonweight.wire.channel import join_address, open_channel, serve
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import control_pb2_grpc
from commonweight.wire.tls import make_certificate, server_credentials
from coordinator import service
from coordinator.members import Send
from coordinator.service import Admission, ControlService

pytestmark = pytest.mark.asyncio
COORDINATOR, NODE = (make_certificate(NodeIdentity(bytes([n]) * 32)) for n in (1, 2))
LARGE = pb.CoordinatorMessage(formation=pb.Formation(next=[pb.Neighbour(certificate=bytes(1 << 20))]))
DEADLINE_S = 20.0


@dataclass
class Attending:
    """Whoever has come: takes what it says when the test lets it."""

    send: Send
    node: str = NODE.peer_id
    free: asyncio.Event = field(default_factory=asyncio.Event)
    said: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, message: pb.NodeMessage) -> None:
        self.said += 1
        await self.free.wait()

    def leave(self) -> None:
        self.left.set()


class Reception:
    """Lets everybody in."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[Attending] = asyncio.Queue()

    async def introduce(self, message: pb.NodeMessage, peer_id: str, send: Send) -> Attending:
        attending = Attending(send)
        self.came.put_nowait(attending)
        return attending


@asynccontextmanager
async def attached() -> AsyncIterator[tuple[Attending, Any]]:
    """A node's stream, at the coordinator's end and at its own."""
    admission, reception = Admission(frozenset(), frozenset()), Reception()
    admission.enrol(NODE.der)
    servicer = ControlService(admission, reception)  # type: ignore[arg-type]
    pair = (control_pb2_grpc.add_ControlServicer_to_server, servicer)
    server, port = await serve([pair], "127.0.0.1:0", server_credentials(COORDINATOR, admission.expected))
    try:
        async with (
            asyncio.timeout(DEADLINE_S),
            open_channel(join_address("127.0.0.1", port), NODE, COORDINATOR.der) as channel,
        ):
            call = control_pb2_grpc.ControlStub(channel).Attach()
            await call.write(pb.NodeMessage(heartbeat=pb.Heartbeat()))
            yield await reception.came.get(), call
    finally:
        await server.stop(None)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    heard: list[Event] = []
    monkeypatch.setattr("commonweight.events._sinks", [heard.append])
    return heard


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_OUTBOX", 8)
    monkeypatch.setattr(service, "SILENCE_S", 1.0)


async def read_to_the_end(call: Any) -> tuple[int, tuple[grpc.StatusCode, str]]:
    """How many messages came, and how the stream ended."""
    count = 0
    try:
        while await call.read() is not grpc.aio.EOF:
            count += 1
    except grpc.aio.AioRpcError:
        pass  # that end is what is asked for
    return count, (await call.code(), await call.details())


async def beat(call: Any) -> None:
    """It says that it is there, and reads nothing."""
    try:
        while True:
            await call.write(pb.NodeMessage(heartbeat=pb.Heartbeat()))
            await asyncio.sleep(0.1)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return


async def test_who_reads_nothing_is_hung_up_on_though_it_goes_on_talking(events: list[Event]) -> None:
    async with attached() as (attending, call):
        attending.free.set()
        beating = asyncio.create_task(beat(call))
        sent = 0
        while not any(event.name == "node.failed" for event in events):
            attending.send(LARGE)
            sent += 1
            await asyncio.sleep(0.01)  # so that gRPC takes what it can
        assert sent < 16, "so many were kept for it: what is in the outbox, and on the way"
        await attending.left.wait()
        for _ in range(100):
            attending.send(LARGE)  # it isn't there any more
        read, (code, details) = await read_to_the_end(call)
        assert (code, details) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "[WIRE_REFUSED] The node left 8 messages unread.",
        )
        assert read <= sent - 8, "what waited in the outbox was dropped"
        await beating
    (failed,) = [event for event in events if event.name == "node.failed"]
    assert (failed.fields["code"], failed.fields["message"]) == ("WIRE_REFUSED", "The node left 8 messages unread.")


async def test_who_says_more_than_is_taken_waits() -> None:
    """What a node has said and nobody has taken is bounded by gRPC's window, not by its patience."""
    large = pb.NodeMessage(report=pb.SignedReport(signature=bytes(1 << 20)))
    async with attached() as (attending, call):
        written = 0
        try:
            async with asyncio.timeout(1):
                while True:
                    await call.write(large)
                    written += 1
        except TimeoutError:
            pass
        assert attending.said == 1
        assert written < 32, "MiB"
