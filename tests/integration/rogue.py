"""One real compute worker between two neighbours that are the test: they play a recorded round, or don't keep to it.

The worker holds stage 1 of 3. The test opens its pipe as stage 0 and serves it as stage 2, over real mutual TLS. What
the neighbours of an honest round send is recorded once from the same stages in this process, so each test can ask for
a round that must end in the recorded state, to the bit.
"""

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import torch
from torch import Tensor

from commonweight.identity import NodeIdentity, address_of
from commonweight.model.stage import Stage
from commonweight.rules.canonical import canonical_json
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.stages import in_flight_limit
from commonweight.wire.channel import open_channel, serve
from commonweight.wire.generated import control_pb2, pipe_pb2_grpc, worker_pb2
from commonweight.wire.generated import pipe_pb2 as pb
from commonweight.wire.link import Link, spawn_worker
from commonweight.wire.messages import report_from_proto
from commonweight.wire.pipe import digest, encode
from commonweight.wire.tls import Certificate, make_certificate, server_credentials
from tests.integration.network import tiny_spec

DEADLINE_S = 60.0
STAGE = 1
VOCABULARY = 100
"""Fewer than the bytes that carry the ids can say."""
PREVIOUS, NEXT, WORKER, STRANGER = (make_certificate(NodeIdentity(bytes([n]) * 32)) for n in range(1, 5))

Frames = list[pb.PipeFrame]


def three_stages() -> ModelSpec:
    """Six microbatches, of which stage 0 may have four in flight."""
    fields = tiny_spec("0x" + "00" * 32, 10_000, stages=3, microbatches_per_round=6).model_dump()
    fields["architecture"]["vocab_size"] = VOCABULARY
    return build_spec(fields)


@dataclass(frozen=True)
class Recording:
    """An honest round 0, as the worker's neighbours see it."""

    spec: ModelSpec
    activations: list[Frames]
    """By microbatch, from stage 0."""
    gradients: list[Frames]
    """By microbatch, from stage 2."""
    passed_down: list[bytes]
    """Digests of the codes that the worker sends on."""
    passed_up: list[bytes]
    """Digests of the gradients that it sends back."""
    sketches: list[bytes]
    """By microbatch, of its gradient up to then."""
    frozen_hash: bytes
    state_after: bytes
    """Of the worker's stage."""


def record(spec: ModelSpec) -> Recording:
    """Trains round 0 in this process."""
    torch.set_num_threads(1)
    stages = [Stage(spec, index) for index in range(3)]
    generator = torch.Generator().manual_seed(1)
    training = spec.training
    shape = (training.microbatch_sequences, training.sequence_length + 1)
    activations, gradients, down, up, sketches = [], [], [], [], []
    for number in range(training.microbatches_per_round):
        tokens = torch.randint(VOCABULARY, shape, generator=generator, dtype=torch.int32).to(torch.uint8)
        pending = []
        code: Tensor | None = None
        for stage in stages:
            pending.append(stage.forward(tokens, code))
            output = pending[-1].output
            if isinstance(output, Tensor):
                code = output
                (activations if stage.index == 0 else down).append((tokens, output))
        gradient: Tensor | None = None
        for stage in reversed(stages):
            gradient = stage.backward(pending.pop(), gradient)
            if gradient is not None:
                (gradients if stage.index == 2 else up).append(gradient)
        assert len(gradients) == number + 1
        sketches.append(stages[STAGE].sketch())
    stages[STAGE].step()
    return Recording(
        spec=spec,
        activations=[encode(0, number, pair) for number, pair in enumerate(activations)],
        gradients=[encode(0, number, (gradient,)) for number, gradient in enumerate(gradients)],
        passed_down=[digest(code) for _, code in down],
        passed_up=[digest(gradient) for gradient in up],
        sketches=sketches,
        frozen_hash=stages[STAGE].frozen_hash,
        state_after=stages[STAGE].state_root(),
    )


@dataclass
class Previous:
    """The worker's pipe to the stage before, from that stage's side."""

    channel: grpc.aio.Channel
    call: Any

    async def write(self, *frames: pb.PipeFrame) -> None:
        """Send frames; those that come after the call has ended are lost, as in life."""
        for frame in frames:
            try:
                await self.call.write(frame)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    async def read(self) -> pb.PipeFrame:
        frame = await self.call.read()
        assert frame is not grpc.aio.EOF, await self.call.details()
        return frame

    async def outcome(self) -> tuple[grpc.StatusCode, str]:
        """How the call has ended."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.call.code(), await self.call.details()


@dataclass
class Served:
    """The worker's pipe to the stage after, from that stage's side."""

    requests: AsyncIterator[pb.PipeFrame]
    context: grpc.aio.ServicerContext
    outbox: "asyncio.Queue[pb.PipeFrame | tuple[grpc.StatusCode, str] | None]" = field(default_factory=asyncio.Queue)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, *items: pb.PipeFrame | tuple[grpc.StatusCode, str] | None) -> None:
        """Send frames; a code and its details refuse the call, None ends it."""
        for item in items:
            self.outbox.put_nowait(item)


class Next(pipe_pb2_grpc.StagePipeServicer):
    """Serves as stage 2."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Served] = asyncio.Queue()

    async def Open(self, requests: AsyncIterator[pb.PipeFrame], context: grpc.aio.ServicerContext) -> Any:
        served = Served(requests, context)
        self.calls.put_nowait(served)
        try:
            while (item := await served.outbox.get()) is not None:
                if isinstance(item, tuple):
                    await context.abort(*item)
                yield item
        finally:
            served.ended.set()


@dataclass
class Bench:
    """The worker and both of its neighbours."""

    recording: Recording
    process: Process
    link: Link
    port: int
    next: Next
    next_port: int
    generation: int = 0
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    async def event(self, kind: str) -> Any:
        """The worker's next event, which is of this kind."""
        async with asyncio.timeout(DEADLINE_S):
            event = await self.link.receive(worker_pb2.WorkerEvent)
        assert event is not None, "the worker ended"
        assert event.WhichOneof("body") == kind, event
        return getattr(event, kind)

    async def command(self, **body: Any) -> None:
        await self.link.send(worker_pb2.WorkerCommand(**body))

    async def announce(self, round_: int = 0, previous: Certificate = PREVIOUS, **fields: Any) -> None:
        """Tell the worker of the next generation; `fields` replace those of its next neighbour."""
        self.generation += 1
        formation = control_pb2.Formation(generation=self.generation, round=round_)
        before = {"peer_id": previous.peer_id, "data_address": "127.0.0.1:9", "certificate": previous.der}
        after = {"peer_id": NEXT.peer_id, "data_address": f"127.0.0.1:{self.next_port}", "certificate": NEXT.der}
        formation.previous.add(**before)
        formation.next.add(**(after | fields))
        await self.command(formation=formation)

    def hello(self, stage: int, /, **fields: Any) -> pb.PipeFrame:
        """A right one, but for `fields`."""
        right = {
            "spec_hash": self.recording.spec.spec_hash,
            "generation": self.generation,
            "stage": stage,
            "frozen_hash": self.recording.frozen_hash,
        }
        return pb.PipeFrame(hello=pb.PipeHello(**(right | fields)))

    async def dial(self, mine: Certificate = PREVIOUS, *, admitted: bool = True) -> Previous:
        """A call to the worker's data plane, with nothing said yet; waits until it is admitted, if it ever is."""
        # Twice a frame, so that the limit that is tested is the worker's.
        channel = open_channel(f"127.0.0.1:{self.port}", mine, WORKER.der, max_message_bytes=4 << 20)
        self.channels.append(channel)
        if admitted:
            async with asyncio.timeout(DEADLINE_S):
                await channel.channel_ready()
        return Previous(channel, pipe_pb2_grpc.StagePipeStub(channel).Open())

    async def form(self) -> tuple[Previous, Served]:
        """A new generation with both pipes open."""
        await self.announce()
        previous = await self.dial()
        await previous.write(self.hello(0))
        served = await self.take_call()
        served.write(self.hello(2))
        assert (await previous.read()).hello.stage == STAGE
        assert (await self.event("pipes_open")).generation == self.generation
        return previous, served

    async def take_call(self) -> Served:
        """The worker's call to the stage after, its hello read and checked."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                served = await self.next.calls.get()
                try:
                    hello = (await anext(served.requests)).hello
                except StopAsyncIteration:
                    continue  # of a formation that was given up
                if hello.generation == self.generation:
                    break
        assert hello == self.hello(STAGE).hello
        return served

    async def plan(self, round_: int = 0) -> None:
        plan = control_pb2.RoundPlan(generation=self.generation, round=round_)
        for trainer in (PREVIOUS, WORKER, NEXT):
            member = bytes.fromhex(address_of(trainer.peer_id)[2:])
            count = self.recording.spec.training.microbatches_per_round
            plan.stages.add(members=[member], assignment=[0] * count)
        await self.command(plan=plan)

    async def play(self, previous: Previous, served: Served) -> Report:
        """Both neighbours play the honest round; the worker's report of it, checked against the recording."""
        await self.plan()
        recording = self.recording
        count = recording.spec.training.microbatches_per_round

        async def play_previous() -> None:
            window = in_flight_limit(recording.spec, 0)
            for number in range(count + window):
                if number >= window:
                    frame = await previous.read()
                    assert frame.tensor.microbatch == number - window
                if number < count:
                    await previous.write(*recording.activations[number])

        async def play_next() -> None:
            for number in range(count):
                frame = await anext(served.requests)
                assert frame.tensor.microbatch == number
                served.write(*recording.gradients[number])

        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(play_previous(), play_next())
        report = report_from_proto((await self.event("report")).report)
        assert [hop.activation_out for hop in report.hops] == recording.passed_down
        assert [hop.gradient_out for hop in report.hops] == recording.passed_up
        assert [hop.sketch for hop in report.hops] == recording.sketches
        assert report.state_after == recording.state_after
        return report

    async def trains_on(self) -> None:
        """The worker lives, and in a new generation an honest round ends in the recorded state."""
        assert self.process.returncode is None
        await self.play(*await self.form())


@asynccontextmanager
async def a_worker(
    recording: Recording, folder: Path, program: str = "", *, exit_code: int = 0
) -> AsyncIterator[Bench]:
    """A worker that holds stage 1. `program` is Python that runs in it before its main."""
    command = [sys.executable, "-c", f"{program}\nfrom node.worker import main\nmain()"]
    process, link = await spawn_worker(command)
    servicer = Next()
    pair = (pipe_pb2_grpc.add_StagePipeServicer_to_server, servicer)
    credentials = server_credentials(NEXT, lambda: [WORKER.der])
    server, next_port = await serve([pair], "127.0.0.1:0", credentials, max_message_bytes=4 << 20)
    bench = Bench(recording, process, link, 0, servicer, next_port)
    try:
        listen = worker_pb2.WorkerListen(
            address="127.0.0.1:0", certificate=WORKER.der, private_key=WORKER.private_key_pem
        )
        await bench.command(listen=listen)
        bench.port = (await bench.event("listening")).port
        spec = canonical_json(recording.spec.model_dump())
        start = worker_pb2.WorkerStart(spec=spec, stage=STAGE, state_dir=str(folder), device="cpu")
        await bench.command(start=start)
        assert (await bench.event("started")).frozen_hash == recording.frozen_hash
        yield bench
    finally:
        for channel in bench.channels:
            await channel.close()
        await link.close()
        async with asyncio.timeout(DEADLINE_S):
            code = await process.wait()
        await server.stop(None)
    assert code == exit_code
