"""What a node keeps for audits survives its sudden end."""

import signal
from pathlib import Path

import pytest

from tests.integration.network import Network


@pytest.mark.slow
def test_a_node_that_was_killed_still_serves_what_it_had_trained(tmp_path: Path) -> None:
    with Network(tmp_path, audit_rate="1") as network:
        coordinator = network.start_coordinator(1)
        nodes = [network.start_node(index) for index in range(2)]
        last = network.spec.economics.rounds_per_epoch - 1
        coordinator.wait_for("round.sealed", lambda event: event.fields["round"] == last)
        victim = nodes[1]
        victim.kill()
        assert victim.wait() == -signal.SIGKILL
        killed_at = victim.events[-1].time
        restarted = network.start_node(1)
        assert coordinator.wait() == 0, coordinator.describe()
        assert restarted.wait() == 0, restarted.describe()
        node = network.accounts["node-1"].address
        decided = [event for event in coordinator.events if event.name == "audit.decided"]
        late = [event for event in decided if event.time > killed_at and event.fields["node"] == node]
        assert late, "its audits were over before it was killed"
        found = {(e.fields["kind"], e.fields["verdict"]) for e in decided}
        assert found <= {("round", "passed"), ("data", "passed"), ("data", "undecided")}
        assert ("round", "passed") in found
        granted = [event.fields for event in restarted.events if event.name == "audit.granted"]
        stage = restarted.wait_for("node.assigned").fields["stage"]
        assert [fields["round"] for fields in granted if fields["stage"] == stage and fields["kind"] == "round"]
        assert not any(event.name in ("audit.refused", "round.disputed") for event in restarted.events)
