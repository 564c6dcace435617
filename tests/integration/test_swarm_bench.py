"""`bench swarm` compares what it says, on devnets that are small enough for a test."""

import json

import pytest
from typer.testing import CliRunner

from commonweight.bench.swarm import (
    KILLED,
    LOOPBACK,
    MODES,
    ONE,
    TWO,
    UNDISTURBED,
    Run,
    SwarmBench,
    read_run,
    run_swarm_bench,
    to_results,
)
from commonweight.cli.main import app
from commonweight.errors import ConfigError, StateError

TINY = SwarmBench(rounds=4, churn_rounds=16, kill_every="30s", slow="300ms", links=("1mbit:20ms",))
"""Half of 16 microbatches in each of 15 rounds take over 30 s, so that somebody is killed."""
CODE_BITS = 32 * 32
"""Of a token, over the boundary, one way."""
REPORT = {"losses": [6.0, 4.5], "kills": 1, "recovery_s": [2.5], "rounds_repeated": 1, "replays": 3, "units_lost": "7"}


def run(tokens_per_s: float, *recovery_s: float, loss: float = 4.0) -> Run:
    return Run(tokens_per_s, loss, len(recovery_s), recovery_s, len(recovery_s), 0, 0, 0.5)


def test_throughput_is_by_the_clock_and_without_the_first_rounds() -> None:
    times = (100.0, 110.0, 112.0, 120.0)  # the last but one was repeated, or waited
    log = "\n".join(
        json.dumps({"event": "round.sealed", "time": at, "pid": 1, "replicas": [2, number - 1], "tokens": 8192})
        for number, at in enumerate(times)
    )
    assert read_run(REPORT, log.encode(), 4) == Run(2 * 8192 / 10, 4.5, 1, (2.5,), 1, 3, 7, 0.5)


def test_each_part_is_a_ratio_to_a_baseline_of_the_same_turn() -> None:
    runs = {
        KILLED: [run(900, 2.0, 0.5, loss=4.25), run(1600, 9.0)],
        f"{TWO}, with a flush": [run(1000), run(2000)],
        f"{ONE}, with a flush": [run(500), run(1000)],
        f"{TWO}, asynchronous": [run(1100), run(2200)],
        f"{ONE}, asynchronous": [run(550), run(1000)],
        f"{LOOPBACK}, with a flush": [run(400), run(800)],
        "1mbit:20ms, with a flush": [run(300), run(600)],
        f"{LOOPBACK}, asynchronous": [run(500), run(1000)],
        "1mbit:20ms, asynchronous": [run(450), run(900)],
    }
    results = {result.name: result for result in to_results(TINY, runs)}
    ratios = {name: result.ratio.median for name, result in results.items() if result.ratio is not None}
    assert ratios == {
        "two replicas, a kill in 30s, over undisturbed": pytest.approx(0.85),
        "two replicas of each stage, over one, with a flush": 2.0,
        "two replicas of each stage, over one, asynchronous": pytest.approx(2.1),
        "links 1mbit:20ms, over loopback, with a flush": 0.75,
        "links 1mbit:20ms, over loopback, asynchronous": 0.9,
    }
    assert results["two replicas, a kill in 30s: last loss above undisturbed"].candidate.max == 0.25
    assert results["two replicas, a kill in 30s: recovery, longest"].candidate.median == 9.0
    with pytest.raises(StateError, match="No node was killed: give --churn-rounds"):
        to_results(TINY, runs | {KILLED: [run(900), run(1600)]})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--part", "money"), "--part money isn't known: take churn, replicas, links."),
        (("--rounds", "2"), "--rounds 2 must be over 2"),
        (("--kill-every", "often"), "--kill-every 'often'"),
        (("--slow", "fast"), "'fast' is no time"),
        (("--link", "8mbit:50ms:1%"), "can't lose"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(options: tuple[str, ...], said: str) -> None:
    error = CliRunner().invoke(app, ["bench", "swarm", *options]).exception
    assert isinstance(error, ConfigError)
    assert said in error.args[0]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_real_devnets_are_compared() -> None:
    told: list[str] = []
    results, runs = run_swarm_bench(TINY, told.append)
    assert len(told) == len(runs) == 1 + 4 * len(MODES)
    assert runs[KILLED][0]["kills"] >= 1, "the fault was to happen"
    assert runs[UNDISTURBED][0]["kills"] == 0
    for mode in MODES:
        (over_link,) = runs[f"1mbit:20ms, {mode}"]
        assert over_link["tokens_per_s"] <= 1_000_000 / CODE_BITS
    by_name = {result.name: result for result in results}
    assert by_name["two replicas, a kill in 30s: units lost"].candidate.max == 0
