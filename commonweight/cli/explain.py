"""The sources of what an account earned in an epoch, each checked: receipts, statement, proof, transactions."""

from collections.abc import Iterator
from dataclasses import dataclass

from commonweight.chain.events import OperatorPaid, SharesClaimed
from commonweight.cli.earned import Earned
from commonweight.cli.place import Place
from commonweight.rules.epoch import credited_receipt, signed_receipt
from commonweight.rules.merkle import settlement_leaf, verify_proof
from commonweight.rules.receipt import Domain
from commonweight.rules.statement import AnswerLine, AnswerPart, AuditLine, Opinion
from commonweight.watch.judge import signer_of


@dataclass(frozen=True)
class SignedReceipt:
    """What a node signed about one round that the account is paid for."""

    round: int
    stage: int
    generation: int
    load: str
    """Its microbatches; see rules/load.py."""
    node: str
    unit: bytes
    output: bytes
    signature: str
    signer: str | None
    """Recovered from the signature; None where that is none."""

    @property
    def holds(self) -> bool:
        """Whether the node that is credited has signed it."""
        return self.signer == self.node


@dataclass(frozen=True)
class SignedAnswer:
    """What a node signed about its part of an answer that was sealed with a round that the account is paid for."""

    round: int
    stage: int
    node: str
    line: AnswerLine
    holds: bool
    """Whether that node has signed it."""

    @property
    def part(self) -> AnswerPart:
        return self.line.parts[self.stage]


@dataclass(frozen=True)
class SignedOpinion:
    """What an auditor signed about a unit."""

    line: AuditLine
    opinion: Opinion
    holds: bool
    """Whether the auditor that is named has signed it."""


@dataclass(frozen=True)
class Proof:
    """The account's leaf and its way to the root on the chain."""

    line: int
    """Of the statement's accounts, counted from 0."""
    leaf: bytes
    root: bytes
    siblings: tuple[bytes, ...]

    @property
    def holds(self) -> bool:
        return verify_proof(self.root, self.leaf, self.siblings)


@dataclass(frozen=True)
class Explanation:
    """Where the numbers of an epoch come from."""

    receipts: tuple[SignedReceipt, ...]
    answers: tuple[SignedAnswer, ...]
    opinions: tuple[SignedOpinion, ...]
    """By the identity's auditors, or paid to its account."""
    proof: Proof | None
    """None where the account has no line in the epoch's tree."""
    claim: SharesClaimed | None
    """The claim that paid the epoch's shares; None if none did yet."""
    payments: tuple[OperatorPaid, ...]
    """For serving, so far."""


def explain(place: Place, earned: Earned) -> Explanation:
    """The sources of an epoch's earnings, as the chain and the epoch's statement have them."""
    claims = place.settlement.events(SharesClaimed, account=earned.account)
    paid = (each for each in claims if earned.claimed and each.epoch >= earned.epoch)
    return Explanation(
        receipts=_receipts(place, earned),
        answers=tuple(_answers(place, earned)),
        opinions=tuple(_opinions(place, earned)),
        proof=_proof(place, earned),
        claim=next(paid, None),
        payments=tuple(place.router.events(OperatorPaid, account=earned.account)),
    )


def _receipts(place: Place, earned: Earned) -> tuple[SignedReceipt, ...]:
    if earned.published is None:
        return ()
    domain, found = Domain(place.chain.chain_id, place.model.settlement), []
    statement = earned.published.statement
    tip = bytes.fromhex(statement.beacon_tip[2:])
    for sealed in statement.rounds:
        for line in sealed.reports:
            if line.account != earned.account:
                continue
            receipt = credited_receipt(place.model.model_id, sealed.round, line, tip)
            found.append(
                SignedReceipt(
                    sealed.round,
                    line.stage,
                    line.generation,
                    line.load,
                    line.node,
                    receipt.unit,
                    receipt.output,
                    line.signature,
                    signer_of(receipt, domain, line.signature),
                )
            )
    return tuple(found)


def _answers(place: Place, earned: Earned) -> Iterator[SignedAnswer]:
    domain = Domain(place.chain.chain_id, place.model.settlement)
    rounds = () if earned.published is None else earned.published.statement.rounds
    for sealed in rounds:
        for report in (report for report in sealed.reports if report.account == earned.account):
            replica = sealed.replicas(report.stage).index(report)
            for line in sealed.answers:
                if [part.replica for part in line.parts[report.stage :][:1]] == [replica]:
                    receipt = line.part_receipt(place.model.model_id, report.stage)
                    signer = signer_of(receipt, domain, line.parts[report.stage].signature)
                    yield SignedAnswer(sealed.round, report.stage, report.node, line, signer == report.node)


def _opinions(place: Place, earned: Earned) -> Iterator[SignedOpinion]:
    domain = Domain(place.chain.chain_id, place.model.settlement)
    for opinions in earned.opinions:
        for line, opinion in opinions.lines:
            receipt = signed_receipt(place.model.model_id, line.audit, opinion)
            yield SignedOpinion(line, opinion, signer_of(receipt, domain, opinion.signature) == opinion.auditor)


def _proof(place: Place, earned: Earned) -> Proof | None:
    published = earned.published
    claim = published.claim_of(earned.account) if published is not None else None
    if published is None or claim is None:
        return None
    leaf = settlement_leaf(
        place.chain.chain_id,
        place.model.settlement,
        claim.account,
        claim.cumulative_shares,
        claim.epoch_shares,
        claim.debt_before,
        claim.operator_revenue,
    )
    line, _ = published.accounts[earned.account.lower()]
    return Proof(line, leaf, published.epoch.root, tuple(claim.proof))
