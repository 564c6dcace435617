"""How who works for a coordinator stays attached to it: one stream at a time, opened anew for as long as it takes."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc

from commonweight.errors import PeerUnreachable
from commonweight.events import emit
from commonweight.wire.channel import open_channel
from commonweight.wire.enrolment import CALL_S, enrol
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import control_pb2_grpc
from commonweight.wire.status import wire_error
from commonweight.wire.tls import Certificate

HEARTBEAT_S = 1.0
SILENCE_S = 10.0
"""A coordinator that says nothing for this long is lost; it sends a heartbeat every second."""
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0


class Finished(Exception):
    """The coordinator has no more work, ever."""


class Attachment:
    """An open stream; a heartbeat goes out whenever nothing else is said."""

    def __init__(self, call: Any, outbox: "asyncio.Queue[pb.NodeMessage]") -> None:
        """Use `attach`."""
        self._call = call
        self._outbox = outbox

    def send(self, message: pb.NodeMessage) -> None:
        """Say this, after what was said before."""
        self._outbox.put_nowait(message)

    async def receive(self) -> pb.CoordinatorMessage:
        """What the coordinator says next, other than that it is there.

        Raises PeerUnreachable where it is silent or ends the stream, Finished where it says that all is done.
        """
        while True:
            try:
                message = await asyncio.wait_for(self._call.read(), SILENCE_S)
                if message is grpc.aio.EOF:
                    raise PeerUnreachable(f"The coordinator ended the stream: {await self._call.details()}")
            except TimeoutError:
                raise PeerUnreachable(f"The coordinator was silent for {SILENCE_S:g} s.") from None
            except grpc.aio.AioRpcError as error:
                raise PeerUnreachable(wire_error(error, "The coordinator").args[0]) from error
            if message.HasField("finished"):
                raise Finished
            if not message.HasField("heartbeat"):
                received: pb.CoordinatorMessage = message
                return received


@asynccontextmanager
async def attach(coordinator: str, certificate: Certificate, join: pb.NodeMessage) -> AsyncIterator[Attachment]:
    """A stream to the coordinator at "PEERID@host:port", begun with `join`. Raises as `enrol`."""
    enrolled = await enrol(coordinator, certificate)
    async with open_channel(enrolled.address, certificate, enrolled.certificate) as channel:
        try:
            async with asyncio.timeout(CALL_S):
                await channel.channel_ready()
        except TimeoutError:
            raise PeerUnreachable(
                f"The coordinator {coordinator} didn't take the connection within {CALL_S:g} s."
            ) from None
        outbox: asyncio.Queue[pb.NodeMessage] = asyncio.Queue()
        outbox.put_nowait(join)
        yield Attachment(control_pb2_grpc.ControlStub(channel).Attach(_messages(outbox)), outbox)


async def _messages(outbox: "asyncio.Queue[pb.NodeMessage]") -> AsyncIterator[pb.NodeMessage]:
    while True:
        try:
            yield await asyncio.wait_for(outbox.get(), HEARTBEAT_S)
        except TimeoutError:
            yield pb.NodeMessage(heartbeat=pb.Heartbeat())


class Backoff:
    """The waits for a coordinator that is gone, each twice as long as the one before."""

    def __init__(self) -> None:
        self._wait_s = FIRST_BACKOFF_S

    def reset(self) -> None:
        """The coordinator has taken us."""
        self._wait_s = FIRST_BACKOFF_S

    async def wait(self, error: PeerUnreachable) -> None:
        """Say that it is lost, and wait."""
        emit("coordinator.lost", code=error.code, message=error.args[0], retry_s=self._wait_s)
        await asyncio.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, MAX_BACKOFF_S)


async def until_one_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, and cancel the others. Raises what it raises."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all until each has ended, or one fails: then the others are cancelled. Raises the first failure itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for part in parts:
                tasks.create_task(part)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
