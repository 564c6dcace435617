"""The streams of a decode process: from gateways and the stage before, to the stage after, and tokens to gateways.

What comes in is computed at once, on the event loop: a token is milliseconds, and a thread in between would cost as
much as a link.
"""

import asyncio
import os
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from commonweight.errors import (
    CommonweightError,
    ConfigError,
    IdentityMismatch,
    MalformedMessage,
    NotServed,
    PeerUnreachable,
    Refused,
    StageLost,
    WireError,
)
from commonweight.events import emit
from commonweight.model.inference import InferenceStage
from commonweight.rules.spec import ModelSpec
from commonweight.wire.channel import open_channel, serve
from commonweight.wire.decode import (
    DECODE_FRAME_BYTES,
    DECODE_PING_TIMEOUT_MS,
    OPEN_S,
    check_hello,
    check_id,
)
from commonweight.wire.generated import control_pb2, decode_pb2_grpc
from commonweight.wire.generated import decode_pb2 as pb
from commonweight.wire.status import refuse, wire_error
from commonweight.wire.tls import Certificate, peer_id_of, peer_of, server_credentials
from node.answers import OpenTrace
from node.sessions import Feeder, Room, Sessions

MAX_UNSENT, MAX_UNSENT_BYTES = 4096, 64 << 20
"""Messages, and bytes of them, that wait for a peer that doesn't read; past either it is hung up on."""
RECONNECT_S = 0.2
"""Between attempts to open the stream to the next stage."""


class Outbox:
    """What is to be sent on one stream, in order."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Any, int]] = asyncio.Queue(MAX_UNSENT)
        """Messages, and their sizes in bytes."""
        self._bytes = 0
        self._pump: asyncio.Task[None] | None = None

    def put(self, message: Any) -> None:
        """Send it without waiting. A peer that leaves too much unread is hung up on."""
        size = message.ByteSize()
        if self._queue.full() or self._bytes + size > MAX_UNSENT_BYTES:
            self.clear()
            if self._pump is not None:
                self._pump.cancel()
        else:
            self._queue.put_nowait((message, size))
            self._bytes += size

    def clear(self) -> None:
        """Forget what hasn't been sent."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._bytes = 0

    def start(self, write: Callable[[Any], Coroutine[Any, Any, None]]) -> "asyncio.Task[None]":
        """Send from now on. The task ends when the stream does, or when the peer is hung up on."""

        async def pump() -> None:
            with suppress(asyncio.InvalidStateError):  # the call has ended; who reads from it knows why
                while True:
                    message, size = await self._queue.get()
                    self._bytes -= size
                    await write(message)

        self._pump = asyncio.create_task(pump())
        return self._pump


@dataclass(eq=False)
class Version:
    """A version of the model on this stage, and who it speaks with."""

    sessions: Sessions
    certificate: Certificate
    dropped: asyncio.Event = field(default_factory=asyncio.Event)
    is_met: bool = False
    """It was told its neighbours: all stages had it, so it is served, or was."""
    previous: bytes = b""
    """The certificate of the stage before."""
    _next: control_pb2.Neighbour | None = None
    _outbox: Outbox = field(default_factory=Outbox)
    _link: "asyncio.Task[None] | None" = None

    @classmethod
    def of(
        cls,
        stage: InferenceStage,
        round_: int,
        room: Room,
        certificate: Certificate,
        clock: Callable[[], float],
        keep: Callable[[OpenTrace], None],
    ) -> "Version":
        """Without neighbours yet."""
        outbox = Outbox()
        return cls(Sessions(stage, round_, room, clock, outbox.put, keep), certificate, _outbox=outbox)

    @property
    def stage(self) -> int:
        """Which one this is."""
        return self.sessions.stage.index

    @property
    def spec(self) -> ModelSpec:
        """Of the model."""
        return self.sessions.stage.spec

    async def meet(self, peers: control_pb2.DecodePeers) -> None:
        """Accept this stage before, and speak with this stage after."""
        self.is_met, self.previous = True, peers.previous.certificate
        after = peers.next if peers.HasField("next") else None
        if after != self._next:
            await self._unlink()
            self._next = after
            if after is not None:
                self._link = asyncio.create_task(self._keep_linked(after))
                self._link.add_done_callback(_end_on_bug)

    async def drop(self) -> None:
        """End all of its sessions and streams."""
        self.sessions.lose_next(NotServed(f"The version of round {self.sessions.round} isn't served any more."))
        self.dropped.set()
        await self._unlink()

    async def _unlink(self) -> None:
        task, self._link = self._link, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.sessions.lose_next(StageLost(f"Stage {self.stage + 1} is another process now. Ask again."))
        self._outbox.clear()

    async def _keep_linked(self, after: control_pb2.Neighbour) -> None:
        """The stream to the next stage, opened again whenever it ends. Sessions that come meanwhile wait for it."""
        where = f"Stage {self.stage + 1} ({after.peer_id} at {after.data_address})"
        while True:
            try:
                await self._speak(after, where)
            except WireError as error:
                emit("decode.link_lost", stage=self.stage + 1, code=error.code, message=error.args[0])
                self.sessions.lose_next(StageLost(error.args[0]))
                self._outbox.clear()
            await asyncio.sleep(RECONNECT_S)

    async def _speak(self, after: control_pb2.Neighbour, where: str) -> None:
        """One stream, from its hello to its end. Raises WireError, always."""
        if (owner := peer_id_of(after.certificate)) != after.peer_id:
            raise IdentityMismatch(f"The next stage's certificate is of {owner}, not of {after.peer_id}.")
        try:
            channel = open_channel(
                after.data_address,
                self.certificate,
                after.certificate,
                max_message_bytes=DECODE_FRAME_BYTES,
                ping_timeout_ms=DECODE_PING_TIMEOUT_MS,
            )
        except ConfigError as error:
            raise MalformedMessage(f"The address of stage {self.stage + 1}: {error.args[0]}") from error
        try:
            async with asyncio.timeout(OPEN_S):
                await channel.channel_ready()
                call = decode_pb2_grpc.StageDecodeStub(channel).Feed()
                await call.write(pb.DecodeFrame(hello=self.hello(self.stage)))
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise PeerUnreachable(f"{where} ended the stream before a hello: {await call.details()}")
            if (kind := answer.WhichOneof("body")) != "hello":
                raise MalformedMessage(f"{where} began with {kind}, not with a hello.")
            check_hello(answer.hello, self.spec, self.sessions.round, self.stage + 1)
            await until_first(self._outbox.start(call.write), self._take_failures(call))
            raise PeerUnreachable(f"{where} ended the stream: {await call.details()}")
        except grpc.aio.AioRpcError as error:
            raise wire_error(error, where) from error
        except TimeoutError:
            raise PeerUnreachable(f"{where} didn't open a stream within {OPEN_S:g} s.") from None
        finally:
            await channel.close()

    async def _take_failures(self, call: Any) -> None:
        while (answer := await call.read()) is not grpc.aio.EOF:
            if answer.WhichOneof("body") != "failed":
                raise MalformedMessage(f"Stage {self.stage + 1} doesn't send {answer.WhichOneof('body')} here.")
            self.sessions.take_failure(answer.failed)

    async def until_dropped(self) -> None:
        """Raises NotServed once it is dropped."""
        await self.dropped.wait()
        raise NotServed(f"The version of round {self.sessions.round} isn't served any more. Ask for the route again.")

    def hello(self, stage: int) -> pb.DecodeHello:
        """This stage's, or of whoever speaks for `stage`."""
        return pb.DecodeHello(spec_hash=self.spec.spec_hash, round=self.sessions.round, stage=stage)


@dataclass
class DecodePlane:
    """The server side of all versions. All methods run on the event loop, but `admitted`."""

    certificate: Certificate
    versions: dict[int, Version] = field(default_factory=dict)
    gateways: frozenset[bytes] = frozenset()
    """Certificates (DER)."""
    _server: Any = None

    async def listen(self, address: str) -> int:
        """Serve; returns the port."""
        self._server, port = await serve(
            [(decode_pb2_grpc.add_StageDecodeServicer_to_server, _Service(self))],
            address,
            server_credentials(self.certificate, self.admitted),
            max_message_bytes=DECODE_FRAME_BYTES,
            ping_timeout_ms=DECODE_PING_TIMEOUT_MS,
        )
        return port

    async def close(self) -> None:
        """End everything."""
        for version in self.versions.values():
            await version.drop()
        if self._server is not None:
            await self._server.stop(grace=0)

    def admitted(self) -> Iterator[bytes]:
        """The certificates (DER) that may connect. Called from gRPC's threads, too."""
        yield from self.gateways
        yield from {version.previous for version in list(self.versions.values())} - {b""}

    def find(self, hello: pb.DecodeHello) -> Version:
        """The version that a hello asks for. Raises NotServed."""
        if (version := self.versions.get(hello.round)) is None:
            loaded = ", ".join(map(str, sorted(self.versions))) or "none"
            raise NotServed(f"The version of round {hello.round} isn't served here; served: {loaded}.")
        return version


class _Service(decode_pb2_grpc.StageDecodeServicer):
    def __init__(self, plane: DecodePlane) -> None:
        self._plane = plane

    async def Feed(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[pb.DecodeFrame], context: grpc.aio.ServicerContext
    ) -> None:
        """A stream of steps, from its hello to its end."""
        try:
            try:
                async with asyncio.timeout(OPEN_S):
                    first = await context.read()
                if first is grpc.aio.EOF or first.WhichOneof("body") != "hello":
                    raise MalformedMessage("A stream of steps begins with a hello.")
                version, feeder, outbox = self._admit_feeder(first.hello, context)
            except TimeoutError:
                raise Refused(f"No hello came within {OPEN_S:g} s.") from None
            await context.write(pb.DecodeAnswer(hello=version.hello(version.stage)))
            try:
                await until_first(
                    outbox.start(context.write), self._read(context, version, feeder), version.until_dropped()
                )
            finally:
                version.sessions.forget_feeder(feeder)
        except WireError as error:
            await self._refuse(context, error)

    async def Tokens(  # noqa: N802 - gRPC's name
        self, request: pb.DecodeHello, context: grpc.aio.ServicerContext
    ) -> None:
        """A gateway's stream of tokens, from its hello to its end."""
        try:
            version = self._plane.find(request)
            check_hello(request, version.spec, version.sessions.round, version.stage)
            check_id(request.client, "client's id")
            if not version.sessions.stage.is_last:
                raise Refused(f"Tokens come from the last stage; this is stage {version.stage}.")
            gateway = peer_of(context, lambda: self._plane.gateways)
            key = (gateway, request.client)
            if key in version.sessions.listeners:
                raise Refused("This client listens already.")
            outbox = Outbox()
            version.sessions.listeners[key] = outbox
            try:
                await context.write(pb.DecodeAnswer(hello=version.hello(version.stage)))
                await until_first(outbox.start(context.write), version.until_dropped())
            finally:
                version.sessions.forget_listener(*key)
        except WireError as error:
            await self._refuse(context, error)

    def _admit_feeder(self, hello: pb.DecodeHello, context: grpc.aio.ServicerContext) -> tuple[Version, Feeder, Outbox]:
        version, outbox = self._plane.find(hello), Outbox()
        if version.stage == 0:
            gateway = peer_of(context, lambda: self._plane.gateways)
            check_hello(hello, version.spec, version.sessions.round, 0)
            check_id(hello.client, "client's id")
            return version, Feeder(outbox, gateway, hello.client), outbox
        peer_of(context, lambda: [version.previous])
        check_hello(hello, version.spec, version.sessions.round, version.stage - 1)
        return version, Feeder(outbox), outbox

    @staticmethod
    async def _read(context: grpc.aio.ServicerContext, version: Version, feeder: Feeder) -> None:
        take = version.sessions.take
        while (frame := await context.read()) is not grpc.aio.EOF:
            take(feeder, frame)

    @staticmethod
    async def _refuse(context: grpc.aio.ServicerContext, error: CommonweightError) -> None:
        emit("decode.refused", peer=context.peer(), code=error.code, message=error.args[0])
        await refuse(context, error)


def _end_on_bug(task: "asyncio.Task[None]") -> None:
    """Without this task the process would live on and do nothing."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)


async def until_first(*parts: "asyncio.Task[None] | Coroutine[Any, Any, Any]") -> None:
    """Run until one of them ends, however it does; the others are cancelled."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
