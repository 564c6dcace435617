"""Stakes and seats, read from the chain."""

from collections.abc import Iterator
from dataclasses import dataclass

from commonweight.chain.events import SeatTaken
from commonweight.chain.records import Seat
from commonweight.cli.money import Step
from commonweight.cli.output import format_time
from commonweight.cli.place import Place
from commonweight.errors import ConfigError, NotAllowed


@dataclass(frozen=True)
class HeldSeat:
    """An owner's seat in some model: held, left, or slashed."""

    model_id: bytes
    owner: str
    seat: Seat

    @property
    def is_held(self) -> bool:
        """Whether its owner may hold the stage: neither left nor slashed."""
        return self.seat.releasable_at == 0

    def is_releasable(self, now: int) -> bool:
        """Whether its stake can be freed at Unix time `now`."""
        return 0 < self.seat.releasable_at <= now and not self.seat.open_slashes


def seats_of_model(place: Place) -> list[HeldSeat]:
    """Every seat of the model, in order of stage and owner."""
    found = place.providers.events(SeatTaken, model_id=place.model.model_id)
    owners = dict.fromkeys(event.owner for event in found)
    seats = [each for owner in owners for each in _seats(place, place.model.model_id, owner)]
    return sorted(seats, key=lambda each: (each.seat.stage, each.owner))


def seats_of_owner(place: Place, owner: str) -> list[HeldSeat]:
    """Every seat of one owner, in all models that share the provider registry."""
    models = dict.fromkeys(event.model_id for event in place.providers.events(SeatTaken, owner=owner))
    return [each for model_id in models for each in _seats(place, model_id, owner)]


def own_seats(place: Place, owner: str) -> list[HeldSeat]:
    """The owner's seats in this model."""
    return list(_seats(place, place.model.model_id, owner))


def check_takeable(place: Place, stage: int) -> None:
    """Raises ConfigError for a stage that the model hasn't, NotAllowed where no seat of it can be taken any more."""
    if stage >= place.model.terms.stages:
        raise ConfigError(f"The model has stages 0 to {place.model.terms.stages - 1}; there is no stage {stage}.")
    if place.model.retired:
        raise NotAllowed(f"The model {place.model_id} is retired: no more seats can be taken")


def to_release(place: Place, owner: str, seats: list[HeldSeat], now: int, needed: HeldSeat | None) -> list[HeldSeat]:
    """Seats to release before another one is taken: the stage's own old one, and others if place or stake is short."""
    terms = place.model.terms
    short = len(seats) >= terms.max_stages_per_owner or place.providers.free_stake_of(owner) < terms.seat_stake
    return [each for each in seats if each.is_releasable(now) and (short or each is needed)]


def release_step(place: Place, each: HeldSeat, note: str) -> Step:
    """Frees a seat's stake; `note` says more about it, for people."""
    action = place.providers.action("releaseSeat", each.model_id, each.owner, each.seat.stage)
    return Step(f"release the seat of stage {each.seat.stage}, {note}", action)


def check_cap(place: Place, seats: list[HeldSeat], now: int) -> None:
    """Raises NotAllowed where the owner of these seats has no place for another one under the custody cap."""
    cap = place.model.terms.max_stages_per_owner
    if len(seats) >= cap:
        taken = "; ".join(f"stage {each.seat.stage}, {state_of(each, now)}" for each in seats)
        raise NotAllowed(
            f"The model's custody cap is {cap} stages for one owner, and {seats[0].owner} has {len(seats)}: {taken}. "
            "Leave one and wait for its cool-down"
        )


def state_of(each: HeldSeat, now: int) -> str:
    """What became of a seat, in words. `now` is the chain's time."""
    if each.is_held:
        disputed = f", {each.seat.open_slashes} proposals to slash it are open" if each.seat.open_slashes else ""
        return f"held{disputed}"
    why = "slashed" if each.seat.slashed else "left"
    if each.is_releasable(now):
        return f"{why}, can be released"
    return f"{why}, counts until {format_time(each.seat.releasable_at, now)}"


def _seats(place: Place, model_id: bytes, owner: str) -> Iterator[HeldSeat]:
    return (HeldSeat(model_id, owner, seat) for seat in place.providers.seats_of(model_id, owner))
