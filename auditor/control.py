"""An auditor's control process: it takes orders, has its referee replay them, and signs what comes of it.

It holds the auditor's key; only the referee sees a weight. Orders wait for each other; while one is replayed the
stream goes on, and when that breaks the replay is given up: whoever leads now will order what it needs.
"""

import asyncio
from dataclasses import dataclass

from eth_utils.address import is_address

from auditor.orders import read_order
from commonweight.errors import MalformedMessage, PeerUnreachable, Refused, UnplannedMessage
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.locating import Lookup, make_locator
from commonweight.rules.audits import NO_EVIDENCE, Audit, Verdict
from commonweight.rules.merkle import HASH_BYTES, keccak
from commonweight.rules.panel import opinion_receipt, recording_receipt
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.spec import ModelSpec, parse_spec
from commonweight.wire.attachment import Attachment, Backoff, Finished, attach, together, until_one_ends
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import referee_pb2
from commonweight.wire.referee import Referee, RefereeConfig, Replays, audit_limit_s
from commonweight.wire.tls import make_certificate

MAX_WAITING = 4
"""Orders behind the one that is replayed: the coordinator goes on without an auditor that is late."""


@dataclass(frozen=True)
class AuditorConfig:
    """What one auditor runs with."""

    identity: NodeIdentity
    coordinator: str | Lookup
    """PEERID@host:port of its enrolment service, or where to look for it."""
    device: str
    threads: int


@dataclass(frozen=True)
class Model:
    """Whose work it audits."""

    spec: ModelSpec
    model_id: bytes
    domain: Domain


class Auditor:
    """One auditor."""

    def __init__(self, config: AuditorConfig) -> None:
        """Nothing is started before `run`."""
        self.config = config
        self.certificate = make_certificate(config.identity)
        self._locator = make_locator(config.coordinator, config.identity)
        self._backoff = Backoff()
        self._enlisted: pb.Enlisted | None = None
        """By the first coordinator that took it."""
        self._replays: Replays | None = None

    def make_session(self, model: Model, replays: Replays, coordinator: Attachment) -> "Session":
        """What obeys the coordinator during one attachment."""
        return Session(self.config.identity, model, replays, coordinator)

    async def run(self) -> None:
        """Audit until the coordinator has no more work, or until cancelled."""
        identity = self.config.identity
        emit("auditor.started", node=identity.address, peer_id=identity.peer_id)
        try:
            await until_one_ends(self._audit(), self._locator.run())
        finally:
            if self._replays is not None:
                await self._replays.stop()

    async def _audit(self) -> None:
        while True:
            try:
                await self._attend()
            except Finished:
                emit("auditor.finished")
                return
            except PeerUnreachable as error:
                await self._backoff.wait(error)

    async def _attend(self) -> None:
        """One attachment to the coordinator, from enrolment to the end of its stream."""
        join = pb.NodeMessage(auditor=pb.AuditorJoin(certificate=self.certificate.der))
        async with attach(await self._locator.coordinator(), self.certificate, join) as coordinator:
            message = await coordinator.receive()
            if not message.HasField("enlisted"):
                raise MalformedMessage(f"The coordinator answers an auditor with {message.WhichOneof('body')}.")
            model, replays = self._enlist(message.enlisted)
            self._backoff.reset()
            session = self.make_session(model, replays, coordinator)
            await together(session.listen(), session.work())

    def _enlist(self, enlisted: pb.Enlisted) -> tuple[Model, Replays]:
        if len(enlisted.model_id) != HASH_BYTES or not is_address(enlisted.settlement):
            raise MalformedMessage(
                f"The model {enlisted.model_id.hex():.80} with the settlement {enlisted.settlement!r:.60} is none."
            )
        if self._enlisted is not None and self._enlisted != enlisted:
            raise Refused(
                f"This auditor was enlisted for the model 0x{self._enlisted.model_id.hex()}; the coordinator now leads "
                f"0x{enlisted.model_id.hex()}. Restart the auditor."
            )
        spec = parse_spec(enlisted.spec)
        if self._replays is None:
            config = RefereeConfig(
                referee_pb2.RefereeStart(
                    spec=enlisted.spec,
                    certificate=self.certificate.der,
                    private_key=self.certificate.private_key_pem,
                    device=self.config.device,
                ),
                self.config.threads,
                audit_limit_s(spec),
            )
            self._replays = Replays(lambda: Referee.start(config), self._locator.reach_evidence)
            self._enlisted = enlisted
        emit("auditor.enlisted", model_id="0x" + enlisted.model_id.hex())
        return Model(spec, enlisted.model_id, Domain(enlisted.chain_id, enlisted.settlement)), self._replays


class Session:
    """What one attachment does."""

    def __init__(self, identity: NodeIdentity, model: Model, replays: Replays, coordinator: Attachment) -> None:
        self._identity = identity
        self._model = model
        self._replays = replays
        self._coordinator = coordinator
        self._waiting: asyncio.Queue[pb.CoordinatorMessage] = asyncio.Queue(MAX_WAITING)

    async def listen(self) -> None:
        """Take orders, until the stream ends."""
        while True:
            message = await self._coordinator.receive()
            try:
                self._waiting.put_nowait(message)
            except asyncio.QueueFull:
                raise UnplannedMessage(f"The coordinator gives more than {MAX_WAITING} orders at a time.") from None

    async def work(self) -> None:
        """Do what is ordered, one after the other."""
        while True:
            message = await self._waiting.get()
            match message.WhichOneof("body"):
                case "order":
                    self._coordinator.send(pb.NodeMessage(opinion=await self.judge(message.order)))
                case "recording":
                    recording = await self.record(message.recording)
                    self._coordinator.send(pb.NodeMessage(recording=recording))
                case other:
                    raise UnplannedMessage(f"The coordinator sends {other}, which is nothing for an auditor.")

    async def judge(self, order: pb.AuditOrder) -> pb.AuditOpinion:
        """Its opinion on a unit, signed."""
        audit, claim = self._read(order)
        kind, microbatch = audit.kind.value, audit.microbatch
        round_, stage, replica = audit.round, audit.stage, audit.replica
        emit("audit.ordered", round=round_, stage=stage, replica=replica, kind=kind, microbatch=microbatch)
        found = await self._replays.judge(order)
        evidence_hash = keccak(found.evidence) if found.evidence else NO_EVIDENCE
        verdict = Verdict(found.verdict)
        receipt = opinion_receipt(self._model.model_id, audit, claim, verdict, evidence_hash)
        found.signature = self._sign(receipt)
        emit(
            "audit.answered",
            round=round_,
            stage=stage,
            replica=replica,
            kind=kind,
            microbatch=microbatch,
            verdict=found.verdict,
            why=found.why[:500],
            seconds=round(found.seconds, 3),
            cpu_seconds=round(found.cpu_seconds, 3),
            fetched_bytes=found.fetched_bytes,
        )
        return found

    async def record(self, order: pb.AuditOrder) -> pb.AuditRecording:
        """The recording of its replay of a unit, signed; an empty one where it couldn't."""
        audit, claim = self._read(order)
        recorded = await self._replays.record(order)
        emit(
            "audit.recorded",
            round=audit.round,
            stage=audit.stage,
            replica=audit.replica,
            kind=audit.kind.value,
            microbatch=audit.microbatch,
            operators=max(0, len(recorded.operators) // HASH_BYTES - 1),  # the first hash is of the class
            why=recorded.failure[:500],
        )
        receipt = recording_receipt(self._model.model_id, audit, claim, recorded.operators)
        return pb.AuditRecording(unit=order.unit, operators=recorded.operators, signature=self._sign(receipt))

    def _read(self, order: pb.AuditOrder) -> tuple[Audit, bytes]:
        """The unit, and the claim about it."""
        spec = self._model.spec
        audit, report = read_order(spec, order)
        return audit, report.commitments(spec.training.microbatches_per_round).claim

    def _sign(self, receipt: Receipt) -> bytes:
        return self._identity.sign_digest(receipt.digest(self._model.domain))
