"""A node's control process: keeps its worker running and its stream to the coordinator open, and signs reports.

It holds the node's key; the worker holds the stage. What the coordinator says goes on to the worker, what the worker
has done is signed and goes to the coordinator. If the coordinator is gone the node comes back to it, for as long as it
takes; if the worker dies it is started again from its checkpoint.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from commonweight.errors import ConfigError, PeerUnreachable, Refused, WireError, WorkerDied, error_with_code
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.rules.receipt import Domain
from commonweight.rules.report import report_receipt
from commonweight.wire.channel import join_address, open_channel, split_address
from commonweight.wire.enrolment import CALL_S, enrol
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import control_pb2_grpc, worker_pb2
from commonweight.wire.messages import report_from_proto
from commonweight.wire.status import wire_error
from commonweight.wire.tls import make_certificate
from node.decoding import DecodeConfig, Decoding
from node.evidence import Evidence
from node.supervisor import WorkerProcess
from node.watching import Watch, WatchConfig

HEARTBEAT_S = 1.0
SILENCE_S = 10.0
"""A coordinator that says nothing for this long is lost; it sends a heartbeat every second."""
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0
MAX_WORKER_DEATHS = 3
"""In a row, without a finished round between them."""


@dataclass(frozen=True)
class NodeConfig:
    """What one node runs with."""

    identity: NodeIdentity
    coordinator: str
    """PEERID@host:port of its enrolment service."""
    directory: Path
    """For checkpoints."""
    data: Path | None
    """The packed text; only the holder of the first stage needs it."""
    listen: str
    """host:port of the data plane; port 0 takes a free one."""
    advertise: str | None
    """host by which neighbours reach it, where that isn't the one it listens on."""
    payout: str
    """Account that is paid."""
    device: str
    threads: int
    decode_listen: str
    """host:port of the decode process; port 0 takes a free one."""
    evidence_listen: str
    """host:port for auditors; port 0 takes a free one."""
    cache_bytes: int
    """Memory for the keys and values of all sequences that are generated at a time."""
    watch: WatchConfig | None
    """How it watches the chain; None: it doesn't."""


class Finished(Exception):
    """The coordinator has no more work, ever."""


class Node:
    """One provider node."""

    def __init__(self, config: NodeConfig) -> None:
        """Nothing is started before `run`."""
        self.config = config
        self.certificate = make_certificate(config.identity)
        self._worker: WorkerProcess | None = None
        decode = DecodeConfig(
            directory=config.directory,
            listen=config.decode_listen,
            advertise=config.advertise,
            cache_bytes=config.cache_bytes,
            device=config.device,
            threads=config.threads,
        )
        self._decoding = Decoding(decode, self.certificate)
        self._evidence = self.make_evidence()
        self._watch = Watch(config.identity.address, config.payout, config.directory, config.watch)
        self._started: tuple[bytes, int] | None = None
        """Spec and stage that the worker was started with."""
        self._deaths = 0
        self._backoff_s = FIRST_BACKOFF_S

    def make_evidence(self) -> Evidence:
        """Its service for auditors."""
        return Evidence(self.config.directory, self.certificate)

    async def start_worker(self) -> WorkerProcess:
        """Start its compute worker."""
        config = self.config
        return await WorkerProcess.start(listen=config.listen, certificate=self.certificate, threads=config.threads)

    def make_session(self, worker: WorkerProcess, outbox: "asyncio.Queue[pb.NodeMessage]") -> "Session":
        """What obeys the coordinator during one attachment."""
        return Session(self.config, worker, outbox, self._watch, self._decoding, self._evidence)

    async def run(self) -> None:
        """Take part until the coordinator has no more work, or until cancelled."""
        emit(
            "node.started",
            node=self.config.identity.address,
            peer_id=self.config.identity.peer_id,
            payout=self.config.payout,
        )
        await self._evidence.listen(self.config.evidence_listen)
        parts = [asyncio.create_task(self._train()), asyncio.create_task(self._decoding.run())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await self._watch.close()
            await self._evidence.close()
            if self._worker is not None:
                await self._worker.stop()

    async def _train(self) -> None:
        while True:
            try:
                await self._ensure_worker()
                await self._attend()
            except Finished:
                emit("node.finished")
                return
            except WorkerDied as error:
                if self._worker is not None:
                    await self._worker.stop()
                    self._worker = None
                self._deaths += 1
                emit("worker.died", code=error.code, message=error.args[0])
                if self._deaths >= MAX_WORKER_DEATHS:
                    raise
            except PeerUnreachable as error:
                emit("coordinator.lost", code=error.code, message=error.args[0], retry_s=self._backoff_s)
                await asyncio.sleep(self._backoff_s)
                self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)

    async def _ensure_worker(self) -> None:
        if self._worker is None:
            self._started = None
            self._worker = await self.start_worker()

    async def _attend(self) -> None:
        """One attachment to the coordinator, from enrolment to the end of its stream."""
        worker = self._worker
        assert worker is not None, "a node attends with its worker running"
        try:
            enrolled = await enrol(self.config.coordinator, self.certificate)
            async with open_channel(enrolled.address, self.certificate, enrolled.certificate) as channel:
                async with asyncio.timeout(CALL_S):
                    await channel.channel_ready()
                outbox: asyncio.Queue[pb.NodeMessage] = asyncio.Queue()
                outbox.put_nowait(pb.NodeMessage(join=self._join(worker)))
                call = control_pb2_grpc.ControlStub(channel).Attach(self._messages(outbox))
                session = self.make_session(worker, outbox)
                session.started = self._started
                self._decoding.say = outbox.put_nowait
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(session.obey(call))
                        tasks.create_task(session.relay())
                except ExceptionGroup as group:
                    raise group.exceptions[0] from group
                finally:
                    self._decoding.say = None
                    self._started = session.started
                    if session.attached:
                        self._backoff_s = FIRST_BACKOFF_S
                    if session.rounds:
                        self._deaths = 0
                    await session.pause()
        except grpc.aio.AioRpcError as error:
            raise PeerUnreachable(wire_error(error, f"The coordinator {self.config.coordinator}").args[0]) from error
        except TimeoutError:
            raise PeerUnreachable(
                f"The coordinator {self.config.coordinator} didn't take the connection within {CALL_S:g} s."
            ) from None

    def _join(self, worker: WorkerProcess) -> pb.Join:
        host, _ = split_address(self.config.listen)
        evidence_host, _ = split_address(self.config.evidence_listen)
        return pb.Join(
            data_address=join_address(self.config.advertise or host, worker.port),
            certificate=self.certificate.der,
            payout_account=self.config.payout,
            has_data=self.config.data is not None,
            evidence_address=join_address(self.config.advertise or evidence_host, self._evidence.port),
        )

    @staticmethod
    async def _messages(outbox: "asyncio.Queue[pb.NodeMessage]") -> AsyncIterator[pb.NodeMessage]:
        while True:
            try:
                yield await asyncio.wait_for(outbox.get(), HEARTBEAT_S)
            except TimeoutError:
                yield pb.NodeMessage(heartbeat=pb.Heartbeat())


class Session:
    """What one attachment knows."""

    def __init__(
        self,
        config: NodeConfig,
        worker: WorkerProcess,
        outbox: "asyncio.Queue[pb.NodeMessage]",
        watch: Watch,
        decoding: Decoding,
        evidence: Evidence,
    ) -> None:
        self._config = config
        self._evidence = evidence
        self._decoding = decoding
        self._watch = watch
        self._worker = worker
        self._outbox = outbox
        self._assigned: asyncio.Future[pb.Assignment] = asyncio.get_running_loop().create_future()
        self._generation = 0
        self.started: tuple[bytes, int] | None = None
        self.rounds = 0

    @property
    def attached(self) -> bool:
        """Whether the coordinator took this node."""
        return self._assigned.done()

    async def obey(self, call: Any) -> None:
        """Pass on what the coordinator wants, until its stream ends."""
        while True:
            try:
                message = await asyncio.wait_for(call.read(), SILENCE_S)
            except TimeoutError:
                raise PeerUnreachable(f"The coordinator was silent for {SILENCE_S:g} s.") from None
            if message is grpc.aio.EOF:
                raise PeerUnreachable(f"The coordinator ended the stream: {await call.details()}")
            match message.WhichOneof("body"):
                case "assignment":
                    await self._start(message.assignment)
                case "formation":
                    self._generation = message.formation.generation
                    await self._worker.send(worker_pb2.WorkerCommand(formation=message.formation))
                case "plan":
                    await self._plan(message.plan)
                case "pause":
                    emit("generation.paused", generation=message.pause.generation, why=message.pause.why)
                    await self._worker.send(worker_pb2.WorkerCommand(pause=message.pause))
                case "sealed":
                    await self.seal(message.sealed)
                case "audit":
                    await self._evidence.grant(message.audit)
                case "publish":
                    # Before the next message goes to the worker: two rounds later it removes this version.
                    await self._decoding.publish(await self._assigned, message.publish)
                case "decode_peers":
                    await self._decoding.meet(message.decode_peers)
                case "finished":
                    raise Finished

    async def relay(self) -> None:
        """Pass on what the worker has done, reports signed."""
        while True:
            event = await self._worker.receive()
            match event.WhichOneof("body"):
                case "pipes_open":
                    self._outbox.put_nowait(pb.NodeMessage(pipes_open=event.pipes_open))
                case "report":
                    self._outbox.put_nowait(pb.NodeMessage(report=await self.sign(event.report)))
                case "failure" if event.failure.fatal:
                    emit("error", code=event.failure.code, message=event.failure.message)
                    raise error_with_code(event.failure.code, event.failure.message)
                case "failure":
                    failure = event.failure
                    emit(
                        "pipes.failed",
                        code=failure.code,
                        message=failure.message,
                        generation=failure.generation,
                    )
                    failed = pb.PipesFailed(generation=failure.generation, code=failure.code, why=failure.message)
                    self._outbox.put_nowait(pb.NodeMessage(pipes_failed=failed))

    async def pause(self) -> None:
        """The coordinator is gone: what is in flight is void."""
        try:
            pause = pb.Pause(generation=self._generation, why="the coordinator is gone")
            await self._worker.send(worker_pb2.WorkerCommand(pause=pause))
        except WorkerDied:
            return  # `relay` says so

    async def _start(self, assignment: pb.Assignment) -> None:
        wanted = (assignment.spec, assignment.stage)
        if self.started is not None and self.started != wanted:
            raise Refused(
                f"This node's worker holds stage {self.started[1]}; the coordinator now wants stage "
                f"{assignment.stage} or another model. Restart the node."
            )
        if assignment.stage == 0 and self._config.data is None:
            raise ConfigError("This node holds the first stage, which reads the text: give --data FOLDER.")
        emit("node.assigned", stage=assignment.stage, model_id="0x" + assignment.model_id.hex())
        if self.started is None:
            self.started = wanted
            start = worker_pb2.WorkerStart(
                spec=assignment.spec,
                stage=assignment.stage,
                state_dir=str(self._config.directory / f"stage-{assignment.stage}"),
                data_dir=str(self._config.data or ""),
                device=self._config.device,
            )
            await self._worker.send(worker_pb2.WorkerCommand(start=start))
        self._watch.begin(assignment)
        self._evidence.begin(assignment)
        if not self._assigned.done():
            self._assigned.set_result(assignment)

    async def _plan(self, plan: pb.RoundPlan) -> None:
        with _telling(plan.round):
            await self._evidence.plan(plan)
        await self._worker.send(worker_pb2.WorkerCommand(plan=plan))

    async def seal(self, sealed: pb.RoundSealed) -> None:
        """The coordinator has sealed a round."""
        emit("round.credited", round=sealed.round)
        await asyncio.to_thread(self._watch.credit, sealed.round)
        with _telling(sealed.round):
            await self._evidence.seal(sealed, self._watch.last_signed)
        retain = worker_pb2.Retain(round=sealed.round, retained=sealed.retained)
        await self._worker.send(worker_pb2.WorkerCommand(retain=retain))

    async def digest(self, generation: int, report: pb.StageReport) -> bytes:
        """What a report's signature is over."""
        assignment = await self._assigned
        domain = Domain(assignment.chain_id, assignment.settlement)
        tip = self._evidence.tip(report.round)
        return report_receipt(assignment.model_id, generation, report_from_proto(report), tip).digest(domain)

    async def sign(self, message: worker_pb2.WorkerReport) -> pb.SignedReport:
        """The worker's report, with the node's signature."""
        digest = await self.digest(message.generation, message.report)
        self.rounds += 1
        emit("round.trained", round=message.report.round, seconds=round(message.report.seconds, 3))
        signature = await asyncio.to_thread(
            self._watch.sign,
            self._config.identity,
            message.generation,
            message.report.round,
            message.report.stage,
            digest,
        )
        return pb.SignedReport(generation=message.generation, report=message.report, signature=signature)


@contextmanager
def _telling(round_: int) -> Iterator[None]:
    """What the coordinator can't say of this round is told; then the node ends."""
    try:
        yield
    except WireError as error:
        emit("round.disputed", round=round_, code=error.code, message=error.args[0])
        raise
