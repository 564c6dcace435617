"""Packets between network namespaces: each host's TUN device is read here, and its packets go over links.

A kernel's own TCP runs over such a link, so that loss, queues that overflow and congestion control are real.
"""

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from commonweight.links.path import PacketPath
from commonweight.links.paths import Paths

MAX_PACKET_BYTES = 64 << 10
BURST = 64
"""Packets that are read at once; then the others get their turn."""


@dataclass(frozen=True)
class RelayedHost:
    """One end of links."""

    name: str
    address: str
    """IPv4."""
    tun_fd: int
    """A TUN device without packet information, opened without blocking."""


class Relay:
    """Carries each packet to the host that it is addressed to. What is for nobody here is dropped."""

    def __init__(self, hosts: Sequence[RelayedHost], paths: Paths[PacketPath]) -> None:
        self._paths = paths
        self._by_address = {socket.inet_aton(host.address): host for host in hosts}

    def start(self) -> None:
        """From now on, on the running event loop."""
        for host in self._by_address.values():
            os.set_blocking(host.tun_fd, False)
            asyncio.get_running_loop().add_reader(host.tun_fd, self._read, host)

    def _read(self, source: RelayedHost) -> None:
        for _ in range(BURST):
            try:
                packet = os.read(source.tun_fd, MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            # RFC 791: the version is the first half byte, the destination bytes 16 to 19.
            target = self._by_address.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if target is not None:
                path = self._paths.path(source.name, target.name)
                path.offer(len(packet), partial(_write, target.tun_fd, packet))


def _write(tun_fd: int, packet: bytes) -> None:
    with suppress(OSError):  # the device's queue is full: it drops the packet, as a network card would
        os.write(tun_fd, packet)
