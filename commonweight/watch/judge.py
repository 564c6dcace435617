"""What is wrong with a proposed epoch: pure, from the statement, the chain's numbers and one's own receipts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from commonweight.errors import MalformedMessage, StatementMismatch
from commonweight.identity import recover_address
from commonweight.rules.accounting import Balance
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.report import round_receipt
from commonweight.rules.spec import ModelSpec, Record
from commonweight.rules.statement import CreditedReport, Number, Statement, check_statement, to_hex


@dataclass(frozen=True)
class Proposal:
    """What the chain says about the epoch that a statement is of."""

    chain_id: int
    settlement: str
    model_id: bytes
    epoch: int
    root: bytes
    minted: int
    accumulator_before: int
    """At which the epoch before was finalised; 0 for the first."""
    operator_earned: int
    """All that the router had set aside for operators when it was asked, in the revenue token's smallest unit."""


class OwnReceipt(Record):
    """A report that this node signed and that the coordinator said was sealed."""

    round: Number
    stage: Number
    generation: Number
    signature: Annotated[str, Field(pattern=r"^0x[0-9a-f]{130}$")]


@dataclass(frozen=True)
class Own:
    """What a node knows better than anybody else."""

    node: str
    accounts: frozenset[str]
    """Any of them may be paid for its work: all that its owner ever named."""
    receipts: Sequence[OwnReceipt]
    """Of the epoch."""


def check_epoch(
    spec: ModelSpec,
    statement: Statement,
    balances_before: Mapping[str, Balance],
    proposal: Proposal,
    own: Own | None = None,
) -> None:
    """Recompute everything that can be recomputed. Raises StatementMismatch that names the first fault.

    Each of a node's `own` receipts must be credited, as it was signed, to one of the node's accounts.
    """
    pairs: tuple[tuple[str, object, object], ...] = (
        ("chain id", statement.chain_id, proposal.chain_id),
        ("settlement", statement.settlement.lower(), proposal.settlement.lower()),
        ("model id", statement.model_id, to_hex(proposal.model_id)),
        ("epoch", statement.epoch, proposal.epoch),
        ("root", statement.root, to_hex(proposal.root)),
        ("minted", int(statement.minted), proposal.minted),
        ("accumulator of the epoch before", int(statement.accumulator_before), proposal.accumulator_before),
    )
    for name, stated, found in pairs:
        if stated != found:
            raise StatementMismatch(
                f"Epoch {proposal.epoch}: the statement's {name} is {stated}; on chain it is {found}."
            )
    if int(statement.operator_pool) > proposal.operator_earned:
        raise StatementMismatch(
            f"Epoch {proposal.epoch} divides {statement.operator_pool} among operators; on chain they have earned "
            f"{proposal.operator_earned}."
        )
    check_statement(spec, statement, balances_before)
    _check_signatures(statement)
    if own is not None:
        _check_own(statement, own)


def credited_receipt(model_id: bytes, round_: int, line: CreditedReport) -> Receipt:
    """What the provider of a credited line has signed."""
    commitments = (line.hops_root, line.gradient_hash, line.state_before, line.state_after)
    hashes = (bytes.fromhex(text[2:]) for text in commitments)
    return round_receipt(model_id, line.generation, round_, line.stage, hashes)


def _check_signatures(statement: Statement) -> None:
    domain, model_id = Domain(statement.chain_id, statement.settlement), bytes.fromhex(statement.model_id[2:])
    for sealed in statement.rounds:
        for line in sealed.reports:
            digest = credited_receipt(model_id, sealed.round, line).digest(domain)
            try:
                signer = recover_address(digest, bytes.fromhex(line.signature[2:]))
            except MalformedMessage as error:
                signer = f"nobody: {error.args[0]}"
            if signer != line.node:
                raise StatementMismatch(
                    f"Round {sealed.round} credits stage {line.stage} to node {line.node}; its report is signed by "
                    f"{signer}"
                )


def _check_own(statement: Statement, own: Own) -> None:
    lines = {(sealed.round, line.stage): line for sealed in statement.rounds for line in sealed.reports}
    for receipt in own.receipts:
        line = lines.get((receipt.round, receipt.stage))
        found = None if line is None else (line.node, line.generation, line.signature)
        if (
            line is None
            or found != (own.node, receipt.generation, receipt.signature)
            or line.account not in own.accounts
        ):
            credited = "nobody" if line is None else f"{line.node} for {line.account} (generation {line.generation})"
            raise StatementMismatch(
                f"Round {receipt.round}, stage {receipt.stage} was sealed with the report of {own.node} (generation "
                f"{receipt.generation}); the statement credits {credited}."
            )
