"""What auditors are shown: what a provider has signed, or a report that is known to be bad."""

from dataclasses import dataclass

from commonweight.rules.answer import Answer
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.panel import is_known_bad, known_bad_report
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto, audit_to_proto, report_from_proto, report_to_proto
from coordinator.ledger import Ledger


@dataclass(frozen=True)
class Claim:
    """What is said of a unit."""

    audit: Audit
    said: Report | Answer
    order: pb.AuditOrder
    """The same for auditors, with what isn't signed; but not yet who has what it takes to replay it."""

    @property
    def report(self) -> Report:
        """Of a unit of training: of no other is an opinion asked of a seat holder."""
        assert isinstance(self.said, Report), "it is of an answer"
        return self.said

    @property
    def hash(self) -> bytes:
        """As auditors sign it."""
        return self.said.trace if isinstance(self.said, Answer) else self.said.claim


def signed_claim(ledger: Ledger, audit: Audit) -> Claim:
    """That of the provider, of a unit that was drawn and isn't decided. Blocks."""
    order = pb.AuditOrder(unit=audit_to_proto(audit))
    if audit.kind is not Kind.ANSWER:
        order.report.ParseFromString(ledger.unaudited_report(audit.round, audit.stage))
        return Claim(audit, report_from_proto(order.report), order)
    part, order.version_root = ledger.answer_claim(audit.round, audit.answer, audit.stage)
    order.answer.ParseFromString(part)
    return Claim(audit, answer_from_proto(order.answer), order)


def false_claim(spec: ModelSpec, seed: bytes, claim: Claim) -> Claim | None:
    """What is shown in its stead where the epoch's seed draws that; None where it doesn't, or it would be the same."""
    if not is_known_bad(spec, seed, claim.audit):
        return None
    report = known_bad_report(claim.audit, claim.report, seed, is_last=claim.audit.stage == spec.stages - 1)
    order = pb.AuditOrder()
    order.CopyFrom(claim.order)
    del order.report.hops[:]
    order.report.hops.extend(report_to_proto(report).hops)
    false = Claim(claim.audit, report, order)
    return None if false.hash == claim.hash else false
