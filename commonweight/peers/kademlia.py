"""Kademlia, for one purpose: to get from the bootstrap peers to others, so that the network doesn't hang on those.

Nothing is looked up or kept in it. py-libp2p 0.8.1 answers from its own copies for a day or two, and lets anybody fill
its memory with values and providers; so it holds none here, and what counts is said in announcements.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator
from libp2p.tools.anyio_service import background_trio_service

from commonweight.errors import ConfigError
from commonweight.peers.address import PeerAddress, parse_peer
from commonweight.peers.host import Host

LOOKUP_S = 15.0


class Kademlia:
    """One host's routing table. Use `open_kademlia`."""

    def __init__(self, host: Host, dht: KadDHT) -> None:
        self._host = host
        self._dht = dht

    async def find_near(self) -> tuple[PeerAddress, ...]:
        """Peers near our own PeerId, one address of each, asked for over the peers that are connected now."""
        own = ID.from_string(self._host.peer_id)
        for peer_id in self._host.connected:
            await self._dht.add_peer(ID.from_string(peer_id))
        near: list[ID] = []
        with trio.move_on_after(LOOKUP_S):
            near = await self._dht.peer_routing.find_closest_peers_network(own.to_bytes())
        addresses = (self._address(peer) for peer in near if peer != own)
        return tuple(address for address in addresses if address is not None)

    @property
    def size(self) -> int:
        """Peers in the routing table."""
        return self._dht.get_routing_table_size()

    def _address(self, peer: ID) -> PeerAddress | None:
        for address in self._host.libp2p.get_peerstore().addrs(peer):
            try:
                return parse_peer(f"{str(address).partition('/p2p/')[0]}/p2p/{peer}")
            except ConfigError:
                continue  # of another transport, or another kind of key
        return None


@asynccontextmanager
async def open_kademlia(host: Host) -> AsyncIterator[Kademlia]:
    """Keep a routing table, and answer those who ask."""
    dht = KadDHT(
        host.libp2p,
        DHTMode.SERVER,
        validator=NamespacedValidator({}, strict_validation=True),
        validator_changed=True,
        strict_validation=True,
    )
    dht.provider_store = NoProviders(host.libp2p, dht.peer_routing)
    async with background_trio_service(dht):
        yield Kademlia(host, dht)


class NoProviders(ProviderStore):
    """Remembers nobody."""

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Does nothing."""
