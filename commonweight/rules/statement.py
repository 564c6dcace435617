"""An epoch's public statement: what was done, by whom, and the shares that follow from it.

It is canonical JSON; its hash is on chain beside the root that pays out, so anyone who has the text can
recompute every number in it from the spec alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from eth_hash.auto import keccak
from pydantic import AfterValidator, Field, ValidationError

from commonweight.errors import StatementMismatch
from commonweight.rules.accounting import MAX_ACCUMULATOR, Balance, divide_shares, next_balances
from commonweight.rules.canonical import content_hash, parse_json
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.merkle import MerkleTree, settlement_leaf
from commonweight.rules.report import Report
from commonweight.rules.spec import Hash, ModelSpec, Record
from commonweight.rules.stages import stage_units

MAX_STATEMENT_BYTES = 64 * 1024 * 1024
MAX_OPERATOR_POOL = 2**256 - 1
"""The contracts count revenue in a uint256; a statement can write more."""


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
    units: Integer = Field(description="FLOPs")


class SealedRound(Record):
    """One round of the epoch, reports in stage order."""

    round: Number
    reports: tuple[CreditedReport, ...]


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

    format: Literal["commonweight.statement/2"]
    chain_id: Number
    settlement: Address
    model_id: Hash
    spec_hash: Hash
    epoch: Number
    minted: Integer
    compute_shares: Integer = Field(description="of what was minted, the part that the accounts divide")
    accumulator_before: Integer = Field(description="at which the epoch before was finalised; 0 for the first")
    rounds: tuple[SealedRound, ...]
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

    def balances(self) -> dict[str, Balance]:
        """What every account has earned so far, by address."""
        return {
            line.account: Balance(
                int(line.cumulative_shares), int(line.shares), int(line.debt_before), int(line.operator_revenue)
            )
            for line in self.accounts
        }


def credit_report(
    spec: ModelSpec, report: Report, *, node: str, account: str, generation: int, signature: bytes
) -> CreditedReport:
    """The line of a verified report, with the units that the spec says it is worth."""
    return CreditedReport(
        stage=report.stage,
        node=node,
        account=account,
        generation=generation,
        hops_root=to_hex(report.hops_root),
        gradient_hash=to_hex(report.gradient_hash),
        state_before=to_hex(report.state_before),
        state_after=to_hex(report.state_after),
        signature=to_hex(signature),
        units=str(report_units(spec, report.stage)),
    )


def report_units(spec: ModelSpec, stage: int) -> int:
    """Units of one stage for a whole round."""
    return stage_units(spec, stage) * spec.training.microbatches_per_round


def make_statement(
    spec: ModelSpec,
    *,
    chain_id: int,
    settlement: str,
    model_id: bytes,
    epoch: int,
    rounds: Sequence[SealedRound],
    served: Sequence[ServedLine],
    operator_earned: int,
    balances_before: Mapping[str, Balance],
    accumulator_before: int,
) -> Statement:
    """The statement of an epoch with these sealed rounds and served tokens; mints all that the epoch may mint.

    `operator_earned` is all that the revenue router had ever set aside for operators when the epoch closed. What is
    not divided yet is divided by served tokens · the stage's work per token; where nobody served, it waits.
    `balances_before` are those of the previous statement, `accumulator_before` is what the chain recorded
    when that one was finalised. Raises ValueError where less was earned than is divided already.
    """
    units: dict[str, int] = {}
    for sealed in rounds:
        for report in sealed.reports:
            units[report.account] = units.get(report.account, 0) + int(report.units)
    minted = emission(spec.economics, epoch)
    compute = split_emission(minted, spec.economics.designer_bps, spec.economics.data_bps).compute
    shares = divide_shares(compute, units)
    divided = sum(balance.operator_revenue for balance in balances_before.values())
    if operator_earned < divided:
        raise ValueError(f"operators have earned {operator_earned}; {divided} is divided among them already")
    weights = serving_units(spec, served)
    revenue = divide_shares(operator_earned - divided, weights) if weights else {}
    balances = next_balances(balances_before, shares, revenue, accumulator_before)
    accounts = tuple(
        AccountLine(
            account=account,
            units=str(units.get(account, 0)),
            shares=str(balance.epoch_shares),
            cumulative_shares=str(balance.cumulative_shares),
            debt_before=str(balance.debt_before),
            operator_revenue=str(balance.operator_revenue),
        )
        for account, balance in sorted(balances.items())
    )
    draft = Statement(
        format="commonweight.statement/2",
        chain_id=chain_id,
        settlement=settlement,
        model_id=to_hex(model_id),
        spec_hash=to_hex(spec.spec_hash),
        epoch=epoch,
        minted=str(minted),
        compute_shares=str(compute),
        accumulator_before=str(accumulator_before),
        rounds=tuple(rounds),
        served=tuple(served),
        operator_pool=str(divided + sum(revenue.values())),
        accounts=accounts,
        root=to_hex(bytes(32)),
    )
    return draft.model_copy(update={"root": to_hex(draft.tree().root)})


def serving_units(spec: ModelSpec, served: Iterable[ServedLine]) -> dict[str, int]:
    """What each account's serving weighs: its tokens times its stage's work units."""
    weights: dict[str, int] = {}
    for line in served:
        weights[line.account] = weights.get(line.account, 0) + line.tokens * stage_units(spec, line.stage)
    return weights


def check_statement(spec: ModelSpec, statement: Statement, balances_before: Mapping[str, Balance]) -> None:
    """Recompute a statement from its reports. Raises StatementMismatch that names the first wrong number.

    Signatures are not checked here, nor whether the chain has this root and has earned this operator pool: the caller
    holds keys and chain.
    """
    if statement.spec_hash != to_hex(spec.spec_hash):
        raise StatementMismatch(f"The statement is of spec {statement.spec_hash}, not {to_hex(spec.spec_hash)}.")
    accumulator = int(statement.accumulator_before)
    if accumulator > MAX_ACCUMULATOR or (statement.epoch == 0 and accumulator):
        raise StatementMismatch(
            f"Epoch {statement.epoch} can't follow one that was finalised at the accumulator {accumulator}."
        )
    first = statement.epoch * spec.economics.rounds_per_epoch
    expected_rounds = range(first, first + spec.economics.rounds_per_epoch)
    sealed_rounds = [sealed.round for sealed in statement.rounds]
    if len(sealed_rounds) != len(expected_rounds) or sealed_rounds != list(expected_rounds):
        raise StatementMismatch(f"Epoch {statement.epoch} has rounds {expected_rounds[0]} to {expected_rounds[-1]}.")
    for sealed in statement.rounds:
        if [report.stage for report in sealed.reports] != list(range(spec.stages)):
            raise StatementMismatch(f"Round {sealed.round} doesn't credit each of {spec.stages} stages once.")
        for report in sealed.reports:
            if int(report.units) != report_units(spec, report.stage):
                raise StatementMismatch(
                    f"Round {sealed.round} credits stage {report.stage} with {report.units} units; by the "
                    f"spec it is worth {report_units(spec, report.stage)}."
                )
    generations = [report.generation for sealed in statement.rounds for report in sealed.reports]
    if generations != sorted(generations) or any(
        len({report.generation for report in sealed.reports}) != 1 for sealed in statement.rounds
    ):
        raise StatementMismatch(
            f"Epoch {statement.epoch} has reports of generations {generations!r:.200}: a round is sealed in one, and "
            "they never go back."
        )
    for before, after in zip(statement.rounds, statement.rounds[1:], strict=False):
        for left, found in zip(before.reports, after.reports, strict=True):
            if found.state_before != left.state_after:
                raise StatementMismatch(
                    f"Round {after.round} begins stage {found.stage} from state {found.state_before}; round "
                    f"{before.round} left it at {left.state_after}."
                )
    keys = [(line.stage, line.node, line.account) for line in statement.served]
    if keys != sorted(set(keys)) or any(line.stage >= spec.stages for line in statement.served):
        raise StatementMismatch(
            f"Epoch {statement.epoch}: the lines of what was served aren't one for each stage, node and account, in "
            f"that order, of stages 0 to {spec.stages - 1}."
        )
    pool, divided = int(statement.operator_pool), sum(balance.operator_revenue for balance in balances_before.values())
    if pool < divided or pool > MAX_OPERATOR_POOL or (pool > divided and not statement.served):
        raise StatementMismatch(
            f"Epoch {statement.epoch} divides {pool} among operators, after {divided} before it, for "
            f"{len(statement.served)} lines of served tokens."
        )
    try:
        again = make_statement(
            spec,
            chain_id=statement.chain_id,
            settlement=statement.settlement,
            model_id=bytes.fromhex(statement.model_id[2:]),
            epoch=statement.epoch,
            rounds=statement.rounds,
            served=statement.served,
            operator_earned=pool,
            balances_before=balances_before,
            accumulator_before=accumulator,
        )
    except ValueError as error:
        raise StatementMismatch(
            f"Epoch {statement.epoch} can't follow the balances before it, which no contract holds: "
            f"{' '.join(str(error).split()):.200}"
        ) from error
    for stated, recomputed in zip(statement.accounts, again.accounts, strict=False):
        if stated != recomputed:
            raise StatementMismatch(
                f"Epoch {statement.epoch}: a line reads {stated!r}; recomputed it is {recomputed!r}."
            )
    for name in ("minted", "compute_shares", "accounts", "root"):
        if getattr(again, name) != getattr(statement, name):
            raise StatementMismatch(
                f"Epoch {statement.epoch}: {name} is {getattr(statement, name)!r:.200}; recomputed it is "
                f"{getattr(again, name)!r:.200}."
            )


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
