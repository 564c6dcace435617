"""The data plane of a worker: one stream to the next stage, one from the previous, on the I/O thread's event loop.

Both are of one generation, and end with it. See flow.py for what they carry.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from commonweight.errors import (
    CommonweightError,
    IdentityMismatch,
    MalformedMessage,
    PeerUnreachable,
    UnplannedMessage,
    WireError,
)
from commonweight.events import emit
from commonweight.rules.stages import in_flight_limit
from commonweight.wire.channel import PIPE_FRAME_BYTES, PIPE_PING_TIMEOUT_MS, open_channel, serve
from commonweight.wire.generated import control_pb2, pipe_pb2_grpc
from commonweight.wire.generated import pipe_pb2 as pb
from commonweight.wire.pipe import Assembled
from commonweight.wire.status import refuse, wire_error
from commonweight.wire.tls import Certificate, peer_id_of, peer_of, server_credentials
from node.flow import Flow, Pipe, StagePlan

OPEN_S = 120.0
"""For a pipe to open, from the formation on: the neighbour may still be loading its stage."""


@dataclass
class DataPlane:
    """Both pipes of a stage. All methods run on the event loop."""

    certificate: Certificate
    on_activation: Callable[[int, Assembled], None]
    on_gradient: Callable[[int, Assembled], None]
    on_break: Callable[[int, CommonweightError], None]
    """(generation, error); called once for each generation that can't go on."""
    plan: StagePlan | None = None
    previous: Pipe | None = None
    next: Pipe | None = None
    _formation: control_pb2.Formation | None = None
    _refused: WireError | None = None
    """Why the previous stage's hello for this formation isn't accepted."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _server: Any = None

    async def listen(self, address: str) -> int:
        """Serve the previous stage; returns the port."""
        self._server, port = await serve(
            [(pipe_pb2_grpc.add_StagePipeServicer_to_server, _Service(self))],
            address,
            server_credentials(self.certificate, self.admitted),
            max_message_bytes=PIPE_FRAME_BYTES,
            ping_timeout_ms=PIPE_PING_TIMEOUT_MS,
        )
        return port

    async def form(self, formation: control_pb2.Formation) -> None:
        """Open the pipes of this generation. Raises WireError where they don't open in time."""
        await self.close_pipes()
        async with self._changed:
            self._formation = formation
            self._changed.notify_all()
        try:
            async with asyncio.timeout(OPEN_S):
                if formation.HasField("next"):
                    await self._connect(formation)
                if formation.HasField("previous"):
                    async with self._changed:
                        await self._changed.wait_for(lambda: self.previous is not None or self._refused is not None)
                        if self._refused is not None:
                            raise self._refused
        except TimeoutError:
            waits_for = formation.next if formation.HasField("next") and self.next is None else formation.previous
            raise PeerUnreachable(
                f"No pipe with {waits_for.peer_id} at {waits_for.data_address} within {OPEN_S:g} s. Check that this "
                "address can be reached from here and that nothing filters the port."
            ) from None

    async def close_pipes(self) -> None:
        """End the pipes of the present generation, without calling on_break."""
        self._formation = self.previous = self.next = self._refused = None
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End everything."""
        await self.close_pipes()
        if self._server is not None:
            await self._server.stop(grace=0)

    def send_down(self, frames: Sequence[pb.PipeFrame]) -> None:
        """One microbatch's activation, to the next stage."""
        if self.next is not None:
            self.next.flow.grant()  # a gradient answers an activation
            self.next.put(frames)

    def send_up(self, frames: Sequence[pb.PipeFrame]) -> None:
        """One microbatch's gradient, to the previous stage."""
        if self.previous is not None:
            self.previous.flow.grant()
            self.previous.put(frames)

    async def _connect(self, formation: control_pb2.Formation) -> None:
        plan = self._need_plan()
        neighbour = formation.next
        if (owner := peer_id_of(neighbour.certificate)) != neighbour.peer_id:
            raise IdentityMismatch(f"The next stage's certificate is of {owner}, not of {neighbour.peer_id}.")
        channel = open_channel(
            neighbour.data_address,
            self.certificate,
            neighbour.certificate,
            max_message_bytes=PIPE_FRAME_BYTES,
            ping_timeout_ms=PIPE_PING_TIMEOUT_MS,
        )
        try:
            await channel.channel_ready()
            call = pipe_pb2_grpc.StagePipeStub(channel).Open()
            await call.write(pb.PipeFrame(hello=self._hello(formation.generation)))
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise PeerUnreachable(f"{neighbour.peer_id} ended the pipe: {await call.details()}")
            self._check_hello(answer, formation.generation, plan.stage + 1)
        except BaseException as error:
            await channel.close()
            if isinstance(error, grpc.aio.AioRpcError):
                raise wire_error(error, f"{neighbour.peer_id} at {neighbour.data_address}") from error
            raise
        flow = Flow(plan.gradient, self._microbatches(), formation.round, credit=0)
        self.next = pipe = Pipe(formation.generation, flow)
        self._spawn(self._pump(call, channel, pipe))

    async def _pump(self, call: Any, channel: grpc.aio.Channel, pipe: Pipe) -> None:
        async def write() -> None:
            while True:
                await call.write(await pipe.outbox.get())

        writer = asyncio.create_task(write())
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                if (assembled := pipe.flow.assembler.add(frame)) is not None:
                    pipe.flow.arrived()
                    self.on_gradient(pipe.generation, assembled)
            self._break(pipe.generation, PeerUnreachable(f"The next stage ended the pipe: {await call.details()}"))
        except CommonweightError as error:
            self._break(pipe.generation, error)
        except grpc.aio.AioRpcError as error:
            self._break(pipe.generation, wire_error(error, "The next stage"))
        finally:
            writer.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await writer
            await channel.close()

    def _spawn(self, pump: Any) -> None:
        task = asyncio.create_task(pump)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _break(self, generation: int, error: CommonweightError) -> None:
        if self._formation is not None and self._formation.generation == generation:
            self._formation = None
            self.on_break(generation, error)

    def admitted(self) -> list[bytes]:
        """The certificates (DER) that may connect: the previous stage's. Called from gRPC's threads, too."""
        formation = self._formation
        return [formation.previous.certificate] if formation is not None and formation.HasField("previous") else []

    def _need_plan(self) -> StagePlan:
        assert self.plan is not None, "the stage is loaded before its pipes open"
        return self.plan

    def _microbatches(self) -> int:
        return self._need_plan().spec.training.microbatches_per_round

    def _hello(self, generation: int) -> pb.PipeHello:
        plan = self._need_plan()
        return pb.PipeHello(
            spec_hash=plan.spec.spec_hash,
            generation=generation,
            stage=plan.stage,
            frozen_hash=plan.frozen_hash,
        )

    def _check_hello(self, frame: pb.PipeFrame, generation: int, stage: int) -> None:
        if frame.WhichOneof("body") != "hello":
            raise MalformedMessage("A pipe begins with a hello.")
        expected = self._hello(generation)
        expected.stage = stage
        for name in ("generation", "spec_hash", "stage", "frozen_hash"):
            if (found := getattr(frame.hello, name)) != (wanted := getattr(expected, name)):
                raise UnplannedMessage(f"The neighbour's {name} is {_show(found)}; here it is {_show(wanted)}.")


class _Service(pipe_pb2_grpc.StagePipeServicer):
    """The end of the pipe that the previous stage opens."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def Open(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[pb.PipeFrame], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.PipeFrame]:
        plane = self._plane
        try:
            async with asyncio.timeout(OPEN_S):
                pipe = await self._accept(await anext(requests), context)
        except (WireError, TimeoutError, StopAsyncIteration) as error:
            late = UnplannedMessage(f"No hello of a generation that is formed here came within {OPEN_S:g} s.")
            refusal = error if isinstance(error, WireError) else late
            emit("pipe.refused", peer=context.peer(), code=refusal.code, message=refusal.args[0])
            await refuse(context, refusal)
        failure: asyncio.Queue[CommonweightError] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, pipe, failure))
        plane._tasks.add(reader)
        try:
            yield pb.PipeFrame(hello=plane._hello(pipe.generation))
            while not reader.done():
                getter = asyncio.ensure_future(pipe.outbox.get())
                await asyncio.wait({getter, reader}, return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    yield getter.result()
                else:
                    getter.cancel()
            if not failure.empty():
                await refuse(context, failure.get_nowait())
        finally:
            reader.cancel()
            plane._tasks.discard(reader)
            # A lost connection cancels this call, maybe before the reader has seen it.
            plane._break(pipe.generation, PeerUnreachable("The previous stage ended the pipe."))

    async def _accept(self, frame: pb.PipeFrame, context: grpc.aio.ServicerContext) -> Pipe:
        plane = self._plane
        generation = frame.hello.generation
        async with plane._changed:  # the neighbour's formation may have come before ours
            await plane._changed.wait_for(
                lambda: plane._formation is not None and plane._formation.generation >= generation
            )
            formation = plane._formation
            assert formation is not None
            plan = plane._need_plan()
            peer_id = peer_of(context, plane.admitted)
            if peer_id != formation.previous.peer_id:
                raise IdentityMismatch(f"{peer_id} opened the pipe of {formation.previous.peer_id}.")
            if plane.previous is not None:
                raise UnplannedMessage(f"The pipe of generation {formation.generation} is open already.")
            try:
                plane._check_hello(frame, formation.generation, plan.stage - 1)
            except WireError as error:
                if frame.WhichOneof("body") != "hello" or generation == formation.generation:
                    plane._refused = error  # not just a hello from a generation that is over
                    plane._changed.notify_all()
                raise
            credit = in_flight_limit(plan.spec, plan.stage - 1)
            flow = Flow(plan.activation, plane._microbatches(), formation.round, credit)
            plane.previous = pipe = Pipe(generation, flow)
            plane._changed.notify_all()
            return pipe

    async def _read(
        self, requests: AsyncIterator[pb.PipeFrame], pipe: Pipe, failure: "asyncio.Queue[CommonweightError]"
    ) -> None:
        try:
            async for frame in requests:
                if (assembled := pipe.flow.assembler.add(frame)) is not None:
                    pipe.flow.arrived()
                    self._plane.on_activation(pipe.generation, assembled)
            self._plane._break(pipe.generation, PeerUnreachable("The previous stage ended the pipe."))
        except CommonweightError as error:
            failure.put_nowait(error)
            self._plane._break(pipe.generation, error)
        except grpc.RpcError as error:
            self._plane._break(pipe.generation, PeerUnreachable(f"The pipe from the previous stage broke: {error}"))


def _show(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
