"""An epoch's public statement: what was done, by whom, and the shares that follow from it.

It is canonical JSON; its hash is on chain beside the root that pays out, so anyone who has the text can
recompute every number in it from the spec alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from eth_hash.auto import keccak
from pydantic import AfterValidator, Field, ValidationError

from commonweight.errors import StatementMismatch
from commonweight.rules.accounting import Balance
from commonweight.rules.answer import answer_leaf, answer_receipt, served_receipt
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.beacon import answers_root
from commonweight.rules.canonical import content_hash, parse_json
from commonweight.rules.merkle import MerkleTree, settlement_leaf
from commonweight.rules.panel import Standing, opinion_standing
from commonweight.rules.receipt import Receipt
from commonweight.rules.report import Commitments
from commonweight.rules.spec import Hash, Record

MAX_STATEMENT_BYTES = 64 * 1024 * 1024


def _checksummed(text: str) -> str:
    digits = text[2:].lower()
    marks = keccak(digits.encode()).hex()
    expected = "0x" + "".join(
        digit.upper() if mark > "7" else digit for digit, mark in zip(digits, marks, strict=False)
    )
    if text != expected:
        raise ValueError(f"must be written with its EIP-55 checksum, as {expected}")
    return text


Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$"), AfterValidator(_checksummed)]
"""An account in its one spelling (EIP-55): two spellings would be two balances of one account."""

Integer = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,77})$")]
Number = Annotated[int, Field(ge=0, le=2**53 - 1)]
Signature = Annotated[str, Field(pattern=r"^0x[0-9a-f]{130}$")]
Bytes16 = Annotated[str, Field(pattern=r"^0x[0-9a-f]{32}$")]
"""A session's id, or the nonce in it."""
LoadBits = Annotated[str, Field(pattern=r"^0x([0-9a-f]{2})+$", max_length=1026)]
KindName = Literal["round", "microbatch", "loss", "data", "answer"]
VerdictName = Literal["passed", "failed", "withheld", "undecided"]


class CreditedReport(Record):
    """One replica's verified work in one round of a stage."""

    stage: Number
    node: Address
    owner: Address = Field(description="who answers for the node, and so doesn't audit it")
    account: Address = Field(description="who is paid for it")
    generation: Number = Field(description="the attempt at the round that was sealed")
    load: LoadBits = Field(description="its microbatches, one bit each; see rules/load.py")
    hops_root: Hash
    gradient_hash: Hash = Field(description="of the sum over its microbatches")
    round_gradient_hash: Hash = Field(description="of the sum over the stage's replicas")
    state_before: Hash
    state_after: Hash
    signature: Signature = Field(description="by the node, over the report's digest")
    units: Integer = Field(description="FLOPs; 0 where it isn't paid")

    @property
    def commitments(self) -> Commitments:
        """What its provider has committed to."""
        return Commitments(**{each.name: bytes.fromhex(getattr(self, each.name)[2:]) for each in fields(Commitments)})


class AnswerPart(Record):
    """What went through one stage for an answer."""

    replica: Number = Field(description="whose: among those that report the stage in this round")
    trace: Hash = Field(description="see rules/answer.py")
    signature: Signature = Field(description="by that replica's node")


class AnswerLine(Record):
    """An answer that was sold, and that all stages have signed."""

    session: Bytes16
    version: Number = Field(description="the one that is ready to train this round")
    fed: Annotated[int, Field(gt=0, le=2**32 - 1, description="tokens that went through each stage")]
    prompt_tokens: Annotated[int, Field(gt=0, le=2**32 - 1)]
    completion_tokens: Annotated[int, Field(gt=0, le=2**32 - 1, description="delivered")]
    gateway: Address
    signature: Signature = Field(description="by the gateway, over what was delivered")
    parts: tuple[AnswerPart, ...] = Field(description="in stage order")

    @property
    def delivered(self) -> int:
        """Tokens, the prompt included."""
        return self.prompt_tokens + self.completion_tokens

    def part_receipt(self, model_id: bytes, stage: int) -> Receipt:
        """What the provider of a stage has signed about its part."""
        session, trace = (bytes.fromhex(text[2:]) for text in (self.session, self.parts[stage].trace))
        return answer_receipt(model_id, stage, self.version, session, self.prompt_tokens, self.fed, trace)

    def delivery_receipt(self, model_id: bytes) -> Receipt:
        """What the gateway has signed."""
        session = bytes.fromhex(self.session[2:])
        return served_receipt(model_id, self.version, session, self.prompt_tokens, self.completion_tokens)

    def leaf(self, index: int) -> bytes:
        """In the tree of the round that it is sealed with."""
        traces = [bytes.fromhex(part.trace[2:]) for part in self.parts]
        session = bytes.fromhex(self.session[2:])
        return answer_leaf(index, self.version, session, self.prompt_tokens, self.fed, traces)


class SealedRound(Record):
    """One round of the epoch, and the answers that had come in when it was sealed."""

    round: Number
    beacon: Hash = Field(description="the value that was revealed when it was sealed")
    reports: tuple[CreditedReport, ...] = Field(description="in order of stage and node; none without a load")
    answers: tuple[AnswerLine, ...] = ()

    def replicas(self, stage: int) -> tuple[CreditedReport, ...]:
        """The reports of one stage, in order."""
        return tuple(report for report in self.reports if report.stage == stage)

    def provider(self, audit: Audit) -> CreditedReport:
        """The report whose work a unit of this round is."""
        return self.replicas(audit.stage)[audit.replica]

    @property
    def delivered(self) -> int:
        """Tokens of all its answers."""
        return sum(line.delivered for line in self.answers)

    @property
    def answers_root(self) -> bytes:
        """As it is mixed into the draw of their audits."""
        return answers_root([line.leaf(index) for index, line in enumerate(self.answers)])


class Opinion(Record):
    """What one auditor says about a unit."""

    auditor: Address = Field(description="whose key signed it")
    owner: Address | None = Field(description="who answers for that key; null: it is the coordinator's, its referee's")
    account: Address | None = Field(description="who is paid for it; null: nobody, it is the referee's")
    claim: Hash = Field(description="what it was shown as the provider's claim; see rules/report.py")
    verdict: VerdictName
    evidence: Hash = Field(description="of the public evidence of fraud; 0 where there is none")
    disproof: Hash = Field(description="of the public evidence that the opinion is false; 0 where there is none")
    units: Integer = Field(description="FLOPs; 0 where it isn't paid")
    signature: Signature = Field(description="by the auditor, over the opinion")

    @property
    def is_disproven(self) -> bool:
        """Whether there is evidence that it is false."""
        return self.disproof != to_hex(NO_EVIDENCE)


class AuditLine(Record):
    """One unit of work that was drawn, and what its audit came to."""

    round: Number
    stage: Number
    replica: Number = Field(description="whose work: a number among the stage's reports in the round")
    kind: KindName
    microbatch: Number | None = Field(description="null: the whole round; of an answer its number in the round")
    verdict: VerdictName
    opinions: Annotated[tuple[Opinion, ...], Field(min_length=1)] = Field(
        description="in the order in which they were given; the last is on the provider's claim"
    )

    @property
    def audit(self) -> Audit:
        """The unit."""
        return Audit(self.round, self.stage, Kind(self.kind), self.microbatch, self.replica)

    @property
    def evidence(self) -> str:
        """Of fraud; 0 where there is none."""
        return self.opinions[-1].evidence

    @property
    def disproven(self) -> tuple[Opinion, ...]:
        """The opinions that there is evidence against."""
        return tuple(opinion for opinion in self.opinions if opinion.is_disproven)

    def is_known_bad(self, opinion: Opinion) -> bool:
        """Whether it is on another claim than the provider's."""
        return opinion.claim != self.opinions[-1].claim

    def standing_of(self, opinion: Opinion) -> Standing:
        """What the opinion is worth."""
        known_bad = self.is_known_bad(opinion)
        return opinion_standing(Verdict(opinion.verdict), Verdict(self.verdict), known_bad=known_bad)


class AuditorSeat(Record):
    """A seat whose holder may audit the stage."""

    stage: Number
    owner: Address


class EquivocationLine(Record):
    """Two results of one unit of work, both signed by the node that held the stage."""

    stage: Number
    node: Address
    unit: Hash
    outputs: tuple[Hash, Hash]
    signatures: tuple[Signature, Signature]


class Conviction(Record):
    """A node whose fraud in a stage was proven, as a provider or as an auditor: it isn't paid there any more, from that
    epoch on.
    """

    stage: Number
    node: Address


class Outstanding(Record):
    """A kind of audit that a provider has withheld: until one that looks at as much has passed it isn't paid."""

    stage: Number
    node: Address
    kind: KindName


class ServedLine(Record):
    """What one stage's provider is paid for of the answers of the epoch."""

    stage: Number
    node: Address
    account: Address = Field(description="who is paid for it")
    tokens: Annotated[int, Field(gt=0, le=2**53 - 1, description="prompt and completion, through this stage")]


class AccountLine(Record):
    """One leaf of the epoch's tree."""

    account: Address
    units: Integer = Field(description="verified in this epoch")
    shares: Integer = Field(description="earned in this epoch, base units")
    cumulative_shares: Integer
    debt_before: Integer
    operator_revenue: Integer = Field(description="earned by serving so far, in the revenue token's smallest unit")


class Statement(Record):
    """All of one epoch."""

    format: Literal["commonweight.statement/6"]
    chain_id: Number
    settlement: Address
    model_id: Hash
    spec_hash: Hash
    epoch: Number
    minted: Integer
    compute_shares: Integer = Field(description="of what was minted, the part that the accounts divide")
    accumulator_before: Integer = Field(description="at which the epoch before was finalised; 0 for the first")
    beacon_tip: Hash = Field(description="the end of the chain that the rounds' values come from")
    beacon_seed: Hash = Field(description="its beginning")
    auditors: tuple[AuditorSeat, ...] = Field(description="when the tip was committed, in order of stage and owner")
    rounds: tuple[SealedRound, ...]
    audits: tuple[AuditLine, ...] = Field(description="all that the beacon drew, in order")
    equivocations: tuple[EquivocationLine, ...] = Field(description="new ones, in order of stage and node")
    convicted: tuple[Conviction, ...] = Field(description="so far, in order of stage and node")
    outstanding: tuple[Outstanding, ...] = Field(description="after it, in order of stage, node and kind's name")
    served: tuple[ServedLine, ...] = Field(description="in order of stage, node and account, each once")
    operator_pool: Integer = Field(description="of what operators earned on chain so far, what is divided up to here")
    accounts: tuple[AccountLine, ...] = Field(description="in order of the address")
    root: Hash

    @property
    def hash(self) -> bytes:
        """keccak256 of the canonical JSON: what the chain stores."""
        return content_hash(self.model_dump())

    def tree(self) -> MerkleTree:
        """The tree over the accounts, in their order."""
        return MerkleTree(
            [
                settlement_leaf(
                    self.chain_id,
                    self.settlement,
                    line.account,
                    int(line.cumulative_shares),
                    int(line.shares),
                    int(line.debt_before),
                    int(line.operator_revenue),
                )
                for line in self.accounts
            ]
        )

    def carried(self) -> "Carried":
        """What the next epoch takes over."""
        balances = {
            line.account: Balance(
                int(line.cumulative_shares), int(line.shares), int(line.debt_before), int(line.operator_revenue)
            )
            for line in self.accounts
        }
        states = {line.stage: line.state_after for line in self.rounds[-1].reports} if self.rounds else {}
        return Carried(balances, frozenset(self.convicted), frozenset(self.outstanding), states)


@dataclass(frozen=True)
class Carried:
    """What an epoch takes over from the one before; of nothing before the first."""

    balances: Mapping[str, Balance] = field(default_factory=dict)
    """What every account has earned so far, by address."""
    convicted: frozenset[Conviction] = frozenset()
    outstanding: frozenset[Outstanding] = frozenset()
    states: Mapping[int, str] = field(default_factory=dict)
    """By stage, the state root at the end."""

    @property
    def operator_revenue(self) -> int:
        """Divided among operators so far."""
        return sum(balance.operator_revenue for balance in self.balances.values())


def parse_statement(data: bytes, expected_hash: bytes) -> Statement:
    """The statement in `data`. Raises StatementMismatch where it isn't the one with this hash."""
    fields: Any = parse_json(data, "the statement", MAX_STATEMENT_BYTES)
    try:
        statement = Statement.model_validate_json(data)
    except ValidationError as error:
        raise StatementMismatch(f"The text is no statement: {error.errors()[0]['msg']}.") from error
    if content_hash(fields) != expected_hash:
        raise StatementMismatch(
            f"The statement hashes to {to_hex(content_hash(fields))}; the chain has {to_hex(expected_hash)}. "
            "Fetch it again, or from someone else."
        )
    return statement


def to_hex(data: bytes) -> str:
    """0x-prefixed lower-case hexadecimal."""
    return "0x" + data.hex()
