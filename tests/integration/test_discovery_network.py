"""Whole processes: a node that is given a bootstrap address and the chain, and nothing else, finds everything."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commonweight.devnet.accounts import key_file, password_file
from commonweight.identity import NodeIdentity
from tests.integration.network import Network, Process

COMMONWEIGHT = (sys.executable, "-m", "commonweight")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with Network(tmp_path) as network:
        yield network


def key_options(network: Network, role: str) -> tuple[str, ...]:
    keys = network.folder / "keys"
    return "--key", str(key_file(keys, role)), "--password-file", str(password_file(keys))


def start(network: Network, *command: str) -> Process:
    process = Process([*COMMONWEIGHT, *command])
    network.processes.append(process)
    return process


def start_bootstrap(network: Network, psk_file: Path) -> str:
    key = key_options(network, f"node-{network.stages}")
    process = start(network, "peers", "bootstrap", *key, "--psk-file", str(psk_file))
    (address,) = process.wait_for("discovery.listening").fields["addresses"]
    return str(address)


def start_coordinator(network: Network, *discovery: str) -> Process:
    """On any port: nobody is told where."""
    process = Process([*network.coordinator_command(until_epoch=1000), *discovery])
    network.processes.append(process)
    return process


def start_node(network: Network, index: int, *discovery: str) -> Process:
    deployment = network.deployment
    return start(
        network,
        *("node", "run", *key_options(network, f"node-{index}"), "--dir", str(network.folder / f"node-{index}")),
        *("--data", str(network.folder / "data"), "--rpc", deployment.rpc_url, "--registry", deployment.registry),
        *("--model-id", deployment.model_id, *discovery),
    )


def list_peers(address: str, psk_file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMONWEIGHT, "peers", "list", "--bootstrap", address, "--psk-file", str(psk_file), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_nodes_find_the_coordinator_by_the_chain_and_again_where_it_moved(network: Network) -> None:
    psk_file = network.folder / "psk"
    psk_file.write_text("5a" * 32 + "\n")
    address = start_bootstrap(network, psk_file)
    discovery = ("--bootstrap", address, "--psk-file", str(psk_file))
    coordinator = start_coordinator(network, *discovery)
    nodes = [start_node(network, index, *discovery) for index in range(network.stages)]
    first = coordinator.wait_for("coordinator.listening").fields["peer"]
    for node in nodes:
        assert node.wait_for("coordinator.found").fields["peer"] == first
        node.wait_for("round.credited")

    listed = json.loads(list_peers(address, psk_file, "--model-id", network.deployment.model_id, "--json").stdout)
    found = {(line["role"], line["stage"], line["reachable"]) for line in listed["announced"]}
    assert found == {("coordinator", None, True), ("node", 0, True), ("node", 1, True)}
    assert "node" in list_peers(address, psk_file).stdout

    coordinator.kill(signal.SIGKILL)
    coordinator.wait()
    done = max(event.fields["round"] for event in coordinator.events if event.name == "round.sealed")
    second = start_coordinator(network, *discovery).wait_for("coordinator.listening").fields["peer"]
    assert second != first
    for node in nodes:
        node.wait_for("coordinator.found", lambda event: event.fields["peer"] == second)
        node.wait_for("round.credited", lambda event: event.fields["round"] > done)


def test_a_bootstrap_address_that_is_none_or_answers_nothing_is_said_so(tmp_path: Path) -> None:
    psk_file = tmp_path / "psk"
    psk_file.write_text("5a" * 32)
    nowhere = f"/ip4/127.0.0.1/tcp/9/p2p/{NodeIdentity(bytes(31) + b'1').peer_id}"
    for address, code, exit_code in (("nowhere", "CONFIG_INVALID", 2), (nowhere, "WIRE_UNREACHABLE", 3)):
        done = list_peers(address, psk_file, "--timeout", "2")
        assert done.returncode == exit_code
        assert code in done.stderr
    psk_file.write_text("5a")
    done = list_peers(nowhere, psk_file)
    assert done.returncode == 2
    assert "64 hexadecimal digits" in done.stderr
    assert "5a" not in done.stderr.replace(str(psk_file), "")
