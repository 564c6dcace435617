"""The coordinator in discovery: nodes find it by its key, which is on the chain; it finds ways to their evidence."""

import asyncio
from typing import TYPE_CHECKING

from commonweight.identity import NodeIdentity
from commonweight.peers.config import PeersConfig
from commonweight.rules.announcement import Role

if TYPE_CHECKING:  # libp2p takes most of a second to import
    from commonweight.peers.discovery import Discovery


class Announcing:
    """A coordinator's part in discovery."""

    def __init__(self, identity: NodeIdentity, peers: PeersConfig, model_id: bytes) -> None:
        """Nothing is started before `run`."""
        self._identity = identity
        self._peers = peers
        self._model_id = model_id
        self._discovery: asyncio.Future[Discovery] = asyncio.get_running_loop().create_future()

    async def run(self, *, chain_id: int, registry: str, address: str, certificate: bytes) -> None:
        """Announce the enrolment service at `address` until cancelled. Raises what ends libp2p, if that ends itself."""
        from commonweight.peers.discovery import Claim, Discovery

        discovery = Discovery(self._identity, self._peers, self._model_id, confirms=True)
        await discovery.start()
        self._discovery.set_result(discovery)
        discovery.announce(Claim(Role.COORDINATOR, chain_id, registry, self._model_id, address, certificate))
        try:
            await discovery.run()
        finally:
            await discovery.stop()

    async def reach_evidence(self, peer_id: str, address: str) -> str:
        """host:port at which a node's evidence is reached from here."""
        discovery = await asyncio.shield(self._discovery)
        return await discovery.reach_evidence(self._model_id, peer_id, address)
