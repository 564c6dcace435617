"""A coordinator admits who holds a seat on chain, pays whom the owner names there, and notices when that changes."""

from pathlib import Path

import pytest

from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.token import Token
from commonweight.devnet.deployment import SEAT_STAKE
from tests.integration.network import Network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def providers_of(network: Network, role: str) -> ProviderRegistry:
    chain = Chain.connect(network.deployment.rpc_url)
    return ProviderRegistry(chain, network.deployment.providers, Sender(chain, network.accounts[role].key))


def take_seat(network: Network, role: str, stage: int) -> None:
    providers = providers_of(network, role)
    sender = providers.sender
    Token(sender.chain, network.deployment.revenue_token, sender).approve(network.deployment.providers, SEAT_STAKE)
    providers.bond(sender.address, SEAT_STAKE)
    providers.take_seat(bytes.fromhex(network.deployment.model_id[2:]), stage)


def test_only_seats_count_and_only_while_they_are_held(tmp_path: Path) -> None:
    with Network(tmp_path, seat_stake=SEAT_STAKE) as network:
        coordinator = network.start_coordinator(1000)
        stranger = network.start_node(2)
        stranger.wait_for("coordinator.lost", lambda event: "holds no seat" in event.fields["message"])
        stranger.kill()

        # Node 1 has the seat of stage 0 and node 0 that of stage 1, whatever the order in which they come.
        take_seat(network, "node-0", 1)
        take_seat(network, "node-1", 0)
        payout = network.accounts["designer"].address
        providers_of(network, "node-0").set_payout(payout)
        nodes = [network.start_node(0, payout=network.accounts["treasury"].address), network.start_node(1)]
        stages = {
            event.fields["node"]: event.fields["stage"]
            for node in ("node-0", "node-1")
            for event in [
                coordinator.wait_for("node.joined", lambda e, a=network.accounts[node].address: e.fields["node"] == a)
            ]
        }
        assert stages == {network.accounts["node-0"].address: 1, network.accounts["node-1"].address: 0}

        coordinator.wait_for("epoch.finalised")
        paid = {line["stage"]: line["account"] for line in network.statements[0]["rounds"][0]["reports"]}
        assert paid == {0: network.accounts["node-1"].address, 1: payout}  # as on chain, not as the node wished

        providers_of(network, "node-0").leave_seat(bytes.fromhex(network.deployment.model_id[2:]), 1)
        nodes[0].wait_for("coordinator.lost", lambda event: "holds no seat" in event.fields["message"])
        coordinator.wait_for("node.lost", lambda event: event.fields["stage"] == 1)
