"""Connections that go over links: a front address for each service, whoever connects there, and what is behind it.

Bytes take as long as the link says, and whoever sends faster is held up. What isn't imitated: a TCP of its own for each
link. Nothing is lost, there is no slow start and no congestion control; see docs/links.md for what that means.
"""

import asyncio
import socket
import struct
from contextlib import suppress

from commonweight.links.names import covers
from commonweight.links.path import StreamPath
from commonweight.links.paths import Paths
from commonweight.links.sources import Address, Sources

HOST = "127.0.0.1"
READ_BYTES = 64 << 10
CONNECT_S = 5.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER, so that closing a socket sends a reset."""


class Front:
    """One address, the name of who listens there, and where that one really listens.

    While `back` is None nobody listens: connections are reset.
    """

    def __init__(self, target: str, paths: Paths[StreamPath], sources: Sources) -> None:
        self.target = target
        self.back: Address | None = None
        self._paths = paths
        self._sources = sources
        self._open: set[_Connection] = set()

    async def listen(self) -> Address:
        """Accept connections from now on; returns where."""
        self._server = await asyncio.start_server(self._accept, HOST, 0, limit=READ_BYTES)
        host, port = self._server.sockets[0].getsockname()
        return host, port

    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def reset(self, source: str) -> int:
        """Reset all connections that `source`, or ANY, has opened, both ends at once; returns how many."""
        chosen = [connection for connection in self._open if covers(source, connection.source)]
        for connection in chosen:
            connection.reset()
        return len(chosen)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = self._sources.owner(writer.get_extra_info("peername"), writer.get_extra_info("sockname"))
        connection = _Connection(source, [writer])
        self._open.add(connection)
        connection.task = asyncio.create_task(self._carry(connection, reader))
        connection.task.add_done_callback(lambda _: self._close(connection))

    def _close(self, connection: "_Connection") -> None:
        self._open.remove(connection)
        for writer in connection.writers:
            writer.close()  # once the last bytes are taken

    async def _carry(self, connection: "_Connection", near_reader: asyncio.StreamReader) -> None:
        (near,) = connection.writers
        there = self._paths.path(connection.source, self.target)
        home = self._paths.path(self.target, connection.source)
        await there.pass_through()  # the request for a connection, which a cut keeps from arriving
        try:
            if self.back is None:
                raise ConnectionRefusedError
            async with asyncio.timeout(CONNECT_S):
                far_reader, far = await asyncio.open_connection(*self.back, limit=READ_BYTES)
        except (OSError, TimeoutError):
            await home.pass_through()
            _abort(near)
            return
        connection.writers.append(far)

        async def outward() -> None:
            await home.pass_through()  # the answer, without which nothing can be sent
            await _pump(near_reader, there, far)

        async with asyncio.TaskGroup() as directions:
            directions.create_task(outward())
            directions.create_task(_pump(far_reader, home, near))


class _Connection:
    """One that is open: who opened it, the task that carries it, and its one or two ends here."""

    task: asyncio.Task[None]

    def __init__(self, source: str, writers: list[asyncio.StreamWriter]) -> None:
        self.source = source
        self.writers = writers

    def reset(self) -> None:
        for writer in self.writers:
            _abort(writer)
        self.task.cancel()


async def _pump(reader: asyncio.StreamReader, path: StreamPath, writer: asyncio.StreamWriter) -> None:
    """Carry all that comes, then its end: an orderly one, or a reset. Both take their time, too."""

    def write(segment: memoryview) -> None:
        if not writer.is_closing():
            writer.write(segment)

    is_reset = False
    try:
        while data := await reader.read(READ_BYTES):
            with suppress(OSError):  # that the other end is gone the other direction tells
                await writer.drain()
            await path.send(data, write)
    except OSError:
        is_reset = True
    await path.pass_through()
    if is_reset:
        _abort(writer)
    elif not writer.is_closing():
        with suppress(OSError):  # it was reset, and asyncio doesn't know yet
            writer.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close it with a reset."""
    sock: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
