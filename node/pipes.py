"""The data plane of a worker: one stream to each peer of its generation, on the I/O thread's event loop.

Peers are the replicas of the stages before and after, and the other replicas of its own. The earlier stage opens the
stream; between replicas who has the lower address. See flow.py for what they carry. Whatever becomes of a pipe, the
others stay: whether the generation goes on without it is the coordinator's to say.
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
from commonweight.identity import address_of
from commonweight.rules.averaging import slice_bounds, slice_coding
from commonweight.rules.placement import MAX_IN_FLIGHT
from commonweight.wire.channel import PIPE_FRAME_BYTES, PIPE_PING_TIMEOUT_MS, open_channel, serve
from commonweight.wire.generated import control_pb2, pipe_pb2_grpc
from commonweight.wire.generated import pipe_pb2 as pb
from commonweight.wire.pipe import Assembled
from commonweight.wire.status import refuse, wire_error
from commonweight.wire.tls import Certificate, peer_id_of, peer_of, server_credentials
from node.flow import Flow, Pipe, Slice, SliceFlow, StagePlan, slice_frames
from node.share import Share

OPEN_S = 120.0
"""For a pipe to open, from the formation on: the peer may still be loading its stage."""
PLAN_S = 120.0
"""For the plan of a round of which a frame has come."""


@dataclass(frozen=True)
class Peer:
    """One whom a formation names."""

    stage: int
    neighbour: control_pb2.Neighbour

    @property
    def node(self) -> str:
        """Its address."""
        return address_of(self.neighbour.peer_id)


@dataclass
class DataPlane:
    """All pipes of a node. All methods run on the event loop."""

    certificate: Certificate
    on_activation: Callable[[int, str, Assembled], None]
    on_gradient: Callable[[int, str, Assembled], None]
    on_slice: Callable[[int, str, Slice], None]
    """Each (generation, from whom, what)."""
    on_break: Callable[[int, CommonweightError, str], None]
    """(generation, error, PeerId): a pipe of this generation doesn't open, or broke."""
    plan: StagePlan | None = None
    pipes: dict[str, Pipe] = field(default_factory=dict)
    """The open ones, by the peer's address."""
    _generation: int = 0
    _peers: dict[str, Peer] = field(default_factory=dict)
    """Whom the formation names."""
    _broken: set[str] = field(default_factory=set)
    """Those of them of whom `on_break` has told."""
    _shares: dict[int, Share] = field(default_factory=dict)
    """Of this generation's last rounds, up to the one that is planned ahead."""
    _since: dict[int, int] = field(default_factory=dict)
    """By round, the first revision of its plan that counts: an earlier one was taken back."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    """By peer: what opens or serves the pipe with it."""
    _server: Any = None

    @property
    def node(self) -> str:
        """Its own address."""
        return address_of(self.certificate.peer_id)

    async def listen(self, address: str) -> int:
        """Serve the peers that open the streams; returns the port."""
        self._server, port = await serve(
            [(pipe_pb2_grpc.add_StagePipeServicer_to_server, _Service(self))],
            address,
            server_credentials(self.certificate, self.admitted),
            max_message_bytes=PIPE_FRAME_BYTES,
            ping_timeout_ms=PIPE_PING_TIMEOUT_MS,
        )
        return port

    async def form(self, formation: control_pb2.Formation) -> bool:
        """Open the pipes of this generation that aren't open, and end those with who isn't named any more.

        True once all are open; False where some weren't in time, which is told by `on_break`, as is whatever else goes
        wrong with one. Raises IdentityMismatch where a certificate isn't its peer's.
        """
        plan = self._need_plan()
        if formation.generation != self._generation:
            await self.close_pipes()
        named = (formation.previous, formation.replicas, formation.next)
        peers = [Peer(plan.stage - 1 + place, each) for place, neighbours in enumerate(named) for each in neighbours]
        for peer in peers:
            if (owner := peer_id_of(peer.neighbour.certificate)) != peer.neighbour.peer_id:
                raise IdentityMismatch(f"A peer's certificate is of {owner}, not of {peer.neighbour.peer_id}.")
        named_again = {peer.node for peer in peers if self._peers.get(peer.node) == peer} - self._broken
        await self._end([node for node in self._tasks if node not in named_again])
        async with self._changed:
            self._generation, self._peers = formation.generation, {peer.node: peer for peer in peers}
            self._broken.clear()
            self._changed.notify_all()
        for node, peer in self._peers.items():
            if node not in self._tasks and self._dials(peer):
                self._tasks[node] = asyncio.create_task(self._connect(peer))
        try:
            async with asyncio.timeout(OPEN_S), self._changed:
                await self._changed.wait_for(lambda: self.pipes.keys() >= self._peers.keys())
        except TimeoutError:
            missing = sorted(self._peers.keys() - self.pipes.keys())
            await self._end([node for node in missing if node in self._tasks])
            for node in missing:
                self._break(formation.generation, node, _unreached(self._peers[node].neighbour))
            return False
        return True

    async def close_pipes(self) -> None:
        """End the pipes of the present generation, without calling on_break."""
        self._generation, self._peers, self._shares, self._since = 0, {}, {}, {}
        self._broken.clear()
        await self._end(list(self._tasks))

    async def close(self) -> None:
        """End everything."""
        await self.close_pipes()
        if self._server is not None:
            await self._server.stop(grace=0)

    async def begin(self, share: Share) -> None:
        """This round is planned, maybe once more: what it says may come from now on. Where its plan is revised that of
        the next round is void.
        """
        async with self._changed:
            before, last, following = self._shares.get(share.round), share.round - 1, share.round + 1
            is_taken_back = following in self._shares
            self._shares = {each: known for each, known in self._shares.items() if each == last} | {share.round: share}
            self._since = {each: since for each, since in self._since.items() if each == last}
            self._since |= {share.round: share.since} | ({following: 1} if is_taken_back else {})
            for pipe in self.pipes.values():
                if before is None or not share.revises(before):
                    self._expect(pipe, share)
                elif isinstance(pipe.flow, Flow):
                    pipe.flow.extend(share.round, share.from_previous(pipe.peer) - before.from_previous(pipe.peer))
                elif share.stage_revision != before.stage_revision:
                    self._expect(pipe, share)
                pipe.flow.forget(following)
            self._changed.notify_all()

    def send_down(self, share: Share, node: str, microbatch: int, frames: Sequence[pb.PipeFrame]) -> None:
        """One microbatch's activation, to a node of the next stage."""
        if (pipe := self._pipe(share, node)) is not None:
            assert isinstance(pipe.flow, Flow), "the next stage is a neighbour"
            pipe.flow.allow(share.round, microbatch)  # a gradient answers an activation
            pipe.put(frames)

    def send_up(self, share: Share, node: str, microbatch: int, frames: Sequence[pb.PipeFrame]) -> None:
        """One microbatch's gradient, to a node of the previous stage that has sent its activation; none where that
        needs none.
        """
        if (pipe := self._pipe(share, node)) is not None:
            assert isinstance(pipe.flow, Flow), "the previous stage is a neighbour"
            pipe.flow.answer(share.round)
            pipe.put(frames)

    def send_slice(self, share: Share, node: str, summed: bool, data: bytes | memoryview) -> None:
        """A slice of the round's gradient, to another replica."""
        if (pipe := self._pipe(share, node)) is not None:
            pipe.put(slice_frames(share.round, share.stage_revision, summed, data))

    def _pipe(self, share: Share, node: str) -> Pipe | None:
        """The open one to this node. What was computed of a generation that is over goes nowhere: its microbatches have
        the numbers of others now.
        """
        pipe = self.pipes.get(node)
        return pipe if pipe is not None and pipe.generation == share.generation else None

    def peer_id(self, node: str) -> str:
        """Of one whom the formation names; empty for others."""
        peer = self._peers.get(node)
        return "" if peer is None else peer.neighbour.peer_id

    def count_bytes(self, stage: int) -> int:
        """Bytes sent to the replicas of a stage since the last call."""
        return sum(pipe.count_bytes() for node, pipe in self.pipes.items() if self._stage_of(node) == stage)

    def admitted(self) -> list[bytes]:
        """The certificates (DER) that may connect: of who opens the streams. Called from gRPC's threads, too."""
        return [peer.neighbour.certificate for peer in list(self._peers.values()) if not self._dials(peer)]

    def _dials(self, peer: Peer) -> bool:
        """Whether this node opens the stream with the peer."""
        stage = self._need_plan().stage
        return stage < peer.stage or (stage == peer.stage and self.node < peer.node)

    def _stage_of(self, node: str) -> int | None:
        peer = self._peers.get(node)
        return None if peer is None else peer.stage

    async def _connect(self, peer: Peer) -> None:
        generation, neighbour = self._generation, peer.neighbour
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
            await call.write(pb.PipeFrame(hello=self._hello(generation)))
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise PeerUnreachable(f"{neighbour.peer_id} ended the pipe: {await call.details()}")
            self._check_hello(answer, generation, peer.stage)
            pipe = await self._opened(generation, peer)
            await self._pump(call, pipe)
            raise PeerUnreachable(f"{neighbour.peer_id} ended the pipe: {await call.details()}")
        except CommonweightError as error:
            self._break(generation, peer.node, error)
        except grpc.aio.AioRpcError as error:
            self._break(generation, peer.node, wire_error(error, f"{neighbour.peer_id} at {neighbour.data_address}"))
        finally:
            await channel.close()

    async def _pump(self, call: Any, pipe: Pipe) -> None:
        """Write what is to be sent, and take what comes, until the stream ends."""

        async def write() -> None:
            while True:
                await call.write(await pipe.outbox.get())

        writer = asyncio.create_task(write())
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                await self._take(pipe, frame)
        finally:
            writer.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await writer

    async def _opened(self, generation: int, peer: Peer) -> Pipe:
        """The pipe, from its hellos on."""
        plan = self._need_plan()
        flow: Flow | SliceFlow
        if peer.stage > plan.stage:
            flow = Flow(plan.gradient)
        elif peer.stage < plan.stage:
            flow = Flow(plan.activation, MAX_IN_FLIGHT)
        else:
            flow = SliceFlow()
        async with self._changed:
            self.pipes[peer.node] = pipe = Pipe(generation, peer.node, flow)
            for share in self._shares.values():
                self._expect(pipe, share)
            self._changed.notify_all()
        return pipe

    def _expect(self, pipe: Pipe, share: Share) -> None:
        """What the peer may send in the round."""
        plan, flow = self._need_plan(), pipe.flow
        if isinstance(flow, Flow):
            due = share.from_previous(pipe.peer) if self._stage_of(pipe.peer) == plan.stage - 1 else ()
            flow.begin(share.round, due)
            return
        senders, sizes = share.contributors, {}
        if pipe.peer in senders:
            for summed, summer in ((False, share.node), (True, pipe.peer)):
                if summer in senders:
                    begin, end = slice_bounds(plan.numbers, len(senders), senders.index(summer))
                    sizes[summed] = end - begin
        coding = slice_coding(plan.spec.training.averaging, len(senders))
        flow.begin(share.round, sizes, coding, share.stage_revision)

    async def _take(self, pipe: Pipe, frame: pb.PipeFrame) -> None:
        """A frame has come. One of a round that isn't planned yet waits for its plan, and what follows with it; one by
        a plan that was taken back is passed over.
        """
        body = frame.WhichOneof("body")
        if body in ("tensor", "slice"):
            round_, revision = getattr(frame, body).round, getattr(frame, body).revision
            await self._wait_for_plan(round_, revision)
            if revision < self._since.get(round_, 0):
                return
        if isinstance(pipe.flow, SliceFlow):
            if (complete := pipe.flow.add(frame)) is not None:
                self.on_slice(pipe.generation, pipe.peer, complete)
        elif (assembled := pipe.flow.add(frame)) is not None:
            is_activation = self._stage_of(pipe.peer) == self._need_plan().stage - 1
            (self.on_activation if is_activation else self.on_gradient)(pipe.generation, pipe.peer, assembled)

    async def _wait_for_plan(self, round_: int, revision: int) -> None:
        def is_planned() -> bool:
            share, is_void = self._shares.get(round_), revision < self._since.get(round_, 0)
            is_old = round_ < min(self._shares, default=0)
            return is_void or is_old or (share is not None and revision <= share.revision)

        if is_planned():
            return
        try:
            async with asyncio.timeout(PLAN_S), self._changed:
                await self._changed.wait_for(is_planned)
        except TimeoutError:
            raise UnplannedMessage(
                f"A frame by revision {revision} of round {round_} came; no plan of that within {PLAN_S:g} s."
            ) from None

    def _break(self, generation: int, node: str, error: CommonweightError) -> None:
        """Tell of it, once for each peer, unless the generation is over or goes on without the peer."""
        self.pipes.pop(node, None)
        if generation == self._generation and node in self._peers.keys() - self._broken:
            self._broken.add(node)
            self.on_break(generation, error, self._peers[node].neighbour.peer_id)

    async def _end(self, nodes: Sequence[str]) -> None:
        tasks = [self._tasks.pop(node) for node in nodes]
        for node in nodes:
            self.pipes.pop(node, None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _need_plan(self) -> StagePlan:
        assert self.plan is not None, "the stage is loaded before its pipes open"
        return self.plan

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
                raise UnplannedMessage(f"The peer's {name} is {_show(found)}; here it is {_show(wanted)}.")


class _Service(pipe_pb2_grpc.StagePipeServicer):
    """The end of a pipe that the peer opens."""

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
        plane._tasks[pipe.peer] = reader = asyncio.create_task(self._read(requests, pipe, failure))
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
            # A lost connection cancels this call, maybe before the reader has seen it.
            if plane.pipes.get(pipe.peer) is pipe:
                plane._break(pipe.generation, pipe.peer, PeerUnreachable(f"{pipe.peer} ended the pipe."))

    async def _accept(self, frame: pb.PipeFrame, context: grpc.aio.ServicerContext) -> Pipe:
        plane = self._plane
        generation = frame.hello.generation
        async with plane._changed:  # the peer's formation may have come before ours
            await plane._changed.wait_for(lambda: plane._generation >= generation)
            node = address_of(peer_of(context, plane.admitted))
            peer = plane._peers.get(node)
            if peer is None:
                raise IdentityMismatch(f"{node} opened a pipe; it is no peer of generation {plane._generation}.")
            if node in plane.pipes:
                raise UnplannedMessage(f"The pipe of generation {plane._generation} with {node} is open already.")
            try:
                plane._check_hello(frame, plane._generation, peer.stage)
            except WireError as error:
                if frame.WhichOneof("body") != "hello" or generation == plane._generation:
                    plane._break(plane._generation, node, error)  # not just a hello from a generation that is over
                raise
        return await plane._opened(generation, peer)

    async def _read(
        self, requests: AsyncIterator[pb.PipeFrame], pipe: Pipe, failure: "asyncio.Queue[CommonweightError]"
    ) -> None:
        plane = self._plane
        try:
            async for frame in requests:
                await plane._take(pipe, frame)
            plane._break(pipe.generation, pipe.peer, PeerUnreachable(f"{pipe.peer} ended the pipe."))
        except CommonweightError as error:
            failure.put_nowait(error)
            plane._break(pipe.generation, pipe.peer, error)
        except grpc.RpcError as error:
            plane._break(pipe.generation, pipe.peer, PeerUnreachable(f"The pipe broke: {error}"))


def _unreached(peer: control_pb2.Neighbour) -> PeerUnreachable:
    return PeerUnreachable(
        f"No pipe with {peer.peer_id} at {peer.data_address} within {OPEN_S:g} s. Check that this address can be "
        "reached from here and that nothing filters the port."
    )


def _show(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
