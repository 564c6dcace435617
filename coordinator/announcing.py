"""The coordinator's announcement: nodes find it by its key, which is on the chain, wherever it listens."""

from commonweight.identity import NodeIdentity
from commonweight.peers.config import PeersConfig
from commonweight.rules.announcement import Role


async def announce_coordinator(
    identity: NodeIdentity,
    peers: PeersConfig,
    *,
    chain_id: int,
    registry: str,
    model_id: bytes,
    address: str,
    certificate: bytes,
) -> None:
    """Announce the enrolment service at `address` until cancelled. Raises what ends libp2p, if it ends by itself."""
    from commonweight.peers.discovery import Claim, Discovery  # libp2p takes most of a second to import

    discovery = Discovery(identity, peers, model_id, confirms=True)
    await discovery.start()
    discovery.announce(Claim(Role.COORDINATOR, chain_id, registry, model_id, address, certificate))
    try:
        await discovery.run()
    finally:
        await discovery.stop()
