"""The evidence that an auditor has passed a report that was known to be bad: what it was shown isn't what was signed.

It shows to whoever reads it that the auditor has signed `passed` over a claim, and that this claim isn't the one of the
other report. That the other one is what the provider has signed, the epoch's statement shows.
"""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import ValidationError

from commonweight.errors import MalformedMessage
from commonweight.rules.audits import NO_EVIDENCE, Audit, Verdict
from commonweight.rules.canonical import canonical_json, parse_json
from commonweight.rules.merkle import MerkleTree, keccak
from commonweight.rules.panel import opinion_receipt, round_claim
from commonweight.rules.receipt import Domain
from commonweight.rules.report import HOP_HASHES, Report
from commonweight.rules.spec import Hash, Record
from commonweight.rules.statement import Address, Signature, to_hex
from commonweight.watch.fraud import MAX_EVIDENCE_BYTES, Commitments, SignedHop, Unit
from commonweight.watch.judge import signer_of


class Side(Record):
    """One of two reports of one round."""

    commitments: Commitments
    hops: tuple[SignedHop, ...]
    """The microbatches in which the two differ, in order."""

    def claim(self, audit: Audit) -> bytes | None:
        """Its `audit_claim`; None where the hop that the audit looks at isn't there."""
        commitments = {name: bytes.fromhex(text[2:]) for name, text in self.commitments.model_dump().items()}
        if audit.microbatch is None:
            return round_claim(**commitments)
        leaves = (each.leaf for each in self.hops if each.microbatch == audit.microbatch)
        leaf = next(leaves, None)
        return None if leaf is None else keccak(leaf + commitments["state_before"])


class KnownBadEvidence(Record):
    """`commonweight.known-bad/1`, see docs/protocol.md."""

    format: Literal["commonweight.known-bad/1"]
    spec_hash: Hash
    unit: Unit
    signed: Side
    """Of the provider's report."""
    shown: Side
    """Of the report that the auditor passed."""
    auditor: Address
    signature: Signature
    """The auditor's, over its opinion: `passed`, without evidence."""

    def contradictions(self, stage: int, spec_hash: bytes, model_id: bytes, domain: Domain) -> list[str]:
        """Why it can't be evidence against the auditor's seat of `stage` in this model; empty where it can."""
        found, audit = [], self.unit.audit
        if self.spec_hash != to_hex(spec_hash):
            found.append(f"it is about the spec {self.spec_hash}, the model has {to_hex(spec_hash)}")
        if self.unit.stage != stage:
            found.append(f"it is about stage {self.unit.stage}, the proposal about stage {stage}")
        for name, side in (("signed", self.signed), ("shown", self.shown)):
            astray = [hop.microbatch for hop in side.hops if not hop.leads_to(side.commitments.hops_root)]
            if astray:
                found.append(f"the microbatches {astray} aren't in the report that was {name}")
        claim = self.shown.claim(audit)
        if claim is None or claim == self.signed.claim(audit):
            found.append("what was shown is what was signed")
            return found
        receipt = opinion_receipt(model_id, audit, claim, Verdict.PASSED, NO_EVIDENCE)
        if signer_of(receipt, domain, self.signature) != self.auditor:
            found.append(f"{self.auditor} hasn't passed what was shown")
        return found


def known_bad_evidence(
    *, spec_hash: bytes, audit: Audit, signed: Report, shown: Report, auditor: str, signature: str
) -> bytes:
    """Canonical JSON, at most MAX_EVIDENCE_BYTES: `auditor` passes `shown`, and the provider has signed `signed`."""
    pairs = zip(signed.hops, shown.hops, strict=True)
    changed = [number for number, (own, other) in enumerate(pairs) if own != other]
    return canonical_json(
        {
            "format": "commonweight.known-bad/1",
            "spec_hash": to_hex(spec_hash),
            "unit": {
                "round": audit.round,
                "stage": audit.stage,
                "kind": audit.kind.value,
                "microbatch": audit.microbatch,
            },
            "signed": _side(signed, changed),
            "shown": _side(shown, changed),
            "auditor": auditor,
            "signature": signature,
        }
    )


def parse_known_bad(text: bytes) -> KnownBadEvidence:
    """Raises MalformedMessage for another text than `commonweight.known-bad/1`."""
    parse_json(text, "The evidence", MAX_EVIDENCE_BYTES)
    try:
        return KnownBadEvidence.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise MalformedMessage(
            f"The evidence isn't of the form commonweight.known-bad/1: {where:.80}: {first['msg']:.200}."
        ) from error


def _side(report: Report, microbatches: Iterable[int]) -> dict[str, Any]:
    tree = MerkleTree([hop.leaf(number) for number, hop in enumerate(report.hops)])
    return {
        "commitments": {name: to_hex(getattr(report, name)) for name in Commitments.model_fields},
        "hops": [
            {
                "microbatch": number,
                **{name: to_hex(getattr(report.hops[number], name)) for name in HOP_HASHES},
                "loss": repr(report.hops[number].loss),
                "proof": [to_hex(sibling) for sibling in tree.proof(number)],
            }
            for number in microbatches
        ],
    }
