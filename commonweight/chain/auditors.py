"""Who may audit an epoch, as the chain tells it."""

from commonweight.chain.events import BeaconCommitted
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import RegisteredModel
from commonweight.chain.settlement import EpochSettlement
from commonweight.errors import ChainError
from commonweight.rules.statement import AuditorSeat, to_hex


def auditor_seats(
    settlement: EpochSettlement, model: RegisteredModel, epoch: int, tip: bytes
) -> frozenset[AuditorSeat]:
    """The seats that were held when the epoch's tip was first committed; none in a model that asks for no stake.

    Raises ChainError as `tip_block`.
    """
    if model.terms.seat_stake == 0:
        return frozenset()
    providers = ProviderRegistry(settlement.chain, model.terms.providers, first_block=settlement.first_block)
    seats = providers.seated_at(model.model_id, tip_block(settlement, epoch, tip))
    return frozenset(AuditorSeat(stage=stage, owner=owner) for stage, owner in seats)


def tip_block(settlement: EpochSettlement, epoch: int, tip: bytes) -> int:
    """In which block the epoch's tip was first committed, by whomever.

    Events are looked for from the settlement's first block on. Raises ChainError where the tip isn't found: without the
    block nobody can tell who held a seat.
    """
    commitments = settlement.events(BeaconCommitted, epoch=epoch)
    block = next((event.block_number for event in commitments if event.tip == tip), None)
    if block is None:
        raise ChainError(
            f"{settlement.chain.endpoint} doesn't know in which block epoch {epoch}'s beacon tip {to_hex(tip)} was "
            "committed: it lags behind itself, or the chain is being reorganised. Ask again later."
        )
    return block
