"""An ASGI application on a port, for as long as a block runs, beside whatever else the event loop does."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

from commonweight.errors import ConfigError
from commonweight.wire.channel import join_address, split_address

SHUTDOWN_S = 2
"""For requests that are being answered."""


class _Server(uvicorn.Server):
    """Leaves the process's signals to the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving_http(app: Any, listen: str) -> AsyncIterator[str]:
    """Serves `app` on host:port (port 0 takes a free one); yields the address that it has. Raises ConfigError."""
    host, port = split_address(listen)
    try:
        bound = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"HTTP can't be served on {listen}: {error.strerror}. Give another host:port.") from error
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        lifespan="off",
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield join_address(host, bound.getsockname()[1])
    finally:
        server.should_exit = True
        await serving
