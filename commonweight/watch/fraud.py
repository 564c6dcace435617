"""The evidence of fraud as anybody reads it: what a proposal to slash names by its hash, and says where it is.

Whoever proposed it wrote it. Its hash shows that it is what they have committed to, not that it is true.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from commonweight.errors import MalformedMessage
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.canonical import parse_json
from commonweight.rules.merkle import verify_proof
from commonweight.rules.report import HOP_HASHES, Hop
from commonweight.rules.spec import Hash, Record
from commonweight.rules.statement import Number, to_hex

MAX_EVIDENCE_BYTES = 64 * 1024
"""As the referee writes it at most."""

Decimal = Annotated[str, Field(pattern=r"^(-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,4})?|-?inf|nan)$", max_length=40)]
"""A float as Python writes it."""


class Unit(Record):
    """What was audited."""

    round: Number
    stage: Number
    kind: Literal["round", "microbatch", "loss", "data"]
    microbatch: Number | None

    @property
    def audit(self) -> Audit:
        return Audit(self.round, self.stage, Kind(self.kind), self.microbatch)


class Commitments(Record):
    """What the provider's receipt of the round is made of."""

    hops_root: Hash
    gradient_hash: Hash
    state_before: Hash
    state_after: Hash


class SignedHop(Record):
    """A microbatch's line of the report, with its proof to the `hops_root`."""

    microbatch: Number
    tokens: Hash
    activation_in: Hash
    activation_out: Hash
    gradient_in: Hash
    gradient_out: Hash
    loss: Decimal
    proof: tuple[Hash, ...]

    @property
    def leaf(self) -> bytes:
        """In the report's tree."""
        hop = Hop(**{name: bytes.fromhex(getattr(self, name)[2:]) for name in HOP_HASHES}, loss=float(self.loss))
        return hop.leaf(self.microbatch)

    def leads_to(self, root: str) -> bool:
        """Whether it is one of the hops that `root` commits to."""
        siblings = [bytes.fromhex(each[2:]) for each in self.proof]
        return verify_proof(bytes.fromhex(root[2:]), self.leaf, siblings)


class Numerics(Record):
    """In which numerics class either computed."""

    provider: str
    auditor: str


class Differs(Record):
    """The first result in which the replay contradicts what was signed; `found` is empty where it has none."""

    what: str
    microbatch: Number | None
    signed: str
    found: str
    error: Decimal | None
    tolerance: Decimal
    note: str


class FraudEvidence(Record):
    """`commonweight.fraud/1`, see docs/protocol.md."""

    format: Literal["commonweight.fraud/1"]
    spec_hash: Hash
    unit: Unit
    commitments: Commitments
    hop: SignedHop | None
    numerics: Numerics
    difference: Differs

    def contradictions(self, stage: int, spec_hash: bytes) -> list[str]:
        """Why it can't be evidence against the seat of `stage` in the model with this spec; empty where it can."""
        found, difference, hop = [], self.difference, self.hop
        if self.spec_hash != to_hex(spec_hash):
            found.append(f"it is about the spec {self.spec_hash}, the model has {to_hex(spec_hash)}")
        if self.unit.stage != stage:
            found.append(f"it is about stage {self.unit.stage}, the proposal about stage {stage}")
        if hop is not None and not hop.leads_to(self.commitments.hops_root):
            found.append(f"its microbatch {hop.microbatch} is not in the report that it names")
        if difference.microbatch != (None if hop is None else hop.microbatch):
            found.append("what differs and what was signed are of different microbatches")
        committed = (self.commitments if hop is None else hop).model_dump()
        if (signed := committed.get(difference.what, difference.signed)) != difference.signed:
            found.append(
                f"it says that {difference.signed!r:.80} was signed, the report that it names has {signed!s:.80}"
            )
        return found


def parse_evidence(text: bytes) -> FraudEvidence:
    """Raises MalformedMessage for another text than `commonweight.fraud/1`."""
    parse_json(text, "The evidence", MAX_EVIDENCE_BYTES)
    try:
        return FraudEvidence.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise MalformedMessage(
            f"The evidence isn't of the form commonweight.fraud/1: {where:.80}: {first['msg']:.200}."
        ) from error
