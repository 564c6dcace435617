"""`python -m commonweight.links --control-fd N`: a process that shapes links. It ends with who holds the other end.

Without --host it offers fronts for connections; with it, it carries packets between the TUN devices that it inherited.
"""

import argparse
import asyncio
import resource
import socket
from collections.abc import Sequence

from commonweight.links.control import MAX_LINE_BYTES, Fronts, Orders, serve
from commonweight.links.path import PacketPath, StreamPath
from commonweight.links.paths import Paths
from commonweight.links.relay import Relay, RelayedHost


async def shape_links(control_fd: int, seed: int, hosts: Sequence[RelayedHost]) -> None:
    """Until the control socket is closed."""
    clock = asyncio.get_running_loop()
    orders: Orders
    if hosts:
        packets = Paths(PacketPath, clock, seed)
        Relay(hosts, packets).start()
        orders = Orders(packets)
    else:
        orders = Fronts(Paths(StreamPath, clock, seed))
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=control_fd), limit=MAX_LINE_BYTES)
    try:
        await serve(orders, reader, writer)
    except ConnectionError:
        return  # it was killed with answers unread
    finally:
        writer.close()


def _host(text: str) -> RelayedHost:
    name, address, fd = text.rsplit(":", 2)
    return RelayedHost(name, address, int(fd))


def main() -> None:
    """Run until the control socket is closed."""
    parser = argparse.ArgumentParser(prog="python -m commonweight.links", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True, help="the socket over which it is told what to do")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and losses")
    parser.add_argument(
        "--host", type=_host, action="append", default=[], metavar="NAME:ADDRESS:FD", help="one whose packets to carry"
    )
    arguments = parser.parse_args()
    # Connections that a cut holds up are kept open on this side until it is healed.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(shape_links(arguments.control_fd, arguments.seed, arguments.host))


if __name__ == "__main__":
    main()
