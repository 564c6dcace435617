"""Who has opened a connection: the process at its other end, and the name under which its session is known.

A TCP connection on loopback doesn't say who opened it, and all of a node's connections would look alike to the
nodes that it talks to. Linux knows the owner of every socket (proc(5)).
"""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from commonweight.links.names import UNKNOWN

PROC = Path("/proc")

Address = tuple[str, int]


class Sources:
    """Names by session: whoever starts a process in a session of its own knows all that it will start."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def know(self, name: str, session: int) -> None:
        """What the processes of this session open is opened by `name`, and no other session's any more."""
        self._names = {each: known for each, known in self._names.items() if known != name} | {session: name}

    def owner(self, theirs: Address, ours: Address) -> str:
        """The name of who opened the connection from `theirs` to `ours`, or UNKNOWN."""
        inode = socket_inode(theirs, ours) if self._names else None
        if inode is None:
            return UNKNOWN
        for entry in PROC.iterdir():
            if entry.name.isdigit() and (name := self._name(int(entry.name))) is not None and _holds(entry, inode):
                return name
        return UNKNOWN

    def _name(self, pid: int) -> str | None:
        with suppress(OSError):  # it has ended
            return self._names.get(os.getsid(pid))
        return None


def socket_inode(local: Address, remote: Address) -> int | None:
    """The inode of the socket on this machine that is bound to `local` and connected to `remote`, both IPv4."""
    # A socket for both versions of IP, such as gRPC's, has IPv4 addresses mapped into IPv6 (RFC 4291, 2.5.5.2).
    for table, prefix in (("tcp", ""), ("tcp6", "0000000000000000FFFF0000")):
        wanted = [prefix + _as_proc(local), prefix + _as_proc(remote)]
        with suppress(OSError), (PROC / "net" / table).open() as lines:
            for line in lines:
                fields = line.split()
                if fields[1:3] == wanted:
                    return int(fields[9])
    return None


def _as_proc(address: Address) -> str:
    """As proc(5) writes it: the host's four bytes as one number in this machine's order."""
    host, port = address
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"


def _holds(process: Path, inode: int) -> bool:
    link = f"socket:[{inode}]"
    with suppress(OSError):  # it has ended, or isn't ours to look at
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                if str(descriptor.readlink()) == link:
                    return True
    return False
