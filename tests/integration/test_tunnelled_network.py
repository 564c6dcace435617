"""Whole processes: nodes whose ports can't be reached train, and generate, through libp2p."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commonweight.devnet.accounts import key_file, password_file
from tests.integration.network import Network, Process

COMMONWEIGHT = (sys.executable, "-m", "commonweight")
NOWHERE = "192.0.2.1"
"""An address for documentation: nobody has it."""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with Network(tmp_path, audit_rate="0.5") as network:
        yield network


def start(network: Network, role: str, *command: str) -> Process:
    keys = network.folder / "keys"
    options = ("--key", str(key_file(keys, role)), "--password-file", str(password_file(keys)))
    process = Process([*COMMONWEIGHT, *command, *options])
    network.processes.append(process)
    return process


@pytest.mark.slow
def test_nodes_whose_ports_cannot_be_reached_train_through_libp2p(network: Network) -> None:
    relay = start(network, f"node-{network.stages}", "peers", "bootstrap", "--relay")
    (address,) = relay.wait_for("discovery.listening").fields["addresses"]
    coordinator = Process([*network.coordinator_command(until_epoch=1000), "--bootstrap", address])
    network.processes.append(coordinator)
    deployment = network.deployment
    nodes = [
        start(
            network,
            f"node-{index}",
            *("node", "run", "--dir", str(network.folder / f"node-{index}"), "--data", str(network.folder / "data")),
            *("--rpc", deployment.rpc_url, "--registry", deployment.registry, "--model-id", deployment.model_id),
            *("--bootstrap", address, "--relayed", "--advertise", NOWHERE),
        )
        for index in range(network.stages)
    ]
    by_stage = {node.wait_for("node.assigned").fields["stage"]: node for node in nodes}
    for node in nodes:
        assert f"{address}/p2p-circuit/p2p/" in node.wait_for("relay.ready").fields["address"]
    way = by_stage[0].wait_for("way.found").fields
    assert way["service"] == "data"
    assert way["kind"] in ("punched", "relayed", "dialled")  # one machine has no NAT to tell them apart
    assert NOWHERE in way["why"]
    for node in nodes:
        node.wait_for("round.credited")
    assert by_stage[1].wait_for("tunnel.opened").fields["service"] == "data"
    # This coordinator doesn't have the text: audits of that stay undecided.
    decided = coordinator.wait_for("audit.decided", lambda event: event.fields["kind"] != "data").fields
    assert decided["verdict"] == "passed", decided["why"]
    ways = [event.fields for event in coordinator.events if event.name == "way.found"]
    assert {(way["service"], NOWHERE in way["why"]) for way in ways} >= {("evidence", True)}
