"""A stage's part of a simulated round: nothing is lost or done twice, and it takes as long as following each
microbatch says.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.assignment import assign
from commonweight.sim.costs import pipeline_ends_s
from commonweight.sim.part import StagePart

seconds = st.floats(0.05, 2)


@st.composite
def parts(draw: st.DrawFn) -> tuple[StagePart, int]:
    """A part of at least two replicas, most of them measured, and how many microbatches it has."""
    planned = draw(st.lists(seconds | st.none(), min_size=2, max_size=6))
    actual = {f"0x{i}": (pace or 1.0) * draw(st.floats(0.7, 1.4)) for i, pace in enumerate(planned)}
    microbatches = draw(st.integers(0, 200))
    return StagePart(microbatches, 5.0, {f"0x{i}": pace for i, pace in enumerate(planned)}, actual), microbatches


@given(parts(), st.lists(st.sampled_from(["lose", "redivide", "join"]) | st.floats(0, 30), max_size=12))
def test_every_microbatch_is_computed_once_whatever_happens(
    part_of: tuple[StagePart, int], events: list[object]
) -> None:
    part, microbatches = part_of
    now_s = 5.0
    for number, event in enumerate(events):
        if isinstance(event, float):
            now_s += event
        elif event == "join":
            part.join(f"0xnew{number}", 0.5, now_s)
        elif event == "redivide":
            part.redivide(now_s)
        elif len(part.loads) > 1:
            node = next(iter(part.loads))
            has = part.loads[node]
            lost, computed = part.lose(node, now_s, now_s + 4)
            assert lost == has
            assert 0 <= computed <= lost
            assert sum(part.loads.values()) == microbatches - lost
            now_s += 4
            part.take_over(lost, now_s)
            assert part.done_s >= now_s or not lost
        assert sum(part.loads.values()) == microbatches
        assert all(load >= part.computed(node, now_s) >= 0 for node, load in part.loads.items())


def test_dividing_once_more_ends_a_round_as_soon_as_the_true_paces_allow() -> None:
    random = np.random.default_rng(0)
    planned = {f"0x{i:03}": float(pace) for i, pace in enumerate(random.uniform(0.1, 1, 200))}
    actual = {node: pace * float(np.exp(0.05 * random.standard_normal())) for node, pace in planned.items()}
    part = StagePart(100_000, 0.0, dict(planned), actual)
    best_s = 100_000 / math.fsum(1 / pace for pace in actual.values())
    assert part.done_s > 1.1 * best_s
    part.redivide(0.85 * part.expected_s)
    assert best_s <= part.done_s < 1.005 * best_s + 1


def test_a_loss_is_shared_by_all_others() -> None:
    paces = {f"0x{i}": 1.0 for i in range(11)}
    part = StagePart(1100, 0.0, dict(paces), paces)
    assert part.done_s == 100
    lost, computed = part.lose("0x3", 50.5, 54.5)
    assert (lost, computed) == (100, 50)
    part.take_over(lost, 54.5)
    assert part.done_s == 110


HOP_S = 0.06


def pipeline(stages: int, replicas: int) -> list[dict[str, float]]:
    """Paces of replicas of which some are sixteen times as fast as others, in stages of like strength."""
    random = np.random.default_rng(1)
    speeds = [np.exp(np.clip(0.6 * random.standard_normal(replicas), -1.38, 1.38)) for _ in range(stages)]
    return [
        {f"{stage}/{i}": float(0.2 * mine.sum() / (replicas * speed)) for i, speed in enumerate(mine)}
        for stage, mine in enumerate(speeds)
    ]


def predicted_s(paces: Sequence[Mapping[str, float]], microbatches: int) -> float:
    """How long a round takes in the simulation."""
    fills, ends = pipeline_ends_s([sum(mine.values()) / len(mine) for mine in paces], [HOP_S] * len(paces))
    done = [StagePart(microbatches, 0.0, dict(mine), dict(mine)).done_s for mine in paces]
    return max(sum(each) for each in zip(fills, done, ends, strict=True))


@pytest.mark.parametrize(("stages", "replicas", "microbatches"), [(1, 4, 200), (3, 1, 50), (4, 8, 800), (8, 10, 1500)])
def test_a_round_takes_as_long_as_following_every_microbatch_says(
    stages: int, replicas: int, microbatches: int
) -> None:
    paces = pipeline(stages, replicas)
    followed = followed_s(paces, microbatches, lambda *_: microbatches)
    assert followed == pytest.approx(predicted_s(paces, microbatches), rel=0.03)


def test_windows_of_three_mean_round_trips_are_wide_enough_and_of_one_are_not() -> None:
    """Where replicas differ sixteenfold, what a fast one has sent on is mostly with slow ones."""
    paces, microbatches = pipeline(8, 20), 3000
    means = [sum(mine.values()) / len(mine) for mine in paces]

    def window(round_trips: int, at_most: int = microbatches) -> Callable[[int, str], int]:
        def of(stage: int, node: str) -> int:
            behind_s = sum(round_trips * mean + 2 * HOP_S for mean in means[stage + 1 :])
            return min(at_most, len(paces) - stage + math.ceil(behind_s / paces[stage][node]))

        return of

    predicted = predicted_s(paces, microbatches)
    assert followed_s(paces, microbatches, window(3, 128)) == pytest.approx(predicted, rel=0.05)
    assert followed_s(paces, microbatches, window(1)) > 1.1 * predicted


def followed_s(paces: Sequence[Mapping[str, float]], microbatches: int, window: Callable[[int, str], int]) -> float:
    """When the last gradient has come back to the first stage.

    Each replica computes one thing at a time, a gradient first if there is one, otherwise the microbatch of the least
    number, as long as less than its window is sent on and hasn't come back. A forward pass is a third of a microbatch.
    """
    last = len(paces) - 1
    paths = assign(microbatches, paces)
    waiting: list[dict[str, list[tuple[bool, int]]]] = [{node: [] for node in mine} for mine in paces]
    """What each replica has: gradients (False) before activations (True)."""
    busy: set[str] = set()
    sent_on: Counter[str] = Counter()
    events: list[tuple[float, int, bool, int, str, bool, int]] = []
    order = count()
    now_s = 0.0

    def begin(stage: int, node: str) -> None:
        if node in busy or not (queue := waiting[stage][node]):
            return
        if queue[0][0] and stage < last and sent_on[node] >= window(stage, node):
            return
        is_forward, number = heappop(queue)
        part = 1.0 if stage == last else 1 / 3 if is_forward else 2 / 3
        busy.add(node)
        sent_on[node] += is_forward
        heappush(events, (now_s + part * paces[stage][node], next(order), True, stage, node, is_forward, number))

    for number in range(microbatches):
        heappush(waiting[0][paths[0][number]], (True, number))
    for node in paces[0]:
        begin(0, node)
    while events:
        now_s, _, is_computed, stage, node, is_forward, number = heappop(events)
        if is_computed:
            busy.remove(node)
            onward = is_forward and stage < last
            sent_on[node] -= not onward
            neighbour = stage + 1 if onward else stage - 1
            if neighbour >= 0:
                there = paths[neighbour][number]
                heappush(events, (now_s + HOP_S, next(order), False, neighbour, there, onward, number))
        else:
            heappush(waiting[stage][node], (is_forward, number))
        begin(stage, node)
    return now_s
