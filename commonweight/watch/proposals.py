"""What the chain says about an epoch that was proposed, for judging its statement."""

from collections.abc import Collection, Iterator

from commonweight.chain.auditors import auditor_seats, tip_block
from commonweight.chain.events import PayoutSet, SignerBound
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import EpochRecord, RegisteredModel
from commonweight.chain.settlement import EpochSettlement
from commonweight.rules.statement import AuditorSeat, Statement
from commonweight.watch.judge import Proposal

KEYS_PER_QUESTION = 100


def read_proposal(
    settlement: EpochSettlement,
    model: RegisteredModel,
    record: EpochRecord,
    statement: Statement,
    *,
    accumulator_before: int,
    operator_earned: int,
) -> Proposal:
    """All else that judging the statement of `record` takes. Blocks; raises ChainError.

    `accumulator_before` is what the chain recorded when the epoch before was finalised; `operator_earned`, all that the
    router had set aside for operators.
    """
    tip = settlement.beacon_of(record.epoch, record.proposer)
    seats: frozenset[AuditorSeat] = frozenset()
    owners: dict[str, frozenset[str]] = {}
    accounts: dict[str, frozenset[str]] | None = None
    if tip is not None and model.terms.seat_stake:
        seats = auditor_seats(settlement, model, record.epoch, tip)
        begun = tip_block(settlement, record.epoch, tip)
        providers = ProviderRegistry(settlement.chain, model.terms.providers).at(record.block_number)
        owners = who_answered(providers, set(_keys_of(statement)), begun)
        accounts = who_was_paid(providers, {owner for each in owners.values() for owner in each})
    return Proposal(
        chain_id=settlement.chain.chain_id,
        settlement=model.settlement,
        model_id=model.model_id,
        epoch=record.epoch,
        root=record.root,
        minted=record.minted,
        accumulator_before=accumulator_before,
        operator_earned=operator_earned,
        beacon_tip=tip,
        referees=frozenset({record.proposer}),
        seats=seats,
        owners=owners,
        accounts=accounts,
    )


def who_answered(providers: ProviderRegistry, keys: Collection[str], begun: int) -> dict[str, frozenset[str]]:
    """For each of `keys`, who has answered for it since block `begun`, up to the block that `providers` is asked at.

    A key that is bound meanwhile has answered for itself before. Whoever binds it later, once it holds no seats any
    more, says nothing about what it did.
    """
    answered = {key: frozenset({key}) for key in keys}
    for some in _in_parts(keys):
        for event in providers.events(SignerBound, signer=some):
            before = answered[event.signer] if event.block_number > begun else frozenset[str]()
            answered[event.signer] = before | {event.owner}
    return answered


def who_was_paid(providers: ProviderRegistry, owners: Collection[str]) -> dict[str, frozenset[str]]:
    """For each of `owners`, itself and all accounts that it ever named to be paid."""
    named = {owner: frozenset({owner}) for owner in owners}
    for some in _in_parts(owners):
        for event in providers.events(PayoutSet, owner=some):
            named[event.owner] |= {event.payout}
    return named


def _in_parts(values: Collection[str]) -> Iterator[list[str]]:
    """So many to a question."""
    ordered = sorted(values)
    for start in range(0, len(ordered), KEYS_PER_QUESTION):
        yield ordered[start : start + KEYS_PER_QUESTION]


def _keys_of(statement: Statement) -> Iterator[str]:
    """Every key for which it says who answers."""
    for sealed in statement.rounds:
        yield from (line.node for line in sealed.reports)
    for line in statement.audits:
        yield from (opinion.auditor for opinion in line.opinions if opinion.owner is not None)
