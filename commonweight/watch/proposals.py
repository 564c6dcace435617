"""What the chain says about an epoch that was proposed, for judging its statement."""

from collections.abc import Collection, Iterator

from commonweight.chain.auditors import auditor_seats
from commonweight.chain.events import SignerBound
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
    owners: dict[str, str] = {}
    if tip is not None and model.terms.seat_stake:
        seats = auditor_seats(settlement, model, record.epoch, tip)
        providers = ProviderRegistry(settlement.chain, model.terms.providers)
        owners = owners_at(providers, set(_keys_of(statement)), record.block_number)
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
    )


def owners_at(providers: ProviderRegistry, keys: Collection[str], block: int) -> dict[str, str]:
    """Who answered for each of `keys` after `block`; without those that answered for themselves.

    A key may be bound later, once it holds no seats any more: by whom, says nothing about what it did before.
    """
    then, ordered = providers.at(block), sorted(keys)
    bound: dict[str, str] = {}
    for start in range(0, len(ordered), KEYS_PER_QUESTION):
        some = ordered[start : start + KEYS_PER_QUESTION]
        bound |= {event.signer: event.owner for event in then.events(SignerBound, signer=some)}
    return bound


def _keys_of(statement: Statement) -> Iterator[str]:
    """Every key for which it says who answers."""
    for sealed in statement.rounds:
        yield from (line.node for line in sealed.reports)
    for line in statement.audits:
        yield from (opinion.auditor for opinion in line.opinions if opinion.owner is not None)
