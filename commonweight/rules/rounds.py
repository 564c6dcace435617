"""The coordinator's state machine: who holds which stage, which round is trained by whom, when it is sealed.

    GATHERING ──each stage has a replica──▶ FORMING ──all pipes are open──▶ TRAINING ──┐
        ▲                                      │                              │  ▲      │ all reports in:
        └──────────who works is lost───────────┴──────────────────────────────┘  └──────┘ sealed, next round

A stage is held by its **replicas**; they divide each round among themselves, and step alike. A node keeps its **seat**
(its stage): the same key comes back to the same stage, unless it was asked to **move**.

The **crew** are the nodes whose pipes are open, or opening. Who works and is lost is replaced while the round goes on:
its load is **replayed** by other replicas of its stage, from what its neighbours have kept. Where that can't be, for
want of another replica or because some have stepped already, the **generation** ends: what was in flight is forgotten,
and the round is trained again from its start in the next one, from the same state and the same text.

The next round is **planned ahead**, with this one, for the same members: they begin it as soon as they have done what
they have to do for this one. Where a member is lost, or wants to leave, that plan is taken back, what was done by it is
void, and the round is planned when this one is sealed. It isn't planned ahead while somebody waits to come in, or while
nobody knows how fast a member is.

Newcomers join the crew of a running generation: while a round is trained where they have the state that it began with,
otherwise before the next one, which waits for them a moment. Their first round they spend without a load,
**shadowing**: they are stepped like the others, and must come out in the same state.

Where replicas **step alone** they end in one state only in rounds in which they average. Newcomers come in with these;
in the others everybody has a load, and the round is trained again where one who works is lost: nobody else has the
state that it began with.

Where one stage is weaker than the others and a replica of another would strengthen it by enough, that replica moves: it
is chosen at a seal, after rounds in which nobody came or went, works in the round that is planned already, and has the
other stage's seat from the next seal on. It comes back as a newcomer. So no work is lost, and no round.

`advance(state, event)` is the whole protocol. It has no clock and does no I/O; whoever hosts it stores the
new state, then carries out the effects, in order.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from commonweight.rules.assignment import Pace, reassign, update
from commonweight.rules.placement import Replica, may_hold, rebalance, weakest_stage
from commonweight.rules.report import find_mismatch
from commonweight.rules.round_events import (
    Broken,
    Convicted,
    Effect,
    Event,
    Excluded,
    Form,
    HasVersion,
    Joined,
    Late,
    Leaving,
    Lost,
    Pause,
    Ready,
    Refused,
    Released,
    Replay,
    Reported,
    Seal,
    Seated,
    Stop,
    Train,
    Waited,
)
from commonweight.rules.round_facts import (
    SETTLED_ROUNDS,
    divide_round,
    find_fault,
    idle,
    is_dispensable,
    is_done,
    is_replaceable,
    is_settled,
    late_newcomers,
    throughputs,
    trusted,
    work_of_stages,
)
from commonweight.rules.round_state import Assignment, Phase, RoundState

SMALL_STAGE = 8
"""Replicas, a newcomer included. In a stage of so many at most the next round is planned anew with the newcomer: it
makes up for what all have done by the plan that they had, which was less than such a part of a round.
"""
MAX_MISMATCHES = 3
"""When the reports of one round have contradicted each other this often, training stops."""

R = TypeVar("R")
V = TypeVar("V")
Next = tuple[RoundState, tuple[Effect, ...]]


def advance(state: RoundState, event: Event) -> Next:
    """The state after `event`, and what is to be done about it."""
    match event:
        case Joined():
            return _join(state, event)
        case Lost(node):
            return _lose(state, node)
        case Leaving():
            return _let_go(state, event)
        case Convicted(node, stage):
            return _convict(state, node, stage)
        case HasVersion(node, round_):
            return _take_version(state, node, round_)
        case Ready(node, generation):
            return _ready(state, node, generation)
        case Broken(node, generation, why, peer):
            return _break(state, node, generation, why, peer)
        case Late(node, generation, why, peer):
            return _hedge(state, node, generation, why, peer)
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
        weakest = weakest_stage(throughputs(state), event.stages, has_data=event.has_data)
        if weakest is None and (event.stages is None or event.stages & set(range(state.stages))):
            return state, (Refused(node, "only the first stage is open to it, and that reads the text: give --data"),)
        if weakest is None:
            return state, (Refused(node, "its owner has no seat on chain in any stage of this model"),)
        state = replace(state, seats=_with(state.seats, node, weakest))
        effects = (Seated(node, weakest),)
    stages = frozenset(
        stage
        for stage in range(state.stages)
        if not event.stays and may_hold(stage, allowed=event.stages, has_data=event.has_data)
    )
    return replace(state, online=state.online | {node}, open_to=_with(state.open_to, node, stages)), effects


def _lose(state: RoundState, node: str) -> Next:
    if node not in state.online:
        return state, ()
    return _leave_crew(_offline(state, node), node, f"{node} of stage {state.seats[node]} is lost")


def _let_go(state: RoundState, event: Leaving) -> Next:
    node = event.node
    if node not in state.online or node in state.leaving:
        return state, ()
    if state.phase is Phase.TRAINING and state.works(node) and event.has_begun:
        return _take_back(replace(state, leaving=state.leaving | {node})), ()
    state, effects = _leave_crew(_offline(state, node), node, f"{node} of stage {state.seats[node]} leaves")
    return state, (Released(node), *effects)


def _convict(state: RoundState, node: str, stage: int) -> Next:
    """From the next round on it has a load only where it is alone in its stage."""
    if state.seats.get(node) != stage or node in state.convicted:
        return state, ()
    state = replace(state, convicted=state.convicted | {node})
    return (_take_back(state) if node in state.members else state), ()


def _offline(state: RoundState, node: str) -> RoundState:
    return replace(
        state,
        online=state.online - {node},
        leaving=state.leaving - {node},
        open_to=_without(state.open_to, node),
        versions=_without(state.versions, node),
        stepped=state.stepped - {node},
        move=None if state.move is not None and state.move.node == node else state.move,
    )


def _take_version(state: RoundState, node: str, round_: int) -> Next:
    if node not in state.online or not state.versions.get(node, 0) <= round_ <= state.round:
        return state, ()
    state = replace(state, versions=_with(state.versions, node, round_))
    if state.phase is Phase.GATHERING:
        return _form_if_complete(state)
    if state.phase is not Phase.TRAINING or round_ < state.round or node in state.crew | state.members:
        return state, ()
    if not state.averages_in(state.round + 1):
        return state, ()
    state = replace(state, crew=state.crew | {node})
    return state, (Form(state.generation, state.round, state.crew),)


def _ready(state: RoundState, node: str, generation: int) -> Next:
    if generation != state.generation or node not in state.crew:
        return state, ()  # it belongs to a generation that is over
    state = replace(state, ready=state.ready | {node})
    replicas = state.holders(state.seats[node], state.ready)
    if state.phase is Phase.TRAINING and node not in state.members and len(replicas) <= SMALL_STAGE:
        state = _take_back(state)
    return _train_if_ready(state)


def _break(state: RoundState, node: str, generation: int, why: str, peer: str | None) -> Next:
    if generation != state.generation or node not in state.crew:
        return state, ()
    if peer is not None and peer not in state.crew:
        return state, ()  # it is gone already
    blamed = [each for each in (peer, node) if each is not None]
    for can_be_spared in (is_dispensable, is_done, is_replaceable):
        if spared := [each for each in blamed if can_be_spared(state, each)]:
            return _leave_crew(state, spared[0], why)
    if state.phase is Phase.FORMING:
        # One that can't be reached mustn't keep the others from training: it comes back as a newcomer.
        able = frozenset(each for each in state.crew if state.versions[each] == state.round)
        spare = (each for each in blamed if set(state.holders(state.seats[each], able)) - {each})
        state = replace(state, versions=_without(state.versions, next(spare, "")))
    return _pause(state, f"{node}: {why}")


def _hedge(state: RoundState, node: str, generation: int, why: str, peer: str) -> Next:
    """Whoever is late where another replica can do it instead isn't waited for, and is measured anew."""
    if generation != state.generation or node not in state.crew or not is_replaceable(state, peer):
        return state, ()
    if state.seats[peer] != state.seats[node] + 1:
        return state, ()  # it has sent it nothing
    return _leave_crew(replace(state, paces=_without(state.paces, peer)), peer, why)


def _report(state: RoundState, event: Reported) -> Next:
    node, report = event.node, event.report
    if state.phase is not Phase.TRAINING or event.generation != state.generation:
        return state, ()  # likewise
    if node in state.members and report.round == state.round and event.revision != state.revised[state.seats[node]]:
        return state, ()  # it is told of another load meanwhile
    if fault := find_fault(state, node, report):
        return state, (Refused(node, fault),)
    if (earlier := state.reports.get(node)) is not None:
        # The first one counts: its signature is the one that the host has kept.
        if report == earlier:
            return state, ()
        return state, (Refused(node, f"it has reported round {report.round} already, and otherwise"),)
    pace = update(state.paces.get(node, Pace()), len(report.hops), event.busy_s)
    return _seal_if_complete(
        replace(
            state,
            reports=_with(state.reports, node, report),
            stepped=state.stepped | {node},
            paces=_with(state.paces, node, pace),
        )
    )


def _seal_if_complete(state: RoundState) -> Next:
    if state.phase is not Phase.TRAINING or state.reports.keys() != state.members:
        return state, ()
    state = _without_strays(state)
    by_stage = [
        {node: report for node, report in state.reports.items() if report.stage == stage}
        for stage in range(state.stages)
    ]
    if mismatch := find_mismatch(by_stage, alone=not state.averages_in(state.round)):
        state = replace(state, mismatches=state.mismatches + 1)
        if state.mismatches >= MAX_MISMATCHES:
            state = replace(_disbanded(state), phase=Phase.STOPPED)
            return state, (Stop(f"The reports of round {state.round} disagree about {mismatch}."),)
        return _pause(state, f"the reports of round {state.round} disagree about {mismatch}")
    seal = Seal(state.round, state.reports, state.is_taken_back)
    state = replace(
        state,
        round=state.round + 1,
        members=state.members & state.crew,
        roots=tuple(
            MappingProxyType({node: report.state_after for node, report in reports.items()}) for reports in by_stage
        ),
        versions=MappingProxyType({**state.versions, **dict.fromkeys(state.members & state.crew, state.round + 1)}),
        mismatches=0,
    )
    state, released = _release(state)
    state, moved = _rebalance(state)
    state, effects = _go_on(state)
    return state, (seal, *released, *moved, *effects)


def _take_back(state: RoundState) -> RoundState:
    """Without the plan of the next round."""
    return replace(state, ahead=(), is_taken_back=state.is_taken_back or bool(state.ahead))


def _release(state: RoundState) -> Next:
    """Without those who want to go."""
    leaving = sorted(state.leaving)
    for node in leaving:
        state = _without_member(_offline(state, node), node)
    return state, tuple(map(Released, leaving))


def _rebalance(state: RoundState) -> Next:
    """Between two rounds: who was chosen to move goes, or is chosen; neither unless all is as it was for a while."""
    state = _on_its_way(state)
    if not is_settled(state):
        return replace(state, move=None) if state.is_moving else state, ()
    stages = [
        {
            node: Replica(
                state.microbatch_s(node),
                stages=frozenset() if node in state.convicted else state.open_to[node],
            )
            for node in trusted(state, state.holders(stage, state.members))
        }
        for stage in range(state.stages)
    ]
    move = state.move
    if move is None:
        return replace(state, move=rebalance(stages, work_of_stages(state))), ()
    if move.node not in stages[move.source] or len(stages[move.source]) < 2:
        return replace(state, move=None), ()
    state = _without_member(_offline(state, move.node), move.node)
    seats, paces = _with(state.seats, move.node, move.target), _without(state.paces, move.node)
    return replace(state, seats=seats, paces=paces, move=move, away=0), (move,)


def _on_its_way(state: RoundState) -> RoundState:
    """A round more that who moves hasn't computed, unless it has come, or was waited for long enough."""
    if state.move is None or state.is_moving:
        return state
    node = state.move.node
    is_lost = state.away >= SETTLED_ROUNDS and (node not in state.online or node in state.in_vain)
    if node in state.members or is_lost:
        return replace(state, move=None)
    return replace(state, away=state.away + 1)


def _without_strays(state: RoundState) -> RoundState:
    """Without those who shadowed the round and came out otherwise than who worked: one newcomer mustn't hold up all."""
    for node, report in state.reports.items():
        workers = [each for each in state.reports.values() if each.hops and each.stage == report.stage]
        alike = {(each.round_gradient_hash, each.state_after) for each in workers}
        if not report.hops and (report.round_gradient_hash, report.state_after) not in alike:
            state = _without_member(state, node)
    return state


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
    if state.ahead:
        return _look_ahead(_begun(state, state.ahead))
    if {state.seats[node] for node in state.ready} != set(range(state.stages)):
        return _pause(state, "a stage has no replica any more")
    if not (late := late_newcomers(state)):
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
    """Who is ready trains the next round."""
    assignment = divide_round(state)
    state, excluded = _without_idle(state, assignment)
    arranged = state.arranged if state.ready == state.members else state.round
    state = replace(state, phase=Phase.TRAINING, members=state.ready, arranged=arranged)
    state = _begun(state, assignment)
    state, effects = _look_ahead(state)
    return state, (*excluded, Train(state.generation, state.round, assignment, state.members), *effects)


def _without_idle(state: RoundState, assignment: Assignment) -> Next:
    """They come back with the next round in which all average, and are measured anew: nothing else shows that they
    aren't as slow any more.
    """
    effects = []
    for node in sorted(idle(state, assignment, state.round)):
        state = _without_member(replace(state, paces=_without(state.paces, node)), node)
        effects.append(Excluded(node, state.generation, "it has no load in a round in which each steps by itself"))
    return state, tuple(effects)


def _begun(state: RoundState, assignment: Assignment) -> RoundState:
    """The round is trained from now on."""
    since = int(state.is_taken_back)
    return replace(
        state,
        assignment=assignment,
        since=since,
        revision=since,
        revised=(since,) * state.stages,
        reports=MappingProxyType({}),
        ahead=(),
        is_taken_back=False,
    )


def _look_ahead(state: RoundState) -> Next:
    """Plan the next round, too, unless somebody wants to come in before it, or to go, or isn't measured yet."""
    are_settled = all(
        node in state.stepped and state.microbatch_s(node) is not None for node in state.members - state.convicted
    )
    if state.leaving or state.is_moving or state.crew != state.members or late_newcomers(state) or not are_settled:
        return state, ()
    ahead = divide_round(state)
    if idle(state, ahead, state.round + 1):
        return state, ()
    state = replace(state, ahead=ahead)
    return state, (Train(state.generation, state.round + 1, state.ahead, state.members),)


def _leave_crew(state: RoundState, node: str, why: str) -> Next:
    """Without it; whoever leaves the crew has to say anew that it has a version."""
    if node not in state.crew:
        return state, ()
    effects: tuple[Effect, ...] = (Excluded(node, state.generation, why),) if node in state.online else ()
    if is_done(state, node):  # its report counts
        state = replace(_without_member(state, node), members=state.members, reports=state.reports)
        return state, effects
    if is_replaceable(state, node):
        state, more = _replay(state, node)
    elif not is_dispensable(state, node):
        return _pause(state, why)
    else:
        state = _without_member(state, node)
        state, more = _train_if_ready(state) if state.phase is Phase.FORMING else _seal_if_complete(state)
    return state, (*effects, *more)


def _replay(state: RoundState, lost: str) -> Next:
    """The others of its stage compute its load, too; they add up their gradients anew."""
    stage, state = state.seats[lost], _without_member(state, lost)
    replicas = trusted(state, state.holders(stage, state.members))
    paces = {node: state.microbatch_s(node) if node in state.stepped else None for node in replicas}
    row = state.assignment[stage]
    load = reassign(row, lost, paces)
    changed = tuple(load.get(microbatch, node) for microbatch, node in enumerate(row))
    revision = state.revision + 1
    state = replace(
        state,
        assignment=_with_row(state.assignment, stage, changed),
        revision=revision,
        revised=_with_row(state.revised, stage, revision),
    )
    form = Form(state.generation, state.round, state.crew)
    return state, (form, Replay(state.generation, state.round, lost, load))


def _without_member(state: RoundState, node: str) -> RoundState:
    return replace(
        _take_back(state) if node in state.members else state,
        crew=state.crew - {node},
        ready=state.ready - {node},
        members=state.members - {node},
        arranged=state.round if node in state.members else state.arranged,
        versions=_without(state.versions, node),
        stepped=state.stepped - {node},
        reports=_without(state.reports, node),
    )


def _pause(state: RoundState, why: str) -> Next:
    pause = Pause(state.generation, why)
    state, released = _release(replace(_disbanded(state), phase=Phase.GATHERING))
    state, effects = _form_if_complete(state)
    return state, (pause, *released, *effects)


def _disbanded(state: RoundState) -> RoundState:
    nobody: frozenset[str] = frozenset()
    return replace(
        state,
        crew=nobody,
        ready=nobody,
        members=nobody,
        assignment=(),
        ahead=(),
        is_taken_back=False,
        reports=MappingProxyType({}),
    )


def _with_row(rows: tuple[R, ...], stage: int, row: R) -> tuple[R, ...]:
    return (*rows[:stage], row, *rows[stage + 1 :])


def _with(mapping: Mapping[str, V], key: str, value: V) -> Mapping[str, V]:
    return MappingProxyType({**mapping, key: value})


def _without(mapping: Mapping[str, V], key: str) -> Mapping[str, V]:
    return MappingProxyType({each: value for each, value in mapping.items() if each != key})
