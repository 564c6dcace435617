"""Replicas as real processes: one comes to a running model, outlives the one that was there, and that comes back."""

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from commonweight.events import Event
from commonweight.failpoints import SLOW_VARIABLE
from commonweight.rules.checking import check_statement
from commonweight.rules.epoch import credited_load
from commonweight.rules.statement import Carried, Statement, parse_statement
from tests.integration.network import Network

pytestmark = pytest.mark.slow
MANY = 10_000
"""Epochs: more than there is time for."""


def sealed_by(replicas: Sequence[int], since: int = -1) -> Callable[[Event], bool]:
    """A round after `since` in which each stage had so many replicas at work."""
    return lambda event: event.fields["replicas"] == list(replicas) and event.fields["round"] > since


def statements(network: Network) -> list[Statement]:
    """Those that were published so far, each checked against the one before."""
    texts = {}
    for path in (network.folder / "statements").glob("*.json"):
        statement = parse_statement(path.read_bytes(), bytes.fromhex(path.stem))
        texts[statement.epoch] = statement
    before = Carried()
    for epoch in range(len(texts)):
        check_statement(network.spec, texts[epoch], before)
        before = texts[epoch].carried()
    return [texts[epoch] for epoch in range(len(texts))]


@pytest.mark.parametrize("training", [{}, {"averaging": "int8"}, {"averaging_rounds": 3}], ids=str)
def test_a_newcomer_shares_the_work_then_holds_the_stage_alone_and_nothing_is_lost(
    tmp_path: Path, training: Mapping[str, object]
) -> None:
    with Network(tmp_path, audit_rate="0.2", training=training) as network:
        coordinator = network.start_coordinator(MANY)
        (tmp_path / "slow").write_text("0.05")  # so that settling keeps up, and paces aren't chance
        slow = {SLOW_VARIABLE: str(tmp_path / "slow")}
        first = network.start_node(0, environment=slow)
        coordinator.wait_for("node.joined")  # so that it has the first stage
        nodes = [first, network.start_node(1, environment=slow)]
        coordinator.wait_for("round.sealed")
        newcomer = network.start_node(2, environment=slow)
        stage = newcomer.wait_for("node.assigned").fields["stage"]  # the slower one, by measured pace
        shared_by, other = [1 + (each == stage) for each in range(2)], nodes[1 - stage]
        fetched = newcomer.wait_for("state.fetched")
        assert fetched.fields["fetched_bytes"] > 0
        shared = coordinator.wait_for("round.sealed", sealed_by(shared_by)).fields["round"]
        assert all(event.name != "generation.paused" for event in coordinator.events), "nobody waited for it"

        nodes[stage].kill()
        assert nodes[stage].wait() == -signal.SIGKILL
        alone = coordinator.wait_for("round.sealed", sealed_by([1, 1], since=shared)).fields["round"]
        network.start_node(stage, environment=slow).wait_for("state.fetched")
        again = coordinator.wait_for("round.sealed", sealed_by(shared_by, since=alone)).fields["round"]
        epoch = again // network.spec.economics.rounds_per_epoch
        coordinator.wait_for("epoch.finalised", lambda event: event.fields["epoch"] >= epoch)

        rounds = [event.fields["round"] for event in coordinator.events if event.name == "round.sealed"]
        assert rounds == list(range(len(rounds)))
        assert other.wait_for("round.trained").fields["round"] == 0
        reports = {
            (sealed.round, report.node): report
            for statement in statements(network)
            for sealed in statement.rounds
            for report in sealed.replicas(stage)
        }
        original, joined = (network.accounts[f"node-{index}"].address for index in (stage, 2))
        loads = {who: credited_load(network.spec, report) for who, report in reports.items()}
        assert sorted(loads[shared, original] + loads[shared, joined]) == list(range(4))
        assert loads[alone, joined] == tuple(range(4))
        assert (alone, original) not in loads
        assert all(int(reports[key].units) > 0 for key in ((shared, original), (alone, joined), (again, original)))

        decided = [event.fields for event in coordinator.events if event.name == "audit.decided"]
        assert all(audit["verdict"] != "failed" for audit in decided)
        every = network.spec.training.averaging_rounds
        passed = {audit["round"] % every for audit in decided if audit["verdict"] == "passed"}
        assert passed == set(range(every)), "rounds in which they average, and others"
