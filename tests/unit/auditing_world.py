"""The coordinator's audits with a real ledger, with auditors and a referee that say what the test wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from commonweight.chain.keys import Key
from commonweight.errors import CommonweightError, WorkerDied
from commonweight.rules.answer import SESSION_BYTES, Answer
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.epoch import credit_report
from commonweight.rules.merkle import keccak
from commonweight.rules.panel import opinion_receipt, recording_receipt
from commonweight.rules.receipt import Domain
from commonweight.rules.recording import OperatorRecord, join_hashes
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import AuditLine, AuditorSeat, SealedRound
from commonweight.watch.store import StatementStore
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import referee_pb2
from commonweight.wire.messages import answer_to_proto, audit_from_proto, report_from_proto, report_to_proto
from commonweight.wire.referee import Replays
from coordinator.auditing import Auditing
from coordinator.auditors import Auditors
from coordinator.disputes import Disputes
from coordinator.draws import Draw, draw
from coordinator.holders import Holders
from coordinator.ledger import Ledger
from coordinator.members import AuditorMember, Member, Place
from coordinator.panel import Panel
from referee.fraud import Difference, fraud_evidence
from tests.unit.tiny import tiny_spec
from tools.build_vectors import answer_line, beacon_chain, honest_answer, honest_reports, mark, seal, share

DEADLINE_S = 20
SPEC = tiny_spec(stages=3, round_rate="0.2", microbatch_rate="0.8", data_rate="0.3", answer_rate="0.3")
PER_EPOCH = SPEC.economics.rounds_per_epoch
STAGES, MICROBATCHES = SPEC.stages, SPEC.training.microbatches_per_round
PLACE = Place(b"\xaa" * 32, Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3"))
KEY = Key(b"\x07" * 32)
NODES = tuple(Key(bytes([stage + 1]) * 32).address for stage in range(STAGES))
"""The one replica of each stage, in most of these worlds."""
SECOND = tuple(Key(bytes([stage + 0x11]) * 32).address for stage in range(STAGES))
"""The other one of each, where there are two."""
NUMERICS = "torch 2, cpu"
ROUNDS = 40
"""Later ones have a negative loss, in this world."""

ANSWERS = 2
"""Sealed with each round, where answers are audited and there is a version to generate them."""

Judge = Callable[[pb.AuditOrder], Awaitable[pb.AuditOpinion]]
Told = list[tuple[str, dict[str, Any]]]


def answer_parts(number: int, index: int) -> tuple[Answer, ...]:
    """All stages' parts of an answer that is sealed with this round."""
    session, version = mark("session", number, index)[:SESSION_BYTES], number // PER_EPOCH * PER_EPOCH
    return honest_answer(STAGES, version, session, 3, 7 + index, temperature=0.5, seed=index)


def answer_of(audit: Audit) -> Answer:
    """The part that is audited."""
    assert audit.microbatch is not None
    return answer_parts(audit.round, audit.microbatch)[audit.stage]


def nodes_of(stage: int, replicas: int) -> list[str]:
    """Who reports the stage where there are so many, in order."""
    return sorted((NODES[stage], SECOND[stage])[:replicas])


def signed_report(number: int, stage: int, replica: int = 0, replicas: int = 1) -> Report:
    """What a replica has signed, of so many of each stage."""
    reports = honest_reports(STAGES, MICROBATCHES, number, [share(MICROBATCHES, replicas)] * STAGES)
    return reports[stage * replicas + replica]


def sealed_round(number: int, spec: ModelSpec = SPEC, replicas: int = 1) -> SealedRound:
    lines = [
        credit_report(
            spec,
            signed_report(number, stage, replica, replicas),
            node=node,
            owner=node,
            account=node,
            generation=1,
            signature=bytes(65),
        )
        for stage in range(STAGES)
        for replica, node in enumerate(nodes_of(stage, replicas))
    ]
    count = ANSWERS if number >= PER_EPOCH and spec.verification.answer_rate != "0" else 0
    answers = [
        answer_line(
            PLACE.model_id,
            answer_parts(number, index),
            completion_tokens=5,
            gateway=KEY.address,
            served=lambda _: bytes(65),
            signs=[lambda _: bytes(65)] * STAGES,
            replicas=[(index + stage) % replicas for stage in range(STAGES)],
        )
        for index in range(count)
    ]
    return seal(spec, number, lines, answers)


def drawn_in(number: int, spec: ModelSpec = SPEC, replicas: int = 1) -> Draw:
    epoch = number // PER_EPOCH
    return draw(spec, sealed_round(number, spec, replicas), beacon_chain(spec, epoch)[0], mark("seed", epoch))


def unit_of(order: pb.AuditOrder) -> Audit:
    return audit_from_proto(order.unit)


def is_true(order: pb.AuditOrder, replicas: int = 1) -> bool:
    """Whether it shows what the provider has signed."""
    audit = unit_of(order)
    return report_from_proto(order.report) == signed_report(audit.round, audit.stage, audit.replica, replicas)


def claim_of(order: pb.AuditOrder) -> bytes:
    """What is signed about what it shows."""
    return report_from_proto(order.report).commitments(MICROBATCHES).claim


def proof_against(order: pb.AuditOrder, spec: ModelSpec) -> bytes:
    """What a referee writes that has found another gradient, or other codes."""
    if order.HasField("answer"):
        return b'{"format":"commonweight.false-answer/2"}'
    report = report_from_proto(order.report)
    difference = Difference("gradient_hash", None, "0x" + report.gradient_hash.hex(), "0x" + bytes(32).hex())
    return fraud_evidence(spec, unit_of(order), report, difference, provider=NUMERICS, auditor=NUMERICS)


async def passing(order: pb.AuditOrder) -> pb.AuditOpinion:
    return pb.AuditOpinion(unit=order.unit, verdict="passed", seconds=0.5)


async def dying(order: pb.AuditOrder) -> pb.AuditOpinion:
    raise WorkerDied("The referee (pid 1) ended.")


def saying(verdict: str, evidence: bytes = b"") -> Judge:
    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        return pb.AuditOpinion(unit=order.unit, verdict=verdict, evidence=evidence)

    return answer


def operators(*names: str) -> list[OperatorRecord]:
    return [
        OperatorRecord(
            microbatch=0,
            phase="forward",
            layer=name,
            operator="aten.add.Tensor",
            arguments={"args": [{"tensor": 0}], "kwargs": {}},
            inputs=("0x" + bytes(32).hex(),),
            strides=((1,),),
            outputs=("0x" + mark(name).hex(),),
        )
        for name in names
    ]


class Auditor:
    """One that is connected: it replays by comparing with the truth, unless the test has it say something else."""

    def __init__(self, bench: "Bench", number: int, stages: Collection[int] = range(STAGES)) -> None:
        self.bench = bench
        self.key = Key(bytes([0x31 + number]) * 32)
        self.owner = Key(bytes([0x41 + number]) * 32).address
        self.orders: list[pb.AuditOrder] = []
        self.asked_to_record: list[pb.AuditOrder] = []
        self.refusals: list[CommonweightError] = []
        self.enlisted: list[pb.Enlisted] = []
        self.finished = 0
        self.says: Callable[[pb.AuditOrder], str | None] = lambda order: (
            "passed" if is_true(order, bench.replicas) else "failed"
        )
        """None: nothing, ever."""
        self.spoil: Callable[[pb.AuditOpinion], None] = lambda opinion: None
        """Changes an opinion after it was signed."""
        self.recorded: list[OperatorRecord] | None = bench.recorded
        """By its replay; empty: it couldn't; None: it doesn't answer."""
        self.class_ = NUMERICS
        self.member = AuditorMember(
            node=self.key.address,
            certificate=b"auditor %d" % number,
            owner=self.owner,
            stages=frozenset(stages),
            account=self.owner,
            send=self.hear,
        )

    def join(self) -> "Auditor":
        self.bench.auditors.join(self.member)
        return self

    def leave(self) -> None:
        self.bench.auditors.leave(self.member)

    def hear(self, message: pb.CoordinatorMessage | CommonweightError) -> None:
        if isinstance(message, CommonweightError):
            self.refusals.append(message)
            return
        match message.WhichOneof("body"):
            case "enlisted":
                self.enlisted.append(message.enlisted)
            case "finished":
                self.finished += 1
            case "order":
                self.orders.append(message.order)
                if (verdict := self.says(message.order)) is not None:
                    self.bench.later(self.bench.auditors.answer, self.member, self.opinion(message.order, verdict))
            case "recording":
                order = message.recording
                self.asked_to_record.append(order)
                if self.recorded is not None:
                    self.bench.later(self.bench.auditors.answer, self.member, self.recording(order))

    def opinion(self, order: pb.AuditOrder, verdict: str) -> pb.AuditOpinion:
        evidence = proof_against(order, self.bench.spec) if verdict == "failed" else b""
        found = pb.AuditOpinion(unit=order.unit, verdict=verdict, evidence=evidence, seconds=0.25, why=verdict)
        evidence_hash = keccak(evidence) if evidence else NO_EVIDENCE
        said = (unit_of(order), claim_of(order), Verdict(verdict), evidence_hash)
        receipt = opinion_receipt(PLACE.model_id, *said)
        found.signature = self.key.sign_digest(receipt.digest(PLACE.domain))
        self.spoil(found)
        return found

    def recording(self, order: pb.AuditOrder) -> pb.AuditRecording:
        assert self.recorded is not None
        hashes = join_hashes(self.class_, self.recorded) if self.recorded else b""
        receipt = recording_receipt(PLACE.model_id, unit_of(order), claim_of(order), hashes)
        signature = self.key.sign_digest(receipt.digest(PLACE.domain))
        return pb.AuditRecording(unit=order.unit, operators=hashes, signature=signature)


class SeatsOnChain:
    """Who held which when any epoch's tip was committed."""

    def __init__(self) -> None:
        self.seats: frozenset[AuditorSeat] = frozenset()
        self._committed: set[int] = set()

    async def commit(self, epoch: int) -> None:
        self._committed.add(epoch)

    def auditors(self, epoch: int) -> frozenset[AuditorSeat]:
        assert epoch in self._committed
        return self.seats


class Bench:
    """An Auditing, its ledger, its nodes' inboxes, its auditors and its referees."""

    def __init__(self, folder: Path, spec: ModelSpec = SPEC, replicas: int = 1) -> None:
        """`replicas`: of each stage."""
        self.folder, self.spec, self.replicas = folder, spec, replicas
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
        ids = {"model_id": PLACE.model_id, "spec_hash": spec.spec_hash}
        self.ledger.open_model(**ids, settlement=PLACE.domain.settlement, chain_id=PLACE.domain.chain_id)
        self.asked: list[pb.AuditOrder] = []
        """Of referees."""
        self.referees = 0
        self.stopped = 0
        self.plans = 0
        """How often training was told to look again."""
        self.frauds = 0
        self.answer: Judge = passing
        self.recorded: list[OperatorRecord] = operators("one", "two", "three")
        """By the referee."""
        self.chain = SeatsOnChain()
        self.inboxes: dict[str, list[pb.CoordinatorMessage]] = {node: [] for node in (*NODES, *SECOND)}
        self.evidence = StatementStore(folder / "evidence", "evidence")
        holders, self.auditors = Holders(), Auditors(spec, PLACE)
        parts = (holders, self.auditors, Replays(self.start))
        disputes = Disputes(spec, PLACE, b"der", *parts)
        self.panel = Panel(spec, PLACE, self.ledger, KEY, self.chain, self.evidence, *parts, b"der", disputes)
        self.auditing = Auditing(spec, self.ledger, self.panel, self.convicted)

    def seated(self, count: int) -> list[Auditor]:
        """So many auditors, connected, whose owners have a seat in every stage."""
        auditors = [Auditor(self, number) for number in range(count)]
        self.chain.seats |= {AuditorSeat(stage=stage, owner=each.owner) for each in auditors for stage in range(STAGES)}
        return [each.join() for each in auditors]

    def later(self, call: Callable[..., Any], *args: Any) -> None:
        asyncio.get_running_loop().call_soon(call, *args)

    # What the referee does.

    async def start(self) -> Any:
        self.referees += 1
        return self

    async def audit(self, order: pb.AuditOrder) -> pb.AuditOpinion:
        self.asked.append(order)
        return await self.answer(order)

    async def record(self, order: pb.AuditOrder, tensors_of: int | None = None) -> referee_pb2.Recording:
        found = referee_pb2.Recording(operators=join_hashes(NUMERICS, self.recorded), numerics=NUMERICS)
        if tensors_of is not None and tensors_of < len(self.recorded):
            found.record = canonical_json(self.recorded[tensors_of].model_dump(mode="json"))
            found.tensors = b"safetensors"
        return found

    async def stop(self) -> None:
        self.stopped += 1

    # What training does.

    def seal(self, *numbers: int) -> list[Draw]:
        found = []
        for number in numbers:
            epoch = number // PER_EPOCH
            self.ledger.beacon_seed(epoch, mark("seed", epoch))
            drawn = drawn_in(number, self.spec, self.replicas)
            if drawn.sealed.answers:
                self._seal_version(epoch * PER_EPOCH)
            reports = {
                (stage, replica): report_to_proto(signed_report(number, stage, replica, self.replicas))
                for stage, replica in drawn.replicas
            }
            for report in reports.values():
                report.numerics = NUMERICS
            parts = {
                (audit.microbatch or 0, audit.stage): answer_to_proto(answer_of(audit)).SerializeToString()
                for audit in drawn.audits
                if audit.kind is Kind.ANSWER
            }
            texts = {replica: report.SerializeToString() for replica, report in reports.items()}
            self.ledger.record_round(drawn.sealed, texts, parts)
            self.auditing.sealed(drawn)
            found.append(drawn)
        return found

    def _seal_version(self, version: int) -> None:
        """Unless it is in the ledger: without audits."""
        if not self.ledger.sealed_rounds(version - 1, version):
            self.ledger.record_round(sealed_round(version - 1, self.spec, self.replicas), {}, {})

    def join(self, *stages: int) -> None:
        """All replicas of these stages; of all, without any."""
        for stage in stages or range(STAGES):
            for replica in range(self.replicas):
                self.auditing.joined(stage, self.member(stage, replica))

    def leave(self, stage: int, replica: int = 0) -> None:
        self.auditing.lost(self.member(stage, replica))

    def member(self, stage: int, replica: int = 0) -> Member:
        node = nodes_of(stage, self.replicas)[replica]

        def send(message: pb.CoordinatorMessage | CommonweightError) -> None:
            assert isinstance(message, pb.CoordinatorMessage)
            self.inboxes[node].append(message)

        return Member(
            node=node,
            peer_id=f"peer {stage}" if self.replicas == 1 else f"peer {stage}.{replica}",
            data_address="",
            evidence_address=f"127.0.0.1:{9000 + stage + 100 * replica}",
            certificate=b"of %d.%d" % (stage, replica),
            owner=node,
            account=node,
            has_data=True,
            stages=None,
            stays=False,
            send=send,
        )

    def grants(self, stage: int, replica: int = 0) -> list[pb.AuditGrant]:
        inbox = self.inboxes[nodes_of(stage, self.replicas)[replica]]
        return [message.audit for message in inbox if message.HasField("audit")]

    def convicted(self) -> None:
        self.frauds += 1

    def planned(self) -> None:
        self.plans += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.auditing.run(self.planned))
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def decide(self, *, until: int = 10**6) -> list[AuditLine]:
        """The verdicts on all that is open."""
        async with asyncio.timeout(DEADLINE_S), self.running() as task:
            decided = asyncio.create_task(self.auditing.wait_until_decided(until))
            await asyncio.wait((task, decided), return_when=asyncio.FIRST_COMPLETED)
            if not decided.done():
                decided.cancel()
                task.result()  # raises what it died of
        return list(self.ledger.verdicts(0, 10**6))


def rounds_with(spec: ModelSpec) -> Sequence[int]:
    """The first rounds with something to audit."""
    return [number for number in range(ROUNDS) if drawn_in(number, spec).audits]
