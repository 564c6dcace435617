"""All of a process's libp2p, put together: host, gossip, exchange, Kademlia, multicast DNS. Trio side only."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from commonweight.errors import PeerUnreachable
from commonweight.identity import NodeIdentity
from commonweight.peers.announced import Announced
from commonweight.peers.config import PeersConfig
from commonweight.peers.directory import Directory
from commonweight.peers.exchange import Exchange
from commonweight.peers.gossip import Gossip, open_gossip
from commonweight.peers.host import Host, HostConfig, HostStatistics, open_host
from commonweight.peers.kademlia import Kademlia, open_kademlia
from commonweight.peers.mdns import open_mdns
from commonweight.peers.offered import Offered
from commonweight.peers.passage import Passage, open_passage
from commonweight.peers.relay import serve_relay
from commonweight.peers.rendezvous import Rendezvous
from commonweight.rules.announcement import Role


@dataclass(frozen=True)
class StationStatistics:
    """A station at one moment."""

    host: HostStatistics
    listening: tuple[str, ...]
    """Neighbours in the announcements' topic."""
    routing_table: int
    """Peers known to Kademlia."""


class Station:
    """One process's libp2p. Use `open_station`."""

    def __init__(self, host: Host, gossip: Gossip, exchange: Exchange, kademlia: Kademlia, passage: Passage) -> None:
        self.host = host
        self.passage = passage
        self._gossip = gossip
        self._exchange = exchange
        self._kademlia = kademlia

    async def publish(self, announced: Announced) -> int:
        """Send our own announcement; to how many neighbours that listen."""
        return await self._gossip.publish(announced)

    async def ask_all(self, model_id: bytes | None, role: Role | None) -> int:
        """Have every connected peer tell what it knows; how many announcements were news."""
        news = 0

        async def ask(peer_id: str) -> None:
            nonlocal news
            try:
                news += await self._exchange.ask(peer_id, model_id, role)
            except PeerUnreachable:
                return  # it is gone, or of another kind; the others answer

        async with trio.open_nursery() as nursery:
            for peer_id in self.host.connected:
                nursery.start_soon(ask, peer_id)
        return news

    async def statistics(self) -> StationStatistics:
        """What it is connected to."""
        return StationStatistics(self.host.statistics(), self._gossip.neighbours, self._kademlia.size)


@asynccontextmanager
async def open_station(
    identity: NodeIdentity,
    config: PeersConfig,
    model_id: bytes | None,
    directory: Directory,
    own: Callable[[], Iterable[Announced]],
    joined: Callable[[], None],
    offered: Offered,
) -> AsyncIterator[Station]:
    """Listen, stay connected, hear announcements and tell them, and let peers reach what is offered.

    Peers are asked for the announcements of `model_id`, or for all. `own` are this process's announcements at the
    moment, `joined` is called when it has met another peer and asked it.
    """
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(
            open_host(HostConfig(identity, config.listen, config.psk, config.advertise))
        )
        gossip = await stack.enter_async_context(open_gossip(host, directory))
        kademlia = await stack.enter_async_context(open_kademlia(host))
        exchange = Exchange(host, directory, own)
        if config.relay:
            serve_relay(host)
        relays = config.bootstrap if config.relayed else ()
        passage = await stack.enter_async_context(open_passage(host, relays, offered))

        async def meet(peer_id: str) -> None:
            with contextlib.suppress(PeerUnreachable):  # a peer of another kind may still pass gossip on
                await exchange.ask(peer_id, model_id, None)
            joined()

        rendezvous = Rendezvous(host, kademlia, config.bootstrap, meet)
        nursery = await stack.enter_async_context(trio.open_nursery())
        if config.mdns:
            await stack.enter_async_context(open_mdns(host, config.psk, rendezvous.found))
        nursery.start_soon(rendezvous.run)
        yield Station(host, gossip, exchange, kademlia, passage)
        nursery.cancel_scope.cancel()
