"""Simulated swarms: the same seed is the same run, work is credited once, and losses are what they cost."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commonweight.cli.main import app
from commonweight.errors import ConfigError
from commonweight.rules.emission import emission, split_emission
from commonweight.sim.options import SimOptions
from commonweight.sim.ownership import gini, settle
from commonweight.sim.records import History
from commonweight.sim.results import results_of
from commonweight.sim.swarm import Swarm

SMALL = ("--providers", "60", "--stages", "3", "--hours", "1", "--round-s", "200", "--churn-per-hour", "0.5")


def simulate(**options: Any) -> tuple[Swarm, History, dict[str, float]]:
    """A run and the medians of its results."""
    swarm = Swarm(SimOptions(**options))
    history = swarm.run()
    return swarm, history, {result.name: result.candidate.median for result in results_of(swarm, history)}


def run_cli(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["sim", "run", *arguments])
    if isinstance(result.exception, ConfigError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for path, seed in zip(files, ("7", "7", "8"), strict=True):
        run_cli(*SMALL, "--seed", seed, "--json", str(path))
    same, again, other = (path.read_bytes() for path in files)
    assert same == again
    assert same != other
    written = json.loads(same)
    assert written["bench"] == "sim"
    assert written["config"]["providers"] == 60
    assert {"name", "unit", "candidate", "target"} == written["results"][0].keys()


def test_what_is_credited_is_what_was_sealed_and_shares_follow_it() -> None:
    swarm, history, _ = simulate(providers=200, stages=4, hours=2, round_s=200, churn_per_hour=1)
    assert history.recoveries_s
    per_round = history.microbatches * sum(swarm.costs.units)
    for record in history.rounds:
        assert sum(record.units.values()) == per_round
    economics = swarm.spec.economics
    ownership = settle(economics, history.rounds, history.providers)
    assert ownership is not None
    epochs = len(history.rounds) // economics.rounds_per_epoch
    assert epochs >= 2
    minted = sum(
        split_emission(emission(economics, epoch), economics.designer_bps, economics.data_bps).compute
        for epoch in range(epochs)
    )
    assert sum(ownership.shares.values()) == minted
    assert sum(ownership.credited.values()) == epochs * economics.rounds_per_epoch * per_round
    assert ownership.worst_deviation < 1e-9
    lost = sum(sum(record.lost.values()) for record in history.rounds[: epochs * economics.rounds_per_epoch])
    assert sum(ownership.computed.values()) == sum(ownership.credited.values()) + lost
    assert lost > 0
    # A microbatch takes a provider's link longer than its processor at times, but never less than its processor.
    for node, units in ownership.computed.items():
        assert units <= ownership.offered[node] * 1.6


def test_nobody_computes_before_it_came_or_after_it_left() -> None:
    _, history, _ = simulate(providers=200, stages=4, hours=2, round_s=200, churn_per_hour=1)
    providers = {each.address: each for each in history.providers}
    newcomers = 0
    for record in history.rounds:
        for node in record.units:
            each = providers[node]
            newcomers += each.arrived_s > 0
            assert each.arrived_s < record.ended_s
            assert each.left_s is None or each.left_s > record.began_s
    assert newcomers > 0


def test_without_churn_nearly_all_is_used() -> None:
    _, history, results = simulate(providers=2000, hours=3, round_s=1800, churn_per_hour=0)
    assert results["sealed work"] >= 0.99
    assert not history.recoveries_s
    assert results["lost: computed by who left before the seal"] == 0


def test_churn_costs_what_was_lost_and_nothing_is_given_up() -> None:
    _, history, results = simulate(providers=1000, stages=4, hours=1.5)
    assert len(history.recoveries_s) > 100
    assert 0.93 <= results["sealed work"] <= 1
    assert max(history.recoveries_s) <= 5
    assert history.abandoned == 0
    parts = [value for name, value in results.items() if name.startswith("lost: ")]
    assert sum(parts) + results["sealed work"] == pytest.approx(1)


def test_a_stage_that_has_nobody_left_gives_the_round_up_and_training_goes_on_when_somebody_comes() -> None:
    _, history, results = simulate(providers=4, stages=2, hours=12, round_s=120, churn_per_hour=2, seed=1)
    assert history.abandoned > 0
    assert any(after.began_s - before.ended_s > 60 for before, after in pairwise(history.rounds))
    assert results["rounds sealed"] > 10
    assert 0 < results["sealed work"] < 1


def test_replicas_move_to_where_they_are_missing() -> None:
    options = {"providers": 30, "stages": 5, "hours": 6, "round_s": 120, "churn_per_hour": 0.5}
    _, moved, with_moves = simulate(**options)
    _, still, without = simulate(**options, rebalance=False)
    assert moved.moves > 0
    assert still.moves == 0
    assert with_moves["sealed work"] > without["sealed work"]


@pytest.mark.parametrize("option", ["redivide", "shadow"])
def test_what_can_be_left_out_is_worth_having(option: str) -> None:
    options = {"providers": 600, "stages": 3, "hours": 1.5, "churn_per_hour": 1.0}
    assert simulate(**options)[2]["sealed work"] > simulate(**options, **{option: False})[2]["sealed work"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"providers": 3, "stages": 4}, "can't hold 4 stages"),
        ({"stages": 0}, "can't hold 0 stages"),
        ({"hours": 0.0}, "more than 0"),
        ({"churn_per_hour": -1.0}, "churn_per_hour is -1"),
        ({"round_s": float("inf")}, "round_s is inf"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SimOptions(**options)


def test_a_run_without_a_sealed_round_says_so() -> None:
    with pytest.raises(ConfigError, match="No round was sealed"):
        run_cli("--providers", "20", "--stages", "2", "--hours", "0.05")


def test_what_isn_t_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("commonweight.sim.cli.find_spec", {"simpy": "there"}.get)
    with pytest.raises(ConfigError, match=r"needs matplotlib, not installed here: pip install 'commonweight\[sim\]'"):
        run_cli(*SMALL, "--plots", str(tmp_path))
    run_cli(*SMALL)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    output = run_cli(*SMALL, "--plots", str(tmp_path / "new"))
    names = ("throughput", "stages", "coordinator", "recovery", "ownership")
    for name in names:
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in output


def test_gini() -> None:
    assert gini([]) == 0
    assert gini([3.0] * 7) == pytest.approx(0)
    assert gini([0.0, 0.0, 0.0, 1.0]) == pytest.approx(0.75)
    assert gini([1.0, 3.0]) == pytest.approx(0.25)
