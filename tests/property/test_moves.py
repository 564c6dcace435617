"""A replica of a stronger stage moves to the weakest one, between two rounds, and no work is lost by it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.placement import Move, may_hold
from commonweight.rules.round_events import (
    Convicted,
    Event,
    HasVersion,
    Joined,
    Leaving,
    Lost,
    Ready,
    Seal,
    Seated,
    Train,
)
from commonweight.rules.round_facts import SETTLED_ROUNDS
from commonweight.rules.round_state import Phase, RoundState
from commonweight.rules.rounds import advance
from tests.property.test_rounds import honest, kinds_of, load_of, report_of

A, B, C, D = "node a", "node b", "node c", "node d"
EVEN = {A: 1.0, B: 1.0, C: 1.0, D: 1.0}
MICROBATCHES = 4


def trained(joined: list[Joined], seats: Mapping[str, int], stages: int = 2) -> RoundState:
    """Round 0 is trained, the next ones by all of these."""
    state = RoundState(stages, MICROBATCHES, seats=dict(seats))
    for event in joined:
        state, _ = advance(state, event)
    nodes = [event.node for event in joined]
    return come_in(come_in(state, nodes), nodes)  # who isn't needed to begin comes in then


def come_in(state: RoundState, nodes: list[str]) -> RoundState:
    """Their pipes are open."""
    for node in nodes:
        state, _ = advance(state, HasVersion(node, state.round))
    for node in nodes:
        state, _ = advance(state, Ready(node, state.generation))
    return state


def seal(state: RoundState, speeds: Mapping[str, float]) -> tuple[RoundState, tuple[object, ...]]:
    """Once all have reported, each having worked at its speed, in microbatches of one unit of work per second."""
    told, effects = state, ()
    for node in sorted(state.members):
        report = honest(told, node)
        state, effects = advance(state, report_of(told, node, report, len(report.hops) / speeds[node]))
    assert isinstance(effects[0], Seal)
    return state, effects


def seal_until_a_move(
    state: RoundState, speeds: Mapping[str, float], within: int = 2 * SETTLED_ROUNDS
) -> tuple[RoundState, Move | None]:
    for _ in range(within):
        state, effects = seal(state, speeds)
        if moves := [effect for effect in effects if isinstance(effect, Move)]:
            (move,) = moves
            return state, move
    return state, None


def three_and_one(**options: object) -> RoundState:
    joined = [Joined(node, **options) for node in (A, B, C, D)]  # type: ignore[arg-type]
    return trained(joined, {A: 0, B: 0, C: 0, D: 1})


def chosen() -> RoundState:
    """Somebody is to move when the round that is trained is over."""
    state = three_and_one()
    while not state.is_moving:
        state, _ = seal(state, EVEN)
    return state


def test_a_replica_of_three_moves_to_a_stage_with_one_and_works_there() -> None:
    state, move = seal_until_a_move(three_and_one(), EVEN)
    assert move == Move(A, 0, 1, before=1.0, after=2.0)
    assert state.phase is Phase.TRAINING, "the others go on"
    assert A not in state.online
    state, _ = seal(state, EVEN)
    state, effects = advance(state, Joined(A))
    assert effects == (), "it has its seat"
    state = come_in(state, [A])
    state, _ = seal(state, EVEN)
    assert (A in state.members, load_of(state, A)) == (True, ()), "it shadows a round"
    for _ in range(3):
        state, _ = seal(state, EVEN)
    assert len(load_of(state, A)) == len(load_of(state, D)) == 2
    assert seal_until_a_move(state, EVEN)[1] is None


def test_who_moves_works_until_then_and_nothing_that_was_planned_is_taken_back() -> None:
    state, generation = three_and_one(), 1
    while True:
        was_chosen, before = state.is_moving, state
        state, effects = seal(state, EVEN)
        assert isinstance(effects[0], Seal)
        assert (effects[0].next_taken_back, state.generation) == (False, generation)
        if was_chosen:
            break
    assert before.works(A)
    assert load_of(before, A)
    assert kinds_of(effects) == [Seal, Move, Train, Train]  # type: ignore[arg-type]
    assert A in effects[0].reports, "it is paid for its last round"


def test_nobody_moves_before_the_paces_are_those_of_the_arrangement() -> None:
    state = three_and_one()
    for _ in range(SETTLED_ROUNDS - 1):
        state, _ = seal(state, EVEN)
        assert not state.is_moving
    state, _ = seal(state, EVEN)
    assert state.is_moving


@pytest.mark.parametrize(
    "event",
    [Lost(A), Lost(B), Leaving(A), Leaving(C), Convicted(A, 0), Joined("node e")],
    ids=lambda event: repr(event),
)
def test_a_move_is_called_off_where_somebody_comes_or_goes_meanwhile(event: Event) -> None:
    state, _ = advance(chosen(), event)
    state, effects = seal(state, EVEN)
    assert Move not in kinds_of(effects)  # type: ignore[arg-type]
    assert state.move is None


@pytest.mark.parametrize("options", [{"stays": True}, {"stages": frozenset({0})}])
def test_who_refuses_or_has_no_other_seat_stays(options: dict[str, object]) -> None:
    state = trained([*(Joined(node, **options) for node in (A, B, C)), Joined(D)], {A: 0, B: 0, C: 0, D: 1})  # type: ignore[arg-type]
    assert seal_until_a_move(state, EVEN)[1] is None


def test_nobody_without_the_text_moves_to_the_first_stage() -> None:
    joined = [Joined(A), *(Joined(node, has_data=False) for node in (B, C)), Joined(D)]
    _, move = seal_until_a_move(trained(joined, {A: 0, B: 1, C: 1, D: 1}), EVEN)
    assert move is not None
    assert (move.node, move.target) == (D, 0)


def test_who_is_convicted_neither_moves_nor_holds_its_stage_for_who_does() -> None:
    state = trained([Joined(node) for node in (A, B, C)], {A: 0, B: 0, C: 1})
    slow = EVEN | {C: 0.1}
    assert seal_until_a_move(state, slow)[1] is not None
    for node in (A, B):
        guilty, _ = advance(state, Convicted(node, 0))
        assert seal_until_a_move(guilty, slow)[1] is None, "the other one is alone"


def test_a_node_that_dies_on_its_way_has_its_seat_where_it_went_and_others_may_move_after_a_while() -> None:
    state, move = seal_until_a_move(three_and_one(), EVEN)
    assert move is not None
    after, effects = advance(state, Joined("node e"))
    assert effects == (Seated("node e", 0),), "who is on its way counts where it goes"
    after, _ = seal(state, EVEN)
    assert after.move == move
    uneven = EVEN | {B: 9.0}
    assert seal_until_a_move(state, uneven, within=10 * SETTLED_ROUNDS)[1] is None
    state, second = seal_until_a_move(state, uneven, within=11 * SETTLED_ROUNDS)
    assert second is not None
    assert second.node != move.node
    state, _ = advance(state, Joined(move.node))
    assert state.seats[move.node] == 1


def test_a_second_one_moves_only_once_the_first_has_come() -> None:
    state = trained([Joined(f"node {i}") for i in range(7)], {f"node {i}": int(i == 6) for i in range(7)})
    speeds = {f"node {i}": 1.0 for i in range(7)}
    state, first = seal_until_a_move(state, speeds)
    assert first is not None
    state, _ = advance(state, Joined(first.node))
    away = 3 * SETTLED_ROUNDS
    state, nobody = seal_until_a_move(state, speeds, within=away)
    assert nobody is None, "it fetches the state"
    state = come_in(state, [first.node])
    assert seal_until_a_move(state, speeds, within=10 * away)[1] is None, "that must be worth it first"
    state, second = seal_until_a_move(state, speeds, within=12 * away)
    assert second is not None
    assert Counter(state.seats.values()) == {0: 4, 1: 3}


@given(
    st.integers(2, 3).flatmap(
        lambda stages: st.tuples(
            st.lists(
                st.tuples(
                    st.integers(0, stages - 1),
                    st.sampled_from([0.125, 0.5, 1.0, 4.0]),
                    st.booleans(),
                    st.none() | st.frozensets(st.integers(0, stages - 1)),
                    st.booleans(),
                ),
                max_size=4,
            ),
            st.lists(st.sampled_from([1, 2, 4]), min_size=stages, max_size=stages),
        )
    )
)
def test_moves_end_strengthen_the_weakest_stage_and_empty_none(
    drawn: tuple[list[tuple[int, float, bool, frozenset[int] | None, bool]], list[int]],
) -> None:
    nodes, work = drawn
    stages = len(work)
    told: dict[str, Joined] = {f"first {stage}": Joined(f"first {stage}") for stage in range(stages)}
    seats, speeds = {f"first {stage}": stage for stage in range(stages)}, dict.fromkeys(told, 1.0)
    for number, (stage, speed, has_data, allowed, stays) in enumerate(nodes):
        node = f"node {number}"
        allowed = None if allowed is None else allowed | {stage}
        told[node] = Joined(node, has_data or stage == 0, allowed, stays)
        seats[node], speeds[node] = stage, speed
    state = replace(trained(list(told.values()), seats, stages), work=tuple(work))

    def throughputs() -> list[float]:
        return [sum(speeds[node] / work[stage] for node in state.holders(stage)) for stage in range(stages)]

    for _ in range(20):
        before = throughputs()

        state, move = seal_until_a_move(
            state, {node: speeds[node] / work[stage] for node, stage in state.seats.items()}
        )
        if move is None:
            return
        state, _ = advance(state, told[move.node])
        after, event = throughputs(), told[move.node]
        assert may_hold(move.target, allowed=event.stages, has_data=event.has_data)
        assert not event.stays
        assert before[move.target] == min(before)
        assert sorted(after) > sorted(before)
        assert (move.before, move.after) == (
            pytest.approx(before[move.target]),
            pytest.approx(min(after[move.source], after[move.target])),
        )
        assert all(after)
        state = come_in(state, [move.node])
    raise AssertionError("moves don't come to an end")
