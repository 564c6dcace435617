"""A shaping process, seen from who started it."""

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

from commonweight.errors import PeerUnreachable, error_with_code
from commonweight.links.control import MAX_LINE_BYTES
from commonweight.links.link import LinkShape
from commonweight.links.names import ANY, crossing
from commonweight.links.path import PathStatistics

ANSWER_S = 10.0
"""An order takes milliseconds; a process that doesn't answer in this time is stuck."""
END_S = 5.0


@dataclass(frozen=True)
class FrontStatistics:
    """How a front stands."""

    target: str
    connections: int
    """That are open, those that wait for a cut to be healed as well."""


@dataclass(frozen=True)
class LinkStatistics:
    """How a shaping process stands."""

    paths: dict[tuple[str, str], PathStatistics]
    """By (from, to); a path exists once something was sent over it."""
    fronts: dict[str, FrontStatistics]
    """By address."""


class LinkShaper:
    """A child process that shapes links, for as long as the context lasts, and never longer than this process.

    Paths are named by (from, to). Each method tells the process, and returns when it has done it. All raise
    ConfigError for what can't be, and PeerUnreachable where the process is gone or stuck.
    """

    def __init__(self, *, seed: int = 0, hosts: Sequence[str] = (), fds: Sequence[int] = ()) -> None:
        """`hosts` are the values of its --host options, `fds` the descriptors that they name: see namespaces.py."""
        self._command = [sys.executable, "-m", "commonweight.links", "--seed", str(seed)]
        for host in hosts:
            self._command += ["--host", host]
        self._fds = fds
        self._turn = asyncio.Lock()
        self._numbers = count()

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        try:
            self._process: Process = await asyncio.create_subprocess_exec(
                *(*self._command, "--control-fd", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *self._fds),
                start_new_session=True,  # Ctrl-C reaches it only through us
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    async def ended(self) -> None:
        """Returns once the process is gone: nothing goes over its links any more."""
        await self._process.wait()

    async def open(self, target: str) -> str:
        """A new front for `target`: "host:port", where it listens until the process ends. Nobody is behind it yet."""
        address: str = (await self._tell("open", target=target))["address"]
        return address

    async def point(self, front: str, back: tuple[str, int] | None) -> None:
        """What is behind a front for connections that come from now on: an IPv4 address; None: nobody listens."""
        await self._tell("point", address=front, back=back)

    async def know(self, source: str, pid: int) -> None:
        """Connections that processes of this one's session open from now on are from `source`.

        Those of a session that had the name before aren't any more. A process that has ended opens none.
        """
        with suppress(ProcessLookupError):
            await self._tell("know", source=source, session=os.getsid(pid))

    async def shape(self, source: str, target: str, shape: LinkShape) -> None:
        """One way; either name may be ANY. What was said before of the same paths is forgotten."""
        await self._tell("shape", source=source, target=target, shape=asdict(shape))

    async def cut(self, source: str, target: str) -> None:
        """Nothing arrives any more, one way; connections stay open. Either name may be ANY."""
        await self._tell("cut", source=source, target=target, cut=True)

    async def heal(self, source: str = ANY, target: str = ANY) -> None:
        """End cuts, one way; everywhere if nothing is said."""
        await self._tell("cut", source=source, target=target, cut=False)

    async def partition(self, groups: Iterable[Iterable[str]]) -> None:
        """Cut both ways between all of different groups; who is in none keeps its links. `heal()` ends it."""
        for source, target in crossing(groups):
            await self.cut(source, target)

    async def reset(self, source: str, target: str) -> int:
        """Reset the connections that `source` has opened to `target`; how many those were. Either may be ANY."""
        connections: int = (await self._tell("reset", source=source, target=target))["connections"]
        return connections

    async def statistics(self) -> LinkStatistics:
        answer = await self._tell("statistics")
        return LinkStatistics(
            {(path.pop("source"), path.pop("target")): PathStatistics(**path) for path in answer["paths"]},
            {front.pop("address"): FrontStatistics(**front) for front in answer.get("fronts", [])},
        )

    async def _tell(self, do: str, **fields: Any) -> dict[str, Any]:
        number = next(self._numbers)
        async with self._turn:
            try:
                async with asyncio.timeout(ANSWER_S):
                    self._writer.write(json.dumps({"do": do, "number": number, **fields}).encode() + b"\n")
                    await self._writer.drain()
                    answer = await self._answer(number)
            except (ConnectionError, TimeoutError) as error:
                raise PeerUnreachable(f"The process that shapes links is gone or stuck ({error!r}).") from error
        if "error" in answer:
            raise error_with_code(answer["error"], answer["message"])
        return answer

    async def _answer(self, number: int) -> dict[str, Any]:
        while line := await self._reader.readline():
            answer: dict[str, Any] = json.loads(line)
            if answer.pop("number") == number:  # an earlier one is to an order that somebody gave up
                return answer
        raise PeerUnreachable("The process that shapes links has ended; its standard error says why.")
