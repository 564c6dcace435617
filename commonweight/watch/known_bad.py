"""The evidence that an auditor has passed a report that was known to be bad: what it was shown isn't what was signed.

It shows to whoever reads it that the auditor has signed `passed` over a claim, and that this claim is the other
report's but for two results that have changed places, as `known_bad_report` exchanges them: what a replay can't miss.
That the other one is what the provider has signed, the epoch's statement shows.
"""

from collections.abc import Iterable
from typing import Literal

from commonweight.rules.audits import NO_EVIDENCE, Audit, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.panel import opinion_receipt
from commonweight.rules.receipt import Domain
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec, Record
from commonweight.rules.statement import Address, Signature, to_hex
from commonweight.watch.fraud import Commitments, Document, SignedHop, Unit
from commonweight.watch.judge import signer_of


class Side(Record):
    """One of two reports of one round."""

    commitments: Commitments
    hops: tuple[SignedHop, ...]
    """The microbatches in which the two differ, in order."""

    @classmethod
    def of(cls, spec: ModelSpec, report: Report, changed: Iterable[int]) -> "Side":
        hops = tuple(SignedHop.of(report, microbatch) for microbatch in changed)
        return cls(commitments=Commitments.of(report, spec.training.microbatches_per_round), hops=hops)

    @property
    def claim(self) -> bytes:
        """That of its commitments."""
        return self.commitments.signed.claim


class KnownBadEvidence(Document):
    """`commonweight.known-bad/3`, see docs/protocol.md."""

    format: Literal["commonweight.known-bad/3"]
    signed: Side
    """Of the provider's report."""
    shown: Side
    """Of the report that the auditor passed."""
    auditor: Address
    signature: Signature
    """The auditor's, over its opinion: `passed`, without evidence."""

    @property
    def _is_exchanged(self) -> bool:
        """Whether the two reports differ in their hops alone, and there as `known_bad_report` has it."""
        roots = {"hops_root": ""}
        if self.signed.commitments.model_copy(update=roots) != self.shown.commitments.model_copy(update=roots):
            return False
        if len(self.signed.hops) != 2 or len(self.shown.hops) != 2:
            return False
        one, other = self.signed.hops
        for names in (("activation_out",), ("loss", "gradient_out")):
            given = ({name: getattr(hop, name) for name in names} for hop in (other, one))
            exchanged = [own.model_copy(update=values) for own, values in zip((one, other), given, strict=True)]
            if [hop.leaf for hop in exchanged] == [hop.leaf for hop in self.shown.hops]:
                return True
        return False

    def contradictions(self, stage: int, spec_hash: bytes, model_id: bytes, domain: Domain) -> list[str]:
        """Why it can't be evidence against the auditor's seat of `stage` in this model; empty where it can."""
        found, audit = self.strays(stage, spec_hash), self.unit.audit
        for name, side in (("signed", self.signed), ("shown", self.shown)):
            astray = [hop.microbatch for hop in side.hops if not hop.leads_to(side.commitments.hops_root)]
            if astray:
                found.append(f"the microbatches {astray} aren't in the report that was {name}")
        if not self._is_exchanged:
            found.append("what was shown isn't what was signed with two results exchanged")
        if self.shown.claim == self.signed.claim:
            found.append("what was shown is what was signed")
        # An honest auditor of one microbatch passes what is false about others: it has replayed only this one.
        if audit.microbatch is not None and audit.microbatch not in [hop.microbatch for hop in self.shown.hops]:
            found.append(f"{audit} doesn't look at what was exchanged")
        receipt = opinion_receipt(model_id, audit, self.shown.claim, Verdict.PASSED, NO_EVIDENCE)
        if signer_of(receipt, domain, self.signature) != self.auditor:
            found.append(f"{self.auditor} hasn't passed what was shown")
        return found


def known_bad_evidence(
    *, spec: ModelSpec, audit: Audit, signed: Report, shown: Report, auditor: str, signature: str
) -> bytes:
    """Canonical JSON, at most MAX_EVIDENCE_BYTES: `auditor` passes `shown`, and the provider has signed `signed`."""
    pairs = zip(signed.hops, shown.hops, strict=True)
    changed = [own.microbatch for own, other in pairs if own != other]
    evidence = KnownBadEvidence(
        format="commonweight.known-bad/3",
        spec_hash=to_hex(spec.spec_hash),
        unit=Unit.of(audit),
        signed=Side.of(spec, signed, changed),
        shown=Side.of(spec, shown, changed),
        auditor=auditor,
        signature=signature,
    )
    return canonical_json(evidence.model_dump(mode="json"))
