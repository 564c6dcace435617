"""The link between a node's control process and its compute worker: messages over an inherited socket.

Each message is protobuf, preceded by its length, 4 bytes big-endian. The worker is started here, too, because what it
needs from its first instruction on (thread counts, the allocator's thresholds, dying with its parent) is set
before it runs.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from commonweight.errors import ConfigError, MalformedMessage, MessageTooLarge, PeerUnreachable

MAX_LINK_BYTES = 16 << 20
"""Of one message: a spec with its corpus manifest is the largest, a few MiB."""

M = TypeVar("M", bound=Message)

# Runs in the child before the worker and becomes it. A preexec_fn would run Python between fork and exec of a
# process full of threads (gRPC's, libp2p's), which may deadlock. What is set here outlives exec: SIGKILL when
# the parent dies (prctl 1 is PR_SET_PDEATHSIG), and SIGINT ignored, so that Ctrl-C reaches the control
# process and *it* ends the worker.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the control process ended before its worker began")
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Link:
    """One end of a link. `send` may be called by several tasks, `receive` by one at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Over the streams of a connected socket; see `connect_link` and `spawn_worker`."""
        self._reader = reader
        self._writer = writer
        # The size of the message whose bytes haven't come yet: after a cancelled receive() the next one
        # resumes there.
        self._size: int | None = None

    async def send(self, message: Message) -> None:
        """Send one message; returns when the socket has taken most of it.

        Raises MessageTooLarge, or PeerUnreachable where the other end is gone.
        """
        payload = message.SerializeToString()
        if len(payload) > MAX_LINK_BYTES:
            raise MessageTooLarge(
                f"A {message.DESCRIPTOR.name} of {len(payload)} bytes is over the link's limit of {MAX_LINK_BYTES}."
            )
        try:
            if self._writer.is_closing():
                raise ConnectionResetError("closed")
            self._writer.write(len(payload).to_bytes(4, "big") + payload)
            await self._writer.drain()
        except ConnectionError as error:
            raise PeerUnreachable(f"The other end of the link is gone ({error}).") from error

    async def receive(self, kind: type[M]) -> M | None:
        """The next message, or None when the other end has closed the link or ended.

        A cancelled call loses nothing. Raises MessageTooLarge before anything is allocated, and
        MalformedMessage for bytes that aren't a `kind` or that end within a message; after either the link is
        of no more use.
        """
        try:
            if self._size is None:
                size = int.from_bytes(await self._reader.readexactly(4), "big")
                if size > MAX_LINK_BYTES:
                    raise MessageTooLarge(f"A message of {size} bytes is over the link's limit of {MAX_LINK_BYTES}.")
                self._size = size
            payload = await self._reader.readexactly(self._size)
        except asyncio.IncompleteReadError as error:
            if self._size is None and not error.partial:
                return None
            raise MalformedMessage(f"The link ended within a message, {len(error.partial)} bytes into it.") from error
        except ConnectionError:
            return None  # the other end was killed with bytes of ours unread
        self._size = None
        message: M = kind()
        try:
            message.ParseFromString(payload)
        except DecodeError as error:
            raise MalformedMessage(f"{len(payload)} bytes on the link are no {kind.DESCRIPTOR.name}.") from error
        return message

    async def close(self) -> None:
        """Close this end; the other end's `receive` returns None."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return  # the other end was faster

    async def __aenter__(self) -> "Link":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def connect_link(fd: int) -> Link:
    """The worker's end: `fd` is the value of its --link-fd option.

    Raises ConfigError where that is no socket.
    """
    try:
        return await _open(socket.socket(fileno=fd))
    except OSError as error:
        raise ConfigError(
            f"--link-fd {fd} is no socket ({error.strerror}). A worker is started by its node, not by hand."
        ) from error


async def spawn_worker(
    argv: Sequence[str], env: Mapping[str, str] | None = None, *, threads: int = 1, stdout: int | None = None
) -> tuple[asyncio.subprocess.Process, Link]:
    """Start `argv` (its first item is the path of the program) as the worker, with "--link-fd N" appended.

    `env` is added to this process's environment, `threads` sets the thread counts. The worker is killed when
    the *thread* that calls this ends, so call it from the main thread. Its stdout (unless given, as subprocess
    has it) and stderr are this process's. Raises ConfigError where the program can't be started.
    """
    if not os.access(argv[0], os.X_OK):
        raise ConfigError(f"The worker's program {argv[0]!r} can't be executed.")
    ours, theirs = socket.socketpair()
    try:
        command = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *argv)
        process = await asyncio.create_subprocess_exec(
            *command,
            "--link-fd",
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            env={**os.environ, **(env or {}), **worker_environment(threads)},
            pass_fds=(theirs.fileno(),),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, await _open(ours)


async def end_worker(process: asyncio.subprocess.Process, link: Link, wait_s: float) -> None:
    """End a worker: by closing its link, and with SIGKILL where it hasn't ended after `wait_s`."""
    await link.close()
    try:
        async with asyncio.timeout(wait_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def worker_environment(threads: int) -> dict[str, str]:
    """What must be set before torch is imported: thread counts, and an allocator that keeps its large blocks.

    The MALLOC_ values make glibc reuse memory instead of mapping it anew for every tensor: 2.4 → 0.1 ms/MB
    from tensor to wire.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
        "MALLOC_TOP_PAD_": str(64 << 20),
    }


async def _open(sock: socket.socket) -> Link:
    sock.set_inheritable(False)
    return Link(*await asyncio.open_connection(sock=sock, limit=1 << 20))
