"""A node that compiles its stage trains beside one that doesn't, and is audited by one that doesn't."""

import shutil
from pathlib import Path

import pytest

from tests.integration.network import Network

pytestmark = pytest.mark.long
COMPILE_S = 180.0
"""For the compiler, on a busy machine."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="this machine has no C++ compiler")
def test_a_compiled_stage_trains_and_is_audited_by_the_tolerance_between_classes(tmp_path: Path) -> None:
    with Network(tmp_path, audit_rate="0.5") as network:
        coordinator = network.start_coordinator(10_000)
        network.start_node(0)
        coordinator.wait_for("node.joined")
        network.start_node(1, environment={"COMMONWEIGHT_NODE_RUN_COMPILE": "1"})
        coordinator.wait_for("round.sealed", lambda event: event.fields["round"] >= 5, timeout_s=COMPILE_S)
        decided = coordinator.wait_for(
            "audit.decided", lambda event: "results of another numerics class" in event.fields["why"]
        ).fields
        assert (decided["stage"], decided["verdict"]) == (1, "passed")
        audits = [event.fields["verdict"] for event in coordinator.events if event.name == "audit.decided"]
        assert "failed" not in audits
