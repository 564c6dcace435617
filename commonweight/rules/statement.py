"""An epoch's public statement: what was done, by whom, and the shares that follow from it.

It is canonical JSON; its hash is on chain beside the root that pays out, so anyone who has the text can
recompute every number in it from the spec alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from eth_hash.auto import keccak
from pydantic import AfterValidator, Field, ValidationError

from commonweight.errors import StatementMismatch
from commonweight.rules.accounting import Balance
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.canonical import content_hash, parse_json
from commonweight.rules.merkle import MerkleTree, settlement_leaf
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


class CreditedReport(Record):
    """One stage's verified work in one round."""

    stage: Number
    node: Address
    account: Address = Field(description="who is paid for it")
    generation: Number = Field(description="the attempt at the round that was sealed")
    hops_root: Hash
    gradient_hash: Hash
    state_before: Hash
    state_after: Hash
    signature: Annotated[str, Field(pattern=r"^0x[0-9a-f]{130}$", description="by the node, over the report's digest")]
    units: Integer = Field(description="FLOPs; 0 where it isn't paid")


class SealedRound(Record):
    """One round of the epoch, reports in stage order."""

    round: Number
    beacon: Hash = Field(description="the value that was revealed when it was sealed")
    reports: tuple[CreditedReport, ...]


class AuditLine(Record):
    """One unit of work that was drawn, and what its audit came to."""

    round: Number
    stage: Number
    kind: Literal["round", "microbatch", "loss", "data"]
    microbatch: Number | None = Field(description="null: the whole round")
    verdict: Literal["passed", "failed", "withheld", "undecided"]
    evidence: Hash = Field(description="of the public evidence of fraud; 0 where there is none")
    auditor: Address
    signature: Annotated[str, Field(pattern=r"^0x[0-9a-f]{130}$", description="by the auditor, over the verdict")]

    @property
    def audit(self) -> Audit:
        """The unit."""
        return Audit(self.round, self.stage, Kind(self.kind), self.microbatch)


class Conviction(Record):
    """A provider whose fraud in a stage was proven: from that epoch on it isn't paid for training it any more."""

    stage: Number
    node: Address


class Outstanding(Record):
    """A kind of audit that a provider has withheld: until one that looks at as much has passed it isn't paid."""

    stage: Number
    node: Address
    kind: Literal["round", "microbatch", "loss", "data"]


class ServedLine(Record):
    """What one stage's provider served in the epoch."""

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

    format: Literal["commonweight.statement/3"]
    chain_id: Number
    settlement: Address
    model_id: Hash
    spec_hash: Hash
    epoch: Number
    minted: Integer
    compute_shares: Integer = Field(description="of what was minted, the part that the accounts divide")
    accumulator_before: Integer = Field(description="at which the epoch before was finalised; 0 for the first")
    beacon_tip: Hash = Field(description="the end of the chain that the rounds' values come from")
    rounds: tuple[SealedRound, ...]
    audits: tuple[AuditLine, ...] = Field(description="all that the beacon drew, in order")
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
