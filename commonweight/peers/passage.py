"""Getting a libp2p connection to a peer wherever it is: dialled, punched or through a relay. Trio side only."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import trio

from commonweight.errors import ConfigError, PeerUnreachable, Refused
from commonweight.peers.address import PeerAddress, parse_peer
from commonweight.peers.connections import Connections
from commonweight.peers.host import Host
from commonweight.peers.offered import Offered, Service
from commonweight.peers.punching import PUNCH_S, Puncher, open_puncher
from commonweight.peers.relaying import CircuitAddress, Circuits, open_circuits, parse_circuit
from commonweight.peers.tunnel import TunnelLimits, Tunnels, TunnelStatistics, open_tunnels

DIAL_S = 5.0
"""For one address of a peer."""

Link = Literal["dialled", "punched", "relayed"]
"""What libp2p is connected over; dialled by either side."""


@dataclass(frozen=True)
class Whereabouts:
    """Where a peer says that its libp2p host is."""

    peer_id: str
    addresses: tuple[PeerAddress, ...] = ()
    circuits: tuple[CircuitAddress, ...] = ()

    @classmethod
    def of(cls, peer_id: str, texts: Iterable[str]) -> "Whereabouts":
        """From what the peer has announced; what is no address, or another peer's, is left out."""
        addresses: list[PeerAddress] = []
        circuits: list[CircuitAddress] = []
        for text in texts:
            with suppress(ConfigError):
                if "/p2p-circuit" in text:
                    circuits.append(parse_circuit(text))
                else:
                    addresses.append(parse_peer(text))
        return cls(
            peer_id,
            tuple(address for address in addresses if address.peer_id == peer_id),
            tuple(circuit for circuit in circuits if circuit.peer_id == peer_id),
        )


class Passage:
    """One host's ways to others, and theirs to its services. Use `open_passage`."""

    def __init__(
        self,
        host: Host,
        connections: Connections,
        puncher: Puncher,
        circuits: Circuits,
        tunnels: Tunnels,
        circuited: set[str],
    ) -> None:
        self._host = host
        self._connections = connections
        self._puncher = puncher
        self._tunnels = tunnels
        self.circuits = circuits
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._circuited = circuited
        """Peers to which this host has gone through a relay: a direct connection to them was punched."""

    async def connect(self, peer: Whereabouts) -> Link:
        """Be connected to the peer, directly if that can be had. Raises PeerUnreachable that says what was tried."""
        async with self._locks[peer.peer_id]:
            if self._link(peer.peer_id) is None:
                await self._dial(peer)
        if (link := self._link(peer.peer_id)) is None:
            raise PeerUnreachable(f"{peer.peer_id} hung up as soon as it was connected. Check that it runs.")
        return link

    async def tunnel(self, peer: Whereabouts, service: Service) -> int:
        """The port on 127.0.0.1 that leads to a service of the peer's, for as long as this passage is open."""
        return await self._tunnels.listen(peer.peer_id, service, lambda: self.connect(peer))

    def statistics(self) -> TunnelStatistics:
        """What goes through its tunnels."""
        return self._tunnels.statistics()

    async def outside(self) -> tuple[str, ...]:
        """How others see this host."""
        return await self._puncher.outside()

    def _link(self, peer_id: str) -> Link | None:
        link = self._connections.link(peer_id)
        if link == "direct":
            return "punched" if peer_id in self._circuited else "dialled"
        return link

    async def _dial(self, peer: Whereabouts) -> None:
        failures: list[str] = []
        self._circuited.discard(peer.peer_id)
        for address in peer.addresses:
            try:
                return await self._host.connect(address, DIAL_S)
            except PeerUnreachable as error:
                failures.append(error.args[0])
        self._circuited.add(peer.peer_id)
        for circuit in peer.circuits:
            try:
                await self.circuits.dial(circuit)
            except (PeerUnreachable, Refused) as error:
                failures.append(error.args[0])
                continue
            with trio.move_on_after(PUNCH_S):  # the other side begins
                await self._connections.wait_until(lambda: self._link(peer.peer_id) != "relayed")
            return None
        self._circuited.discard(peer.peer_id)
        raise PeerUnreachable(" ".join(failures) or f"No libp2p address of {peer.peer_id} is known, nor a relay.")


@asynccontextmanager
async def open_passage(
    host: Host,
    relays: Sequence[PeerAddress],
    offered: Offered,
    limits: TunnelLimits | None = None,
) -> AsyncIterator[Passage]:
    """Reach peers, and have those that are admitted reach what is offered, through `relays`, too."""
    connections = Connections(host)
    circuited: set[str] = set()

    def admitted(peer_id: str) -> bool:
        return peer_id in offered.admitted

    async with (
        open_puncher(host, lambda peer_id: peer_id in circuited or admitted(peer_id)) as puncher,
        open_circuits(host, connections, relays, admitted, puncher.punch) as circuits,
        open_tunnels(host, offered, limits) as tunnels,
    ):
        yield Passage(host, connections, puncher, circuits, tunnels, circuited)
