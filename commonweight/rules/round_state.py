"""What the coordinator knows of the round that is being trained: see rounds.py for how it changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

from commonweight.rules.assignment import Pace
from commonweight.rules.placement import Move
from commonweight.rules.report import Report

V = TypeVar("V")

Assignment = tuple[tuple[str, ...], ...]
"""For each stage, the node that computes each microbatch."""


class Phase(Enum):
    """What the model is waiting for."""

    GATHERING = "gathering"
    FORMING = "forming"
    TRAINING = "training"
    STOPPED = "stopped"


def _nothing() -> MappingProxyType[str, V]:
    return MappingProxyType({})


@dataclass(frozen=True)
class RoundState:
    """All that decides what happens next. Every round before `round`, the one being trained, is sealed."""

    stages: int
    microbatches: int
    """In a round."""
    averaging_rounds: int = 1
    """In every so many rounds a stage's replicas end in one state: see `Training.averaging_rounds`."""
    work: tuple[int, ...] = ()
    """What a microbatch costs in each stage (`stage_units`); () where all cost the same."""
    seats: Mapping[str, int] = field(default_factory=_nothing)
    """The stage of each node (its address)."""
    round: int = 0
    generation: int = 0
    roots: tuple[Mapping[str, bytes], ...] = ()
    """Of each stage, the state roots that its replicas ended the round before with; () before the first seal."""
    phase: Phase = Phase.GATHERING
    online: frozenset[str] = frozenset()
    open_to: Mapping[str, frozenset[int]] = field(default_factory=_nothing)
    """Of who is online: the stages that it would move to."""
    versions: Mapping[str, int] = field(default_factory=_nothing)
    """Of who is online and has one: the round that its state is ready to train."""
    crew: frozenset[str] = frozenset()
    ready: frozenset[str] = frozenset()
    """Of the crew: whose pipes are open."""
    assignment: Assignment = ()
    """Of the round that is being trained."""
    since: int = 0
    """The revision that its plan began with: 1 where one was given ahead of time, and taken back."""
    revision: int = 0
    """Of that plan, now: it is changed when a load is replayed."""
    revised: tuple[int, ...] = ()
    """For each stage, by which revision it was changed last."""
    ahead: Assignment = ()
    """Of the round after it, where that is planned already, for the same members; begins with revision 0."""
    is_taken_back: bool = False
    """Whether such a plan was, since the round began that is being trained."""
    members: frozenset[str] = frozenset()
    """Who is stepped with the round that is being trained; some shadow it, and who has reported may be gone. While
    newcomers are waited for between two rounds, who was with the one before.
    """
    in_vain: Mapping[str, int] = field(default_factory=_nothing)
    """Newcomers that were waited for in vain, and before which round: it isn't done again for a while."""
    stepped: frozenset[str] = frozenset()
    """Who has reported a round since it came online, or back into the crew: it isn't a newcomer any more."""
    paces: Mapping[str, Pace] = field(default_factory=_nothing)
    """As measured; kept while a node is away, but for one that others didn't wait for."""
    reports: Mapping[str, Report] = field(default_factory=_nothing)
    """By node, of `round`."""
    mismatches: int = 0
    convicted: frozenset[str] = frozenset()
    """Whose work was fraud in the stage that they hold: others do it where there are any."""
    leaving: frozenset[str] = frozenset()
    """Who goes when the round that is being trained is over."""
    arranged: int = 0
    """Before which round the members changed last: the paces of those after it are of this arrangement."""
    move: Move | None = None
    """Who goes to another stage when the round that is being trained is over, or is on its way there."""
    away: int = 0
    """Rounds that were sealed while who moved last was on its way."""

    def holders(self, stage: int, among: frozenset[str] | None = None) -> tuple[str, ...]:
        """Who has a seat in the stage and is online (or `among` others), in order of address."""
        nodes = self.online if among is None else among
        if (divided := self._divided.get(nodes)) is None:
            stages: dict[int, list[str]] = {}
            for node in sorted(nodes & self.seats.keys()):
                stages.setdefault(self.seats[node], []).append(node)
            divided = self._divided[nodes] = {each: tuple(held) for each, held in stages.items()}
        return divided.get(stage, ())

    @cached_property
    def _divided(self) -> dict[frozenset[str], dict[int, tuple[str, ...]]]:
        """By nodes that `holders` was asked about, who of them holds each stage: it is asked for all stages in turn."""
        return {}

    def microbatch_s(self, node: str) -> float | None:
        """Seconds per microbatch, as far as it has been measured."""
        return self.paces.get(node, Pace()).microbatch_s

    def averages_in(self, round_: int) -> bool:
        """Whether replicas end this round in one state; between such rounds each has a state of its own."""
        return (round_ + 1) % self.averaging_rounds == 0

    @property
    def is_moving(self) -> bool:
        """Whether somebody is to move when the round that is being trained is over."""
        return self.move is not None and self.seats[self.move.node] == self.move.source

    def works(self, node: str) -> bool:
        """Whether it has a load in the round that is being trained."""
        return bool(self.assignment) and node in self.seats and node in self.assignment[self.seats[node]]
