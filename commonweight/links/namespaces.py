"""Hosts of their own on one machine: network namespaces, joined by nothing but links.

Each has one device, a TUN, whose packets a shaping process carries. A namespace has no name and belongs to this
process: when that ends, however it ends, the kernel removes namespaces, devices and routes.
"""

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from commonweight.errors import ConfigError
from commonweight.links.client import LinkShaper

TUN = "/dev/net/tun"
DEVICE = b"tun0"
MTU_BYTES = 1_500
QUEUE_PACKETS = 10_000
"""Of the device: what waits for the shaping process to read it. It should never be what drops packets."""
NETWORK = "192.0.2."
"""TEST-NET-1 (RFC 5737)."""
MAX_HOSTS = 250
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
"""Of the namespace of the thread that opens it (tcp(7))."""

T = TypeVar("T")

# linux/sched.h, linux/if_tun.h, linux/sockios.h, linux/if.h
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8916, 0x891C, 0x8922, 0x8943

# Runs before the host's process and becomes it, as in wire/link.py: no Python between fork and exec. SIGKILL when the
# thread that started it ends (prctl 1 is PR_SET_PDEATHSIG), then into the namespace.
_ENTER = f"""
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, signal.SIGKILL)
if libc.setns(os.open(sys.argv[1], os.O_RDONLY | os.O_CLOEXEC), {_CLONE_NEWNET}) != 0:
    sys.exit(f"can't enter the network namespace: {{os.strerror(ctypes.get_errno())}}")
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Host:
    """A network namespace of this process."""

    name: str
    address: str
    """Its only one, beside 127.0.0.1."""
    congestion: str
    """How its TCP finds the rate at which to send: cubic, bbr, …"""
    namespace_fd: int

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` there, and ends when the thread that starts it does. It needs root."""
        return [
            *(sys.executable, "-I", "-S", "-c", _ENTER, f"/proc/{os.getpid()}/fd/{self.namespace_fd}"),
            *argv,
        ]


class Namespaces:
    """Hosts joined by links, for as long as the context lasts; `shaper` says how the links are.

    Raises ConfigError where `why_not` gives a reason.
    """

    shaper: LinkShaper
    """Its names are those of the hosts."""

    def __init__(self, names: Sequence[str], *, seed: int = 0, congestion: str = "") -> None:
        """`seed`: of jitter and losses. `congestion`: the hosts' TCP congestion control; empty: this machine's."""
        if not 1 <= len(set(names)) == len(names) <= MAX_HOSTS:
            raise ConfigError(f"{len(names)} names for hosts: there may be 1 to {MAX_HOSTS}, all different.")
        self._names = names
        self._seed = seed
        self._congestion = congestion
        self._processes: list[Process] = []
        self.hosts: dict[str, Host] = {}

    async def __aenter__(self) -> Self:
        if (reason := why_not()) is not None:
            raise ConfigError(f"There can be no hosts of their own here: {reason}.")
        if self._congestion and self._congestion not in (allowed := allowed_congestion()):
            raise ConfigError(
                f"This kernel doesn't let them have the TCP congestion control {self._congestion!r}: it allows "
                f"{', '.join(allowed)} (net.ipv4.tcp_allowed_congestion_control)."
            )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end_processes)
            with ExitStack() as devices:  # from here on they are the shaping process's
                options, fds = [], []
                for number, name in enumerate(self._names, start=1):
                    address = f"{NETWORK}{number}"
                    namespace_fd, tun_fd, congestion = _make_host(address, self._congestion)
                    stack.callback(os.close, namespace_fd)
                    devices.callback(os.close, tun_fd)
                    self.hosts[name] = Host(name, address, congestion, namespace_fd)
                    options.append(f"{name}:{address}:{tun_fd}")
                    fds.append(tun_fd)
                self.shaper = await stack.enter_async_context(LinkShaper(seed=self._seed, hosts=options, fds=fds))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int | None = asyncio.subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> Process:
        """A process on the host `name`, killed at the latest when the context ends. Call it in the main thread."""
        process = await asyncio.create_subprocess_exec(
            *self.hosts[name].inside(argv),
            stdin=stdin,
            stdout=stdout,
            env={**os.environ, **(environment or {})},
        )
        self._processes.append(process)
        return process

    async def _end_processes(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()
        for process in self._processes:
            await process.wait()


def why_not() -> str | None:
    """Why this process can't make such hosts, or None where it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    try:
        for fd in _make_host(f"{NETWORK}1")[:2]:
            os.close(fd)
    except OSError as error:
        return f"{error.filename or 'a network namespace with a TUN device'}: {error.strerror} (it takes root)"
    return None


def allowed_congestion() -> list[str]:
    """The TCP congestion controls that a namespace may be given."""
    return CONGESTION.with_name("tcp_allowed_congestion_control").read_text().split()


def _make_host(address: str, congestion: str = "") -> tuple[int, int, str]:
    """A new namespace with one TUN device: descriptors of both, which are all that keeps them, and its TCP congestion
    control, which is `congestion` where that isn't empty. Raises OSError.
    """

    def make() -> tuple[int, int, str]:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "a network namespace")
        with ExitStack() as opened:
            namespace_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, namespace_fd)
            tun_fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, tun_fd)
            fcntl.ioctl(tun_fd, _TUNSETIFF, struct.pack("16sH22x", DEVICE, _IFF_TUN | _IFF_NO_PI))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                _set_up(control, b"lo")
                for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
                    packed = struct.pack("16sH2x4s16x", DEVICE, socket.AF_INET, socket.inet_aton(value))
                    fcntl.ioctl(control, request, packed)
                for request, number in ((_SIOCSIFMTU, MTU_BYTES), (_SIOCSIFTXQLEN, QUEUE_PACKETS)):
                    fcntl.ioctl(control, request, struct.pack("16si20x", DEVICE, number))
                _set_up(control, DEVICE)
            if congestion:
                CONGESTION.write_text(congestion)
            used = CONGESTION.read_text().strip()
            opened.pop_all()
        return namespace_fd, tun_fd, used

    return _in_thread(make)


def _set_up(control: socket.socket, device: bytes) -> None:
    _, flags = struct.unpack("16sH22x", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s24x", device)))
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", device, flags | _IFF_UP))


def _in_thread(make: Callable[[], T]) -> T:
    """In a thread of its own, because a namespace is a thread's, and this one's shall stay as it is."""
    made: list[T] = []
    failed: list[OSError] = []

    def run() -> None:
        try:
            made.append(make())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
