"""How a local chain runs as somebody's child process: one line when it is ready, and no life without its
parent.

The line on standard output is a JSON object, `Ready`; nothing else is ever written there. The parent is
watched through a pidfd, which fires when that process is gone, however it went. (PR_SET_PDEATHSIG alone won't
do: it fires when the *thread* that started the child ends.)
"""

import argparse
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

_PR_SET_PDEATHSIG = 1
EXIT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Ready:
    """What a local chain says once it answers."""

    backend: str
    """"anvil" or "embedded"."""
    rpc_url: str
    port: int
    chain_id: int
    pid: int
    """Of the process to signal: SIGTERM ends the chain and all that belongs to it."""

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, line: str | bytes) -> Self:
        """Reads such a line. Raises ValueError for anything else."""
        fields = json.loads(line)
        if not isinstance(fields, dict) or set(fields) != set(cls.__dataclass_fields__):
            raise ValueError(f"{line!r:.200} doesn't say that a chain is ready")
        return cls(**fields)


def parse_options(
    backend: str, about: str | None, log_help: str, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """What a local chain is started with: port, chain_id, accounts, parent_pid, log_file."""
    parser = argparse.ArgumentParser(prog=f"python -m commonweight.chain.{backend}", description=about)
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--chain-id", type=int, default=31337)
    parser.add_argument("--accounts", type=int, default=10, help="number of funded accounts")
    parser.add_argument("--parent-pid", type=int, help="end when this process, our parent, is gone")
    parser.add_argument("--log-file", type=Path, help=log_help)
    return parser.parse_args(arguments)


def announce(ready: Ready) -> None:
    """Writes the line to standard output."""
    sys.stdout.write(ready.line())
    sys.stdout.flush()


def watch_parent(parent_pid: int | None) -> int | None:
    """A file descriptor that becomes readable when `parent_pid` is gone; None if there is nobody to watch.

    Raises SystemExit if that process isn't our parent any more, so that no orphan starts.
    """
    if parent_pid is None:
        return None
    if os.getppid() != parent_pid:
        raise SystemExit(f"the process {parent_pid} that wanted this chain is gone")
    return os.pidfd_open(parent_pid) if hasattr(os, "pidfd_open") else None


def signal_pipe() -> int:
    """A file descriptor that becomes readable when this process is asked to end. Call it once, in the main
    thread.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in EXIT_SIGNALS:
        signal.signal(number, lambda *_: None)
    return reading


def die_with_parent_thread() -> Callable[[], None]:
    """For `preexec_fn`: the kernel kills the child when the thread that starts it ends. No-op where there is
    no prctl.

    Loads libc here, in the parent, because little is safe between fork and exec.
    """
    libc = ctypes.CDLL(None)
    prctl = getattr(libc, "prctl", None)

    def set_signal() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return set_signal
