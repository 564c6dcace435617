"""A round's microbatches are divided as no other division would be faster, and everybody is measured in time."""

import math
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from commonweight.rules.assignment import MEASURED_ROUNDS, Pace, assign, divide, reassign, update
from tests.property.strategies import addresses

seconds = st.floats(0.001, 1000)
counts = st.integers(0, 60)
measured = st.dictionaries(addresses, seconds, min_size=1, max_size=8)
mixed = st.dictionaries(addresses, seconds | st.none(), min_size=1, max_size=8)


def makespan(assignment: tuple[str, ...], paces: Mapping[str, float]) -> float:
    """When the last of a stage's replicas is done, if each starts at once and never waits."""
    return max((count * paces[node] for node, count in Counter(assignment).items()), default=0.0)


def least_makespan(microbatches: int, paces: Mapping[str, float]) -> float:
    """By trying all: the least time in which the replicas can compute so many."""
    times = sorted(count * pace for pace in paces.values() for count in range(microbatches + 1))
    return next(time for time in times if sum(_within(time, pace) for pace in paces.values()) >= microbatches)


def _within(time: float, pace: float) -> int:
    return next(count for count in range(int(time / pace) + 2, -1, -1) if count * pace <= time)


@given(counts, st.lists(mixed, min_size=1, max_size=4))
def test_every_microbatch_is_computed_once_in_every_stage(
    microbatches: int, paces: list[dict[str, float | None]]
) -> None:
    assignment = assign(microbatches, paces)
    assert len(assignment) == len(paces)
    for stage, replicas in zip(assignment, paces, strict=True):
        assert len(stage) == microbatches
        assert set(stage) <= replicas.keys()


@given(st.integers(0, 20), measured)
def test_no_division_is_faster(microbatches: int, paces: dict[str, float]) -> None:
    (stage,) = assign(microbatches, [paces])
    assert makespan(stage, paces) == least_makespan(microbatches, paces)


@given(counts, measured)
def test_shares_are_those_of_the_speeds_but_for_what_does_not_divide(
    microbatches: int, paces: dict[str, float]
) -> None:
    (stage,) = assign(microbatches, [paces])
    loads = Counter(stage)
    speed = math.fsum(1 / pace for pace in paces.values())
    for node, pace in paces.items():
        share = 1 / (pace * speed)
        assert loads[node] > share * microbatches - 1 - 1e-9
        assert loads[node] < share * (microbatches + len(paces)) + 1e-9
        assert all(loads[node] * pace <= (loads[other] + 1) * paces[other] for other in paces)


@given(counts, measured)
def test_a_stage_is_expected_to_finish_microbatches_in_the_order_of_their_numbers(
    microbatches: int, paces: dict[str, float]
) -> None:
    (stage,) = assign(microbatches, [paces])
    loads: Counter[str] = Counter()
    finished = []
    for node in stage:
        loads[node] += 1
        finished.append(loads[node] * paces[node])
    assert finished == sorted(finished)


@given(counts, measured, addresses, seconds)
def test_one_more_replica_never_makes_a_round_longer(
    microbatches: int, paces: dict[str, float], node: str, pace: float
) -> None:
    assume(node not in paces)
    (alone,) = assign(microbatches, [paces])
    (helped,) = assign(microbatches, [{**paces, node: pace}])
    assert makespan(helped, {**paces, node: pace}) <= makespan(alone, paces)


@given(counts, mixed, st.randoms(use_true_random=False))
def test_the_order_in_which_replicas_are_named_does_not_matter(
    microbatches: int, paces: dict[str, float | None], random: object
) -> None:
    nodes = list(paces)
    random.shuffle(nodes)  # type: ignore[attr-defined]
    assert assign(microbatches, [paces]) == assign(microbatches, [{node: paces[node] for node in nodes}])


@given(counts, mixed)
def test_newcomers_get_at_most_one_each_of_the_last_ones(microbatches: int, paces: dict[str, float | None]) -> None:
    (stage,) = assign(microbatches, [paces])
    newcomers = {node for node, pace in paces.items() if pace is None}
    veterans = paces.keys() - newcomers
    assume(newcomers and veterans)
    tried = sum(node in newcomers for node in stage)
    assert newcomers >= set(stage[microbatches - tried :])
    assert len(set(stage[microbatches - tried :])) == tried
    assert (tried > 0) == (microbatches > 1)
    if tried > 1:
        assert microbatches - tried >= len(veterans)
    if microbatches >= len(paces):
        assert tried == len(newcomers)


@given(counts, st.sets(addresses, min_size=1, max_size=8))
def test_newcomers_among_themselves_share_alike(microbatches: int, nodes: set[str]) -> None:
    (stage,) = assign(microbatches, [dict.fromkeys(nodes)])
    loads = Counter(dict.fromkeys(nodes, 0))
    loads.update(stage)
    assert max(loads.values()) - min(loads.values()) <= 1


@given(counts, addresses, seconds | st.none())
def test_a_stage_of_one_gets_all(microbatches: int, node: str, pace: float | None) -> None:
    assert assign(microbatches, [{node: pace}]) == ((node,) * microbatches,)


@given(counts, mixed)
def test_a_lost_replicas_microbatches_and_no_others_are_computed_by_the_rest(
    microbatches: int, paces: dict[str, float | None]
) -> None:
    assume(len(paces) > 1)
    (stage,) = assign(microbatches, [paces])
    for lost in paces:
        instead = reassign(stage, lost, paces)
        assert set(instead) == {number for number, node in enumerate(stage) if node == lost}
        assert lost not in instead.values()
        assert set(instead.values()) <= paces.keys()
        assert instead == reassign(stage, lost, {node: pace for node, pace in paces.items() if node != lost})


@given(st.integers(1, 20), measured)
def test_what_was_lost_is_done_again_as_soon_as_can_be(microbatches: int, paces: dict[str, float]) -> None:
    assume(len(paces) > 1)
    (stage,) = assign(microbatches, [paces])
    lost = stage[0]
    instead = reassign(stage, lost, paces)
    after = tuple(instead.get(number, node) for number, node in enumerate(stage))
    others = {node: pace for node, pace in paces.items() if node != lost}
    assert makespan(after, others) == least_makespan(microbatches, others)


def test_a_stage_without_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match="no replica is there"):
        assign(3, [{"0xa": 1.0}, {}])
    with pytest.raises(ValueError, match="no replica is there"):
        reassign(("0xa", "0xa"), "0xa", {"0xa": 1.0})


@pytest.mark.parametrize("pace", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_pace_is_refused(pace: float) -> None:
    with pytest.raises(ValueError, match="can't need"):
        assign(3, [{"0xa": pace}])
    with pytest.raises(ValueError, match="say nothing"):
        update(Pace(), 1, pace)


@given(st.lists(st.tuples(st.integers(1, 50), seconds), min_size=1, max_size=30))
def test_a_pace_lies_among_those_that_were_measured(rounds: list[tuple[int, float]]) -> None:
    pace = Pace()
    for microbatches, microbatch_s in rounds:
        pace = update(pace, microbatches, microbatches * microbatch_s)
        assert update(pace, 0, 0.0).microbatch_s == pace.microbatch_s
    measured_s = [microbatch_s for _, microbatch_s in rounds]
    assert pace.microbatch_s is not None
    assert min(measured_s) * (1 - 1e-9) <= pace.microbatch_s <= max(measured_s) * (1 + 1e-9)


def test_a_pace_is_good_for_a_while_without_a_microbatch() -> None:
    pace = update(Pace(), 1, 2.0)
    for _ in range(MEASURED_ROUNDS - 1):
        pace = update(pace, 0, 0.0)
    assert (pace.microbatch_s, pace.is_stale) == (2.0, False)
    assert update(pace, 1, 2.0) == Pace(2.0)
    pace = update(pace, 0, 0.0)
    assert (pace.microbatch_s, pace.is_stale) == (2.0, True)
    assert update(pace, 1, 1.0) == Pace(1.0)


@given(seconds, seconds)
def test_a_pace_forgets_what_is_long_ago(before_s: float, now_s: float) -> None:
    pace = update(Pace(), 1, before_s)
    for _ in range(60):
        pace = update(pace, 4, 4 * now_s)
    assert pace.microbatch_s == pytest.approx(now_s, rel=1e-2)


@given(counts, measured, st.dictionaries(addresses, st.integers(0, 40), max_size=8))
def test_what_is_divided_on_top_goes_to_who_finishes_it_first(
    microbatches: int, paces: dict[str, float], strangers: dict[str, int]
) -> None:
    loads = {**strangers, **{node: number * 7 % 13 for number, node in enumerate(paces)}}
    expected = Counter(dict.fromkeys(paces, 0))
    for _ in range(microbatches):
        expected[min(paces, key=lambda node: ((loads[node] + expected[node] + 1) * paces[node], node))] += 1
    assert divide(microbatches, paces, loads) == expected
    assert sum(divide(microbatches, paces, loads).values()) == microbatches


def test_a_million_microbatches_are_divided_among_a_thousand_exactly() -> None:
    paces = {f"0x{number:040x}": 0.1 + number % 17 / 10 for number in range(1000)}
    shares = divide(1_000_000, paces)
    assert sum(shares.values()) == 1_000_000
    assert max(shares[node] * pace for node, pace in paces.items()) <= min(
        (shares[node] + 1) * pace for node, pace in paces.items()
    )
