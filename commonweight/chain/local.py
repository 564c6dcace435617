"""A chain of one's own on this machine, for the devnet and for tests: anvil where it is installed, else the
embedded one.

    with LocalChain.start() as local:
        chain = Chain.connect(local.rpc_url, expected_chain_id=local.chain_id)

Both back-ends fund `devnet_key(0)`, `devnet_key(1)`… with 10,000 ETH, mine each transaction at once, let
block time follow the wall clock, and know evm_increaseTime, evm_mine, evm_snapshot and evm_revert.
"""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from commonweight.chain.anvil import ANVIL_VARIABLE, find_anvil
from commonweight.chain.child import Ready
from commonweight.errors import ChainError

Backend = Literal["auto", "anvil", "embedded"]
DEFAULT_CHAIN_ID = 31337
START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0


def local_chain_command(
    backend: Backend = "auto",
    *,
    port: int = 0,
    chain_id: int = DEFAULT_CHAIN_ID,
    accounts: int = 10,
    log_file: Path | None = None,
    parent_pid: int | None = None,
) -> list[str]:
    """The argument list of a local chain, to be run as a supervised child process.

    Its standard output is one line, `Ready.parse` reads it; SIGTERM ends it. `port` 0 takes a free one. With
    `parent_pid` (the process that starts it) it also ends when that process is gone. Raises ChainError if
    anvil is asked for and missing.
    """
    chosen = _choose(backend)
    command = [sys.executable, "-m", f"commonweight.chain.{chosen}"]
    command += ["--port", str(port), "--chain-id", str(chain_id), "--accounts", str(accounts)]
    if log_file is not None:
        command += ["--log-file", str(log_file)]
    if parent_pid is not None:
        command += ["--parent-pid", str(parent_pid)]
    return command


class LocalChain:
    """A running local chain; `stop`, or the end of the `with` block, ends it. So does the end of this
    process.
    """

    def __init__(self, process: subprocess.Popen[bytes], ready: Ready, log_file: Path, temporary_log: bool) -> None:
        self._process = process
        self.backend = ready.backend
        self.rpc_url = ready.rpc_url
        self.port = ready.port
        self.chain_id = ready.chain_id
        self.pid = ready.pid
        self.log_file = log_file
        self._temporary_log = temporary_log

    @classmethod
    def start(
        cls,
        backend: Backend = "auto",
        *,
        chain_id: int = DEFAULT_CHAIN_ID,
        port: int = 0,
        accounts: int = 10,
        log_file: Path | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> Self:
        """Starts a fresh chain and returns once it answers. Raises ChainError, with the log's end, if it
        doesn't.
        """
        temporary_log = log_file is None
        if log_file is None:
            descriptor, name = tempfile.mkstemp(prefix="commonweight-chain-", suffix=".log")
            os.close(descriptor)
            log_file = Path(name)
        command = local_chain_command(
            backend,
            port=port,
            chain_id=chain_id,
            accounts=accounts,
            log_file=log_file,
            parent_pid=os.getpid(),
        )
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        try:
            ready = _wait_until_ready(process, command, log_file, timeout_s)
        except BaseException:
            _end(process)
            raise
        return cls(process, ready, log_file, temporary_log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the chain; a second call does nothing. A log that nobody asked for goes with it."""
        _end(self._process)
        if self._temporary_log:
            self.log_file.unlink(missing_ok=True)

    @property
    def running(self) -> bool:
        return self._process.poll() is None


def _choose(backend: Backend) -> Literal["anvil", "embedded"]:
    if backend not in ("auto", "anvil", "embedded"):
        raise ChainError(f"{backend!r} is no chain back-end: choose auto, anvil or embedded")
    if backend == "auto":
        return "anvil" if find_anvil() is not None else "embedded"
    if backend == "anvil" and find_anvil() is None:
        raise ChainError(
            f"anvil isn't installed: set {ANVIL_VARIABLE}, put it on PATH, run `npm ci` in contracts/, "
            "or choose the embedded back-end"
        )
    return backend


def _wait_until_ready(
    process: subprocess.Popen[bytes], command: Sequence[str], log_file: Path, timeout_s: float
) -> Ready:
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 4096) if readable else b""
        if not chunk:
            state = "ended" if readable else f"didn't answer within {timeout_s:.0f} s"
            tail = log_file.read_text(errors="replace")[-1500:].strip()
            raise ChainError(f"the local chain {state}: {' '.join(command)}\n{tail}\nThe whole log: {log_file}")
        line += chunk
    return Ready.parse(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        with contextlib.suppress(OSError):
            process.stdout.close()
