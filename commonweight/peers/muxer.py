"""Yamux that holds the other side to what it may send. Trio side only.

libp2p 0.8.1 tells each peer how much it may send on a stream, and then buffers whatever comes: anybody who can connect
could fill the memory. Here who sends more than that, or has more streams than libp2p itself would open, is hung up on.
"""

from typing import Any

from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.custom_types import TMuxerOptions, TProtocol
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID, Yamux

MAX_STREAMS = 512
"""On one connection, of both sides; libp2p opens 256 at a time."""
ONLY_YAMUX: TMuxerOptions = {TProtocol(PROTOCOL_ID): Yamux}
"""What a host offers: mplex has no windows at all."""


def hold_to_windows(swarm: Swarm) -> None:
    """Have every connection that the swarm makes or accepts from now on bounded."""
    upgrade = swarm.upgrader.upgrade_connection

    async def upgrade_bounded(conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        connection = await upgrade(conn, peer_id)
        assert isinstance(connection, Yamux), "nothing else is offered"
        assert not connection.stream_buffers, "it isn't started yet"
        connection.stream_buffers = _Buffers(connection)
        return connection

    swarm.upgrader.upgrade_connection = upgrade_bounded  # type: ignore[method-assign]


class _Buffers(dict[int, bytearray]):
    """What was received and isn't read yet, by stream."""

    def __init__(self, connection: Yamux) -> None:
        super().__init__()
        self._connection = connection

    def __setitem__(self, stream_id: int, _: bytearray) -> None:
        if len(self) >= MAX_STREAMS:
            self._connection.event_shutting_down.set()
        super().__setitem__(stream_id, _Buffer(self._connection, stream_id))


class _Buffer(bytearray):
    def __init__(self, connection: Yamux, stream_id: int) -> None:
        super().__init__()
        self._connection = connection
        self._stream_id = stream_id

    def extend(self, data: Any) -> None:
        stream = self._connection.streams.get(self._stream_id)
        if stream is not None and len(data) > stream.recv_window:
            self._connection.event_shutting_down.set()
            raise MuxedStreamError("the peer has sent more than it may")
        super().extend(data)
