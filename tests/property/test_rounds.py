"""The round state machine against everything that nodes, networks and a killed coordinator do to it.

The machine below is a host that keeps only what a coordinator's ledger keeps: seats, generation, round and roots.
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from commonweight.rules import rounds
from commonweight.rules.assignment import MEASURED_ROUNDS
from commonweight.rules.load import Load, is_divided
from commonweight.rules.placement import Move
from commonweight.rules.report import Report, find_mismatch
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
from commonweight.rules.round_facts import SETTLED_ROUNDS
from commonweight.rules.round_state import Assignment, Phase, RoundState
from commonweight.rules.rounds import MAX_MISMATCHES, advance
from tools.build_vectors import honest_reports, mark

NODES = tuple(f"node {i}" for i in range(6))
nodes = st.sampled_from(NODES)
ages = st.sampled_from([0, 0, 0, 0, 1, 2, -1])
"""How many generations, or rounds, old an event is; -1: of one that doesn't exist yet."""
seconds = st.sampled_from([0.1, 1.0, 7.5])
LIES = (
    *("none",) * 6,
    *("tokens", "activation_in", "gradient_in"),
    *("hops", "round", "state", "stage", "attempt", "sum", "step"),
)


def lie_about(report: Report, lie: str) -> Report:
    """The report with one thing in it untrue."""
    match lie:
        case "tokens" | "activation_in" | "gradient_in" if report.hops:
            lied = replace(report.hops[0], **{lie: mark("a lie")})
            return replace(report, hops=(lied, *report.hops[1:]))
        case "hops":
            return replace(report, hops=report.hops[1:])
        case "round":
            return replace(report, round=report.round + 1)
        case "state":
            return replace(report, state_before=mark("another state"))
        case "stage":
            return replace(report, stage=report.stage + 1)
        case "attempt":  # nothing that a neighbour sees, where the round is divided
            return replace(report, gradient_hash=mark("another gradient"))
        case "sum":
            return replace(report, round_gradient_hash=mark("another gradient of the round"))
        case "step":
            return replace(report, state_after=mark("another state"))
    return report


def load_of(state: RoundState, node: str) -> Load:
    """What it is to compute in the round that is trained; before that, all of it."""
    if not state.assignment:
        return tuple(range(state.microbatches))
    return tuple(j for j, each in enumerate(state.assignment[state.seats[node]]) if each == node)


def honest(state: RoundState, node: str) -> Report:
    """What a node that has a seat reports about the round."""
    loads, stage = [[load_of(state, node)]] * state.stages, state.seats[node]
    report = honest_reports(state.stages, state.microbatches, state.round, loads)[stage]
    if not state.averages_in(state.round):
        own = mark("its own state", state.round, NODES.index(node))
        report = replace(report, round_gradient_hash=report.gradient_hash, state_after=own)
    roots = state.roots[stage] if state.roots else {}
    # Whatever was sealed, it goes on from there; a newcomer from where somebody else is.
    return replace(report, state_before=roots.get(node, min(roots.values()))) if roots else report


def report_of(state: RoundState, node: str, report: Report, busy_s: float, *, age: int = 0) -> Reported:
    """The event: it was trained by the plan that is, in a generation of this age."""
    revision = state.revised[state.seats[node]] if state.revised else 0
    return Reported(node, state.generation - age, report, busy_s, revision)


def kinds_of(effects: tuple[Effect, ...]) -> list[type[Effect]]:
    return [type(effect) for effect in effects]


class Rounds(RuleBasedStateMachine):
    """Hosts the rules, remembers what it was told, and checks each step against it."""

    @initialize(
        stages=st.integers(1, 3), microbatches=st.integers(1, 4), averaging_rounds=st.sampled_from([1, 1, 2, 3])
    )
    def start(self, stages: int, microbatches: int, averaging_rounds: int) -> None:
        self.state = RoundState(stages, microbatches, averaging_rounds)
        self.sealed: list[int] = []
        self.told: dict[str, Report] = {}
        """What each node has reported first in this generation and round."""
        self.proven: set[str] = set()
        """Who has reported since it came online, and has not left the crew of a generation that went on."""
        self.stops = 0
        self.given: set[tuple[int, int]] = set()
        """Of which rounds, by generation, the members were given a plan."""

    # What happens.

    @rule(node=nodes, has_data=st.booleans(), stages=st.none() | st.frozensets(st.integers(0, 3)), stays=st.booleans())
    def join(self, node: str, has_data: bool, stages: frozenset[int] | None, stays: bool) -> None:
        old = self.state
        effects = self.send(Joined(node, has_data, stages, stays))
        held = old.seats.get(node)
        may_hold = [stage for stage in range(old.stages) if stages is None or stage in stages]
        if held is None:
            may_hold = [stage for stage in may_hold if stage or has_data]
        else:
            may_hold = [held] if held in may_hold else []
        assert (Refused in kinds_of(effects)) == (node in old.online or not may_hold)
        if Refused not in kinds_of(effects):
            seat = self.state.seats[node]
            assert node in self.state.online
            assert seat in may_hold
            if held is None:  # who isn't measured yet counts like the others
                speeds = {each: 1 / pace for each in old.online if (pace := old.microbatch_s(each))}
                typical = sum(speeds.values()) / len(speeds) if speeds else 1.0

                def throughput(stage: int) -> float:
                    there = old.online if old.move is None else old.online | {old.move.node}
                    return sum(speeds.get(each, typical) for each in old.holders(stage, there))

                assert throughput(seat) <= min(map(throughput, may_hold)) + 1e-9

    @rule()
    def join_all(self) -> None:
        for node in NODES:
            self.send(Joined(node))

    @rule(node=nodes)
    def lose(self, node: str) -> None:
        self.send(Lost(node))
        assert node not in self.state.online

    @rule(node=nodes, has_begun=st.booleans())
    def leave(self, node: str, has_begun: bool) -> None:
        old = self.state
        kinds = kinds_of(self.send(Leaving(node, has_begun)))
        if node in old.online - old.leaving:
            assert (Released in kinds) == (node not in self.state.online)
            has_work = has_begun and old.phase is Phase.TRAINING and old.works(node)
            assert (node in self.state.leaving) == has_work

    @rule(node=nodes, stage=st.integers(0, 2))
    def convict(self, node: str, stage: int) -> None:
        old = self.state
        assert self.send(Convicted(node, stage)) == ()
        assert self.state.convicted - old.convicted <= {node}
        void = {} if self.state.ahead else {"ahead": (), "is_taken_back": self.state.is_taken_back}
        assert self.state == replace(old, convicted=self.state.convicted, **void)

    @rule(node=nodes, age=ages)
    def has_version(self, node: str, age: int) -> None:
        self.send(HasVersion(node, max(0, self.state.round - age)))

    @rule()
    def all_have_the_version(self) -> None:
        for node in NODES:  # strangers among them, who must not count
            self.send(HasVersion(node, self.state.round))

    @rule(node=nodes, age=ages)
    def ready(self, node: str, age: int) -> None:
        self.send(Ready(node, self.state.generation - age))

    @rule()
    def all_ready(self) -> None:
        for node in NODES:
            self.send(Ready(node, self.state.generation))

    @rule(age=ages)
    def wait_no_longer(self, age: int) -> None:
        old = self.state
        self.send(Waited(old.generation - age))
        if not age and old.phase is Phase.FORMING and old.members:
            assert self.state.phase is Phase.TRAINING, "newcomers that don't come keep nobody from training"

    @rule(node=nodes, peer=st.none() | nodes, age=ages)
    def fail(self, node: str, peer: str | None, age: int) -> None:
        self.send(Broken(node, self.state.generation - age, "a pipe broke", peer))

    @rule(node=nodes, peer=nodes, age=ages)
    def late(self, node: str, peer: str, age: int) -> None:
        old = self.state
        kinds = kinds_of(self.send(Late(node, old.generation - age, "it takes long", peer)))
        assert kinds in ([], [Excluded, Form, Replay]), "nobody is hedged against in vain"
        if kinds:
            assert old.seats[peer] == old.seats[node] + 1

    @rule(node=nodes, as_node=nodes, age=ages, lie=st.sampled_from(LIES), busy_s=seconds, by_last_plan=st.booleans())
    def anyone_reports(self, node: str, as_node: str, age: int, lie: str, busy_s: float, by_last_plan: bool) -> None:
        """By anyone about what anyone trains."""
        if as_node in self.state.seats:
            report = lie_about(honest(self.state, as_node), lie)
            revision = self.state.revision if by_last_plan else 0
            self.send(Reported(node, self.state.generation - age, report, busy_s, revision))

    @rule(data=st.data(), age=ages, lie=st.sampled_from(LIES), twice=st.booleans(), busy_s=seconds)
    def member_reports(self, data: st.DataObject, age: int, lie: str, twice: bool, busy_s: float) -> None:
        """Mostly the truth, sometimes twice."""
        if self.state.members:
            node = data.draw(st.sampled_from(sorted(self.state.members)))
            report = lie_about(honest(self.state, node), lie)
            event = report_of(self.state, node, report, busy_s, age=age)
            for _ in range(1 + twice):
                self.send(event)

    @rule()
    def all_join_and_open(self) -> None:
        """So that most histories get somewhere."""
        self.join_all()
        self.all_have_the_version()
        self.all_ready()

    @rule()
    def nobody_comes_or_goes_for_a_while(self) -> None:
        """So many rounds that somebody may be asked to move."""
        self.state = replace(self.state, arranged=self.state.round - SETTLED_ROUNDS, away=0)

    @rule(lie=st.sampled_from(LIES), liar=nodes, order=st.permutations(NODES), busy_s=seconds)
    def all_report(self, lie: str, liar: str, order: list[str], busy_s: float) -> None:
        """Every member, in some order, at most one of them with a lie, each as fast as its place in it."""
        state = self.state
        for place, node in enumerate(order):
            if node in state.members:
                report = lie_about(honest(state, node), lie if node == liar else "none")
                self.send(report_of(state, node, report, busy_s + place))

    @rule()
    def late_report(self) -> None:
        """Once more what was sealed last."""
        if self.sealed and self.state.members:
            node = min(self.state.members)
            report = replace(honest(self.state, node), round=self.sealed[-1])
            self.send(report_of(self.state, node, report, 1.0))

    @rule()
    def restart(self) -> None:
        """The coordinator is killed; the ledger is all that is left."""
        old = self.state
        self.state = RoundState(
            *(old.stages, old.microbatches, old.averaging_rounds, old.work),
            *(old.seats, old.round, old.generation, old.roots),
        )
        self.told, self.proven, self.given = {}, set(), set()

    @rule()
    def everyone_behaves(self) -> None:
        """Whatever was before: if all nodes come and do their part, the next round is sealed."""
        if self.state.phase is Phase.STOPPED:
            self.restart()  # a person looked
        before = self.state.round
        self.join_all()
        if any(not self.state.holders(stage) for stage in range(self.state.stages)):
            return  # they were seated by what was asked of them, and nobody for this stage
        for _ in range(3):  # lies of before may still end a generation, and stop training
            self.all_have_the_version()
            self.all_ready()
            state = self.state
            assert state.phase is Phase.TRAINING
            for node in sorted(state.members):
                if self.state.round == before:
                    self.send(report_of(state, node, honest(state, node), 1.0))
            if self.state.phase is Phase.STOPPED:
                assert self.stops
                self.restart()
                self.join_all()
            if self.state.round > before:
                break
        assert self.state.round == before + 1 == len(self.sealed)

    # What must hold.

    def send(self, event: Event) -> tuple[Effect, ...]:
        """Advance, and check the step."""
        old = self.state
        self.state, effects = advance(old, event)
        kinds = kinds_of(effects)
        if isinstance(event, Ready | Broken | Late | Reported | Waited) and event.generation != old.generation:
            assert (self.state, effects) == (old, ())  # nothing of an ended generation counts
        if not isinstance(event, Joined | Convicted | Waited) and event.node not in old.online:
            assert self.state == old  # nor anything of who isn't there
            assert set(kinds) <= {Refused}
        if isinstance(event, Reported) and event.node not in old.members:
            assert self.state == old
        if Refused in kinds:
            assert (self.state, kinds) == (old, [Refused])
        assert self.state.generation >= old.generation
        moved = {effect.node for effect in effects if isinstance(effect, Move)}
        assert {node for node, stage in old.seats.items() if self.state.seats[node] != stage} == moved
        if Seal not in kinds:
            assert (self.state.round, self.state.roots) == (old.round, old.roots)
            assert self.state.ahead in ((), old.ahead) or Train in kinds
        if Pause not in kinds and self.state.phase is Phase.TRAINING and not self.state.ahead and old.ahead:
            assert Seal in kinds or self.state.is_taken_back
        self.check_who_is_lost(event, old, kinds)
        if isinstance(event, Reported) and self.state is not old and event.generation == old.generation:
            assert event.node in old.members
            assert old.seats[event.node] == event.report.stage
            self.told.setdefault(event.node, event.report)
            self.proven.add(event.node)
        for effect in effects:
            self.check(effect, old, event)
        if {Train, Pause, Seal, Stop} & set(kinds):
            self.told = {}
        self.proven &= self.state.stepped
        assert [kind for kind in kinds if kind not in (Excluded, Released, Move)] in (
            [],
            [Refused],
            [Seated],
            [Form],
            [Form, Replay],
            [Train],
            [Train, Train],
            [Seal],
            [Seal, Train],
            [Seal, Train, Train],
            [Seal, Form],
            [Seal, Pause],
            [Seal, Pause, Form],
            [Pause],
            [Pause, Form],
            [Stop],
        )
        return effects

    def check_who_is_lost(self, event: Event, old: RoundState, kinds: list[type[Effect]]) -> None:
        """Nobody waits for who has no part in the round; of several replicas none can keep the others from training."""
        if isinstance(event, Lost):
            blamed = [event.node] if event.node in old.crew else []
        elif isinstance(event, Broken) and event.generation == old.generation:
            blamed = [each for each in (event.peer, event.node) if each in old.crew]
        else:
            return
        if old.phase is Phase.TRAINING and any(not old.works(each) for each in blamed):
            assert Seal in kinds or not {Pause, Form, Stop} & set(kinds)
        if old.phase is Phase.TRAINING and any(self.has_successors(old, each) for each in blamed):
            assert Seal in kinds or not {Pause, Stop} & set(kinds)
        able = frozenset(each for each in old.crew if old.versions[each] == old.round)
        can_spare = [each for each in blamed if set(old.holders(old.seats[each], able)) - {each}]
        if old.phase is Phase.FORMING and Pause in kinds and can_spare:
            assert Form in kinds, "the others form at once"
            assert any(each not in self.state.crew for each in can_spare), "and without one of them"

    def has_successors(self, old: RoundState, node: str) -> bool:
        """Whether nobody in its stage has reported, and it isn't alone there; who steps alone is, in a way."""
        replicas = {each for each in old.members if old.seats[each] == old.seats[node]}
        return len(replicas) > 1 and not replicas & old.reports.keys() and old.averaging_rounds == 1

    def check(self, effect: Effect, old: RoundState, event: Event) -> None:
        state = self.state
        match effect:
            case Seated(node, stage):
                assert node not in old.seats
                assert state.seats[node] == stage
                assert node == event.node
            case Refused(node, why):
                assert node == event.node
                assert why
            case Form(generation, round_, crew):
                assert round_ == state.round == len(self.sealed)
                assert (generation, crew) == (state.generation, state.crew)
                if generation == old.generation and state.phase is Phase.FORMING:  # they are waited for
                    assert round_ == old.round + 1
                    assert state.members <= old.members
                    assert crew - state.members >= crew - old.crew
                elif state.phase is Phase.FORMING:
                    assert generation == old.generation + 1
                    assert {state.seats[node] for node in crew} == set(range(state.stages))
                    assert all(state.versions[node] == round_ for node in crew)
                elif not isinstance(event, HasVersion):  # one of them is lost
                    assert (generation, state.phase) == (old.generation, Phase.TRAINING)
                    assert len(old.crew - crew) == 1
                    assert crew < old.crew
                else:  # newcomers join those who train, and stop nobody
                    assert (generation, state.phase) == (old.generation, Phase.TRAINING)
                    assert crew == old.crew | {event.node}
                    assert state.versions[event.node] == round_
                    assert (state.members, state.reports) == (old.members, old.reports)
            case Train(generation, round_, assignment, members):
                assert (generation, members, state.phase) == (old.generation, state.members, Phase.TRAINING)
                if round_ == state.round:
                    was_given = (generation, round_) in self.given
                    assert (assignment, state.since, state.revision) == (state.assignment, was_given, was_given)
                    assert not state.is_taken_back
                else:
                    assert (round_, assignment) == (state.round + 1, state.ahead)
                    assert (generation, round_) not in self.given, "no plan is given ahead of time twice"
                    assert all(map(state.microbatch_s, members - state.convicted))
                    assert members - state.convicted <= state.stepped
                self.given.add((generation, round_))
                self.check_assignment(assignment)
            case Replay(generation, round_, lost, load):
                assert (generation, round_) == (state.generation, state.round) == (old.generation, old.round)
                assert lost in old.members - state.members
                stage = state.seats[lost]
                row = enumerate(old.assignment[stage])
                expected = [load[number] if node == lost else node for number, node in row]
                assert state.assignment == (*old.assignment[:stage], tuple(expected), *old.assignment[stage + 1 :])
                successors = set(state.holders(stage, state.members))
                assert set(load.values()) <= (successors - state.convicted or successors)
                assert state.reports == old.reports
                assert not any(report.stage == stage for report in state.reports.values())
                assert state.revised[stage] == state.revision == old.revision + 1
            case Excluded(node, generation, why):
                assert node in old.crew & state.online
                assert node not in state.crew
                assert generation == old.generation
                assert why
            case Released(node):
                assert node in old.leaving or (isinstance(event, Leaving) and event.node == node)
                assert node not in state.online | state.crew | state.leaving
            case Move(node, source, target, before, after):
                assert old.move == effect, "it was chosen when the round before was sealed"
                assert (old.seats[node], state.seats[node]) == (source, target)
                assert node in old.reports or event.node == node, "it has done its part"  # type: ignore[union-attr]
                assert node not in old.convicted | old.leaving
                assert target in old.open_to[node]
                assert node not in state.online | state.crew | state.members
                left = set(state.holders(source, state.ready))
                assert left - state.convicted, "somebody is left who works"
                assert not old.ahead, "nothing is taken back for it"
                assert after > before
            case Seal(round_, reports, next_taken_back):
                self.check_seal(round_, reports, old)
                was_given = (old.generation, round_ + 1) in self.given
                goes_on = state.phase is Phase.TRAINING and not state.since
                assert next_taken_back == (was_given and not goes_on)
                if was_given and goes_on:
                    assert (state.assignment, state.members) == (old.ahead, old.members)
            case Pause(generation, why):
                assert generation == old.generation
                assert old.phase in (Phase.FORMING, Phase.TRAINING)
                assert why
            case Stop(_):
                self.stops += 1
                assert old.mismatches == MAX_MISMATCHES - 1

    def check_assignment(self, assignment: Assignment) -> None:
        state = self.state
        assert state.members == state.ready <= state.crew <= state.online
        for stage, computes in enumerate(assignment):
            members = state.holders(stage, state.members)
            assert set(computes) <= set(members)
            assert len(computes) == state.microbatches
            trusted = set(members) - state.convicted or set(members)
            assert set(computes) <= trusted, "who is convicted works only where nobody else is"
            if self.proven & trusted:
                assert set(computes) <= self.proven, "newcomers shadow their first round"

    def check_seal(self, round_: int, reports: Mapping[str, Report], old: RoundState) -> None:
        assert round_ == old.round == len(self.sealed)
        self.sealed.append(round_)
        assert reports.keys() <= old.members
        # Each is the first that its node gave in this generation: the one whose signature is kept.
        assert reports == {node: self.told[node] for node in reports}
        by_stage = [
            {node: report for node, report in reports.items() if old.seats[node] == stage}
            for stage in range(old.stages)
        ]
        for stage, of_stage in enumerate(by_stage):
            assert is_divided([report.load for report in of_stage.values()], old.microbatches)
            assert all(report.load == load_of(old, node) for node, report in of_stage.items())
            assert self.state.roots[stage] == {node: report.state_after for node, report in of_stage.items()}
            if old.averages_in(round_):
                assert len(set(self.state.roots[stage].values())) == 1, "they end it in one state"
            else:
                assert all(report.round_gradient_hash == report.gradient_hash for report in of_stage.values())
            if old.roots:
                assert {report.state_before for report in of_stage.values()} <= set(old.roots[stage].values())
        assert find_mismatch(by_stage, alone=not old.averages_in(round_)) is None

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def is_consistent(self) -> None:
        state = self.state
        assert state.online <= state.seats.keys()
        assert state.versions.keys() | state.stepped <= state.online
        assert state.round == len(self.sealed)
        assert self.sealed == list(range(state.round))
        assert state.ready <= state.crew <= state.online
        assert state.members - state.ready <= state.reports.keys(), "who is gone has done its work"
        assert state.leaving <= state.online
        assert state.open_to.keys() == state.online
        if state.is_moving:
            assert state.move is not None
            assert state.move.node in state.online
        assert all(version <= state.round for version in state.versions.values())
        could_form = {state.seats[node] for node, round_ in state.versions.items() if round_ == state.round}
        if state.phase in (Phase.FORMING, Phase.TRAINING):
            assert {state.seats[node] for node in state.crew | state.reports.keys()} == set(range(state.stages))
        elif state.phase is Phase.GATHERING:
            assert could_form != set(range(state.stages))  # or it would have formed
        assert (state.phase is Phase.TRAINING) == bool(state.assignment)
        assert not state.assignment or state.members
        assert state.reports.keys() < state.members or not state.reports
        if state.phase is Phase.TRAINING and not state.averages_in(state.round):
            assert all(map(state.works, state.members)), "nobody ends it in a state that isn't credited"
        if state.ahead:
            assert state.phase is Phase.TRAINING
            assert state.members <= state.ready
            assert not state.leaving
            assert not state.is_moving
        assert all(state.seats[node] == report.stage for node, report in state.reports.items())
        assert all(report.round == state.round for report in state.reports.values())
        assert state.mismatches <= MAX_MISMATCHES
        assert (state.phase is Phase.STOPPED) == (state.mismatches == MAX_MISMATCHES)


TestRounds = Rounds.TestCase


def formed(stages: int = 2, replicas: int = 1, microbatches: int = 1) -> RoundState:
    """Training of round 0 has begun; node i has stage i mod `stages`."""
    state, crew = RoundState(stages, microbatches), NODES[: stages * replicas]
    for node in crew:
        state, _ = advance(state, Joined(node))
    for node in crew[::-1]:
        state, _ = advance(state, HasVersion(node, 0))
    generation = state.generation
    for node in crew:
        state, _ = advance(state, Ready(node, generation))
    assert state.phase is Phase.TRAINING
    return join_training(state, *crew)


def join_training(state: RoundState, *newcomers: str) -> RoundState:
    """With these in the crew, ready: they train from the next round on."""
    for node in newcomers:
        for event in (Joined(node), HasVersion(node, state.round), Ready(node, state.generation)):
            state, _ = advance(state, event)
    return state


def reported(state: RoundState, *nodes: str) -> tuple[RoundState, tuple[Effect, ...]]:
    """After honest reports of these, or of all members, who are equally fast."""
    effects: tuple[Effect, ...] = ()
    told = state
    for node in nodes or sorted(state.members):
        report = honest(told, node)
        state, effects = advance(state, report_of(told, node, report, float(len(report.hops))))
    return state, effects


def test_reports_that_always_contradict_each_other_stop_training() -> None:
    state = formed()
    generation = state.generation
    for attempt in range(MAX_MISMATCHES):
        lie = lie_about(honest(state, NODES[0]), "tokens")
        state, _ = advance(state, Reported(NODES[0], generation + attempt, lie, 1.0))
        state, effects = reported(state, NODES[1])
        if attempt < MAX_MISMATCHES - 1:
            assert kinds_of(effects) == [Pause, Form]
            for node in NODES[:2]:
                state, _ = advance(state, Ready(node, state.generation))
    assert kinds_of(effects) == [Stop]
    for event in (Lost(NODES[0]), Joined(NODES[0]), HasVersion(NODES[0], 0), Ready(NODES[0], state.generation)):
        state, effects = advance(state, event)
        assert (state.phase, effects) == (Phase.STOPPED, ())


def test_a_node_gets_the_weakest_stage_of_which_its_owner_has_a_seat_on_chain() -> None:
    state = RoundState(3, 1)
    for node, options, stage in (
        (NODES[0], {"stages": frozenset({1, 2})}, 1),
        (NODES[1], {"has_data": False}, 2),  # where no stake is asked for, any that it can train
        (NODES[2], {}, 0),
        (NODES[3], {"stages": frozenset({1})}, 1),
        (NODES[4], {}, 0),
        (NODES[5], {}, 2),
    ):
        state, effects = advance(state, Joined(node, **options))  # type: ignore[arg-type]
        assert effects == (Seated(node, stage),)
    after, effects = advance(state, Joined("somebody else", stages=frozenset()))
    assert (after, effects) == (
        state,
        (Refused("somebody else", "its owner has no seat on chain in any stage of this model"),),
    )


def test_a_seat_on_chain_of_the_first_stage_doesnt_help_a_node_without_the_text() -> None:
    state = RoundState(2, 1)
    after, effects = advance(state, Joined(NODES[0], has_data=False, stages=frozenset({0})))
    assert after == state
    assert "only the first stage is open to it, and that reads the text" in effects[0].why  # type: ignore[union-attr]
    assert advance(state, Joined(NODES[0], has_data=False, stages=frozenset({0, 1})))[1] == (Seated(NODES[0], 1),)


def test_a_holder_whose_owner_lost_the_seat_on_chain_stays_out_until_it_has_one_again() -> None:
    state, _ = advance(formed(), Lost(NODES[0]))
    for stages in (frozenset[int](), frozenset({1})):
        after, effects = advance(state, Joined(NODES[0], stages=stages))
        assert after == state
        assert effects == (Refused(NODES[0], "it holds stage 0, of which its owner has no seat on chain any more"),)
    for allowed in (frozenset({0}), None):
        assert NODES[0] in advance(state, Joined(NODES[0], stages=allowed))[0].online


def test_a_sealed_round_forgives_earlier_contradictions() -> None:
    state, effects = reported(replace(formed(1), mismatches=MAX_MISMATCHES - 1))
    assert kinds_of(effects) == [Seal, Train, Train]
    assert state.mismatches == 0


def test_a_node_cant_take_back_what_it_reported() -> None:
    state, _ = reported(formed(), NODES[0])
    assert reported(state, NODES[0]) == (state, ())
    lie = lie_about(honest(state, NODES[0]), "step")
    after, effects = advance(state, Reported(NODES[0], state.generation, lie, 1.0))
    assert after == state
    assert kinds_of(effects) == [Refused]


def test_a_node_that_is_lost_while_pipes_open_makes_the_others_open_them_again() -> None:
    state, _ = advance(formed(), Lost(NODES[0]))
    for event in (Joined(NODES[0]), HasVersion(NODES[0], 0)):
        state, effects = advance(state, event)
    assert effects == (Form(state.generation, 0, frozenset(NODES[:2])),)
    first = state.generation
    state, _ = advance(state, Ready(NODES[0], first))
    state, effects = advance(state, Lost(NODES[0]))
    assert kinds_of(effects) == [Pause]
    for event in (Joined(NODES[0]), HasVersion(NODES[0], 0)):
        state, effects = advance(state, event)
    assert effects == (Form(first + 1, 0, frozenset(NODES[:2])),)
    assert advance(state, Ready(NODES[1], first)) == (state, ())
    state, effects = advance(state, Ready(NODES[1], first + 1))
    assert effects == ()  # what node 0 said about the generation before is forgotten
    assert kinds_of(advance(state, Ready(NODES[0], first + 1))[1]) == [Train]


def test_unknown_roots_let_any_state_begin_and_known_ones_only_that() -> None:
    state = formed()
    told = Reported(NODES[0], state.generation, lie_about(honest(state, NODES[0]), "state"), 1.0)
    assert advance(state, told)[1] == ()
    sealed = {NODES[0]: mark("state", 0, 0)}, {NODES[1]: mark("state", 0, 1)}
    _, effects = advance(replace(state, roots=sealed), told)
    assert "Restore the checkpoint" in effects[0].why  # type: ignore[union-attr]


def alone(averaging_rounds: int = 3) -> RoundState:
    """Two replicas of either stage, measured, in the first round of a period in which each steps by itself."""
    state = replace(all_work(), averaging_rounds=averaging_rounds)
    while state.round % averaging_rounds:
        state, _ = reported(state)
    return state


def test_between_averages_each_replica_goes_on_from_a_state_of_its_own() -> None:
    state = alone()
    for _ in range(2):
        state, effects = reported(state)
        assert kinds_of(effects) == [Seal, Train]
        assert [len(set(roots.values())) for roots in state.roots] == [2, 2]
    own = honest(state, NODES[0])
    swapped = replace(own, state_before=state.roots[0][NODES[2]])
    for report in (own, swapped):  # either is a state that was sealed
        assert not kinds_of(advance(state, report_of(state, NODES[0], report, 1.0))[1])
    state, _ = reported(state)
    assert [len(set(roots.values())) for roots in state.roots] == [1, 1]


def test_who_steps_alone_signs_no_other_gradient() -> None:
    state = alone()
    lie = lie_about(honest(state, NODES[0]), "sum")
    _, effects = advance(state, report_of(state, NODES[0], lie, 1.0))
    assert "another gradient than its own" in effects[0].why  # type: ignore[union-attr]


def test_when_one_is_lost_between_averages_the_others_train_the_round_again() -> None:
    state, effects = advance(alone(), Lost(NODES[2]))
    assert kinds_of(effects) == [Pause, Form]
    for node in sorted(state.crew):
        state, effects = advance(state, Ready(node, state.generation))
    assert kinds_of(effects) == [Train, Train]
    assert state.members == set(NODES[:4]) - {NODES[2]}


def test_newcomers_come_in_with_a_round_in_which_all_average() -> None:
    state = join_training(alone(), NODES[4])
    assert NODES[4] not in state.crew
    state, _ = reported(state)
    state, _ = reported(join_training(state, NODES[4]))
    assert NODES[4] in state.members, "they average now"
    assert not state.works(NODES[4])
    state, _ = reported(state)
    assert state.works(NODES[4])


def test_who_has_no_load_isn_t_there_between_averages() -> None:
    state, _ = advance(alone(), Convicted(NODES[2], 0))
    state, effects = reported(state)
    assert kinds_of(effects) == [Seal, Excluded, Train, Train]
    assert NODES[2] not in state.crew


def test_a_newcomer_shadows_a_round_is_tried_with_one_microbatch_and_then_has_its_share() -> None:
    state = join_training(formed(1, 1, microbatches=8), NODES[1])
    assert state.members == {NODES[0]}, "the round that is trained goes on without it"
    loads = []
    for planned in (1, 1, 2):
        state, effects = reported(state)
        assert kinds_of(effects) == [Seal, *[Train] * planned], "nothing is planned ahead of its first report"
        loads.append(len(load_of(state, NODES[1])))
    assert loads == [0, 1, 4]


def test_who_was_measured_cold_is_tried_again_after_a_while() -> None:
    """Its first microbatch took it a thousand times as long as others take."""
    state = join_training(formed(1, 1, microbatches=8), NODES[1])
    state, _ = reported(reported(state)[0])
    cold = honest(state, NODES[1])
    state, _ = advance(state, report_of(state, NODES[1], cold, 1000.0))
    loads = []
    for _ in range(MEASURED_ROUNDS + 4):
        state, _ = reported(state, *sorted(state.members - state.reports.keys()))
        loads.append(len(load_of(state, NODES[1])))
    assert loads == [0] * (MEASURED_ROUNDS + 1) + [1, 1, 4]


def test_who_shadows_a_round_may_be_lost_without_any_loss() -> None:
    state, _ = reported(join_training(formed(1), NODES[1]))
    assert state.members == set(NODES[:2])
    for event in (Lost(NODES[1]), Broken(NODES[0], state.generation, "a pipe broke", NODES[1])):
        after, effects = advance(state, event)
        assert set(kinds_of(effects)) <= {Excluded}
        assert after.members == {NODES[0]}
    state, _ = reported(state, NODES[0])
    after, effects = advance(state, Lost(NODES[1]))
    assert kinds_of(effects) == [Seal, Train, Train], "it was the only one that was waited for"


def all_work() -> RoundState:
    """Two replicas of either stage, each with its share of four microbatches."""
    state = formed(2, 2, microbatches=4)
    for _ in range(3):
        state, effects = reported(state)
    assert kinds_of(effects) == [Seal, Train, Train]
    assert all(map(state.works, NODES[:4]))
    return state


def test_the_next_round_is_planned_ahead_and_goes_on_by_that_plan() -> None:
    state = all_work()
    assert state.ahead == state.assignment
    generation, planned = state.generation, state.round
    for _ in range(2):
        state, effects = reported(state)
        assert kinds_of(effects) == [Seal, Train]
        assert not effects[0].next_taken_back  # type: ignore[union-attr]
        assert effects[1].round == state.round + 1  # type: ignore[union-attr]
    assert (state.generation, state.round, state.since) == (generation, planned + 2, 0)


def test_the_next_round_is_planned_anew_with_a_newcomer() -> None:
    state = join_training(all_work(), NODES[4])
    assert (state.ahead, state.is_taken_back) == ((), True)
    state, effects = reported(state)
    assert kinds_of(effects) == [Seal, Train]
    assert effects[0].next_taken_back  # type: ignore[union-attr]
    assert NODES[4] in state.members


def test_in_a_large_stage_a_newcomer_waits_for_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "SMALL_STAGE", 2)
    state = join_training(all_work(), NODES[4])
    assert state.ahead, "what is planned isn't taken back for it"
    state, effects = reported(state)
    assert kinds_of(effects) == [Seal], "the next one isn't planned without it"
    assert NODES[4] not in state.members
    state, effects = reported(state)
    assert kinds_of(effects) == [Seal, Train]
    assert NODES[4] in state.members


def back(state: RoundState, node: str) -> RoundState:
    """After it has come back, and shadowed a round."""
    state = join_training(reported(state)[0], node)
    for _ in range(2):
        assert not state.works(node)
        state, _ = reported(state)
    return state


def test_who_comes_back_has_its_share_after_the_round_that_it_shadows() -> None:
    state, _ = advance(all_work(), Lost(NODES[2]))
    assert len(load_of(back(state, NODES[2]), NODES[2])) == 2


def test_who_was_late_is_measured_anew() -> None:
    state = all_work()
    state, _ = advance(state, Late(NODES[0], state.generation, "it is late", NODES[3]))
    state, _ = advance(state, Lost(NODES[3]))
    assert len(load_of(back(state, NODES[3]), NODES[3])) == 1


@pytest.mark.parametrize("event", [Leaving(NODES[2]), Lost(NODES[2]), Broken(NODES[0], 1, "it is gone", NODES[2])])
def test_what_is_planned_ahead_is_taken_back_when_somebody_goes(event: Event) -> None:
    state, _ = advance(all_work(), event)
    assert (state.ahead, state.is_taken_back) == ((), True)
    state, effects = reported(state)
    kinds = [kind for kind in kinds_of(effects) if kind is not Released]
    assert kinds == [Seal, Train, Train], "it is planned anew, and the one after it ahead"
    assert effects[0].next_taken_back  # type: ignore[union-attr]
    assert (state.since, state.revision, set(state.revised)) == (1, 1, {1})
    assert NODES[2] not in state.members
    void = Reported(NODES[0], state.generation, honest(state, NODES[0]), 1.0, revision=0)
    assert advance(state, void) == (state, ()), "what was done by the first plan is void"
    again = replace(void, report=replace(void.report, round=state.round - 1))
    assert kinds_of(advance(state, again)[1]) == [Refused], "a second word about a sealed round is refused as before"


def test_the_load_of_a_worker_that_is_lost_is_replayed_by_the_other_replica() -> None:
    state, lost, other = all_work(), NODES[2], NODES[0]
    state, _ = reported(state, NODES[1])  # the next stage may be ready first
    state, effects = advance(state, Lost(lost))
    assert kinds_of(effects) == [Form, Replay]
    assert (load_of(state, other), load_of(state, lost)) == ((0, 1, 2, 3), ())
    late = Reported(other, state.generation, honest(state, other), 1.0, revision=0)
    assert advance(state, late) == (state, ()), "it doesn't know of its successor's load yet"
    state, effects = reported(state, other, NODES[3])
    assert kinds_of(effects) == [Seal, Train, Train]
    assert effects[0].reports.keys() == {other, NODES[1], NODES[3]}  # type: ignore[union-attr]


def test_when_a_replica_may_have_stepped_without_the_lost_one_the_round_is_trained_again() -> None:
    state, _ = reported(all_work(), NODES[0])
    after, effects = advance(state, Lost(NODES[2]))
    assert kinds_of(effects) == [Pause, Form]
    assert after.crew == set(NODES[:4]) - {NODES[2]}
    assert (after.round, after.roots) == (state.round, state.roots)


def test_who_is_lost_after_all_that_it_was_needed_for_is_paid_for_it() -> None:
    state, _ = reported(all_work(), NODES[0], NODES[2])
    state, effects = advance(state, Lost(NODES[2]))
    assert effects == ()
    for event in (Joined(NODES[2]), HasVersion(NODES[2], state.round)):
        state, _ = advance(state, event)
    assert NODES[2] not in state.crew, "it has trained this round"
    state, effects = reported(state, NODES[1], NODES[3])
    assert kinds_of(effects) == [Seal, Form], "it has the state before the round"
    assert effects[0].reports.keys() == set(NODES[:4])  # type: ignore[union-attr]


def test_who_wants_to_leave_goes_when_its_work_is_done() -> None:
    state, effects = advance(all_work(), Leaving(NODES[2]))
    assert effects == ()
    state, effects = reported(state)
    assert kinds_of(effects) == [Seal, Released, Train, Train]
    assert state.members == set(NODES[:4]) - {NODES[2]}
    assert advance(state, Lost(NODES[2])) == (state, ())


def test_when_the_last_replica_of_a_stage_leaves_training_waits_for_another_one() -> None:
    state, _ = advance(formed(), Leaving(NODES[1]))
    state, effects = reported(state)
    assert kinds_of(effects) == [Seal, Released, Pause]
    assert (state.phase, state.online) == (Phase.GATHERING, {NODES[0]})


def test_who_is_late_is_replaced_where_another_replica_is_there() -> None:
    state = all_work()
    assert advance(state, Late(NODES[1], 1, "it takes long", NODES[2])) == (state, ()), "it waits for no earlier stage"
    _, effects = advance(state, Late(NODES[0], 1, "it takes long", NODES[3]))
    assert kinds_of(effects) == [Excluded, Form, Replay]
    alone = formed()
    assert advance(alone, Late(NODES[0], alone.generation, "it takes long", NODES[1])) == (alone, ())


def test_who_is_convicted_works_only_where_nobody_else_does() -> None:
    state, _ = advance(all_work(), Convicted(NODES[2], 0))
    assert advance(state, Convicted(NODES[3], 0)) == (state, ()), "it holds another stage"
    state, effects = reported(state)
    assert kinds_of(effects) == [Seal, Train, Train]
    assert (load_of(state, NODES[0]), load_of(state, NODES[2])) == ((0, 1, 2, 3), ())
    state, effects = advance(state, Lost(NODES[0]))
    assert kinds_of(effects) == [Form, Replay]
    assert load_of(state, NODES[2]) == (0, 1, 2, 3)


def test_a_node_that_others_can_t_reach_forgets_what_it_had_begun() -> None:
    state, effects = advance(all_work(), Broken(NODES[0], 1, "it fell silent", NODES[3]))
    assert effects[0] == Excluded(NODES[3], 1, "it fell silent")
    assert kinds_of(effects) == [Excluded, Form, Replay]
    state, effects = advance(state, HasVersion(NODES[3], state.round))
    assert kinds_of(effects) == [Form], "it comes back as a newcomer"


@pytest.mark.parametrize("blames", [None, NODES[0], NODES[1], NODES[2]])
def test_who_can_t_open_its_pipes_doesn_t_keep_a_stage_with_others_from_training(blames: str | None) -> None:
    """Stage 0 has two replicas, stage 1 only node 1: whoever says that it can't reach whom."""
    state = join_training(formed(), NODES[2])
    state, effects = advance(state, Broken(NODES[0], state.generation, "it fell silent"))
    assert kinds_of(effects) == [Pause, Form]
    assert state.crew == set(NODES[:3])
    state, effects = advance(state, Broken(NODES[0], state.generation, "no connection", blames))
    assert kinds_of(effects) == [Pause, Form]
    assert state.crew in (set(NODES[:2]), set(NODES[1:3]))
    left = state.crew
    for node in sorted(left):
        state, effects = advance(state, Ready(node, state.generation))
    assert kinds_of(effects) == [Train]
    (gone,) = set(NODES[:3]) - left
    state, effects = advance(state, HasVersion(gone, 0))
    assert kinds_of(effects) == [Form], "it comes back as a newcomer"
