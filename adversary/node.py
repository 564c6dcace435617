"""The control process of a node that cheats."""

import asyncio
from typing import Any

from adversary.adaptive import Adapted, adapt
from adversary.cheat import Cheat
from commonweight.devnet.byzantine import Cheating
from commonweight.errors import ConfigError, EvidenceMissing
from commonweight.rules.spec import parse_spec
from commonweight.wire.attachment import Attachment
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import evidence_pb2, worker_pb2
from node.attending import Session
from node.config import NodeConfig
from node.control import Node
from node.evidence import Evidence
from node.supervisor import DecoderProcess, WorkerProcess


class DishonestWorkerProcess(WorkerProcess):
    """The compute worker of `adversary.worker`."""

    module = "adversary.worker"


class DishonestDecoderProcess(DecoderProcess):
    """The decode process of `adversary.decoder`."""

    module = "adversary.decoder"


class DishonestNode(Node):
    """Its worker cheats; it signs what the worker reports, as an honest one does."""

    def __init__(self, cheating: Cheating, config: NodeConfig) -> None:
        self.cheat = Cheat(cheating, config.identity.address)
        super().__init__(config)

    async def start_worker(self) -> WorkerProcess:
        """As `Node.start_worker`, one that cheats."""
        config = self.config
        return await DishonestWorkerProcess.start(
            listen=config.listen,
            certificate=self.certificate,
            threads=config.threads,
            arguments=(str(self.cheat.cheating),),
        )


class Equivocator(DishonestNode):
    """Signs two reports of one round: a true one, and another one once the round is sealed."""

    def __init__(self, cheating: Cheating, config: NodeConfig) -> None:
        super().__init__(cheating, config)
        self._told: set[int] = set()
        """Rounds with two reports; one that is trained again isn't among them twice, so training goes on."""

    def make_session(self, worker: WorkerProcess, coordinator: Attachment) -> Session:
        """As `Node.make_session`, one that signs twice."""
        return EquivocatingSession(self.cheat, self._told, *self.session_parts(worker, coordinator))


class EquivocatingSession(Session):
    """One attachment of an equivocator."""

    def __init__(self, cheat: Cheat, told: set[int], *parts: Any) -> None:
        super().__init__(*parts)
        self._cheat, self._told = cheat, told
        self._last = pb.SignedReport()

    async def sign(self, message: worker_pb2.WorkerReport) -> pb.SignedReport:
        """As `Session.sign`."""
        self._last = await super().sign(message)
        return self._last

    async def seal(self, sealed: pb.RoundSealed) -> None:
        """As `Session.seal`; then it says something else about the round."""
        await super().seal(sealed)
        round_, report = sealed.round, pb.StageReport()
        if round_ != self._last.report.round or round_ in self._told or not self._cheat.picks(round_):
            return
        self._told.add(round_)
        report.CopyFrom(self._last.report)
        report.gradient_hash = report.round_gradient_hash = self._cheat.made_up_hash(round_)
        receipt = await self.receipt(self._last.generation, report)
        signature = self._config.identity.sign_digest(receipt.digest(await self.domain()))
        other = pb.SignedReport(generation=self._last.generation, report=report, signature=signature)
        self._coordinator.send(pb.NodeMessage(report=other))
        self._cheat.done(round_)


class Withholder(DishonestNode):
    """Gives auditors nothing."""

    def make_evidence(self) -> Evidence:
        """As `Node.make_evidence`, one that has nothing."""
        return NoEvidence(self.cheat, self)


class NoEvidence(Evidence):
    """Says that it doesn't keep what is asked for."""

    def __init__(self, cheat: Cheat, node: Node) -> None:
        super().__init__(node.config.directory, node.certificate)
        self._cheat = cheat

    def withholds(self, request: evidence_pb2.EvidenceRequest) -> bool:
        """Whether it doesn't give what it has."""
        return self._cheat.picks(request.round)

    async def Fetch(self, request: evidence_pb2.EvidenceRequest, context: Any) -> None:  # noqa: N802 - gRPC's name
        """As `Evidence.Fetch`, of what it doesn't withhold."""
        if not self.withholds(request):
            await super().Fetch(request, context)
            return
        self._cheat.done(request.round)
        await self._refuse(context, EvidenceMissing(f"Nothing of round {request.round} is kept here."))


class AnswerForger(DishonestNode):
    """Its decode process cheats, not its worker; it signs what either says, as an honest one does."""

    async def start_decoder(self) -> DecoderProcess:
        """As `Node.start_decoder`, one that cheats."""
        config = self.config
        return await DishonestDecoderProcess.start(
            listen=config.decode_listen,
            certificate=self.certificate,
            threads=config.threads,
            arguments=(str(self.cheat.cheating),),
        )


class AnswerWithholder(DishonestNode):
    """Gives auditors all but traces of answers."""

    def make_evidence(self) -> Evidence:
        """As `Node.make_evidence`, one that has no such trace."""
        return NoTraces(self.cheat, self)


class NoTraces(NoEvidence):
    """Says that it doesn't keep traces of the sessions that are picked, by their ids."""

    def withholds(self, request: evidence_pb2.EvidenceRequest) -> bool:
        """As `NoEvidence.withholds`."""
        return request.WhichOneof("what") == "answer" and self._cheat.picks(
            request.round, int.from_bytes(request.answer)
        )


class Adaptive(DishonestNode):
    """Gives auditors nothing of the rounds that its worker has chosen to cheat in."""

    def make_evidence(self) -> Evidence:
        """As `Node.make_evidence`."""
        return AdaptiveEvidence(self.cheat, self)


class AdaptiveEvidence(NoEvidence):
    """Knows what to withhold once it knows the model."""

    def begin(self, assignment: pb.Assignment) -> None:
        """As `Evidence.begin`."""
        super().begin(assignment)
        if not isinstance(self._cheat, Adapted):
            self._cheat = adapt(self._cheat, parse_spec(assignment.spec))


class Flooder(DishonestNode):
    """Disputes on chain what it has done, and what others haven't."""

    def __init__(self, cheating: Cheating, config: NodeConfig) -> None:
        """Raises ConfigError where it isn't told of a chain."""
        super().__init__(cheating, config)
        if config.watch is None:
            raise ConfigError(f"{cheating} disputes on chain: give --rpc URL and --registry ADDRESS.")
        self._chain = config.watch
        self._flood: asyncio.Task[None] | None = None

    def make_session(self, worker: WorkerProcess, coordinator: Attachment) -> Session:
        """As `Node.make_session`, one that lets it begin."""
        return FloodSession(self, *self.session_parts(worker, coordinator))

    def begin(self, assignment: pb.Assignment) -> None:
        """It knows its model now. Later calls change nothing."""
        from adversary.flood import flood  # web3 takes a second to import

        if self._flood is None:
            disputes = flood(self.cheat, self._chain, assignment.chain_id, assignment.model_id)
            self._flood = asyncio.create_task(disputes, name="flood")

    async def run(self) -> None:
        """As `Node.run`."""
        try:
            await super().run()
        finally:
            if self._flood is not None:
                self._flood.cancel()
                await asyncio.gather(self._flood, return_exceptions=True)


class FloodSession(Session):
    """One attachment of a flooder."""

    def __init__(self, node: Flooder, *parts: Any) -> None:
        super().__init__(*parts)
        self._node = node

    async def _start(self, assignment: pb.Assignment) -> None:
        await super()._start(assignment)
        self._node.begin(assignment)


NODES: dict[str, type[DishonestNode]] = {
    **dict.fromkeys(("stale-answers", "low-precision-answers", "made-up-answers"), AnswerForger),
    "withhold-answers": AnswerWithholder,
    "equivocate": Equivocator,
    "withhold": Withholder,
    "adaptive": Adaptive,
    "flood": Flooder,
}
"""By kind, where it isn't the worker alone that cheats."""


def make_node(cheating: Cheating, config: NodeConfig) -> Node:
    """The node of a kind; nothing is started before its `run`."""
    return NODES.get(cheating.kind, DishonestNode)(cheating, config)
