"""The round state machine against everything that nodes, networks and a killed coordinator do to it.

The machine below is a host that keeps only what a coordinator's ledger keeps: seats, generation, round and roots.
"""

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from commonweight.rules.report import Report, find_mismatch
from commonweight.rules.rounds import (
    MAX_MISMATCHES,
    Broken,
    Effect,
    Event,
    Form,
    Joined,
    Lost,
    Pause,
    Phase,
    Ready,
    Refused,
    Reported,
    RoundState,
    Seal,
    Seated,
    Stop,
    Train,
    advance,
)
from tools.build_vectors import honest_reports, mark

NODES = tuple(f"node {i}" for i in range(6))
nodes = st.sampled_from(NODES)
ages = st.sampled_from([0, 0, 0, 0, 1, 2, -1])
"""How many generations old an event is; -1: of one that doesn't exist yet."""
LIES = ("none", "none", "none", "tokens", "activation_in", "gradient_in", "hops", "round", "state", "stage", "attempt")


def lie_about(report: Report, lie: str) -> Report:
    """The report with one thing in it untrue."""
    hop = report.hops[0]
    match lie:
        case "tokens" | "activation_in" | "gradient_in":
            return replace(report, hops=(replace(hop, **{lie: mark("a lie")}), *report.hops[1:]))
        case "hops":
            return replace(report, hops=(*report.hops, hop))
        case "round":
            return replace(report, round=report.round + 1)
        case "state":
            return replace(report, state_before=mark("another state"))
        case "stage":
            return replace(report, stage=report.stage + 1)
        case "attempt":  # nothing that a neighbour sees
            return replace(report, gradient_hash=mark("another gradient"))
    return report


class Rounds(RuleBasedStateMachine):
    """Hosts the rules, remembers what it was told, and checks each step against it."""

    @initialize(stages=st.integers(1, 4), microbatches=st.integers(1, 2), unknown=st.booleans())
    def start(self, stages: int, microbatches: int, unknown: bool) -> None:
        roots = (None,) * stages if unknown else ()
        self.state = RoundState(microbatches, (None,) * stages, roots=roots)
        self.sealed: list[int] = []
        self.told: dict[int, list[Report]] = {}
        """What each stage's holder has reported in this generation and round."""
        self.stops = 0

    # What happens.

    @rule(node=nodes, has_data=st.booleans(), stages=st.none() | st.frozensets(st.integers(0, 3)))
    def join(self, node: str, has_data: bool, stages: frozenset[int] | None) -> None:
        old = self.state
        effects = self.send(Joined(node, has_data, stages))
        held = [stage for stage, holder in enumerate(old.seats) if holder == node]
        free = [stage for stage, holder in enumerate(old.seats) if holder is None and (stage or has_data)]
        may_hold = [stage for stage in held or free if stages is None or stage in stages]
        assert (Refused in map(type, effects)) == (node in old.online or not may_hold)
        if Refused not in map(type, effects):
            assert node in self.state.online
            assert self.state.seats.index(node) == (may_hold[0] if has_data else may_hold[-1])

    @rule()
    def join_all(self) -> None:
        for node in NODES:
            self.send(Joined(node))

    @rule(node=nodes)
    def lose(self, node: str) -> None:
        self.send(Lost(node))
        assert node not in self.state.online

    @rule(node=nodes, age=ages)
    def ready(self, node: str, age: int) -> None:
        self.send(Ready(node, self.state.generation - age))

    @rule()
    def all_ready(self) -> None:
        for node in NODES:  # strangers among them, who must not count
            self.send(Ready(node, self.state.generation))

    @rule(node=nodes, age=ages)
    def fail(self, node: str, age: int) -> None:
        self.send(Broken(node, self.state.generation - age, "a pipe broke"))

    @rule(node=nodes, stage=st.integers(0, 3), age=ages, lie=st.sampled_from(LIES))
    def anyone_reports(self, node: str, stage: int, age: int, lie: str) -> None:
        """By anyone about any stage."""
        report = lie_about(self.honest()[stage % len(self.state.seats)], lie)
        self.send(Reported(node, self.state.generation - age, report))

    @rule(stage=st.integers(0, 3), age=ages, lie=st.sampled_from(LIES), twice=st.booleans())
    def holder_reports(self, stage: int, age: int, lie: str, twice: bool) -> None:
        """Mostly the truth, sometimes twice."""
        stage %= len(self.state.seats)
        for _ in range(1 + twice):
            report = lie_about(self.honest()[stage], lie)
            self.send(Reported(self.state.seats[stage] or "nobody", self.state.generation - age, report))

    @rule()
    def all_join_and_open(self) -> None:
        """So that most histories get somewhere."""
        self.join_all()
        self.all_ready()

    @rule(lie=st.sampled_from(LIES), liar=st.integers(0, 3), order=st.permutations(range(4)))
    def all_report(self, lie: str, liar: int, order: list[int]) -> None:
        """Every holder, in some order, at most one of them with a lie."""
        generation, honest = self.state.generation, self.honest()
        for stage in (stage for stage in order if stage < len(self.state.seats)):
            node = self.state.seats[stage]
            if node is not None:
                report = lie_about(honest[stage], lie if stage == liar else "none")
                self.send(Reported(node, generation, report))

    @rule()
    def late_report(self) -> None:
        """Once more what was sealed last."""
        if self.sealed and self.state.seats[0] is not None:
            old = honest_reports(len(self.state.seats), self.state.microbatches, self.sealed[-1])[0]
            self.send(Reported(self.state.seats[0], self.state.generation, old))

    @rule()
    def restart(self) -> None:
        """The coordinator is killed; the ledger is all that is left."""
        old = self.state
        self.state = RoundState(old.microbatches, old.seats, old.round, old.generation, old.roots)
        self.told = {}

    @rule()
    def everyone_answers(self) -> None:
        """Whatever was before: if all holders come and do their part, the next round is sealed."""
        if self.state.phase is Phase.STOPPED:
            self.restart()  # a person looked
        before = self.state.round
        for node in (*self.state.seats, *NODES):
            if node is not None:
                self.send(Joined(node))
        for _ in range(2):  # a lie of before may still end one generation
            generation = self.state.generation
            self.all_ready()
            for stage, report in enumerate(self.honest()):
                if self.state.round == before:
                    self.send(Reported(self.state.seats[stage] or "", generation, report))
            if self.state.phase is Phase.STOPPED:
                assert self.stops
                self.restart()
                self.join_all()
            if self.state.round > before:
                break
        assert self.state.round == before + 1 == len(self.sealed)

    # What must hold.

    def honest(self) -> tuple[Report, ...]:
        return honest_reports(len(self.state.seats), self.state.microbatches, self.state.round)

    def send(self, event: Event) -> tuple[Effect, ...]:
        """Advance, and check the step."""
        old = self.state
        self.state, effects = advance(old, event)
        kinds = [type(effect) for effect in effects]
        if isinstance(event, Ready | Broken | Reported) and event.generation != old.generation:
            assert (self.state, effects) == (old, ())  # nothing of an ended generation counts
        if isinstance(event, Ready | Broken | Reported | Lost) and event.node not in old.seats:
            assert self.state == old  # nor anything of a stranger
            assert set(kinds) <= {Refused}
        if Refused in kinds:
            assert (self.state, kinds) == (old, [Refused])
        assert self.state.generation >= old.generation
        for before, after in zip(old.seats, self.state.seats, strict=True):
            assert before in (None, after)
        in_time = old.phase is Phase.TRAINING and getattr(event, "generation", None) == old.generation
        if isinstance(event, Reported) and in_time and Refused not in kinds:
            assert old.seats[event.report.stage] == event.node
            self.told.setdefault(event.report.stage, []).append(event.report)
        for effect in effects:
            self.check(effect, old, event)
        if {Form, Pause, Seal, Stop} & set(kinds):
            self.told = {}
        assert kinds in (
            [],
            [Refused],
            [Seated],
            [Seated, Form],
            [Form],
            [Train],
            [Seal, Train],
            [Pause],
            [Pause, Form],
            [Stop],
        )
        return effects

    def check(self, effect: Effect, old: RoundState, event: Event) -> None:
        match effect:
            case Seated(node, stage):
                assert old.seats[stage] is None
                assert self.state.seats[stage] == node == event.node
            case Refused(node, why):
                assert node == event.node
                assert why
            case Form(generation, round_):
                assert generation == old.generation + 1 == self.state.generation
                assert round_ == self.state.round == len(self.sealed)
                assert self.state.phase is Phase.FORMING
            case Train(generation, round_):
                assert (generation, round_) == (old.generation, self.state.round)
                assert self.state.phase is Phase.TRAINING
                assert self.state.ready == set(self.state.seats)
            case Seal(round_, reports):
                assert round_ == old.round == len(self.sealed)
                self.sealed.append(round_)
                assert [report.stage for report in reports] == list(range(len(old.seats)))
                assert all(report.round == round_ for report in reports)
                assert find_mismatch(reports) is None
                # Each is the first that its holder gave in this generation: the one whose signature is kept.
                assert [report == self.told[stage][0] for stage, report in enumerate(reports)] == [True] * len(reports)
                assert self.state.roots == tuple(report.state_after for report in reports)
                if None not in old.roots and old.roots:
                    assert old.roots == tuple(report.state_before for report in reports)
            case Pause(generation, why):
                assert generation == old.generation
                assert old.phase in (Phase.FORMING, Phase.TRAINING)
                assert why
            case Stop(_):
                self.stops += 1
                assert old.mismatches == MAX_MISMATCHES - 1

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def is_consistent(self) -> None:
        state = self.state
        holders = [node for node in state.seats if node is not None]
        assert len(set(holders)) == len(holders)
        assert state.online <= set(holders)
        assert state.round == len(self.sealed)
        assert self.sealed == list(range(state.round))
        running = state.phase in (Phase.FORMING, Phase.TRAINING)
        if running:
            assert state.online == set(state.seats)
        elif state.phase is Phase.GATHERING:
            assert state.online != set(state.seats)  # or it would have formed
        if state.phase is not Phase.TRAINING:
            assert not state.reports
        assert state.ready <= state.online
        assert state.mismatches <= MAX_MISMATCHES
        assert (state.phase is Phase.STOPPED) == (state.mismatches == MAX_MISMATCHES)
        assert all(stage == report.stage and report.round == state.round for stage, report in state.reports.items())
        assert len(state.reports) < len(state.seats)


TestRounds = Rounds.TestCase


def formed(stages: int = 2) -> RoundState:
    """Training of round 0 has begun."""
    state = RoundState(1, (None,) * stages)
    for node in NODES[:stages]:
        state, _ = advance(state, Joined(node))
    for node in NODES[:stages]:
        state, _ = advance(state, Ready(node, 1))
    assert state.phase is Phase.TRAINING
    return state


def test_reports_that_always_contradict_each_other_stop_training() -> None:
    state = formed()
    honest = honest_reports(2, 1, 0)
    for attempt in range(1, MAX_MISMATCHES + 1):
        state, _ = advance(state, Reported(NODES[0], attempt, lie_about(honest[0], "tokens")))
        state, effects = advance(state, Reported(NODES[1], attempt, honest[1]))
        if attempt < MAX_MISMATCHES:
            assert [type(effect) for effect in effects] == [Pause, Form]
            for node in NODES[:2]:
                state, _ = advance(state, Ready(node, attempt + 1))
    assert [type(effect) for effect in effects] == [Stop]
    for event in (Lost(NODES[0]), Joined(NODES[0]), Ready(NODES[0], MAX_MISMATCHES), Broken(NODES[1], 3, "")):
        state, effects = advance(state, event)
        assert (state.phase, effects) == (Phase.STOPPED, ())


def test_a_node_gets_the_first_free_stage_of_which_its_owner_has_a_seat_on_chain() -> None:
    state = RoundState(1, (None,) * 3)
    state, effects = advance(state, Joined(NODES[0], stages=frozenset({1, 2})))
    assert effects == (Seated(NODES[0], 1),)
    state, effects = advance(state, Joined(NODES[1], has_data=False))
    assert effects == (Seated(NODES[1], 2),)  # where no stake is asked for, any that it can train
    for stages, named in ((frozenset[int](), "[]"), (frozenset({1, 2, 9}), "[1, 2, 9]")):
        after, effects = advance(state, Joined(NODES[2], stages=stages))
        assert (after, effects) == (
            state,
            (Refused(NODES[2], f"free are stages [0], and its owner has seats on chain of {named}"),),
        )
    assert advance(state, Joined(NODES[2], stages=frozenset({0, 1})))[1] == (Seated(NODES[2], 0), Form(1, 0))


def test_a_seat_on_chain_of_the_first_stage_doesnt_help_a_node_without_the_text() -> None:
    state = RoundState(1, (None,) * 2)
    after, effects = advance(state, Joined(NODES[0], has_data=False, stages=frozenset({0})))
    assert after == state
    assert "only the first stage is free to it, and that reads the text" in effects[0].why  # type: ignore[union-attr]
    assert advance(state, Joined(NODES[0], has_data=False, stages=frozenset({0, 1})))[1] == (Seated(NODES[0], 1),)


def test_a_holder_whose_owner_lost_the_seat_on_chain_stays_out_until_it_has_one_again() -> None:
    state, _ = advance(formed(), Lost(NODES[0]))
    for stages in (frozenset[int](), frozenset({1})):
        after, effects = advance(state, Joined(NODES[0], stages=stages))
        assert after == state
        assert effects == (Refused(NODES[0], "it holds stage 0, of which its owner has no seat on chain any more"),)
    assert advance(state, Joined(NODES[0], stages=frozenset({0})))[1] == (Form(2, 0),)
    assert advance(state, Joined(NODES[0]))[1] == (Form(2, 0),)


def test_a_sealed_round_forgives_earlier_contradictions() -> None:
    state = replace(formed(1), mismatches=MAX_MISMATCHES - 1)
    state, effects = advance(state, Reported(NODES[0], 1, honest_reports(1, 1, 0)[0]))
    assert [type(effect) for effect in effects] == [Seal, Train]
    assert state.mismatches == 0


def test_a_node_cant_take_back_what_it_reported() -> None:
    honest = honest_reports(2, 1, 0)
    state, _ = advance(formed(), Reported(NODES[0], 1, honest[0]))
    assert advance(state, Reported(NODES[0], 1, honest[0])) == (state, ())
    after, effects = advance(state, Reported(NODES[0], 1, lie_about(honest[0], "attempt")))
    assert after == state
    assert [type(effect) for effect in effects] == [Refused]


def test_a_node_that_is_lost_while_pipes_open_makes_the_others_open_them_again() -> None:
    state = RoundState(1, (None, None))
    for node in NODES[:2]:
        state, _ = advance(state, Joined(node))
    state, _ = advance(state, Ready(NODES[0], 1))
    state, effects = advance(state, Lost(NODES[0]))
    assert [type(effect) for effect in effects] == [Pause]
    state, effects = advance(state, Joined(NODES[0]))
    assert effects == (Form(2, 0),)
    assert advance(state, Ready(NODES[1], 1)) == (state, ())
    state, effects = advance(state, Ready(NODES[1], 2))
    assert effects == ()  # what node 0 said about generation 1 is forgotten
    assert advance(state, Ready(NODES[0], 2))[1] == (Train(2, 0),)


@pytest.mark.parametrize("roots", [(), (None, None)])
def test_unknown_roots_let_any_state_begin_and_known_ones_only_that(roots: tuple[None, ...]) -> None:
    report = lie_about(honest_reports(2, 1, 0)[0], "state")
    assert advance(replace(formed(), roots=roots), Reported(NODES[0], 1, report))[1] == ()
    known = replace(formed(), roots=(mark("state", 0, 0), None))
    _, effects = advance(known, Reported(NODES[0], 1, report))
    assert "Restore the checkpoint" in effects[0].why  # type: ignore[union-attr]
