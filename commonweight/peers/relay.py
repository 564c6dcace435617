"""Serving as a relay: circuits between peers that can't reach each other, within limits. Trio side only.

The protocol is libp2p's circuit relay v2, hop. libp2p 0.8.1 brings a service for it, which isn't used: it reserves in
anybody's name, ends a peer's other circuits with one of them, and looks at the time only when bytes come. The messages
are its own, so that any libp2p peer is served.

A relay sees who talks to whom, when and how much. What they say is encrypted between them.
"""

import time
from collections import Counter
from dataclasses import dataclass

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg

from commonweight.errors import PeerUnreachable
from commonweight.events import emit
from commonweight.peers.host import Host
from commonweight.peers.pump import PumpLimits, StreamBytes, end_stream, pump, reset_stream

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
ANSWER_S = 10.0
"""For a request to come, and for the far peer to take a circuit."""


@dataclass(frozen=True)
class RelayLimits:
    """What a relay gives away."""

    reservations: int = 128
    """Peers that can be reached through it at a time."""
    reservation_s: int = 3600
    """They renew it before."""
    circuits: int = 64
    circuits_per_peer: int = 8
    """At either end."""
    circuit_bytes: int = 64 << 30
    """Both directions of one circuit; then both sides connect again."""
    circuit_s: int = 6 * 3600
    idle_s: float = 60.0
    """Without a byte."""


@dataclass(frozen=True)
class RelayStatistics:
    """A relay at one moment."""

    reservations: int
    """Some may just have ended."""
    circuits: int
    bytes_carried: int
    """By circuits that have ended."""
    refused: int


class Relay:
    """The hop service of one host. Use `serve_relay`."""

    def __init__(self, host: Host, limits: RelayLimits) -> None:
        self._host = host
        self._limits = limits
        self._reserved: dict[str, float] = {}
        """PeerId to trio's clock when the reservation ends."""
        self._circuits: Counter[str] = Counter()
        """Open ones by PeerId, each counted at both ends."""
        self._bytes_carried = 0
        self._refused = 0

    def statistics(self) -> RelayStatistics:
        """What it holds and has done."""
        return RelayStatistics(len(self._reserved), self._circuits.total() // 2, self._bytes_carried, self._refused)

    async def handle(self, stream: INetStream) -> None:
        """One request, and where a circuit is granted, until that ends."""
        peer = str(stream.muxed_conn.peer_id)
        try:
            with trio.fail_after(ANSWER_S):
                request = await read_delimited_msg(stream, pb.HopMessage)
            if stream.muxed_conn.get_connection_type() == ConnectionType.RELAYED:
                await self._refuse(stream, peer, pb.PERMISSION_DENIED)
            elif request.type == pb.HopMessage.RESERVE:
                await self._reserve(stream, peer)
            elif request.type == pb.HopMessage.CONNECT:
                await self._connect(stream, peer, str(ID(request.peer.id)))
            else:
                await self._refuse(stream, peer, pb.UNEXPECTED_MESSAGE)
        except BaseException:
            await reset_stream(stream)
            raise

    async def _reserve(self, stream: INetStream, peer: str) -> None:
        self._drop_stale()
        if peer not in self._reserved:
            if len(self._reserved) >= self._limits.reservations:
                return await self._refuse(stream, peer, pb.RESERVATION_REFUSED)
            emit("relay.reserved", peer=peer, seconds=self._limits.reservation_s)
        self._reserved[peer] = trio.current_time() + self._limits.reservation_s
        reservation = pb.Reservation(expire=int(time.time()) + self._limits.reservation_s)
        await self._answer(stream, pb.HopMessage(status=pb.OK, reservation=reservation))
        await end_stream(stream)
        return None

    async def _connect(self, stream: INetStream, peer: str, far_peer: str) -> None:
        self._drop_stale()
        if far_peer not in self._reserved:
            return await self._refuse(stream, peer, pb.NO_RESERVATION)
        busier = max(self._circuits[peer], self._circuits[far_peer])
        if busier >= self._limits.circuits_per_peer or self._circuits.total() >= 2 * self._limits.circuits:
            return await self._refuse(stream, peer, pb.RESOURCE_LIMIT_EXCEEDED)
        self._circuits.update((peer, far_peer))
        try:
            try:
                far = await self._open(peer, far_peer)
            except PeerUnreachable:
                return await self._refuse(stream, peer, pb.CONNECTION_FAILED)
            began = trio.current_time()
            await self._answer(stream, pb.HopMessage(status=pb.OK))
            limits = PumpLimits(self._limits.idle_s, self._limits.circuit_s, self._limits.circuit_bytes)
            carried = await pump(StreamBytes(stream), StreamBytes(far), limits)
        finally:
            self._circuits.subtract((peer, far_peer))
            self._circuits += Counter()  # forgets who has none
        self._bytes_carried += carried.bytes
        seconds = round(trio.current_time() - began, 3)
        emit("relay.circuit", peer=peer, far_peer=far_peer, bytes=carried.bytes, seconds=seconds, why=carried.why)
        return None

    async def _open(self, peer: str, far_peer: str) -> INetStream:
        """A stream to the far peer, which has taken the circuit. Raises PeerUnreachable."""
        far = await self._host.open_stream(far_peer, STOP, ANSWER_S)
        try:
            with trio.fail_after(ANSWER_S):
                source = pb.PeerId(id=ID.from_string(peer).to_bytes())
                await write_delimited_msg(
                    far, pb.StopMessage(type=pb.StopMessage.CONNECT, peer=source, limit=self._limit())
                )
                status = (await read_delimited_msg(far, pb.StopMessage)).status
            if status != pb.OK:
                raise PeerUnreachable(f"{far_peer} doesn't take a circuit from {peer}: status {status}.")
        except BaseException as error:
            await reset_stream(far)
            if isinstance(error, (trio.TooSlowError, DecodeError, IOException, ValueError)):
                raise PeerUnreachable(f"{far_peer} doesn't answer for a circuit: {error!r}.") from error
            raise
        return far

    async def _refuse(self, stream: INetStream, peer: str, status: pb.Status.ValueType) -> None:
        self._refused += 1
        emit("relay.refused", peer=peer, status=pb.Status.Name(status))
        await self._answer(stream, pb.HopMessage(status=status))
        await end_stream(stream)

    async def _answer(self, stream: INetStream, answer: pb.HopMessage) -> None:
        answer.type = pb.HopMessage.STATUS
        answer.limit.CopyFrom(self._limit())
        with trio.fail_after(ANSWER_S):
            await write_delimited_msg(stream, answer)

    def _limit(self) -> pb.Limit:
        """What every circuit is told; the message has 32 bits for the seconds and 64 for the bytes."""
        return pb.Limit(duration=self._limits.circuit_s, data=self._limits.circuit_bytes)

    def _drop_stale(self) -> None:
        now = trio.current_time()
        connected = self._host.connected
        self._reserved = {peer: end for peer, end in self._reserved.items() if end > now and peer in connected}


def serve_relay(host: Host, limits: RelayLimits | None = None) -> Relay:
    """Have the host serve as a relay for whoever connects to it."""
    relay = Relay(host, limits or RelayLimits())
    host.handle(HOP, relay.handle)
    return relay
