"""What a node does while it is attached to its coordinator: it passes orders on to its parts, and signs reports."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from commonweight.errors import (
    ConfigError,
    IdentityMismatch,
    Refused,
    WireError,
    WorkerDied,
    error_with_code,
)
from commonweight.events import emit
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.report import report_receipt
from commonweight.rules.spec import parse_spec
from commonweight.wire.attachment import Attachment
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import worker_pb2
from commonweight.wire.messages import report_from_proto
from node.config import NodeConfig
from node.decoding import Decoding
from node.evidence import Evidence
from node.orders import Orders
from node.routing import Routing
from node.state import StageState
from node.supervisor import WorkerProcess
from node.watching import Watch


class Moved(Exception):
    """This node holds another stage from now on, for which it comes back."""


Routed = pb.Formation | pb.DecodePeers | pb.Version | pb.MakePieces
"""What names others, to whom a way may have to be found first."""


@dataclass
class Reports:
    """What a node has trained in one generation: it signs for a round when the one before is sealed, and never for what
    it has done by a plan that was taken back.
    """

    _unsealed: int | None = None
    """The round that was signed for and isn't known to be sealed."""
    _void: int | None = None
    """The round whose first plan was taken back."""
    _waiting: worker_pb2.WorkerReport | None = None

    def trained(self, report: worker_pb2.WorkerReport) -> worker_pb2.WorkerReport | None:
        """What can be signed now."""
        if report.report.round == self._void and not report.report.revision:
            return None
        if self._unsealed is not None and report.report.round > self._unsealed:
            self._waiting = report
            return None
        self._unsealed = report.report.round
        return report

    def sealed(self, sealed: pb.RoundSealed) -> worker_pb2.WorkerReport | None:
        """Likewise."""
        if sealed.next_taken_back:
            self._void = sealed.round + 1
        if self._unsealed is None or sealed.round < self._unsealed:
            return None
        waiting, self._waiting, self._unsealed = self._waiting, None, None
        return None if waiting is None else self.trained(waiting)


class Session:
    """What one attachment knows."""

    def __init__(
        self,
        config: NodeConfig,
        worker: WorkerProcess,
        coordinator: Attachment,
        watch: Watch,
        decoding: Decoding,
        evidence: Evidence,
        state: StageState,
    ) -> None:
        self._config = config
        self._state = state
        self._orders = Orders(worker, state)
        self._evidence = evidence
        self._decoding = decoding
        self._watch = watch
        self._worker = worker
        self._coordinator = coordinator
        self._assigned: asyncio.Future[pb.Assignment] = asyncio.get_running_loop().create_future()
        self._generation = 0
        self._planned: int | None = None
        """The round of this generation that was planned last."""
        self._reports = Reports()
        self.routing: Routing | None = None
        """How neighbours are reached; None: where the coordinator says that they are."""
        self._to_route: asyncio.Queue[Routed] = asyncio.Queue()
        self._formation: pb.Formation | None = None
        """The one that counts."""
        self.started: tuple[bytes, int] | None = None
        self.on_assigned: Callable[[int], None] = lambda _: None
        """Called with the stage that this node holds from now on. Raises Moved where it held another one."""
        self.rounds = 0

    @property
    def attached(self) -> bool:
        """Whether the coordinator took this node."""
        return self._assigned.done()

    async def obey(self) -> None:
        """Pass on what the coordinator wants, until its stream ends."""
        while True:
            message = await self._coordinator.receive()
            match message.WhichOneof("body"):
                case "assignment":
                    await self._start(message.assignment)
                case "formation":
                    if message.formation.generation != self._generation:
                        self._generation = message.formation.generation
                        await self._drop()
                    self._formation = message.formation
                    await self._route(message.formation)
                case "plan":
                    await self._plan(message.plan)
                case "version":
                    self._state.note(message.version)
                    await self._route(message.version)
                case "replicas":
                    self._let_in(*message.replicas.certificates)
                    self._state.grant(message.replicas)
                case "make":
                    await self._route(message.make)
                case "keep":
                    self._let_in(*(each.certificate for each in (*message.keep.makers, *message.keep.seekers)))
                    self._state.keeping.grant(message.keep)
                case "pause":
                    self._formation = None
                    emit("generation.paused", generation=message.pause.generation, why=message.pause.why)
                    await self._drop()
                    await self._worker.send(worker_pb2.WorkerCommand(pause=message.pause))
                case "sealed":
                    await self.seal(message.sealed)
                case "audit":
                    self._let_in(message.audit.auditor)
                    await self._evidence.grant(message.audit)
                case "publish":
                    # Before the next message goes to the worker: two rounds later it removes this version.
                    needed = self._evidence.needed_versions()
                    await self._decoding.publish(await self._assigned, message.publish, needed)
                case "decode_peers":
                    await self._route(message.decode_peers)
                case "answer":
                    self._decoding.recorded(message.answer)
                case "move":
                    await self._move(message.move)

    async def find_ways(self) -> None:
        """Find the ways to neighbours and replicas, and pass on what the coordinator said of them; orders don't wait
        for that.
        """
        while True:
            message = await self._to_route.get()
            assert self.routing is not None, "nothing is put here otherwise"
            if isinstance(message, pb.Formation):
                for peer_id, error in (await self.routing.form(message)).items():
                    if self._formation is message:
                        self._fail(message.generation, error.code, error.args[0], peer_id)
            elif isinstance(message, pb.Version):
                await self.routing.find_sources(*message.sources, *message.keepers)
            elif isinstance(message, pb.MakePieces):
                await self.routing.find_sources(*message.keepers)
            else:
                await self.routing.meet(message)
            await self._pass_on(message)

    async def relay(self) -> None:
        """Pass on what the worker has done, reports signed."""
        while True:
            event = await self._worker.receive()
            match event.WhichOneof("body"):
                case "pipes_open":
                    self._coordinator.send(pb.NodeMessage(pipes_open=event.pipes_open))
                case "started":
                    await self._state.derived(event.started.frozen_hash)
                case "late":
                    emit("peer.late", generation=event.late.generation, message=event.late.why)
                    self._coordinator.send(pb.NodeMessage(late=event.late))
                case "followed":
                    self._state.followed(event.followed)
                case "report":
                    await self._report(self._reports.trained(event.report))
                case "failure" if event.failure.fatal:
                    emit("error", code=event.failure.code, message=event.failure.message)
                    raise error_with_code(event.failure.code, event.failure.message)
                case "failure":
                    failure = event.failure
                    self._fail(failure.generation, failure.code, failure.message, failure.peer_id)

    async def pause(self) -> None:
        """The coordinator is gone: what is in flight is void."""
        await self._drop()
        await self._state.end()
        try:
            pause = pb.Pause(generation=self._generation, why="the coordinator is gone")
            await self._worker.send(worker_pb2.WorkerCommand(pause=pause))
        except WorkerDied:
            return  # `relay` says so

    async def _route(self, message: Routed) -> None:
        if self.routing is not None:
            self._to_route.put_nowait(message)
        else:
            await self._pass_on(message)

    async def _pass_on(self, message: Routed) -> None:
        if isinstance(message, pb.DecodePeers):
            await self._decoding.meet(message)
        elif isinstance(message, pb.Version):
            await self._state.want(message)
        elif isinstance(message, pb.MakePieces):
            await self._state.make(message)
        elif self._formation is message:
            await self._orders.give(worker_pb2.WorkerCommand(formation=message), message.round)

    def _let_in(self, *certificates: bytes) -> None:
        """Their holders may come for what this node keeps."""
        if self.routing is None:
            return
        for certificate in certificates:
            with suppress(IdentityMismatch):  # it is refused later, and told
                self.routing.grant(certificate)

    def _fail(self, generation: int, code: str, message: str, peer_id: str) -> None:
        emit("pipes.failed", code=code, message=message, generation=generation)
        failed = pb.PipesFailed(generation=generation, code=code, why=message, peer_id=peer_id)
        self._coordinator.send(pb.NodeMessage(pipes_failed=failed))

    async def _start(self, assignment: pb.Assignment) -> None:
        wanted = (assignment.spec, assignment.stage)
        if self.started is not None and self.started[0] != assignment.spec:
            raise Refused("The coordinator now wants another model than this node's worker holds. Restart the node.")
        if assignment.stage == 0 and self._config.data is None:
            raise ConfigError("This node holds the first stage, which reads the text: give --data FOLDER.")
        self.on_assigned(assignment.stage)
        emit("node.assigned", stage=assignment.stage, model_id="0x" + assignment.model_id.hex())
        if self.started is None:
            self.started = wanted
            start = worker_pb2.WorkerStart(
                spec=assignment.spec,
                stage=assignment.stage,
                state_dir=str(self._config.directory / f"stage-{assignment.stage}"),
                data_dir=str(self._config.data or ""),
                device=self._config.device,
                compile=self._config.compiles,
            )
            await self._worker.send(worker_pb2.WorkerCommand(start=start))
        self._watch.begin(assignment)
        self._evidence.begin(assignment)
        await self._state.begin(assignment, self._coordinator.send, self._worker.send)
        self._decoding.begin(assignment, self._coordinator.send)
        if not self._assigned.done():
            self._assigned.set_result(assignment)

    async def _move(self, move: pb.Move) -> None:
        source = (await self._assigned).stage
        emit("node.moves", source=source, target=move.stage, before=round(move.before, 3), after=round(move.after, 3))
        raise Moved

    async def _plan(self, plan: pb.RoundPlan) -> None:
        with _telling(plan.round):
            await self._evidence.plan(plan)
        # The state at the start of a round that is planned ahead is what the worker will come to.
        is_ahead = self._planned is not None and plan.round == self._planned + 1
        self._planned = plan.round
        needed = plan.round - 1 if is_ahead else plan.round
        await self._orders.give(worker_pb2.WorkerCommand(plan=plan), needed)

    async def _drop(self) -> None:
        """The generation is over."""
        self._planned, self._reports = None, Reports()
        await self._orders.drop()

    async def _report(self, trained: worker_pb2.WorkerReport | None) -> None:
        if trained is not None:
            await self._state.trained(trained.report)
            self._coordinator.send(pb.NodeMessage(report=await self.sign(trained)))

    async def seal(self, sealed: pb.RoundSealed) -> None:
        """The coordinator has sealed a round."""
        emit("round.credited", round=sealed.round)
        await asyncio.to_thread(self._watch.credit, sealed.round)
        with _telling(sealed.round):
            await self._evidence.seal(sealed, self._watch.last_signed)
        retain = worker_pb2.Retain(round=sealed.round, retained=sealed.retained)
        await self._worker.send(worker_pb2.WorkerCommand(retain=retain))
        await self._report(self._reports.sealed(sealed))

    async def domain(self) -> Domain:
        """What this node's signatures are good for."""
        assignment = await self._assigned
        return Domain(assignment.chain_id, assignment.settlement)

    async def receipt(self, generation: int, report: pb.StageReport) -> Receipt:
        """What a report's signature is over."""
        assignment = await self._assigned
        tip, said = self._evidence.tip(report.round), report_from_proto(report)
        commitments = said.commitments(parse_spec(assignment.spec).training.microbatches_per_round)
        return report_receipt(assignment.model_id, generation, said.round, said.stage, commitments, tip)

    async def sign(self, message: worker_pb2.WorkerReport) -> pb.SignedReport:
        """The worker's report, with the node's signature."""
        receipt = await self.receipt(message.generation, message.report)
        is_loaded = bool(message.report.hops)
        self.rounds += 1
        emit("round.trained", round=message.report.round, seconds=round(message.report.seconds, 3))
        signature = await asyncio.to_thread(
            self._watch.sign,
            self._config.identity,
            await self.domain(),
            message.generation,
            message.report.round,
            receipt,
            is_loaded=is_loaded,
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
