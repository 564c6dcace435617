"""The evidence of fraud as anybody reads it: what a proposal to slash names by its hash, and says where it is.

Whoever proposed it wrote it. Its hash shows that it is what they have committed to, not that it is true.
"""

from typing import Annotated, Literal, TypeVar, get_args

from pydantic import Field, ValidationError

from commonweight.errors import MalformedMessage
from commonweight.rules.answer import Answer
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.canonical import parse_json
from commonweight.rules.merkle import MerkleTree, verify_proof
from commonweight.rules.report import HOP_WORDS, Hop, Report
from commonweight.rules.report import Commitments as SignedCommitments
from commonweight.rules.spec import Hash, Record
from commonweight.rules.statement import Bytes16, KindName, LoadBits, Number, to_hex

MAX_EVIDENCE_BYTES = 64 * 1024
"""Of evidence without tensors."""

Decimal = Annotated[str, Field(pattern=r"^(-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,4})?|-?inf|nan)$", max_length=40)]
"""A float as Python writes it."""


class Unit(Record):
    """What was audited."""

    round: Number
    stage: Number
    replica: Number
    kind: KindName
    microbatch: Number | None

    @classmethod
    def of(cls, audit: Audit) -> "Unit":
        return cls(
            round=audit.round,
            stage=audit.stage,
            replica=audit.replica,
            kind=audit.kind.value,
            microbatch=audit.microbatch,
        )

    @property
    def audit(self) -> Audit:
        return Audit(self.round, self.stage, Kind(self.kind), self.microbatch, self.replica)


class Commitments(Record):
    """What the provider's receipt of the round is made of: the fields of rules.report.Commitments."""

    load: LoadBits
    hops_root: Hash
    gradient_hash: Hash
    round_gradient_hash: Hash
    state_before: Hash
    state_after: Hash

    @classmethod
    def of(cls, report: Report, microbatches: int) -> "Commitments":
        """Of a report on a round with so many microbatches."""
        return cls(**{name: to_hex(value) for name, value in vars(report.commitments(microbatches)).items()})

    @property
    def signed(self) -> SignedCommitments:
        """What the provider has committed to."""
        return SignedCommitments(**{name: bytes.fromhex(text[2:]) for name, text in self.model_dump().items()})


class SignedHop(Record):
    """A microbatch's line of the report, with its proof to the `hops_root`."""

    position: Number
    """Among the report's lines."""
    microbatch: Number
    tokens: Hash
    activation_in: Hash
    activation_out: Hash
    gradient_in: Hash
    gradient_out: Hash
    sketch: Hash
    loss: Decimal
    proof: tuple[Hash, ...]

    @classmethod
    def of(cls, report: Report, microbatch: int) -> "SignedHop":
        position = report.position(microbatch)
        hop, tree = report.hops[position], MerkleTree(report.leaves)
        hashes = {name: to_hex(getattr(hop, name)) for name in HOP_WORDS}
        proof = tuple(map(to_hex, tree.proof(position)))
        return cls(position=position, microbatch=microbatch, loss=repr(hop.loss), proof=proof, **hashes)

    @property
    def leaf(self) -> bytes:
        """In the report's tree."""
        hashes = {name: bytes.fromhex(getattr(self, name)[2:]) for name in HOP_WORDS}
        return Hop(microbatch=self.microbatch, **hashes, loss=float(self.loss)).leaf(self.position)

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


class Document(Record):
    """How evidence of every kind begins."""

    format: str
    spec_hash: Hash
    unit: Unit

    def strays(self, stage: int, spec_hash: bytes) -> list[str]:
        """Why it is about another stage, or a model with another spec; empty where it isn't."""
        found = []
        if self.spec_hash != to_hex(spec_hash):
            found.append(f"it is about the spec {self.spec_hash}, the model has {to_hex(spec_hash)}")
        if self.unit.stage != stage:
            found.append(f"it is about stage {self.unit.stage}, the proposal about stage {stage}")
        return found


class FraudEvidence(Document):
    """`commonweight.fraud/3`, see docs/protocol.md."""

    format: Literal["commonweight.fraud/3"]
    commitments: Commitments
    hop: SignedHop | None
    numerics: Numerics
    difference: Differs

    def contradictions(self, stage: int, spec_hash: bytes) -> list[str]:
        """Why it can't be evidence against the seat of `stage` in the model with this spec; empty where it can."""
        found, difference, hop = self.strays(stage, spec_hash), self.difference, self.hop
        if self.unit.audit.kind is Kind.ANSWER:
            found.append("it is about an answer, and what is signed about answers isn't in it")
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


AnswerWhat = Literal["fed", "ids", "taken", "passed"]
"""A field of the part."""

_PART_BYTES = ("session", "nonce", "ids", "taken", "passed")
"""The fields of a part that are bytes."""


TokenCount = Annotated[int, Field(gt=0, le=2**32 - 1)]


class SignedPart(Record):
    """What the provider's receipt of its part of an answer is made of: the fields of rules.answer.Answer."""

    version: Number
    session: Bytes16
    nonce: Bytes16
    prompt_tokens: TokenCount
    fed: TokenCount
    ids: Hash
    taken: Hash
    passed: Hash
    temperature: Decimal
    seed: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,19})$")]
    """A 64-bit number in decimal: JSON's end at 53."""

    @classmethod
    def of(cls, answer: Answer) -> "SignedPart":
        hashes = {name: to_hex(getattr(answer, name)) for name in _PART_BYTES}
        return cls(
            version=answer.version,
            prompt_tokens=answer.prompt_tokens,
            fed=answer.fed,
            temperature=repr(answer.temperature),
            seed=str(answer.seed),
            **hashes,
        )

    @property
    def answer(self) -> Answer:
        """The part that was signed."""
        hashes = {name: bytes.fromhex(getattr(self, name)[2:]) for name in _PART_BYTES}
        return Answer(
            version=self.version,
            prompt_tokens=self.prompt_tokens,
            fed=self.fed,
            temperature=float(self.temperature),
            seed=int(self.seed),
            **hashes,
        )


class AnswerDiffers(Record):
    """The first thing in the part that the replay contradicts, or that no honest stage signs."""

    what: AnswerWhat
    position: Number | None
    """Of the token; None: all of them."""
    error: Decimal | None
    tolerance: Decimal
    note: str


class FalseAnswerEvidence(Document):
    """`commonweight.false-answer/2`, see docs/protocol.md."""

    format: Literal["commonweight.false-answer/2"]
    part: SignedPart
    version_root: Hash
    difference: AnswerDiffers

    def contradictions(self, stage: int, spec_hash: bytes) -> list[str]:
        """Why it can't be evidence against the seat of `stage` in the model with this spec; empty where it can."""
        found, audit, part = self.strays(stage, spec_hash), self.unit.audit, self.part
        if audit.kind is not Kind.ANSWER or audit.microbatch is None:
            found.append(f"{audit} isn't one of an answer")
        if not 0 < part.version <= audit.round:
            found.append(f"no version {part.version} was published by round {audit.round}")
        if self.difference.position is not None and self.difference.position > part.fed:
            found.append(f"position {self.difference.position} isn't in an answer of {part.fed} tokens")
        return found


Evidence = TypeVar("Evidence", bound=Document)


def parse_document(kind: type[Evidence], text: bytes, limit: int = MAX_EVIDENCE_BYTES) -> Evidence:
    """Evidence of this kind, of at most `limit` bytes. Raises MalformedMessage for another text."""
    parse_json(text, "The evidence", limit)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        (form,) = get_args(kind.model_fields["format"].annotation)
        raise MalformedMessage(f"The evidence isn't of the form {form}: {where:.80}: {first['msg']:.200}.") from error
