"""TCP for a libp2p host: libp2p's own, with a bound on what one machine may hold open, and nothing kept afterwards."""

from collections import Counter

import trio
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.transport.tcp.tcp import TCP, TCPListener

MAX_CONNECTIONS = 256
"""That came in and are open, half-open ones among them."""
MAX_PER_SOURCE = 64
"""Of these from one IP address: a quarter, so that a stranger with one machine can't take all."""
CLOSING_S = 5.0
"""For the host to put its books in order after a connection has closed."""


class BoundedTcp(TCP):
    """libp2p's TCP. Each accepted connection takes a place until it is closed, and its source at most so many."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: Counter[str] = Counter()
        """Open connections that came in, by IP address."""

    def create_listener(self, handler_function: THandler) -> TCPListener:
        """A listener whose handler ends with its connection.

        libp2p's (0.8.1) waits for the host's end and keeps the connection's place in its limit until then: left alone,
        a host takes no connection any more once it has had as many as may be open at a time.
        """

        async def handle(accepted: ReadWriteCloser) -> None:
            source, _ = accepted.get_remote_address() or ("", 0)
            if self.sources[source] >= MAX_PER_SOURCE or self.sources.total() >= MAX_CONNECTIONS:
                await accepted.close()
                return
            self.sources[source] += 1
            assert isinstance(accepted, TrioTCPStream), "what TCPListener accepts"
            connection = _Watched(accepted.stream)
            try:
                async with trio.open_nursery() as nursery:

                    async def serve() -> None:
                        await handler_function(connection)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(serve)
                    await connection.closed.wait()
                    await trio.sleep(CLOSING_S)
                    nursery.cancel_scope.cancel()
            finally:
                self.sources[source] -= 1
                if not self.sources[source]:
                    del self.sources[source]

        return TCPListener(handle)


class _Watched(TrioTCPStream):
    """A connection that says when it has been closed."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.closed = trio.Event()

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self.closed.set()
