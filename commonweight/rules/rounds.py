"""The coordinator's state machine: who holds which stage, which round is trained, when it is sealed.

    GATHERING ──all holders are online──▶ FORMING ──all pipes are open──▶ TRAINING ──┐
        ▲                                    │                              │  ▲      │ all reports in:
        └──────────a holder is lost──────────┴──────────────────────────────┘  └──────┘ sealed, next round

A **generation** is one set of open pipes. Losing a holder ends it; what was in flight is forgotten, and the
round is trained again from its start in the next generation, from the same state and the same text, so that a
fault changes nothing in the result. A node keeps its **seat** (its stage) for good: the same key comes back
to the same stage.

`advance(state, event)` is the whole protocol. It has no clock and does no I/O; whoever hosts it stores the
new state, then carries out the effects, in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from commonweight.rules.report import Report, find_mismatch

MAX_MISMATCHES = 3
"""When the reports of one round have contradicted each other this often, training stops."""


class Phase(Enum):
    """What the model is waiting for."""

    GATHERING = "gathering"
    FORMING = "forming"
    TRAINING = "training"
    STOPPED = "stopped"


@dataclass(frozen=True)
class RoundState:
    """All that decides what happens next. Every round before `round`, the one being trained, is sealed."""

    microbatches: int
    """In a round."""
    seats: tuple[str | None, ...]
    """The node (its address) that holds each stage."""
    round: int = 0
    generation: int = 0
    roots: tuple[bytes | None, ...] = ()
    """Each stage's state root at the start of `round`; () or None where unknown (before the first seal)."""
    phase: Phase = Phase.GATHERING
    online: frozenset[str] = frozenset()
    ready: frozenset[str] = frozenset()
    reports: Mapping[int, Report] = field(default_factory=lambda: MappingProxyType({}))
    """By stage, of `round`."""
    mismatches: int = 0


@dataclass(frozen=True)
class Joined:
    """A node opened its control stream."""

    node: str
    has_data: bool = True
    """Only a node with the text can hold the first stage."""
    stages: frozenset[int] | None = None
    """Those that its owner's seats on chain let it hold; None where the model asks for no stake."""


@dataclass(frozen=True)
class Lost:
    """A node's control stream ended or fell silent."""

    node: str


@dataclass(frozen=True)
class Ready:
    """A node's pipes of this generation are open, and it can start from the round it was told."""

    node: str
    generation: int


@dataclass(frozen=True)
class Broken:
    """A node's pipes of this generation couldn't be opened, or broke."""

    node: str
    generation: int
    why: str


@dataclass(frozen=True)
class Reported:
    """A node's report, its signature checked."""

    node: str
    generation: int
    report: Report


Event = Joined | Lost | Ready | Broken | Reported


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
    """Every holder opens its pipes of this generation and goes to the state at the start of `round`."""

    generation: int
    round: int


@dataclass(frozen=True)
class Train:
    """Every holder trains this round."""

    generation: int
    round: int


@dataclass(frozen=True)
class Seal:
    """The round is final: these reports are credited, once, in the transaction that stores the new state."""

    round: int
    reports: tuple[Report, ...]


@dataclass(frozen=True)
class Pause:
    """The generation is over; every holder still online forgets what is in flight."""

    generation: int
    why: str


@dataclass(frozen=True)
class Stop:
    """Training can't go on without a person."""

    why: str


Effect = Seated | Refused | Form | Train | Seal | Pause | Stop


def advance(state: RoundState, event: Event) -> tuple[RoundState, tuple[Effect, ...]]:
    """The state after `event`, and what is to be done about it."""
    match event:
        case Joined():
            return _join(state, event)
        case Lost(node):
            return _lose(state, node)
        case Ready(node, generation):
            return _ready(state, node, generation)
        case Broken(node, generation, why):
            return _break(state, node, generation, why)
        case Reported(node, generation, report):
            return _report(state, node, generation, report)


def _join(state: RoundState, event: Joined) -> tuple[RoundState, tuple[Effect, ...]]:
    node = event.node
    if node in state.online:
        return state, (Refused(node, "a node with this key is already connected"),)
    effects: tuple[Effect, ...] = ()
    if node in state.seats:
        stage = state.seats.index(node)
        if event.stages is not None and stage not in event.stages:
            return state, (Refused(node, f"it holds stage {stage}, of which its owner has no seat on chain any more"),)
    else:
        free = [stage for stage, holder in enumerate(state.seats) if holder is None]
        allowed = [stage for stage in free if event.stages is None or stage in event.stages]
        if not allowed:
            why = f"all {len(state.seats)} stages are held"
            if free:
                why = f"free are stages {free}, and its owner has seats on chain of {sorted(event.stages or ())}"
            return state, (Refused(node, why),)
        stage = allowed[0] if event.has_data else allowed[-1]
        if stage == 0 and not event.has_data:
            return state, (Refused(node, "only the first stage is free to it, and that reads the text: give --data"),)
        state = replace(state, seats=(*state.seats[:stage], node, *state.seats[stage + 1 :]))
        effects = (Seated(node, stage),)
    state = replace(state, online=state.online | {node})
    state, more = _form_if_complete(state)
    return state, effects + more


def _lose(state: RoundState, node: str) -> tuple[RoundState, tuple[Effect, ...]]:
    if node not in state.online:
        return state, ()
    state = replace(state, online=state.online - {node})
    if state.phase not in (Phase.FORMING, Phase.TRAINING):
        return state, ()
    pause = Pause(state.generation, f"stage {state.seats.index(node)} is lost")
    return replace(state, phase=Phase.GATHERING, ready=frozenset(), reports=MappingProxyType({})), (pause,)


def _ready(state: RoundState, node: str, generation: int) -> tuple[RoundState, tuple[Effect, ...]]:
    if state.phase is not Phase.FORMING or generation != state.generation or node not in state.online:
        return state, ()  # it belongs to a generation that is over
    state = replace(state, ready=state.ready | {node})
    if len(state.ready) < len(state.seats):
        return state, ()
    return replace(state, phase=Phase.TRAINING), (Train(state.generation, state.round),)


def _break(state: RoundState, node: str, generation: int, why: str) -> tuple[RoundState, tuple[Effect, ...]]:
    current = state.phase in (Phase.FORMING, Phase.TRAINING) and generation == state.generation
    if not current or node not in state.online:
        return state, ()
    state = replace(state, phase=Phase.GATHERING, ready=frozenset(), reports=MappingProxyType({}))
    state, more = _form_if_complete(state)
    return state, (Pause(generation, f"{node}: {why}"), *more)


def _report(state: RoundState, node: str, generation: int, report: Report) -> tuple[RoundState, tuple[Effect, ...]]:
    if state.phase is not Phase.TRAINING or generation != state.generation:
        return state, ()  # likewise
    if fault := _find_fault(state, node, report):
        return state, (Refused(node, fault),)
    if (earlier := state.reports.get(report.stage)) is not None:
        # The first one counts: its signature is the one that the host has kept.
        if report == earlier:
            return state, ()
        return state, (Refused(node, f"it has reported round {report.round} already, and otherwise"),)
    reports = {**state.reports, report.stage: report}
    if len(reports) < len(state.seats):
        return replace(state, reports=MappingProxyType(reports)), ()
    in_order = tuple(reports[stage] for stage in range(len(state.seats)))
    state = replace(state, reports=MappingProxyType({}))
    if mismatch := find_mismatch(in_order):
        state = replace(state, mismatches=state.mismatches + 1, phase=Phase.GATHERING, ready=frozenset())
        if state.mismatches >= MAX_MISMATCHES:
            return replace(state, phase=Phase.STOPPED), (Stop(f"Neighbours disagree about {mismatch}."),)
        state, more = _form_if_complete(state)
        return state, (Pause(generation, f"neighbours disagree about {mismatch}"), *more)
    state = replace(
        state,
        round=state.round + 1,
        roots=tuple(sealed.state_after for sealed in in_order),
        mismatches=0,
    )
    return state, (Seal(report.round, in_order), Train(state.generation, state.round))


def _find_fault(state: RoundState, node: str, report: Report) -> str | None:
    if node not in state.online or node not in state.seats or state.seats.index(node) != report.stage:
        return f"the report is of stage {report.stage}, which {node} doesn't hold"
    if report.round != state.round:
        return f"the report is of round {report.round}; round {state.round} is being trained"
    if len(report.hops) != state.microbatches:
        return f"the report has {len(report.hops)} microbatches; a round has {state.microbatches}"
    root = state.roots[report.stage] if state.roots else None
    if root is not None and report.state_before != root:
        return (
            f"stage {report.stage} starts round {report.round} from state {report.state_before.hex()}; the "
            f"sealed one is {root.hex()}. Restore the checkpoint of that round"
        )
    return None


def _form_if_complete(state: RoundState) -> tuple[RoundState, tuple[Effect, ...]]:
    complete = all(node is not None and node in state.online for node in state.seats)
    if state.phase is not Phase.GATHERING or not complete:
        return state, ()
    state = replace(
        state,
        phase=Phase.FORMING,
        generation=state.generation + 1,
        ready=frozenset(),
        reports=MappingProxyType({}),
    )
    return state, (Form(state.generation, state.round),)
