"""The evidence of fraud: what a provider has signed, what the replay found instead, and how far apart they are.

Its keccak256 is in the verdict's receipt and, as the reason, in the slashing. Anybody who has the round's evidence
replays the unit and finds the same; without it, the document still binds the difference to the provider's signature:
`commitments` are what its round receipt is made of, and `hop` with its `proof` leads to their `hops_root`. In the same
way the `part` of an answer is what its receipt is made of.
"""

from dataclasses import dataclass

from commonweight.rules.answer import Answer
from commonweight.rules.audits import Audit
from commonweight.rules.canonical import canonical_json
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import to_hex
from commonweight.watch.fraud import (
    AnswerDiffers,
    AnswerWhat,
    Commitments,
    Differs,
    FalseAnswerEvidence,
    FraudEvidence,
    Numerics,
    SignedHop,
    SignedPart,
    Unit,
)

MAX_NUMERICS = 200
"""Characters of a numerics class; a node can write more."""


@dataclass(frozen=True)
class Difference:
    """The first result in which a replay contradicts what was signed."""

    what: str
    """A field of the hop or of the report; across numerics classes a round's also "gradient …", "movement …",
    "moment2 …", "parameter …" and "master …" of the state after it.
    """
    microbatch: int | None
    """None: the round's."""
    signed: str
    """A hash as 0x…, or a loss as the shortest decimal number of its bits."""
    found: str
    """The same of the replay; empty where there is none."""
    error: float | None = None
    """As commonweight.model.compare measures it; None where the signed tensor wasn't at hand, or is none."""
    tolerance: float = 0.0
    """0 within one numerics class."""
    note: str = ""
    """What else is to be said."""

    def __str__(self) -> str:
        where = self.what if self.microbatch is None else f"{self.what} of microbatch {self.microbatch}"
        measured = "" if self.error is None else f" The error is {self.error:.3g}; allowed is {self.tolerance:.3g}."
        found = f"the replay has {self.found}" if self.found else "the replay has none"
        return f"{where}: signed is {self.signed}, {found}.{measured}{self.note and ' '}{self.note}"


def fraud_evidence(
    spec: ModelSpec, unit: Audit, report: Report, difference: Difference, *, provider: str, auditor: str
) -> bytes:
    """Canonical JSON, `commonweight.fraud/3`, at most MAX_EVIDENCE_BYTES. `provider` and `auditor` are the numerics
    classes in which either computed.
    """
    evidence = FraudEvidence(
        format="commonweight.fraud/3",
        spec_hash=to_hex(spec.spec_hash),
        unit=Unit.of(unit),
        commitments=Commitments.of(report, spec.training.microbatches_per_round),
        hop=None if difference.microbatch is None else SignedHop.of(report, difference.microbatch),
        numerics=Numerics(provider=provider[:MAX_NUMERICS], auditor=auditor[:MAX_NUMERICS]),
        difference=Differs(
            what=difference.what,
            microbatch=difference.microbatch,
            signed=difference.signed,
            found=difference.found,
            error=None if difference.error is None else repr(difference.error),
            tolerance=repr(difference.tolerance),
            note=difference.note,
        ),
    )
    return canonical_json(evidence.model_dump(mode="json"))


_FIELD_NAMES: dict[AnswerWhat, str] = {
    "fed": "the tokens fed",
    "ids": "the ids",
    "taken": "what came in",
    "passed": "what went out",
}


@dataclass(frozen=True)
class AnswerDifference:
    """The first thing in a stage's part of an answer that its replays contradict, or no honest stage signs.

    It is published, so it names no token of the answer and no logit.
    """

    what: AnswerWhat
    position: int | None
    """Of the token; None: all of them."""
    note: str
    error: float | None = None
    """As commonweight.model.answers measures it; None where nothing was measured."""
    tolerance: float = 0.0

    def __str__(self) -> str:
        where = _FIELD_NAMES[self.what] + ("" if self.position is None else f" at position {self.position}")
        measured = "" if self.error is None else f" The error is {self.error:.3g}; allowed is {self.tolerance:.3g}."
        return f"{where}: {self.note}{measured}"


def false_answer_evidence(
    spec: ModelSpec, unit: Audit, answer: Answer, version_root: bytes, difference: AnswerDifference
) -> bytes:
    """Canonical JSON, `commonweight.false-answer/2`, at most MAX_EVIDENCE_BYTES."""
    evidence = FalseAnswerEvidence(
        format="commonweight.false-answer/2",
        spec_hash=to_hex(spec.spec_hash),
        unit=Unit.of(unit),
        part=SignedPart.of(answer),
        version_root=to_hex(version_root),
        difference=AnswerDiffers(
            what=difference.what,
            position=difference.position,
            error=None if difference.error is None else repr(difference.error),
            tolerance=repr(difference.tolerance),
            note=difference.note,
        ),
    )
    return canonical_json(evidence.model_dump(mode="json"))
