"""What auditors are shown: the report that a provider has signed, or one that is known to be bad."""

from dataclasses import dataclass

from commonweight.rules.audits import Audit
from commonweight.rules.panel import audit_claim, is_known_bad, known_bad_report
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import report_from_proto, report_to_proto


@dataclass(frozen=True)
class Claim:
    """What is said of a unit."""

    audit: Audit
    report: Report
    message: pb.StageReport
    """The same report, with what isn't signed."""

    @classmethod
    def read(cls, audit: Audit, message: pb.StageReport) -> "Claim":
        """That of a report as it came. Raises MalformedMessage."""
        return cls(audit, report_from_proto(message), message)

    @property
    def hash(self) -> bytes:
        """As auditors sign it."""
        return audit_claim(self.audit, self.report)


def false_claim(spec: ModelSpec, seed: bytes, claim: Claim) -> Claim | None:
    """What is shown in its stead where the epoch's seed draws that; None where it doesn't, or it would be the same."""
    if not is_known_bad(spec, seed, claim.audit):
        return None
    report = known_bad_report(claim.audit, claim.report, seed, is_last=claim.audit.stage == spec.stages - 1)
    message = pb.StageReport()
    message.CopyFrom(claim.message)
    del message.hops[:]
    message.hops.extend(report_to_proto(report).hops)
    false = Claim(claim.audit, report, message)
    return None if false.hash == claim.hash else false
