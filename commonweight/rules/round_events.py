"""What happens to the round state machine, and what is to be done about it: see rounds.py."""

from collections.abc import Mapping
from dataclasses import dataclass

from commonweight.rules.placement import Move
from commonweight.rules.report import Report
from commonweight.rules.round_state import Assignment


@dataclass(frozen=True)
class Joined:
    """A node opened its control stream."""

    node: str
    has_data: bool = True
    """Only a node with the text can hold the first stage."""
    stages: frozenset[int] | None = None
    """Those that its owner's seats on chain let it hold; None where the model asks for no stake."""
    stays: bool = False
    """Whether it refuses to move to another stage."""


@dataclass(frozen=True)
class Lost:
    """A node's control stream ended or fell silent."""

    node: str


@dataclass(frozen=True)
class Leaving:
    """A node wants to go, once its work in the round that is being trained is done."""

    node: str
    has_begun: bool = True
    """Whether the members were told to train this round."""


@dataclass(frozen=True)
class Convicted:
    """A node's work in a stage was fraud."""

    node: str
    stage: int


@dataclass(frozen=True)
class HasVersion:
    """A node has the state of its stage that is ready to train `round`."""

    node: str
    round: int


@dataclass(frozen=True)
class Ready:
    """A node's pipes of this generation are open."""

    node: str
    generation: int


@dataclass(frozen=True)
class Broken:
    """A node's pipes of this generation couldn't be opened, or broke."""

    node: str
    generation: int
    why: str
    peer: str | None = None
    """Whose pipe it was; None where it is the node's own fault."""


@dataclass(frozen=True)
class Late:
    """A node waits for the gradient of a microbatch that it has sent to `peer`, much longer than it took before."""

    node: str
    generation: int
    why: str
    peer: str


@dataclass(frozen=True)
class Reported:
    """A node's report, its signature checked."""

    node: str
    generation: int
    report: Report
    busy_s: float
    """Seconds that it worked on its load; positive where it has one."""
    revision: int = 0
    """By which the stage was changed last when it was trained."""


@dataclass(frozen=True)
class Waited:
    """The host has waited long enough for newcomers to this generation: for those whose pipes aren't open while
    training could go on, and for those without a load whose reports are all that the round lacks.
    """

    generation: int


Event = Joined | Lost | Leaving | Convicted | HasVersion | Ready | Broken | Late | Reported | Waited


@dataclass(frozen=True)
class Seated:
    """The node holds this stage from now on."""

    node: str
    stage: int


@dataclass(frozen=True)
class Refused:
    """The node's event is not accepted; it is told why."""

    node: str
    why: str


@dataclass(frozen=True)
class Form:
    """The crew opens its pipes of this generation, those that aren't open, and has the state at the start of `round`
    where the generation is new.
    """

    generation: int
    round: int
    crew: frozenset[str]


@dataclass(frozen=True)
class Train:
    """The members train this round; where it is the next one, as soon as they have done their part of this one."""

    generation: int
    round: int
    assignment: Assignment
    members: frozenset[str]


@dataclass(frozen=True)
class Replay:
    """The members go on with the round by a plan that was changed: others compute the load of a node that is lost."""

    generation: int
    round: int
    lost: str
    load: Mapping[int, str]
    """By microbatch, who computes it instead."""


@dataclass(frozen=True)
class Excluded:
    """The node is connected, but the generation goes on without it: it forgets what is in flight."""

    node: str
    generation: int
    why: str


@dataclass(frozen=True)
class Released:
    """The node may go: nothing is expected of it any more."""

    node: str


@dataclass(frozen=True)
class Seal:
    """The round is final: these reports (by node) are credited, once, in the transaction that stores the new state."""

    round: int
    reports: Mapping[str, Report]
    next_taken_back: bool = False
    """Whether the next round was planned ahead, and will be planned anew."""


@dataclass(frozen=True)
class Pause:
    """The generation is over; everyone still online forgets what is in flight."""

    generation: int
    why: str


@dataclass(frozen=True)
class Stop:
    """Training can't go on without a person."""

    why: str


Effect = Seated | Refused | Form | Train | Replay | Excluded | Released | Move | Seal | Pause | Stop
"""A Move is carried out by who is told of it: the node's seat is the target's already, and nothing is expected of it
before it comes back as a newcomer there.
"""
