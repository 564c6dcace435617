"""Reaching others, and being reached, through a relay: reservations and circuits. Trio side only.

The protocol is libp2p's circuit relay v2. A circuit becomes a libp2p connection like any other, encrypted between the
two peers, whose PeerIds are verified; the relay only says who asks.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from commonweight.errors import ConfigError, IdentityMismatch, PeerUnreachable, Refused
from commonweight.events import emit
from commonweight.peers.address import PeerAddress, parse_peer
from commonweight.peers.connections import Connections
from commonweight.peers.host import HANDSHAKE_S, Host
from commonweight.peers.pump import end_stream, reset_stream
from commonweight.peers.relay import HOP, STOP

RELAY_ANSWER_S = 15.0
"""For a relay to answer; it asks the far peer first, and gives that 10 s."""
RENEW_AT = 0.5
"""Of a reservation's time."""
RETRY_S = 5.0
"""After a reservation that failed, or a relay that was lost."""
MIN_RENEWAL_S = 10.0
MAX_RENEWAL_S = 1800.0


@dataclass(frozen=True)
class CircuitAddress:
    """A peer that can be reached through a relay."""

    relay: PeerAddress
    peer_id: str

    def __str__(self) -> str:
        return f"{self.relay}/p2p-circuit/p2p/{self.peer_id}"


def parse_circuit(text: str) -> CircuitAddress:
    """The address in /ip4/…/tcp/…/p2p/RELAY/p2p-circuit/p2p/PEERID. Raises ConfigError that says what is wrong."""
    relay, found, peer = text[:1024].partition("/p2p-circuit")
    if not found:
        raise ConfigError(f"{text[:80]!r} names no relay: expected …/p2p/RELAY/p2p-circuit/p2p/PEERID.")
    address = parse_peer(relay)
    return CircuitAddress(address, parse_peer(address.transport + peer).peer_id)


class Circuits:
    """One host's circuits. Use `open_circuits`."""

    def __init__(
        self,
        host: Host,
        connections: Connections,
        admitted: Callable[[str], bool],
        accepted: Callable[[str], Awaitable[None]],
    ) -> None:
        self._host = host
        self._connections = connections
        self._admitted = admitted
        self._accepted = accepted
        self._reserved: frozenset[PeerAddress] = frozenset()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Circuit addresses at which others can reach this host now."""
        return tuple(sorted(str(CircuitAddress(relay, self._host.peer_id)) for relay in self._reserved))

    async def reserve(self, relay: PeerAddress) -> float:
        """Have the relay take circuits for this host; returns for how many seconds. Raises PeerUnreachable, Refused."""
        await self._host.connect(relay)
        stream, answer = await self._ask(relay, pb.HopMessage(type=pb.HopMessage.RESERVE))
        await end_stream(stream)
        return max(0.0, answer.reservation.expire - time.time())

    async def keep_reserved(self, relay: PeerAddress) -> None:
        """Reserve, renew, and begin again when the relay was away; for ever."""
        told = ""
        while True:
            try:
                seconds = await self.reserve(relay)
            except (PeerUnreachable, Refused) as error:
                if told != error.code:
                    emit("relay.failed", relay=str(relay), code=error.code, message=error.args[0], retry_s=RETRY_S)
                told = error.code
            else:
                told = ""
                if relay not in self._reserved:
                    self._reserved |= {relay}
                    emit("relay.ready", address=str(CircuitAddress(relay, self._host.peer_id)), seconds=round(seconds))
                with trio.move_on_after(min(max(seconds * RENEW_AT, MIN_RENEWAL_S), MAX_RENEWAL_S)):
                    await self._connections.wait_until(lambda: self._connections.link(relay.peer_id) is None)
                if self._connections.link(relay.peer_id) is not None:
                    continue
            self._reserved -= {relay}
            await trio.sleep(RETRY_S)

    async def dial(self, address: CircuitAddress) -> None:
        """Be connected to the peer through its relay. Raises PeerUnreachable or Refused."""
        far = ID.from_string(address.peer_id)
        await self._host.connect(address.relay)
        stream, _ = await self._ask(
            address.relay, pb.HopMessage(type=pb.HopMessage.CONNECT, peer=pb.PeerId(id=far.to_bytes()))
        )
        raw = RawConnection(stream, True, ConnectionType.RELAYED, [_circuit(address.relay.peer_id, address.peer_id)])
        try:
            with trio.fail_after(HANDSHAKE_S):
                await self._host.libp2p.upgrade_outbound_connection(raw, far)
        except Exception as error:  # libp2p's, of any layer: see host.py
            await reset_stream(stream)
            raise PeerUnreachable(f"{address} was reached, but didn't become a libp2p peer: {error!r}.") from error

    async def accept(self, stream: INetStream) -> None:
        """A relay asks this host to take a circuit."""
        relay = str(stream.muxed_conn.peer_id)
        with trio.fail_after(RELAY_ANSWER_S):
            message = await read_delimited_msg(stream, pb.StopMessage)
            peer_id = str(ID(message.peer.id))
            status = pb.OK if self._admitted(peer_id) else pb.PERMISSION_DENIED
            await write_delimited_msg(stream, pb.StopMessage(type=pb.StopMessage.STATUS, status=status))
        if status != pb.OK:
            emit("circuit.refused", peer=peer_id, relay=relay)
            return await end_stream(stream)
        address = _circuit(relay, peer_id)
        raw = RawConnection(stream, False, ConnectionType.RELAYED, [address])
        muxed = await self._host.libp2p.upgrade_inbound_connection(raw, address)
        if str(muxed.peer_id) != peer_id:
            await muxed.close()
            raise IdentityMismatch(f"The relay {relay} said that {peer_id} asks; it was {muxed.peer_id}.")
        await self._accepted(peer_id)
        return None

    async def _ask(self, relay: PeerAddress, request: pb.HopMessage) -> tuple[INetStream, pb.HopMessage]:
        stream = await self._host.open_stream(relay.peer_id, HOP)
        try:
            with trio.fail_after(RELAY_ANSWER_S):
                await write_delimited_msg(stream, request)
                answer = await read_delimited_msg(stream, pb.HopMessage)
            if answer.status != pb.OK:
                raise Refused(_refusal(relay, answer.status))
        except BaseException as error:
            await reset_stream(stream)
            if isinstance(error, (trio.TooSlowError, DecodeError, IOException, ValueError)):
                raise PeerUnreachable(f"The relay {relay} didn't answer: {error!r}. Try another one.") from error
            raise
        return stream, answer


@asynccontextmanager
async def open_circuits(
    host: Host,
    connections: Connections,
    relays: Iterable[PeerAddress],
    admitted: Callable[[str], bool],
    accepted: Callable[[str], Awaitable[None]],
) -> AsyncIterator[Circuits]:
    """Take circuits from peers that are `admitted` through these relays; `accepted` is told of each, and may take its
    time.
    """
    circuits = Circuits(host, connections, admitted, accepted)
    host.handle(STOP, circuits.accept)
    async with trio.open_nursery() as nursery:
        for relay in relays:
            nursery.start_soon(circuits.keep_reserved, relay)
        yield circuits
        nursery.cancel_scope.cancel()


def _circuit(relay: str, peer_id: str) -> Multiaddr:
    return Multiaddr(f"/p2p/{relay}/p2p-circuit/p2p/{peer_id}")


def _refusal(relay: PeerAddress, status: int) -> str:
    reasons: dict[int, str] = {
        pb.RESERVATION_REFUSED: "it has no reservation left. Take another relay",
        pb.RESOURCE_LIMIT_EXCEEDED: "too many circuits are open. Try again when some have ended, or take another relay",
        pb.NO_RESERVATION: "the peer has no reservation with it: it isn't connected to this relay now",
        pb.CONNECTION_FAILED: "the peer didn't take the circuit: it is gone, or doesn't admit this node",
        pb.PERMISSION_DENIED: "it doesn't relay over a relay",
    }
    return f"The relay {relay} refuses: {reasons.get(status, f'status {status}')}."
