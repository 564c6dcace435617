"""Staying connected: to the given bootstrap peers, and to enough others to do without them. Trio side only."""

from collections.abc import Awaitable, Callable, Iterable

import trio

from commonweight.errors import PeerUnreachable
from commonweight.events import emit
from commonweight.peers.address import PeerAddress
from commonweight.peers.host import Host
from commonweight.peers.kademlia import Kademlia

LOOK_EVERY_S = 1.0
FIRST_RETRY_S = 1.0
MAX_RETRY_S = 15.0
WANTED_PEERS = 8
"""Connected ones; below it, others are looked for."""
LOOKUP_EVERY_S = 30.0
OTHER_S = 5.0
"""For a peer that somebody else has named."""


class Rendezvous:
    """One host's way into the network."""

    def __init__(
        self,
        host: Host,
        kademlia: Kademlia,
        bootstrap: Iterable[PeerAddress],
        joined: Callable[[str], Awaitable[None]],
    ) -> None:
        """`joined` is awaited with the PeerId of each peer that we have connected to."""
        self._host = host
        self._kademlia = kademlia
        self._bootstrap = tuple(address for address in bootstrap if address.peer_id != host.peer_id)
        self._joined = joined
        self._found: dict[str, PeerAddress] = {}

    async def run(self) -> None:
        """Connect, and connect again, for ever."""
        async with trio.open_nursery() as nursery:
            for address in self._bootstrap:
                nursery.start_soon(self._stay_connected, address)
            nursery.start_soon(self._look_for_others)

    def found(self, address: PeerAddress) -> None:
        """Somebody named this peer; it is tried while we have too few."""
        if len(self._found) < 2 * WANTED_PEERS and address.peer_id != self._host.peer_id:
            self._found[address.peer_id] = address

    async def _stay_connected(self, address: PeerAddress) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            if address.peer_id not in self._host.connected:
                try:
                    await self._host.connect(address)
                except PeerUnreachable as error:
                    emit(
                        "bootstrap.unreachable",
                        peer=str(address),
                        code=error.code,
                        message=error.args[0],
                        retry_s=retry_s,
                    )
                    await trio.sleep(retry_s)
                    retry_s = min(2 * retry_s, MAX_RETRY_S)
                    continue
                emit("bootstrap.joined", peer=str(address))
                retry_s = FIRST_RETRY_S
                await self._joined(address.peer_id)
            await trio.sleep(LOOK_EVERY_S)

    async def _look_for_others(self) -> None:
        next_lookup_s = trio.current_time()
        while True:
            while self._found:
                _, address = self._found.popitem()
                await self._try(address)
            if 0 < len(self._host.connected) < WANTED_PEERS and trio.current_time() >= next_lookup_s:
                for address in await self._kademlia.find_near():
                    await self._try(address)
                next_lookup_s = trio.current_time() + LOOKUP_EVERY_S
            await trio.sleep(LOOK_EVERY_S)

    async def _try(self, address: PeerAddress) -> None:
        connected = self._host.connected
        if address.peer_id in connected or len(connected) >= WANTED_PEERS:
            return
        try:
            await self._host.connect(address, OTHER_S)
        except PeerUnreachable:
            return  # it was only named; others are
        await self._joined(address.peer_id)
