"""Whatever dies, whenever it dies, the result is that of an undisturbed run."""

import os
import signal
import time
from pathlib import Path

import pytest

from commonweight.chain.events import EpochProposed
from commonweight.rules.checking import check_statement
from commonweight.rules.emission import emission
from commonweight.rules.statement import Carried, parse_statement
from tests.integration.network import Network, seconds_since, train_in_process

FAILPOINTS = (
    "beacon.drawn",
    "beacon.committed",
    "ledger.seated:2",
    "ledger.formed",
    "ledger.sealing",
    "ledger.sealed:2",
    "settlement.closed",
    "settlement.proposed",
    "settlement.finalised",
    "settlement.recorded",
)


EPOCHS = 4
"""So many that rounds are left for the last coordinator: with none it ends before the nodes are back."""


def check_outcome(network: Network, epochs: int) -> None:
    """Every epoch is settled once, every unit credited once, and every state is that of an undisturbed run."""
    per_epoch = network.spec.economics.rounds_per_epoch
    _, roots = train_in_process(network.spec, network.folder / "data", epochs * per_epoch)
    proposals = network.settlement.events(EpochProposed)
    assert [proposal.epoch for proposal in proposals] == list(range(epochs))
    assert network.settlement.next_epoch() == epochs
    assert network.shares.total_supply() == sum(emission(network.spec.economics, e) for e in range(epochs))
    before = Carried()
    for proposal in proposals:
        text = (network.folder / "statements" / f"{proposal.statement_hash.hex()}.json").read_bytes()
        statement = parse_statement(text, proposal.statement_hash)
        check_statement(network.spec, statement, before)
        before = statement.carried()
        for sealed in statement.rounds:
            assert [report.state_after for report in sealed.reports] == [
                "0x" + root.hex() for root in roots[sealed.round]
            ]


@pytest.mark.slow
def test_a_coordinator_killed_at_every_transition_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with Network(tmp_path) as network:
        network.start_coordinator(EPOCHS, FAILPOINTS[0])  # the first tells nodes where to come back to
        nodes = [network.start_node(index) for index in range(2)]
        for failpoint in (*FAILPOINTS[1:], None):
            killed = network.processes[0]
            assert killed.wait() == -signal.SIGKILL, killed.describe()
            network.processes.remove(killed)
            network.processes.insert(0, network.start_coordinator(EPOCHS, failpoint))
            network.processes.pop()
        last = network.processes[0]
        assert last.wait() == 0, last.describe()
        assert last.wait_for("coordinator.finished").fields["epochs"] == EPOCHS
        assert [node.wait() for node in nodes] == [0, 0]
        check_outcome(network, EPOCHS)


@pytest.mark.slow
def test_a_node_killed_in_mid_round_is_named_and_comes_back_to_the_same_result(tmp_path: Path) -> None:
    with Network(tmp_path) as network:
        coordinator = network.start_coordinator(2)
        nodes = [network.start_node(index) for index in range(2)]
        coordinator.wait_for("round.sealed")
        victim = nodes[1]
        address = network.accounts["node-1"].address
        killed_at = time.monotonic()
        victim.kill()
        lost = coordinator.wait_for("node.lost")
        assert seconds_since(killed_at) < 5
        assert lost.fields["node"] == address
        assert victim.wait() == -signal.SIGKILL
        network.start_node(1)
        assert coordinator.wait() == 0, coordinator.describe()
        sealed = [event.fields["round"] for event in coordinator.events if event.name == "round.sealed"]
        assert sealed == list(range(6))
        assert max(e.fields["generation"] for e in coordinator.events if e.name == "generation.formed") > 1
        losses, _ = train_in_process(network.spec, tmp_path / "data", 6)
        assert [e.fields["loss"] for e in coordinator.events if e.name == "round.sealed"] == [
            sum(loss) / len(loss) for loss in losses
        ]
        check_outcome(network, 2)


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again_and_a_frozen_node_is_noticed(tmp_path: Path) -> None:
    with Network(tmp_path) as network:
        coordinator = network.start_coordinator(4)
        nodes = [network.start_node(index) for index in range(2)]
        coordinator.wait_for("round.sealed")
        worker_pid = nodes[0].wait_for("worker.started").fields["worker_pid"]
        os.kill(worker_pid, signal.SIGKILL)
        died = nodes[0].wait_for("worker.died")
        assert "signal 9" in died.fields["message"]
        nodes[0].wait_for("worker.started", lambda event: event.fields["worker_pid"] != worker_pid)
        lost_before = sum(event.name == "node.lost" for event in coordinator.events)
        assert lost_before == 1
        coordinator.wait_for("generation.formed", lambda event: event.fields["generation"] >= 2)
        frozen_at = time.monotonic()
        nodes[1].kill(signal.SIGSTOP)
        frozen = network.accounts["node-1"].address
        coordinator.wait_for("node.lost", lambda event: event.fields["node"] == frozen)
        assert seconds_since(frozen_at) < 8
        nodes[1].kill(signal.SIGCONT)
        assert coordinator.wait() == 0, coordinator.describe()
        check_outcome(network, 4)
