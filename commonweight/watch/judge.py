"""What is wrong with a proposed epoch: pure, from the statement, the chain's numbers and one's own receipts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from commonweight.errors import MalformedMessage, StatementMismatch
from commonweight.identity import recover_address
from commonweight.rules.checking import check_statement
from commonweight.rules.epoch import credited_receipt, signed_receipt
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.spec import ModelSpec, Record
from commonweight.rules.statement import AuditorSeat, Carried, CreditedReport, Number, Statement, to_hex


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
    beacon_tip: bytes | None
    """To which its proposer has committed for the epoch; None if to none."""
    referees: frozenset[str]
    """Whose word counts as the referee's."""
    seats: frozenset[AuditorSeat]
    """Held when the tip was first committed; none in a model that asks for no stake."""
    owners: Mapping[str, frozenset[str]]
    """Who has answered for a key in the epoch, by the key; for others it is their own account."""
    accounts: Mapping[str, frozenset[str]] | None
    """Whom an owner may have named to be paid, by the owner; None: anybody, the model asks for no stake."""


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
    before: Carried,
    proposal: Proposal,
    own: Own | None = None,
) -> None:
    """Recompute everything that can be recomputed. Raises StatementMismatch that names the first fault.

    Each of a node's `own` receipts must be credited, as it was signed, to one of the node's accounts. Whether it is
    paid follows from the audits, as for everybody.
    """
    if proposal.beacon_tip is None:
        raise StatementMismatch(
            f"Epoch {proposal.epoch} has the beacon tip {statement.beacon_tip}; on chain its proposer has committed to "
            "none."
        )
    pairs: tuple[tuple[str, object, object], ...] = (
        ("chain id", statement.chain_id, proposal.chain_id),
        ("settlement", statement.settlement.lower(), proposal.settlement.lower()),
        ("model id", statement.model_id, to_hex(proposal.model_id)),
        ("epoch", statement.epoch, proposal.epoch),
        ("root", statement.root, to_hex(proposal.root)),
        ("minted", int(statement.minted), proposal.minted),
        ("accumulator of the epoch before", int(statement.accumulator_before), proposal.accumulator_before),
        ("beacon tip", statement.beacon_tip, to_hex(proposal.beacon_tip)),
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
    check_statement(spec, statement, before)
    _check_seats(statement, proposal.seats)
    _check_reports(statement, proposal)
    _check_answers(statement)
    _check_opinions(statement, proposal)
    _check_equivocations(statement)
    if own is not None:
        _check_own(statement, own)


def signer_of(receipt: Receipt, domain: Domain, signature: str) -> str | None:
    """Whose key signed the receipt; None where that is no signature."""
    try:
        return recover_address(receipt.digest(domain), bytes.fromhex(signature[2:]))
    except MalformedMessage:
        return None


def _check_seats(statement: Statement, seats: frozenset[AuditorSeat]) -> None:
    stated = frozenset(statement.auditors)
    for seat in sorted(stated ^ seats, key=lambda seat: (seat.stage, seat.owner)):
        held = "held no seat" if seat in stated else "held a seat"
        listed = "lists" if seat in stated else "doesn't list"
        raise StatementMismatch(
            f"Epoch {statement.epoch} {listed} {seat.owner} as an auditor of stage {seat.stage}; on chain it {held} "
            "there when the epoch's tip was committed."
        )


def _check_who(proposal: Proposal, key: str, owner: str, account: str | None, where: str) -> None:
    """Whether the owner has answered for the key, and named the account that is paid."""
    answered = proposal.owners.get(key, frozenset({key}))
    if owner not in answered:
        raise StatementMismatch(f"{where}: {owner} answers for {key}; on chain {' or '.join(sorted(answered))} does.")
    if proposal.accounts is not None and account not in proposal.accounts.get(owner, frozenset({owner})):
        raise StatementMismatch(f"{where}: {account} is paid for {key}; on chain its owner {owner} never named it.")


def _check_reports(statement: Statement, proposal: Proposal) -> None:
    domain, model_id = Domain(statement.chain_id, statement.settlement), bytes.fromhex(statement.model_id[2:])
    tip = bytes.fromhex(statement.beacon_tip[2:])
    for sealed in statement.rounds:
        for line in sealed.reports:
            signer = signer_of(credited_receipt(model_id, sealed.round, line, tip), domain, line.signature)
            if signer != line.node:
                raise StatementMismatch(
                    f"Round {sealed.round} credits node {line.node} on stage {line.stage}; its report is signed by "
                    f"{signer or 'nobody'}."
                )
            where = f"Round {sealed.round}, stage {line.stage}"
            _check_who(proposal, line.node, line.owner, line.account, where)


def _check_answers(statement: Statement) -> None:
    """Signed by nodes that report the stages in the same round, and by the gateway.

    Whether the gateway is one isn't asked: whoever proposes epochs can make any key the router's cashier.
    """
    domain, model_id = Domain(statement.chain_id, statement.settlement), bytes.fromhex(statement.model_id[2:])
    for sealed in statement.rounds:
        for line in sealed.answers:
            where = f"Round {sealed.round}, answer {line.session}"
            for stage, part in enumerate(line.parts):
                report = sealed.replicas(stage)[part.replica]
                signer = signer_of(line.part_receipt(model_id, stage), domain, part.signature)
                if signer != report.node:
                    raise StatementMismatch(
                        f"{where}: stage {stage}'s part is to be that of node {report.node}; it is signed by "
                        f"{signer or 'nobody'}."
                    )
            signer = signer_of(line.delivery_receipt(model_id), domain, line.signature)
            if signer != line.gateway:
                raise StatementMismatch(
                    f"{where}: gateway {line.gateway} is to have delivered {line.prompt_tokens} + "
                    f"{line.completion_tokens} tokens; that is signed by {signer or 'nobody'}."
                )


def _check_opinions(statement: Statement, proposal: Proposal) -> None:
    domain = Domain(statement.chain_id, statement.settlement)
    for line in statement.audits:
        for opinion in line.opinions:
            who = opinion.auditor
            if opinion.owner is None and who not in proposal.referees:
                raise StatementMismatch(
                    f"Epoch {statement.epoch}: {who} is no referee, and gave its opinion on {line.audit} as one."
                )
            if opinion.owner is not None:
                where = f"Epoch {statement.epoch}, {line.audit}"
                _check_who(proposal, who, opinion.owner, opinion.account, where)
            signer = signer_of(signed_receipt(proposal.model_id, line.audit, opinion), domain, opinion.signature)
            if signer != who:
                raise StatementMismatch(
                    f"Epoch {statement.epoch}: that {line.audit} {opinion.verdict} is the opinion of {who}; it is "
                    f"signed by {signer or 'nobody'}."
                )


def _check_equivocations(statement: Statement) -> None:
    domain, model_id = Domain(statement.chain_id, statement.settlement), bytes.fromhex(statement.model_id[2:])
    for line in statement.equivocations:
        for output, signature in zip(line.outputs, line.signatures, strict=True):
            receipt = Receipt(model_id, line.stage, bytes.fromhex(line.unit[2:]), bytes.fromhex(output[2:]))
            signer = signer_of(receipt, domain, signature)
            if signer != line.node:
                raise StatementMismatch(
                    f"Epoch {statement.epoch} says that {line.node} has signed two results of unit {line.unit} on "
                    f"stage {line.stage}; {output} is signed by {signer or 'nobody'}."
                )


def _check_own(statement: Statement, own: Own) -> None:
    lines: dict[tuple[int, int], list[CreditedReport]] = {}
    for sealed in statement.rounds:
        for line in sealed.reports:
            lines.setdefault((sealed.round, line.stage), []).append(line)
    for receipt in own.receipts:
        stated = lines.get((receipt.round, receipt.stage), [])
        due = own.node, receipt.generation, receipt.signature
        if not any(
            (line.node, line.generation, line.signature) == due and line.account in own.accounts for line in stated
        ):
            credited = "; ".join(f"{line.node} for {line.account} (generation {line.generation})" for line in stated)
            raise StatementMismatch(
                f"Round {receipt.round}, stage {receipt.stage} was sealed with the report of {own.node} (generation "
                f"{receipt.generation}); the statement credits {credited or 'nobody'}."
            )
