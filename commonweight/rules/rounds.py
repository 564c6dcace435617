"""The coordinator's state machine: who holds which stage, which round is trained by whom, when it is sealed.

    GATHERING ──each stage has a replica──▶ FORMING ──all pipes are open──▶ TRAINING ──┐
        ▲                                      │                              │  ▲      │ all reports in:
        └──────────who works is lost───────────┴──────────────────────────────┘  └──────┘ sealed, next round

A stage is held by its **replicas**; they divide each round among themselves, and step alike. A node keeps its **seat**
(its stage) for good: the same key comes back to the same stage.

The **crew** are the nodes whose pipes are open, or opening. A **generation** is a set of pipes that lose nothing:
losing a node that works ends it; what was in flight is forgotten, and the round is trained again from its start in the
next generation, from the same state and the same text, so that a fault changes nothing in the result.

Newcomers join the crew of a running generation: while a round is trained where they have the state that it began with,
otherwise before the next one, which waits for them a moment. Their first round they spend without a load,
**shadowing**: they are stepped like the others, and must come out in the same state.

`advance(state, event)` is the whole protocol. It has no clock and does no I/O; whoever hosts it stores the
new state, then carries out the effects, in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

from commonweight.rules.assignment import Pace, assign, update
from commonweight.rules.placement import weakest_stage
from commonweight.rules.report import Report, find_mismatch

PATIENCE_ROUNDS = 50
"""So many rounds are trained before a newcomer that was waited for in vain is waited for again."""
MAX_MISMATCHES = 3
"""When the reports of one round have contradicted each other this often, training stops."""

Assignment = tuple[tuple[str, ...], ...]
"""For each stage, the node that computes each microbatch."""
V = TypeVar("V")


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
    seats: Mapping[str, int] = field(default_factory=_nothing)
    """The stage of each node (its address)."""
    round: int = 0
    generation: int = 0
    roots: tuple[bytes | None, ...] = ()
    """Each stage's state root at the start of `round`; () or None where unknown (before the first seal)."""
    phase: Phase = Phase.GATHERING
    online: frozenset[str] = frozenset()
    versions: Mapping[str, int] = field(default_factory=_nothing)
    """Of who is online and has one: the round that its state is ready to train."""
    crew: frozenset[str] = frozenset()
    ready: frozenset[str] = frozenset()
    """Of the crew: whose pipes are open."""
    assignment: Assignment = ()
    """Of the round that is being trained."""
    members: frozenset[str] = frozenset()
    """Who is stepped with the round that is being trained; some shadow it. While newcomers are waited for between two
    rounds, who was with the one before.
    """
    in_vain: Mapping[str, int] = field(default_factory=_nothing)
    """Newcomers that were waited for in vain, and before which round: it isn't done again for a while."""
    paces: Mapping[str, Pace] = field(default_factory=_nothing)
    """Of who has been a member of a sealed round since it came online."""
    reports: Mapping[str, Report] = field(default_factory=_nothing)
    """By node, of `round`."""
    mismatches: int = 0

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

    def works(self, node: str) -> bool:
        """Whether it has a load in the round that is being trained."""
        return any(node in of_stage for of_stage in self.assignment)


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
class Reported:
    """A node's report, its signature checked."""

    node: str
    generation: int
    report: Report
    busy_s: float
    """Seconds that it worked on its load; positive where it has one."""


@dataclass(frozen=True)
class Waited:
    """The host has waited long enough for newcomers to this generation: for those whose pipes aren't open while
    training could go on, and for those without a load whose reports are all that the round lacks.
    """

    generation: int


Event = Joined | Lost | HasVersion | Ready | Broken | Reported | Waited


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
    """The members train this round."""

    generation: int
    round: int
    assignment: Assignment
    members: frozenset[str]


@dataclass(frozen=True)
class Seal:
    """The round is final: these reports (by node) are credited, once, in the transaction that stores the new state."""

    round: int
    reports: Mapping[str, Report]


@dataclass(frozen=True)
class Pause:
    """The generation is over; everyone still online forgets what is in flight."""

    generation: int
    why: str


@dataclass(frozen=True)
class Stop:
    """Training can't go on without a person."""

    why: str


Effect = Seated | Refused | Form | Train | Seal | Pause | Stop
Next = tuple[RoundState, tuple[Effect, ...]]


def advance(state: RoundState, event: Event) -> Next:
    """The state after `event`, and what is to be done about it."""
    match event:
        case Joined():
            return _join(state, event)
        case Lost(node):
            return _lose(state, node)
        case HasVersion(node, round_):
            return _take_version(state, node, round_)
        case Ready(node, generation):
            return _ready(state, node, generation)
        case Broken(node, generation, why, peer):
            return _break(state, node, generation, why, peer)
        case Reported():
            return _report(state, event)
        case Waited(generation):
            return _wait_no_longer(state, generation)


def _join(state: RoundState, event: Joined) -> Next:
    node = event.node
    if node in state.online:
        return state, (Refused(node, "a node with this key is already connected"),)
    effects: tuple[Effect, ...] = ()
    if (stage := state.seats.get(node)) is not None:
        if event.stages is not None and stage not in event.stages:
            return state, (Refused(node, f"it holds stage {stage}, of which its owner has no seat on chain any more"),)
    else:
        replicas = [len(state.holders(stage)) for stage in range(state.stages)]
        weakest = weakest_stage(replicas, event.stages, has_data=event.has_data)
        if weakest is None and (event.stages is None or event.stages & set(range(state.stages))):
            return state, (Refused(node, "only the first stage is open to it, and that reads the text: give --data"),)
        if weakest is None:
            return state, (Refused(node, "its owner has no seat on chain in any stage of this model"),)
        state = replace(state, seats=_with(state.seats, node, weakest))
        effects = (Seated(node, weakest),)
    return replace(state, online=state.online | {node}), effects


def _lose(state: RoundState, node: str) -> Next:
    if node not in state.online:
        return state, ()
    state = replace(
        state,
        online=state.online - {node},
        versions=_without(state.versions, node),
        paces=_without(state.paces, node),
    )
    return _leave_crew(state, node, f"{node} of stage {state.seats[node]} is lost")


def _take_version(state: RoundState, node: str, round_: int) -> Next:
    if node not in state.online or not state.versions.get(node, 0) <= round_ <= state.round:
        return state, ()
    state = replace(state, versions=_with(state.versions, node, round_))
    if state.phase is Phase.GATHERING:
        return _form_if_complete(state)
    if state.phase is not Phase.TRAINING or round_ < state.round or node in state.crew:
        return state, ()
    state = replace(state, crew=state.crew | {node})
    return state, (Form(state.generation, state.round, state.crew),)


def _ready(state: RoundState, node: str, generation: int) -> Next:
    if generation != state.generation or node not in state.crew:
        return state, ()  # it belongs to a generation that is over
    return _train_if_ready(replace(state, ready=state.ready | {node}))


def _break(state: RoundState, node: str, generation: int, why: str, peer: str | None) -> Next:
    if generation != state.generation or node not in state.crew:
        return state, ()
    if peer is not None and peer not in state.crew:
        return state, ()  # it is gone already
    blamed = [each for each in (peer, node) if each is not None]
    if dispensable := [each for each in blamed if _is_dispensable(state, each)]:
        return _leave_crew(state, dispensable[0], why)
    if state.phase is Phase.FORMING:
        # One that can't be reached mustn't keep the others from training: it comes back as a newcomer.
        able = frozenset(each for each in state.crew if state.versions[each] == state.round)
        spare = (each for each in blamed if set(state.holders(state.seats[each], able)) - {each})
        state = replace(state, versions=_without(state.versions, next(spare, "")))
    return _pause(state, f"{node}: {why}")


def _report(state: RoundState, event: Reported) -> Next:
    node, report = event.node, event.report
    if state.phase is not Phase.TRAINING or event.generation != state.generation:
        return state, ()  # likewise
    if fault := _find_fault(state, node, report):
        return state, (Refused(node, fault),)
    if (earlier := state.reports.get(node)) is not None:
        # The first one counts: its signature is the one that the host has kept.
        if report == earlier:
            return state, ()
        return state, (Refused(node, f"it has reported round {report.round} already, and otherwise"),)
    pace = update(state.paces.get(node, Pace()), len(report.hops), event.busy_s)
    return _seal_if_complete(
        replace(state, reports=_with(state.reports, node, report), paces=_with(state.paces, node, pace))
    )


def _seal_if_complete(state: RoundState) -> Next:
    if state.phase is not Phase.TRAINING or state.reports.keys() != state.members:
        return state, ()
    state = _without_strays(state)
    by_stage = [
        {node: report for node, report in state.reports.items() if report.stage == stage}
        for stage in range(state.stages)
    ]
    if mismatch := find_mismatch(by_stage):
        state = replace(state, mismatches=state.mismatches + 1)
        if state.mismatches >= MAX_MISMATCHES:
            state = replace(_disbanded(state), phase=Phase.STOPPED)
            return state, (Stop(f"The reports of round {state.round} disagree about {mismatch}."),)
        return _pause(state, f"the reports of round {state.round} disagree about {mismatch}")
    seal = Seal(state.round, state.reports)
    state = replace(
        state,
        round=state.round + 1,
        roots=tuple(next(iter(reports.values())).state_after for reports in by_stage),
        versions=MappingProxyType({**state.versions, **dict.fromkeys(state.members, state.round + 1)}),
        mismatches=0,
    )
    state, effects = _go_on(state)
    return state, (seal, *effects)


def _without_strays(state: RoundState) -> RoundState:
    """Without those who shadowed the round and came out otherwise than who worked: one newcomer mustn't hold up all."""
    for node, report in state.reports.items():
        workers = [each for each in state.reports.values() if each.hops and each.stage == report.stage]
        alike = {(each.round_gradient_hash, each.state_after) for each in workers}
        if not report.hops and (report.round_gradient_hash, report.state_after) not in alike:
            state = _without_member(state, node)
    return state


def _find_fault(state: RoundState, node: str, report: Report) -> str | None:
    if node not in state.members or state.seats[node] != report.stage:
        return f"the report is of stage {report.stage}, which {node} doesn't train in this round"
    if report.round != state.round:
        return f"the report is of round {report.round}; round {state.round} is being trained"
    load = tuple(j for j, holder in enumerate(state.assignment[report.stage]) if holder == node)
    if report.load != load:
        return f"the report has the microbatches {list(report.load)!r:.200}; assigned were {list(load)!r:.200}"
    root = state.roots[report.stage] if state.roots else None
    if root is not None and report.state_before != root:
        return (
            f"stage {report.stage} starts round {report.round} from state {report.state_before.hex()}; the "
            f"sealed one is {root.hex()}. Restore the checkpoint of that round"
        )
    if len(load) == state.microbatches and report.gradient_hash != report.round_gradient_hash:
        return "it was stepped with another gradient than its own, though all of the round was its load"
    return None


def _form_if_complete(state: RoundState) -> Next:
    crew = frozenset(node for node, version in state.versions.items() if version == state.round)
    if state.phase is not Phase.GATHERING or {state.seats[node] for node in crew} != set(range(state.stages)):
        return state, ()
    state = replace(state, phase=Phase.FORMING, generation=state.generation + 1, crew=crew)
    return state, (Form(state.generation, state.round, crew),)


def _train_if_ready(state: RoundState) -> Next:
    return _train(state) if state.phase is Phase.FORMING and state.ready == state.crew else (state, ())


def _go_on(state: RoundState) -> Next:
    """Train the next round, or first let those into the crew who had an earlier state: rounds are shorter than it takes
    to fetch one.
    """
    late = frozenset(
        node
        for node, version in state.versions.items()
        if version < state.round and state.round >= state.in_vain.get(node, -PATIENCE_ROUNDS) + PATIENCE_ROUNDS
    )
    if not (late := late - state.crew):
        return _train(state)
    state = replace(state, phase=Phase.FORMING, crew=state.crew | late, assignment=(), reports=MappingProxyType({}))
    return state, (Form(state.generation, state.round, state.crew),)


def _wait_no_longer(state: RoundState, generation: int) -> Next:
    if generation != state.generation:
        return state, ()
    if state.phase is Phase.FORMING and state.members:
        return _train_if_ready(_without_newcomers(state, state.crew - state.ready))
    missing = state.members - state.reports.keys()
    if state.phase is not Phase.TRAINING or any(state.works(node) for node in missing):
        return state, ()
    return _seal_if_complete(_without_newcomers(state, missing))


def _without_newcomers(state: RoundState, nodes: frozenset[str]) -> RoundState:
    """Without these, who were waited for in vain."""
    for node in nodes:
        state = replace(_without_member(state, node), in_vain=_with(state.in_vain, node, state.round))
    return state


def _train(state: RoundState) -> Next:
    """Who is ready trains the next round. Newcomers shadow it, where anybody else of their stage is there."""

    def paces(stage: int) -> dict[str, float | None]:
        replicas = state.holders(stage, state.ready)
        known = {node: state.paces[node].microbatch_s for node in replicas if node in state.paces}
        return known or dict.fromkeys(replicas)

    assignment = assign(state.microbatches, [paces(stage) for stage in range(state.stages)])
    state = replace(
        state, phase=Phase.TRAINING, members=state.ready, assignment=assignment, reports=MappingProxyType({})
    )
    return state, (Train(state.generation, state.round, assignment, state.members),)


def _is_dispensable(state: RoundState, node: str) -> bool:
    """Whether the generation goes on without it."""
    if state.phase is Phase.FORMING:
        return bool(state.members) and node not in state.members  # a newcomer, between two rounds
    return state.phase is Phase.TRAINING and not state.works(node)


def _leave_crew(state: RoundState, node: str, why: str) -> Next:
    """Without it; whoever leaves the crew has to say anew that it has a version."""
    if node not in state.crew:
        return state, ()
    if not _is_dispensable(state, node):
        return _pause(state, why)
    state = _without_member(state, node)
    return _train_if_ready(state) if state.phase is Phase.FORMING else _seal_if_complete(state)


def _without_member(state: RoundState, node: str) -> RoundState:
    return replace(
        state,
        crew=state.crew - {node},
        ready=state.ready - {node},
        members=state.members - {node},
        versions=_without(state.versions, node),
        paces=_without(state.paces, node),
        reports=_without(state.reports, node),
    )


def _pause(state: RoundState, why: str) -> Next:
    pause = Pause(state.generation, why)
    state, effects = _form_if_complete(replace(_disbanded(state), phase=Phase.GATHERING))
    return state, (pause, *effects)


def _disbanded(state: RoundState) -> RoundState:
    nobody: frozenset[str] = frozenset()
    return replace(state, crew=nobody, ready=nobody, members=nobody, assignment=(), reports=MappingProxyType({}))


def _with(mapping: Mapping[str, V], key: str, value: V) -> Mapping[str, V]:
    return MappingProxyType({**mapping, key: value})


def _without(mapping: Mapping[str, V], key: str) -> Mapping[str, V]:
    return MappingProxyType({each: value for each, value in mapping.items() if each != key})
