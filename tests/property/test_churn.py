"""A churn is its seed: the same faults at the same times, never two at once on one target."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import ConfigError
from commonweight.links.churn import Fault, PlannedFault, plan_churn

SEEDS = st.integers(0, 2**63)
TARGETS = st.sets(st.sampled_from([f"node-{number}" for number in range(8)]), min_size=1)
EVERY = st.dictionaries(st.sampled_from(Fault), st.floats(1, 100), min_size=1)


@given(SEEDS, TARGETS, EVERY, st.floats(0.1, 50), st.floats(1, 1_000))
def test_faults_are_in_order_in_time_and_one_at_a_time(
    seed: int, targets: set[str], every_s: dict[Fault, float], lasts_s: float, until_s: float
) -> None:
    plan = plan_churn(seed, targets, every_s, lasts_s, until_s)
    assert plan == sorted(plan)
    for fault in plan:
        assert 0 <= fault.begins_s < until_s
        assert fault.target in targets
        assert fault.fault in every_s
    for target in targets:
        own = [fault for fault in plan if fault.target == target]
        assert all(before.ends_s <= after.begins_s for before, after in pairwise(own))


@given(SEEDS, TARGETS, EVERY, st.floats(0.1, 50), st.floats(1, 1_000))
def test_the_same_seed_is_the_same_churn(
    seed: int, targets: set[str], every_s: dict[Fault, float], lasts_s: float, until_s: float
) -> None:
    """In whatever order targets and kinds are named; and a longer one begins like a shorter."""
    plan = plan_churn(seed, targets, every_s, lasts_s, until_s)
    turned = dict(reversed(every_s.items()))
    assert plan_churn(seed, sorted(targets, reverse=True), turned, lasts_s, until_s) == plan
    assert plan_churn(seed, targets, every_s, lasts_s, until_s / 2) == [
        fault for fault in plan if fault.begins_s < until_s / 2
    ]


@given(SEEDS, EVERY, st.floats(1, 1_000))
def test_each_kind_comes_once_in_its_stretch_where_somebody_is_free(
    seed: int, every_s: dict[Fault, float], until_s: float
) -> None:
    plan = plan_churn(seed, [str(number) for number in range(100)], every_s, 1e-6, until_s)
    for kind, each_s in every_s.items():
        stretches = [int(fault.begins_s / each_s) for fault in plan if fault.fault is kind]
        assert stretches == list(range(len(stretches)))
        assert math.floor(until_s / each_s) <= len(stretches) <= math.ceil(until_s / each_s)


def test_seeds_differ_and_a_plan_stays_what_it_was() -> None:
    """What a report names by its seed must be the same with the next release."""
    every_s = {Fault.KILL: 30.0, Fault.PARTITION: 60.0}
    plans = [plan_churn(seed, ["a", "b", "c"], every_s, 10.0, 120.0) for seed in range(20)]
    assert len({tuple(plan) for plan in plans}) == 20
    assert {fault.target for plan in plans for fault in plan} == {"a", "b", "c"}
    rounded = [(round(fault.begins_s, 3), fault.fault.value, fault.target) for fault in plans[7]]
    assert rounded == [
        (24.843, "kill", "c"),
        (41.831, "partition", "b"),
        (49.778, "kill", "a"),
        (65.675, "kill", "a"),
        (112.33, "kill", "b"),
        (114.237, "partition", "a"),
    ]


@pytest.mark.parametrize(
    ("targets", "every_s", "lasts_s", "why"),
    [
        ([], 30.0, 5.0, "somebody whom it may befall"),
        (["a"], 0.0, 5.0, "kill of a churn is 0 s"),
        (["a"], math.nan, 5.0, "kill of a churn is nan s"),
        (["a"], 30.0, math.inf, "duration of a churn is inf s"),
    ],
)
def test_what_is_no_churn_is_refused(targets: list[str], every_s: float, lasts_s: float, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        plan_churn(1, targets, {Fault.KILL: every_s}, lasts_s, 60.0)


def test_planned_faults_sort_by_time() -> None:
    late, early = PlannedFault(2.0, 3.0, Fault.KILL, "a"), PlannedFault(1.0, 9.0, Fault.SLOW, "b")
    assert sorted([late, early]) == [early, late]
