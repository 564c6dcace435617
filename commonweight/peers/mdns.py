"""Peers on the same LAN, by multicast DNS (libp2p spec, discovery/mdns.md), with nothing configured. Trio side only.

What is found is only an address to try: the connection proves the key, and announcements prove themselves. Whoever runs
with a pre-shared key looks under a name of its own and isn't seen by others.
"""

import hashlib
import ipaddress
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from commonweight.errors import ConfigError
from commonweight.events import emit
from commonweight.peers.address import PeerAddress, parse_peer
from commonweight.peers.host import Host

SERVICE = "_p2p._udp.local."
ANSWER_MS = 3000
MAX_ADDRESSES = 8
"""That one peer may name."""


@asynccontextmanager
async def open_mdns(host: Host, psk: str | None, found: Callable[[PeerAddress], None]) -> AsyncIterator[None]:
    """Be found on the LAN, and call `found`, in the trio loop, with every address that another peer gives.

    Where this machine has no multicast it says so and goes on without.
    """
    token = trio.lowlevel.current_trio_token()
    service = _service(psk)
    try:
        zeroconf = await trio.to_thread.run_sync(lambda: Zeroconf(ip_version=IPVersion.V4Only))
    except (OSError, ZeroconfError) as error:
        emit("mdns.unavailable", message=f"Multicast DNS doesn't work on this machine: {error}")
        yield
        return
    own = _own_service(host, service)

    def tell(address: PeerAddress) -> None:
        if address.peer_id != host.peer_id:
            token.run_sync_soon(found, address)

    def begin() -> None:
        zeroconf.register_service(own)
        ServiceBrowser(zeroconf, service, listener=_Listener(tell))

    try:
        await trio.to_thread.run_sync(begin)
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(zeroconf.close)


class _Listener(ServiceListener):
    """Runs in zeroconf's thread."""

    def __init__(self, tell: Callable[[PeerAddress], None]) -> None:
        self._tell = tell

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        info = zc.get_service_info(type_, name, timeout=ANSWER_MS)
        if info is None:
            return
        named = [value for key, value in info.properties.items() if key.startswith(b"dnsaddr") and value]
        for value in named[:MAX_ADDRESSES]:
            try:
                self._tell(parse_peer(value.decode("ascii", "replace")))
            except (ConfigError, trio.RunFinishedError):
                continue  # another transport, another kind of key, or we have ended

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Whoever goes is noticed by its connection."""


def _service(psk: str | None) -> str:
    if psk is None:
        return SERVICE
    return f"_p2p-{hashlib.sha256(bytes.fromhex(psk)).hexdigest()[:8]}._udp.local."


def _own_service(host: Host, service: str) -> ServiceInfo:
    name = secrets.token_hex(16)
    addresses = tuple(_lan_addresses(host.listening))
    properties = {f"dnsaddr{number or ''}": str(address) for number, address in enumerate(addresses)}
    _, _, _, _, port, *_ = host.listening[0].split("/")
    ips = [socket.inet_aton(address.transport.split("/")[2]) for address in addresses]
    return ServiceInfo(
        service, f"{name}.{service}", port=int(port), properties=properties, server=f"{name}.local.", addresses=ips
    )


def _lan_addresses(listening: Iterable[str]) -> Iterable[PeerAddress]:
    """The IPv4 addresses in `listening`; of one that stands for all interfaces those that the interfaces have."""
    for text in listening:
        address = parse_peer(text)
        _, kind, ip, _, port = address.transport.split("/")
        if kind != "ip4":
            continue
        if not ipaddress.IPv4Address(ip).is_unspecified:
            yield address
            continue
        for _, _, _, _, (own_ip, *_) in socket.getaddrinfo(
            socket.gethostname(), None, socket.AF_INET, socket.SOCK_STREAM
        ):
            yield PeerAddress(f"/ip4/{own_ip}/tcp/{port}", address.peer_id)
