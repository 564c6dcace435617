"""With whom a process looks for others. Imports nothing of libp2p: commands read it before they decide to."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from commonweight.errors import ConfigError
from commonweight.peers.address import PeerAddress, parse_listen, parse_peer, parse_peer_host

MAX_BOOTSTRAP = 16
_PSK = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class PeersConfig:
    """What one process's libp2p runs with."""

    listen: str
    """Multiaddr, /ip4/…/tcp/…; port 0 takes a free one."""
    bootstrap: tuple[PeerAddress, ...] = ()
    """Peers to begin with; any one of them is enough."""
    mdns: bool = False
    """Whether to look on the LAN, too."""
    relay: bool = False
    """Whether peers that can't be reached may be reached through this one."""
    relayed: bool = False
    """Whether this one is reached through its bootstrap peers."""
    advertise: str | None = None
    """Host by which others reach it, where that isn't the one it listens on."""
    psk: str | None = field(default=None, repr=False)
    """32 bytes in hexadecimal: only who has the same is heard. None: anyone."""


def read_peers_config(
    bootstrap: Iterable[str] | None,
    mdns: bool,
    listen: str | None,
    psk_file: Path | None,
    default_host: str,
    advertise: str | None = None,
) -> PeersConfig | None:
    """The config that these options make; None where there is nobody to look for. Raises ConfigError.

    Without `listen`, libp2p listens on a free port of `default_host`, or of all interfaces where that isn't an IP.
    """
    peers = tuple(map(parse_peer, bootstrap or ()))
    if len(peers) > MAX_BOOTSTRAP:
        raise ConfigError(f"--bootstrap is given {len(peers)} times; {MAX_BOOTSTRAP} are more than enough.")
    if not peers and not mdns:
        if listen is not None or psk_file is not None:
            raise ConfigError("--p2p-listen and --psk-file go with --bootstrap MULTIADDR or --mdns.")
        return None
    where = parse_listen(listen) if listen is not None else _free_port_of(default_host)
    if advertise is None and not _is_ip(default_host):
        advertise = default_host
    advertise = check_p2p_advertised(where, advertise)
    return PeersConfig(where, peers, mdns, advertise=advertise, psk=read_psk(psk_file))


def check_p2p_advertised(listen: str, advertise: str | None) -> str | None:
    """`advertise`, where others can find the host that listens there by it. Raises ConfigError."""
    if advertise is None and ipaddress.ip_address(listen.split("/")[2]).is_unspecified:
        raise ConfigError(
            f"libp2p listens on all interfaces ({listen}): say with --advertise HOST how others reach it."
        )
    if advertise is not None:
        parse_peer_host(advertise)
    return advertise


def read_psk(path: Path | None) -> str | None:
    """The key of a private network in a file: 64 hexadecimal digits. Raises ConfigError, which never shows them."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--psk-file {path} can't be read: {getattr(error, 'strerror', None) or 'not text'}."
        ) from error
    if not _PSK.fullmatch(text):
        raise ConfigError(
            f"--psk-file {path} holds {len(text)} characters; the key of a private network is 64 hexadecimal digits. "
            "Make one with `openssl rand -hex 32`, and give all members the same."
        )
    return text.lower()


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _free_port_of(host: str) -> str:
    try:
        return f"/ip{ipaddress.ip_address(host).version}/{host}/tcp/0"
    except ValueError:
        return "/ip4/0.0.0.0/tcp/0"
