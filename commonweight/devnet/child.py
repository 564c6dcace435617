"""A process that we started: its output is kept, its lines arrive in order, and it never outlives us."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from commonweight.chain.child import die_with_parent_thread
from commonweight.errors import StateError

MAX_LINE_BYTES = 1 << 20
"""A longer line is in the log, but is no event."""
DRAIN_S = 2.0
"""How long a dead child's output may be held open by whoever inherited it."""


class Child:
    """A child process in a process group of its own, so that Ctrl-C reaches it only through us.

    Its standard output goes to NAME.jsonl and to `lines()`, its standard error to NAME.err. When it ends, however it
    ends, what is left of its group is killed. When this process ends, however it ends, the kernel kills it: so it must
    be started from a thread that lives as long, which the event loop's does.
    """

    def __init__(self, name: str, output: "_Output", transport: asyncio.SubprocessTransport, errors: Path) -> None:
        self.name = name
        self.pid = transport.get_pid()
        self._output = output
        self._transport = transport
        self.errors = errors
        """The file with its standard error."""

    @classmethod
    async def start(
        cls, name: str, argv: Sequence[str], logs: Path, *, environment: Mapping[str, str] | None = None
    ) -> "Child":
        """Starts `argv`, logging to the folder `logs`. Raises StateError where it can't be started."""
        loop = asyncio.get_running_loop()
        errors = logs / f"{name}.err"
        output = _Output((logs / f"{name}.jsonl").open("ab", buffering=0), loop)
        with errors.open("ab") as stderr:
            try:
                transport, _ = await loop.subprocess_exec(
                    lambda: output,
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stderr=stderr,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                    preexec_fn=die_with_parent_thread(),
                )
            except OSError as error:
                output.close()
                raise StateError(f"{name} can't be started: {error}. The command was: {' '.join(argv)}") from error
        return cls(name, output, transport, errors)

    async def lines(self) -> AsyncIterator[bytes]:
        """What it writes to standard output, line by line, until it has ended and all has been read. Iterate once."""
        while (line := await self._output.lines.get()) is not None:
            yield line

    async def wait(self) -> int:
        """Its exit status once it has ended: negative is the signal that killed it."""
        return await asyncio.shield(self._output.ended)

    @property
    def ended(self) -> bool:
        return self._output.ended.done()

    def kill(self) -> None:
        """SIGKILL, to it alone: what it started ends by itself."""
        with suppress(ProcessLookupError):
            self._transport.send_signal(signal.SIGKILL)

    async def stop(self, deadline_s: float) -> int:
        """Asks it to end, kills it after the deadline, and returns its exit status."""
        if not self.ended:
            with suppress(ProcessLookupError):
                self._transport.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(deadline_s):
                    return await self.wait()
            except TimeoutError:
                _kill_group(self.pid)
        return await self.wait()

    def last_errors(self, count: int = 8) -> str:
        """The last lines that it wrote to standard error."""
        with self.errors.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64 * 1024))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-count:])


class _Output(asyncio.SubprocessProtocol):
    """Standard output as lines, then None; and the exit status.

    asyncio's own Process.wait() may wait for whoever inherited the pipe (CPython 3.11, 3.12), this doesn't.
    """

    def __init__(self, log: FileIO, loop: asyncio.AbstractEventLoop) -> None:
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        self._log = log
        self._partial = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)
        self._log.write(data)
        self._partial += data
        *complete, rest = self._partial.split(b"\n")
        self._partial = rest if len(rest) <= MAX_LINE_BYTES else bytearray()
        for line in complete:
            self.lines.put_nowait(bytes(line))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.close()
        self.lines.put_nowait(None)

    def process_exited(self) -> None:
        status = self._transport.get_returncode()
        assert status is not None
        _kill_group(self._transport.get_pid())
        self.ended.set_result(status)
        self._loop.call_later(DRAIN_S, self._transport.close)

    def close(self) -> None:
        self._log.close()


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended, all of it
        os.killpg(leader, signal.SIGKILL)
