"""What auditors are shown: what a provider has signed, or a report that is known to be bad."""

from dataclasses import dataclass, replace

from commonweight.rules.answer import Answer
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.epoch import credited_load
from commonweight.rules.panel import is_known_bad, known_bad_report
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import SealedRound
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto, audit_to_proto, report_from_proto, report_to_proto
from coordinator.ledger import Ledger


@dataclass(frozen=True)
class Claim:
    """What is said of a unit."""

    audit: Audit
    said: Report | Answer
    hash: bytes
    """As auditors sign it."""
    order: pb.AuditOrder
    """The same for auditors, with what isn't signed; but not yet who of the holders is there."""
    holders: tuple[str, ...]
    """The nodes that have what it takes to replay it, the provider first."""

    @property
    def report(self) -> Report:
        """Of a unit of training: of no other is an opinion asked of a seat holder."""
        assert isinstance(self.said, Report), "it is of an answer"
        return self.said

    @property
    def provider(self) -> str:
        """The node whose work it is."""
        return self.holders[0]


def signed_claim(spec: ModelSpec, ledger: Ledger, sealed: SealedRound, audit: Audit) -> Claim:
    """That of the provider, of a unit of this round that was drawn and isn't decided. Blocks."""
    order, provider = pb.AuditOrder(unit=audit_to_proto(audit)), sealed.provider(audit).node
    if audit.kind is not Kind.ANSWER:
        order.report.ParseFromString(ledger.unaudited_report(audit.round, audit.stage, audit.replica))
        report = report_from_proto(order.report)
        claim = report.commitments(spec.training.microbatches_per_round).claim
        return Claim(audit, report, claim, order, (provider, *_neighbours(spec, sealed, audit)))
    part, order.version_root = ledger.answer_claim(audit.round, audit.answer, audit.stage)
    order.answer.ParseFromString(part)
    answer = answer_from_proto(order.answer)
    return Claim(audit, answer, answer.trace, order, (provider,))  # others have kept nothing that is needed


def _neighbours(spec: ModelSpec, sealed: SealedRound, audit: Audit) -> list[str]:
    """The replicas of the stages before and after, who have what crossed the audited one's sides; first those that
    computed the same microbatch.
    """
    lines = [*sealed.replicas(audit.stage - 1), *sealed.replicas(audit.stage + 1)]
    if audit.microbatch is not None:
        lines.sort(key=lambda line: audit.microbatch not in credited_load(spec, line))
    return [line.node for line in lines]


def false_claim(spec: ModelSpec, seed: bytes, claim: Claim) -> Claim | None:
    """What is shown in its stead where the epoch's seed draws that; None where it doesn't, or it would be the same."""
    if not isinstance(claim.said, Report) or not is_known_bad(spec, seed, claim.audit, claim.report.load):
        return None
    report = known_bad_report(claim.audit, claim.report, seed, is_last=claim.audit.stage == spec.stages - 1)
    order = pb.AuditOrder()
    order.CopyFrom(claim.order)
    del order.report.hops[:]
    order.report.hops.extend(report_to_proto(report).hops)
    shown = report.commitments(spec.training.microbatches_per_round).claim
    return None if shown == claim.hash else replace(claim, said=report, hash=shown, order=order)
