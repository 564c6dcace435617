"""gRPC through a libp2p stream, for peers whose ports can't be reached. Trio side only.

    gRPC client ── 127.0.0.1:PORT ── who dials ══ libp2p stream ══ who is dialled ── its own gRPC server

Each connection to PORT is one stream. It begins with the name of a service, a length byte and ASCII, and the other side
answers one byte, an `Answer`. From then on bytes are copied. A peer can name a service and never an address: it reaches
what this node serves anyway, and nothing else.

TLS goes from end to end, with the certificates of a direct connection, so neither who copies nor a relay below can read
or change anything, and whoever else on this machine connects to PORT gets no further than a handshake.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import get_args

import trio
from libp2p.abc import INetStream
from libp2p.io.exceptions import IOException

from commonweight.errors import CommonweightError, PeerUnreachable, Refused
from commonweight.events import emit
from commonweight.peers.host import Host
from commonweight.peers.offered import Offered, Service
from commonweight.peers.pump import PumpLimits, SocketBytes, StreamBytes, end_stream, pump, reset_stream
from commonweight.wire.channel import split_address

TUNNEL = "/commonweight/tunnel/1"


class Answer(IntEnum):
    """What a peer that was asked for a service says."""

    OPEN = 0
    NOT_ADMITTED = 1
    NOT_SERVED = 2
    NO_ROOM = 3
    UNAVAILABLE = 4


@dataclass(frozen=True)
class TunnelLimits:
    """How much one host carries, in each role."""

    streams_per_peer: int = 16
    """A peer's channels: two pipes, a few to generate, a few to fetch. libp2p hangs at 256 on a connection."""
    streams: int = 128
    idle_s: float = 30.0
    """Without a byte either way. gRPC's pings come every 2 s, so it is gone."""
    open_s: float = 10.0
    """For the peer to answer, and for its service to take the connection."""


@dataclass(frozen=True)
class TunnelStatistics:
    """A host's tunnels at one moment."""

    open: int
    bytes_carried: int
    """By streams that have ended."""
    refused: int


class Tunnels:
    """Both ends of one host's tunnels. Use `open_tunnels`."""

    def __init__(
        self,
        host: Host,
        offered: Offered,
        limits: TunnelLimits,
        nursery: trio.Nursery,
    ) -> None:
        self._host = host
        self._offered = offered
        self._limits = limits
        self._nursery = nursery
        self._ports: dict[tuple[str, Service], int] = {}
        self._open: Counter[str] = Counter()
        """Streams by PeerId, of both ends."""
        self._bytes_carried = 0
        self._refused = 0

    def statistics(self) -> TunnelStatistics:
        """What is open and was carried."""
        return TunnelStatistics(self._open.total(), self._bytes_carried, self._refused)

    async def listen(self, peer_id: str, service: Service, connect: Callable[[], Awaitable[object]]) -> int:
        """The port on 127.0.0.1 that leads to the peer's service, the same one each time.

        `connect` is awaited for each connection to it: libp2p is connected to the peer when it returns. It raises
        PeerUnreachable or Refused.
        """
        if (peer_id, service) not in self._ports:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def dial(local: trio.SocketStream) -> None:
                await self._dial(local, peer_id, service, connect)

            self._nursery.start_soon(trio.serve_listeners, dial, [listener])
            self._ports[peer_id, service] = listener.socket.getsockname()[1]
        return self._ports[peer_id, service]

    async def serve(self, stream: INetStream) -> None:
        """A peer asks for a service."""
        peer_id = str(stream.muxed_conn.peer_id)
        try:
            with trio.fail_after(self._limits.open_s):
                name = await _read(stream, (await _read(stream, 1))[0])
        except BaseException:
            await reset_stream(stream)
            raise
        service = next((each for each in get_args(Service) if each.encode() == name), None)
        if peer_id not in self._offered.admitted:
            return await self._refuse(stream, peer_id, Answer.NOT_ADMITTED)
        if service is None or (address := self._offered.services.get(service)) is None:
            return await self._refuse(stream, peer_id, Answer.NOT_SERVED)
        if not self._has_room(peer_id):
            return await self._refuse(stream, peer_id, Answer.NO_ROOM)
        with self._counted(peer_id):
            try:
                with trio.fail_after(self._limits.open_s):
                    local = await trio.open_tcp_stream(*split_address(address))
            except (OSError, trio.TooSlowError):
                return await self._refuse(stream, peer_id, Answer.UNAVAILABLE)
            await stream.write(bytes([Answer.OPEN]))
            await self._carry(local, stream, peer_id, service)
        return None

    async def _dial(
        self, local: trio.SocketStream, peer_id: str, service: Service, connect: Callable[[], Awaitable[object]]
    ) -> None:
        try:
            if not self._has_room(peer_id):
                raise Refused(f"{self._open[peer_id]} streams to {peer_id} are open, as many as there may be.")
            with self._counted(peer_id):
                await connect()
                stream = await self._open_stream(peer_id, service)
                await self._carry(local, stream, peer_id, service)
        except CommonweightError as error:
            emit("tunnel.failed", peer=peer_id, service=service, code=error.code, message=error.args[0])
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(local)

    async def _open_stream(self, peer_id: str, service: Service) -> INetStream:
        stream = await self._host.open_stream(peer_id, TUNNEL, self._limits.open_s)
        try:
            with trio.fail_after(self._limits.open_s):
                await stream.write(bytes([len(service)]) + service.encode())
                answer = (await _read(stream, 1))[0]
        except (IOException, ValueError, trio.TooSlowError) as error:
            await reset_stream(stream)
            raise PeerUnreachable(f"{peer_id} didn't answer for its {service} service: {error!r}.") from error
        if answer != Answer.OPEN:
            await end_stream(stream)
            raise Refused(f"{peer_id} doesn't tunnel to its {service} service: {_REFUSALS.get(answer, answer)}.")
        return stream

    async def _carry(self, local: trio.SocketStream, stream: INetStream, peer_id: str, service: Service) -> None:
        emit("tunnel.opened", peer=peer_id, service=service)
        began = trio.current_time()
        carried = await pump(SocketBytes(local), StreamBytes(stream), PumpLimits(self._limits.idle_s))
        self._bytes_carried += carried.bytes
        seconds = round(trio.current_time() - began, 3)
        emit("tunnel.ended", peer=peer_id, service=service, bytes=carried.bytes, seconds=seconds, why=carried.why)

    async def _refuse(self, stream: INetStream, peer_id: str, answer: Answer) -> None:
        self._refused += 1
        emit("tunnel.refused", peer=peer_id, why=answer.name.lower())
        await stream.write(bytes([answer]))
        await end_stream(stream)

    def _has_room(self, peer_id: str) -> bool:
        return self._open[peer_id] < self._limits.streams_per_peer and self._open.total() < self._limits.streams

    @contextmanager
    def _counted(self, peer_id: str) -> Iterator[None]:
        self._open[peer_id] += 1
        try:
            yield
        finally:
            self._open[peer_id] -= 1
            self._open += Counter()  # forgets who has none


@asynccontextmanager
async def open_tunnels(host: Host, offered: Offered, limits: TunnelLimits | None = None) -> AsyncIterator[Tunnels]:
    """Tunnel to peers, and take the admitted ones to what is offered."""
    async with trio.open_nursery() as nursery:
        tunnels = Tunnels(host, offered, limits or TunnelLimits(), nursery)
        host.handle(TUNNEL, tunnels.serve)
        yield tunnels
        nursery.cancel_scope.cancel()


async def _read(stream: INetStream, size: int) -> bytes:
    """So many bytes. Raises IOException where the stream ends before."""
    data = b""
    while len(data) < size:
        data += await stream.read(size - len(data))
    return data


_REFUSALS: dict[int, str] = {
    Answer.NOT_ADMITTED: "it doesn't admit this node; it may not know yet that they are neighbours",
    Answer.NOT_SERVED: "it has no such service now",
    Answer.NO_ROOM: "too many streams are open",
    Answer.UNAVAILABLE: "the service doesn't take connections; it may be starting again",
}
