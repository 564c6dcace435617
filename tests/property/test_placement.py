"""Newcomers and moves strengthen the weakest stage, moves come to an end, and seats and the text are respected."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from commonweight.rules.placement import (
    IN_FLIGHT_GAIN,
    MAX_IN_FLIGHT,
    MOVE_MARGIN,
    Move,
    Replica,
    hedge_deadline_s,
    in_flight,
    may_hold,
    rebalance,
    stage_throughputs,
    weakest_stage,
)
from commonweight.rules.round_events import Joined, Seated
from commonweight.rules.round_state import RoundState
from commonweight.rules.rounds import advance

Stages = list[dict[str, Replica]]

seconds = st.floats(0.01, 100)
allowed_stages = st.none() | st.frozensets(st.integers(0, 4))
replicas = st.builds(Replica, seconds | st.none(), st.booleans(), allowed_stages)
free_replicas = st.builds(Replica, seconds)


@st.composite
def pipelines(draw: st.DrawFn, of: st.SearchStrategy[Replica] = replicas) -> tuple[Stages, list[int]]:
    """Stages of up to five replicas each, and what a microbatch costs in them."""
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    stages = [{f"0x{stage}{number}": draw(of) for number in range(size)} for stage, size in enumerate(sizes)]
    work = draw(st.lists(st.integers(1, 1000), min_size=len(stages), max_size=len(stages)))
    return stages, work


def moved(stages: Sequence[Mapping[str, Replica]], work: Sequence[int], move: Move) -> Stages:
    """After the move: the node computes the other stage at the same speed, work for work."""
    after = [dict(replicas) for replicas in stages]
    replica = after[move.source].pop(move.node)
    assert replica.microbatch_s is not None
    microbatch_s = replica.microbatch_s * work[move.target] / work[move.source]
    after[move.target][move.node] = replace(replica, microbatch_s=microbatch_s)
    return after


@given(pipelines())
def test_a_move_makes_the_pipeline_stronger_and_respects_seats_text_and_the_last_replica(
    pipeline: tuple[Stages, list[int]],
) -> None:
    stages, work = pipeline
    move = rebalance(stages, work)
    assume(move is not None)
    assert move is not None
    replica = stages[move.source][move.node]
    assert may_hold(move.target, allowed=replica.stages, has_data=replica.has_data)
    assert replica.microbatch_s is not None
    after = moved(stages, work, move)
    assert after[move.source]
    was, is_ = stage_throughputs(stages, work), stage_throughputs(after, work)
    assert was[move.target] == min(was)
    assert is_[move.source] > was[move.target] * (1 + MOVE_MARGIN / 2)
    assert is_[move.target] > was[move.target]
    assert sorted(is_) > sorted(was)
    if was.count(min(was)) == 1:
        assert min(is_) > min(was)


@given(pipelines())
def test_moves_come_to_an_end(pipeline: tuple[Stages, list[int]]) -> None:
    stages, work = pipeline
    ranked = sorted(stage_throughputs(stages, work))
    for _ in range(1000):
        if (move := rebalance(stages, work)) is None:
            break
        stages = moved(stages, work, move)
        now = sorted(stage_throughputs(stages, work))
        assert now > ranked
        ranked = now
    else:
        raise AssertionError("a thousand moves among at most 25 replicas")


@given(pipelines(free_replicas))
def test_who_has_moved_does_not_move_back(pipeline: tuple[Stages, list[int]]) -> None:
    stages, work = pipeline
    move = rebalance(stages, work)
    assume(move is not None)
    assert move is not None
    back = rebalance(moved(stages, work, move), work)
    assert back is None or (back.node, back.target) != (move.node, move.source)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.floats(0.1, 10))
def test_equals_spread_over_equal_stages_until_no_stage_has_two_more_than_another(
    sizes: list[int], microbatch_s: float
) -> None:
    stages = [
        {f"0x{stage}-{number}": Replica(microbatch_s) for number in range(size)} for stage, size in enumerate(sizes)
    ]
    work = [1] * len(stages)
    while (move := rebalance(stages, work)) is not None:
        stages = moved(stages, work, move)
    counts = [len(replicas) for replicas in stages]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == sum(sizes)


@given(pipelines())
def test_nobody_moves_who_is_on_its_way(pipeline: tuple[Stages, list[int]]) -> None:
    stages, work = pipeline
    fixed = [{node: replace(r, stages=frozenset()) for node, r in replicas.items()} for replicas in stages]
    assert rebalance(fixed, work) is None


@given(pipelines(), st.randoms(use_true_random=False))
def test_the_order_in_which_replicas_are_named_does_not_matter(
    pipeline: tuple[Stages, list[int]], random: object
) -> None:
    stages, work = pipeline
    shuffled = []
    for replicas in stages:
        nodes = list(replicas)
        random.shuffle(nodes)  # type: ignore[attr-defined]
        shuffled.append({node: replicas[node] for node in nodes})
    assert rebalance(stages, work) == rebalance(shuffled, work)


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 100), min_size=1, max_size=5),
    allowed_stages,
    st.booleans(),
)
def test_a_newcomer_gets_the_weakest_stage_that_it_may_hold(
    throughputs: list[float], allowed: frozenset[int] | None, has_data: bool
) -> None:
    open_to_it = [
        stage for stage in range(len(throughputs)) if (stage > 0 or has_data) and (allowed is None or stage in allowed)
    ]
    stage = weakest_stage(throughputs, allowed, has_data=has_data)
    if not open_to_it:
        assert stage is None
        return
    assert stage in open_to_it
    assert throughputs[stage] == min(throughputs[each] for each in open_to_it)
    equals = [each for each in open_to_it if throughputs[each] == throughputs[stage]]
    assert stage == (equals[0] if has_data else equals[-1])


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), allowed_stages), min_size=1, max_size=4))
def test_a_newcomer_is_seated_where_the_coordinator_seats_it(
    count: int, nodes: list[tuple[bool, frozenset[int] | None]]
) -> None:
    """As `rules.rounds` does it, which takes all nodes for equally fast."""
    state = RoundState(count, 1)
    throughputs = [0.0] * count
    for number, (has_data, allowed) in enumerate(nodes):
        stage = weakest_stage(throughputs, allowed, has_data=has_data)
        state, effects = advance(state, Joined(f"0x{number}", has_data, allowed))
        seated = [effect.stage for effect in effects if isinstance(effect, Seated)]
        assert seated == ([] if stage is None else [stage])
        if stage is not None:
            throughputs[stage] += 1.0


@given(pipelines(free_replicas))
def test_a_stages_throughput_is_the_sum_of_its_replicas(pipeline: tuple[Stages, list[int]]) -> None:
    stages, work = pipeline
    for replicas, throughput in zip(stages, stage_throughputs(stages, work), strict=True):
        assert throughput == pytest.approx(sum(1 / replica.microbatch_s for replica in replicas.values()))


def test_a_newcomer_counts_like_the_others_work_for_work() -> None:
    stages = [{"0xa": Replica(2.0), "0xb": Replica(None)}, {"0xc": Replica(None)}]
    assert stage_throughputs(stages, [100, 200]) == (1.0, 0.25)
    assert stage_throughputs([{"0xa": Replica(None)}, {}], [1, 2]) == (1.0, 0.0)


@given(seconds, st.floats(0, 10))
def test_of_nodes_that_wait_for_each_other_the_one_that_all_wait_for_is_late_first(
    answer_s: float, here_s: float
) -> None:
    assert hedge_deadline_s(answer_s) > 2 * answer_s, "one that keeps its pace never is"
    assert hedge_deadline_s(answer_s + here_s) >= here_s + hedge_deadline_s(answer_s)


@given(st.integers(1, 40), seconds, seconds)
def test_the_window_grows_until_the_slowest_stage_is_what_limits_the_rate_and_no_further(
    least: int, answer_s: float, slowest_s: float
) -> None:
    """Microbatches take `answer_s` there and back at best; one comes back per `slowest_s` at most."""
    window = least
    for _ in range(60):
        rate = min(window / answer_s, 1 / slowest_s)
        window = in_flight(least, rate, answer_s)
    assert least <= window <= max(least, MAX_IN_FLIGHT)
    needed = answer_s / slowest_s
    assert window >= min(needed, MAX_IN_FLIGHT)
    assert window <= max(least, IN_FLIGHT_GAIN * needed + 2)
