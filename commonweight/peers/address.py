"""Where a libp2p peer is: /ip4/203.0.113.7/tcp/4001/p2p/16Uiu2HA…, a multiaddr that names its key."""

import ipaddress
from dataclasses import dataclass

from commonweight.errors import ConfigError, MalformedMessage
from commonweight.identity import public_key_of

MAX_TEXT = 512


@dataclass(frozen=True)
class PeerAddress:
    """Where a peer listens, and whom to expect there."""

    transport: str
    """/ip4/…/tcp/…, or with ip6, dns, dns4 or dns6."""
    peer_id: str

    def __str__(self) -> str:
        return f"{self.transport}/p2p/{self.peer_id}"


def parse_peer(text: str) -> PeerAddress:
    """The address in a text. Raises ConfigError that says what is wrong with it."""
    transport, found, peer_id = text[:MAX_TEXT].rpartition("/p2p/")
    if not found:
        raise ConfigError(
            f"{text[:80]!r} names no peer: expected /ip4/HOST/tcp/PORT/p2p/PEERID, as `peers bootstrap` prints it."
        )
    try:
        public_key_of(peer_id)
    except MalformedMessage as error:
        raise ConfigError(f"{text[:120]!r}: {error.args[0]}") from error
    return PeerAddress(_parse_transport(transport, lowest_port=1), peer_id)


def parse_listen(text: str) -> str:
    """The text, where it is a multiaddr to listen on; port 0 takes a free one. Raises ConfigError."""
    return _parse_transport(text[:MAX_TEXT], lowest_port=0)


def parse_peer_host(host: str) -> str:
    """The beginning of a multiaddr for a host's IP or name: /ip4/…, /ip6/… or /dns/…. Raises ConfigError."""
    try:
        return f"/ip{ipaddress.ip_address(host).version}/{host}"
    except ValueError:
        prefix = f"/dns/{host}"
        _parse_transport(f"{prefix}/tcp/1", lowest_port=1)
        return prefix


def _parse_transport(text: str, lowest_port: int) -> str:
    parts = text.split("/")
    if len(parts) != 5 or parts[0] or parts[3] != "tcp":
        raise ConfigError(f"{text[:120]!r} is not a multiaddr of TCP: expected /ip4/HOST/tcp/PORT.")
    _, kind, host, _, port = parts
    try:
        if kind == "ip4":
            ipaddress.IPv4Address(host)
        elif kind == "ip6":
            ipaddress.IPv6Address(host)
        elif kind not in ("dns", "dns4", "dns6") or not host or not lowest_port:
            raise ValueError(f"{kind!r} {host!r} is no address of a host" if lowest_port else "listen on an IP address")
    except ValueError as error:
        raise ConfigError(f"{text[:120]!r}: {error}.") from error
    if not (port.isascii() and port.isdigit() and lowest_port <= int(port[:6]) <= 65535):
        raise ConfigError(f"{text[:120]!r}: {port[:20]!r} is no port; ports are numbers from {lowest_port} to 65535.")
    return text
