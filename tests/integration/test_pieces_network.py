"""The last replica of a stage is lost with its disk, as real processes: its pieces bring the stage back."""

import shutil
import signal
from pathlib import Path

import pytest

from commonweight.events import Event
from tests.integration.network import Network, Process, train_in_process

pytestmark = pytest.mark.slow
MANY = 10_000
"""Epochs: more than there is time for."""
STAGES = 4
LOST = 1
"""The stage whose only holder is lost."""


def start_nodes(network: Network, coordinator: Process) -> list[Process]:
    """One of each stage, in order."""
    nodes = []
    for stage in range(STAGES):
        nodes.append(network.start_node(stage))
        address = network.accounts[f"node-{stage}"].address
        joined = coordinator.wait_for("node.joined", lambda event, who=address: event.fields["node"] == who)
        assert joined.fields["stage"] == stage
    return nodes


def kill(*nodes: Process) -> None:
    for node in nodes:
        node.kill()
        assert node.wait() == -signal.SIGKILL


def lie(keeper: Path) -> int:
    """Change what a keeper has of the lost stage; how many pieces that were."""
    pieces = list(keeper.glob(f"pieces/stage-{LOST}/round-*/piece"))
    for piece in pieces:
        data = bytearray(piece.read_bytes())
        data[len(data) // 2] ^= 1
        piece.write_bytes(data)
    return len(pieces)


def test_a_stage_whose_last_holder_is_gone_with_its_disk_comes_back_from_its_pieces(tmp_path: Path) -> None:
    with Network(tmp_path, stages=STAGES, durable=True) as network:
        coordinator = network.start_coordinator(MANY)
        nodes = start_nodes(network, coordinator)
        coordinator.wait_for("round.sealed", lambda event: event.fields["round"] >= 4)

        # At any moment: in a durable network no round is sealed before its states are kept.
        kill(nodes[LOST])
        shutil.rmtree(network.folder / f"node-{LOST}")
        coordinator.wait_for("generation.paused", lambda event: "is lost" in event.fields["why"])
        kill(nodes[2], nodes[3], coordinator)
        sealed = [event for event in coordinator.events if event.name == "round.sealed"]
        last = sealed[-1].fields["round"]

        before = coordinator.events
        coordinator = network.start_coordinator(MANY)  # which knows of pieces what the keepers say
        coordinator.wait_for("node.joined")  # the one that is left: the next stage is the lost one
        newcomer = network.start_node(STAGES)
        assert newcomer.wait_for("node.assigned").fields["stage"] == LOST
        newcomer.wait_for("state.waiting", lambda event: event.fields["round"] == last + 1)
        empty = coordinator.wait_for("stage.empty", lambda event: event.fields["keepers"] == 1)
        assert empty.fields == {"stage": LOST, "round": last + 1, "keepers": 1, "threshold": 2}

        assert lie(network.folder / "node-0") > 0
        network.start_node(2)

        def dropped(event: Event) -> bool:
            return event.fields["code"] == "WIRE_COMMITMENT"

        newcomer.wait_for("state.peer_dropped", dropped)
        failed = newcomer.wait_for("state.failed").fields
        assert failed["code"] == "WIRE_NO_PIECES"
        assert "of 2 keepers that are there 1 brought pieces that belong together; it takes 2" in failed["message"]
        assert not (network.folder / f"node-{STAGES}" / f"stage-{LOST}" / f"round-{last + 1:08d}").exists()
        network.start_node(3)
        fetched = newcomer.wait_for("state.fetched")
        assert fetched.fields["what"] == f"version {last + 1}, from pieces"

        coordinator.wait_for("round.sealed", lambda event: event.fields["round"] >= last + 4)
        sealed = [event for event in (*before, *coordinator.events) if event.name == "round.sealed"]
        assert [event.fields["round"] for event in sealed] == list(range(len(sealed)))
        _, roots = train_in_process(network.spec, network.folder / "data", last + 5)
        found = [event.fields["state_roots"] for event in sealed][: last + 5]
        assert found == [[root.hex() for root in of_round] for of_round in roots]
