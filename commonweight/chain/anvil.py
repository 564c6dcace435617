"""`python -m commonweight.chain.anvil`: foundry's anvil, contained and supervised.

Speaks as `embedded.py` does: one `Ready` line, then silence; ends on SIGTERM or with its parent, and takes
anvil along. anvil itself is killed by the kernel when this process is (SIGKILL included), and may not use
more than 6 GiB of address space: its automine is known to stall and grow without bound (foundry issue 10122).
"""

import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from commonweight.chain.child import Ready, announce, die_with_parent_thread, parse_options, signal_pipe, watch_parent
from commonweight.errors import ChainError

ANVIL_VARIABLE = "COMMONWEIGHT_ANVIL"
MEMORY_LIMIT_BYTES = 6 << 30
STATES = 128
"""Of the last blocks, that can be read: as many as a full node keeps."""
READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 3.0
_LISTENING = re.compile(rb"Listening on 127\.0\.0\.1:(\d+)")
_CHECKOUT_ANVIL = Path(__file__).parents[2] / "contracts" / "node_modules" / ".bin" / "anvil"


def find_anvil(environment: Mapping[str, str] = os.environ) -> Path | None:
    """anvil's executable: $COMMONWEIGHT_ANVIL, else on PATH, else in the checkout's contracts/node_modules.

    Raises ChainError where the variable names a file that can't be run.
    """
    named = environment.get(ANVIL_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise ChainError(f"{ANVIL_VARIABLE}={named} can't be executed: correct it, or unset it")
        return Path(named)
    on_path = shutil.which("anvil", path=environment.get("PATH"))
    if on_path:
        return Path(on_path)
    return _CHECKOUT_ANVIL if os.access(_CHECKOUT_ANVIL, os.X_OK) else None


def anvil_command(anvil: Path, *, port: int, chain_id: int, accounts: int = 10) -> list[str]:
    """The argument list of anvil itself: local, on the fork that the embedded chain has."""
    return [
        str(anvil),
        *("--host", "127.0.0.1", "--port", str(port), "--chain-id", str(chain_id)),
        *("--accounts", str(accounts), "--hardfork", "prague", "--prune-history", str(STATES), "--no-cors"),
        *("--color", "never"),
    ]


def contained() -> Callable[[], None]:
    """For `preexec_fn`: caps memory, and ties the child's life to this thread's."""
    die_with_parent = die_with_parent_thread()

    def apply() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
        die_with_parent()

    return apply


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options("anvil", __doc__, "append anvil's output here; thrown away by default", arguments)

    anvil = find_anvil()
    if anvil is None:
        raise SystemExit(f"no anvil: set {ANVIL_VARIABLE}, put it on PATH, or run `npm ci` in contracts/")
    parent = watch_parent(options.parent_pid)
    asked_to_end = signal_pipe()
    command = anvil_command(anvil, port=options.port, chain_id=options.chain_id, accounts=options.accounts)
    with (options.log_file or Path(os.devnull)).open("ab", buffering=0) as log:
        # This process has one thread, so preexec_fn is safe, and the thread lives as long as the process.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=contained(),
        )
        try:
            code = _supervise(process, log, options.chain_id, [fd for fd in (parent, asked_to_end) if fd])
        finally:
            _stop(process)
    raise SystemExit(code)


def _supervise(process: subprocess.Popen[bytes], log: IO[bytes], chain_id: int, endings: list[int]) -> int:
    """Copies anvil's output to the log and announces its port, until it ends or we are to end. Returns our
    exit code.
    """
    assert process.stdout is not None
    output = process.stdout.fileno()
    deadline = time.monotonic() + READY_TIMEOUT_S
    ready, seen = False, b""
    while True:
        patience = None if ready else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([output, *endings], [], [], patience)
        if not readable:
            return _fail(f"anvil wasn't ready within {READY_TIMEOUT_S:.0f} s", seen)
        if any(fd in readable for fd in endings):
            return 0
        chunk = os.read(output, 65536)
        log.write(chunk)
        if not chunk:
            return _fail(f"anvil ended by itself with status {process.wait()}", seen)
        seen = (seen + chunk)[-4096:]
        if not ready and (match := _LISTENING.search(seen)):
            port = int(match[1])
            announce(Ready("anvil", f"http://127.0.0.1:{port}", port, chain_id, os.getpid()))
            ready = True


def _fail(what: str, output: bytes) -> int:
    last = output.decode(errors="replace").strip().splitlines()[-5:]
    sys.stderr.write("\n".join([what, *last]) + "\n")
    return 1


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends anvil: politely, then not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
