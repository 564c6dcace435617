"""One download from several sources at once, in chunks of 1 MiB. No torch here.

Each source says first what the chunks hash to, in a manifest. One manifest is followed: the one that most sources gave.
Chunks are dealt to those who have them (see dealing.py). A source whose chunk isn't what its own manifest says is
dropped, and so are all whose manifest led to something else than what is wanted: then the next manifest is followed.
Chunks that are right by that one, too, aren't fetched again, nor are those that an earlier process has fetched.
"""

import asyncio
import errno
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from commonweight.errors import (
    CheckpointError,
    CommitmentBroken,
    CommonweightError,
    MalformedMessage,
    PeerUnreachable,
    StateUnavailable,
)
from commonweight.events import emit
from commonweight.wire.evidence import Source
from commonweight.wire.generated import state_pb2 as pb
from commonweight.wire.state import Manifest, StateConnection
from commonweight.wire.tls import Certificate
from node.dealing import Dealing
from node.partial import Partial

MANIFEST_PATIENCE_S = 2.0
"""After the first manifest, for those of the other sources: to follow a false one may cost a whole download."""
LOOK_S = 0.2
"""It is looked at least so often whether a source is late."""
PUT_OFF_S = 30.0
SLOW_BYTES_PER_S = 256 << 10
"""A manifest that is followed so slowly for so long is put off where as many sources gave another one: who gave it may
want it to last. The next time it is followed for twice as long.
"""
PROGRESS_S = 1.0
"""Between two events about the progress, at least."""

T = TypeVar("T")


@dataclass(frozen=True)
class Goal:
    """What is to be downloaded."""

    what: str
    """For people."""
    kept: pb.Kept
    max_bytes: int
    differs: Callable[[], str]
    """What is wrong with the files, once all chunks are there; raises OSError and MalformedMessage. Empty: nothing."""
    finish: Callable[[], None]
    """Brings the files, which are right, to their place; raises OSError."""


class Download:
    """Of one goal. It is run once."""

    def __init__(self, certificate: Certificate, goal: Goal, partial: Partial, sources: Sequence[Source]) -> None:
        self._certificate, self._goal, self._partial = certificate, goal, partial
        self._sources = tuple(dict.fromkeys(sources))
        self._connections: dict[Source, StateConnection] = {}
        self._manifests: dict[Source, Manifest] = {}
        """Of those that have answered, and weren't dropped."""
        self._asking: dict[asyncio.Task[Manifest | CommonweightError], Source] = {}
        self._calls: dict[asyncio.Task[bytes | CommonweightError], tuple[Source, int]] = {}
        """Who is asked for which chunk, by its number in the manifest."""
        self._patience_s: defaultdict[Manifest, float] = defaultdict(lambda: PUT_OFF_S)
        self._dropped: list[str] = []
        self._started_s = time.monotonic()
        self._told_s = -math.inf
        self._fetched_bytes = 0

    async def run(self) -> None:
        """Until what is wanted is in its place. Raises StateUnavailable, or CheckpointError."""
        try:
            self._ask()
            while not await self._follow(await self._choose()):
                pass
            await asyncio.to_thread(self._goal.finish)
        except OSError as error:
            await asyncio.to_thread(self._partial.discard)
            raise CheckpointError(
                f"The {self._goal.what} can't be written to {self._partial.folder.parent}: {error.strerror}. What came "
                "of it is removed; the checkpoints are as they were. Free disk space, then start the node again."
            ) from error
        finally:
            await _cancel([*self._asking, *self._calls])
            for connection in self._connections.values():
                await connection.close()
        seconds = round(time.monotonic() - self._started_s, 3)
        emit("state.fetched", what=self._goal.what, fetched_bytes=self._fetched_bytes, seconds=seconds)

    def _ask(self) -> None:
        """Ask all sources for their manifests."""
        for source in self._sources:
            try:
                connection = StateConnection(source, self._certificate)
            except CommonweightError as error:
                self._drop(source, error)
                continue
            self._connections[source] = connection
            call = connection.manifest(self._goal.kept, len(self._partial.paths), self._goal.max_bytes)
            self._asking[asyncio.create_task(_answer(call))] = source

    async def _choose(self) -> Manifest:
        """The manifest to follow. Raises StateUnavailable where there is none."""
        while not self._manifests:
            if not self._asking:
                raise StateUnavailable(
                    f"The {self._goal.what} can't be fetched: of {len(self._sources)} sources none is left. "
                    f"{' '.join(self._dropped)} What came of it is kept. Try again, or fetch what is newer."
                )
            done, _ = await asyncio.wait(self._asking, return_when=asyncio.FIRST_COMPLETED)
            self._hear(done)
        if self._asking:
            done, _ = await asyncio.wait(self._asking, timeout=MANIFEST_PATIENCE_S)
            self._hear(done)
        support = Counter(self._manifests.values())
        return min(support, key=lambda manifest: (self._patience_s[manifest], -support[manifest]))

    def _hear(self, done: Iterable[Any]) -> list[Source]:
        """Take manifests, or what came instead, from those calls; returns who gave one."""
        heard = []
        for task in done:
            source, answer = self._asking.pop(task), task.result()
            if isinstance(answer, CommonweightError):
                self._drop(source, answer)
            else:
                self._manifests[source] = answer
                heard.append(source)
        return heard

    async def _follow(self, manifest: Manifest) -> bool:
        """Fetch what it says. Whether that is what is wanted; if not, nobody who gave this manifest is left, or it is
        put off.
        """
        missing = await asyncio.to_thread(self._partial.prepare, manifest)
        began_s, had_bytes = time.monotonic(), self._fetched_bytes
        left_bytes = sum(manifest.chunks[number].size for number in missing)
        dealing: Dealing[Source] = Dealing(missing)
        for source, its in self._manifests.items():
            dealing.join(source, manifest.shared_with(its))
        while dealing.missing:
            for source, number in dealing.deal(time.monotonic()):
                call = self._connections[source].chunk(self._goal.kept, manifest.chunks[number])
                self._calls[asyncio.create_task(_answer(call))] = source, number
            if not self._calls or self._is_put_off(manifest, began_s, had_bytes):
                await _cancel(self._calls)
                self._calls.clear()
                return False
            self._tell(manifest.size, left_bytes, dealing.sources)
            waiting = [*self._calls, *self._asking]
            done, _ = await asyncio.wait(waiting, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            for source in self._hear(self._asking.keys() & done):
                dealing.join(source, manifest.shared_with(self._manifests[source]))
            for task in self._calls.keys() & done:
                if task in self._calls:  # what came before may have made it needless
                    left_bytes -= await self._take(manifest, dealing, task)
        return await self._check(manifest)

    def _is_put_off(self, manifest: Manifest, began_s: float, had_bytes: int) -> bool:
        took_s = time.monotonic() - began_s
        if self._fetched_bytes - had_bytes >= took_s * SLOW_BYTES_PER_S or took_s < self._patience_s[manifest]:
            return False
        support = Counter(self._manifests.values())
        own = support.pop(manifest, 0)
        if max(support.values(), default=0) < max(own, 1):
            return False
        self._patience_s[manifest] *= 2
        return True

    async def _take(
        self, manifest: Manifest, dealing: Dealing[Source], task: "asyncio.Task[bytes | CommonweightError]"
    ) -> int:
        """Take what came of a call for a chunk. Returns how many bytes less are missing."""
        source, number = self._calls.pop(task)
        answer = task.result()
        if isinstance(answer, bytes):
            await asyncio.to_thread(self._partial.write, manifest.chunks[number], answer)
            self._fetched_bytes += len(answer)
            late = dealing.received(source, number, time.monotonic())
            self._hang_up(lambda who, chunk: who in late and chunk == number)
            return len(answer)
        if isinstance(answer, PeerUnreachable) and not dealing.failed(source, number, time.monotonic()):
            return 0
        self._drop(source, answer)
        dealing.drop(source)
        self._hang_up(lambda who, _: who == source)
        return 0

    def _hang_up(self, needless: Callable[[Source, int], bool]) -> None:
        for task in [task for task, order in self._calls.items() if needless(*order)]:
            task.cancel()
            del self._calls[task]

    async def _check(self, manifest: Manifest) -> bool:
        """Whether the files, of which all chunks are there, are what is wanted. Drops who gave the manifest if not."""
        try:
            wrong = await asyncio.to_thread(self._goal.differs)
        except MalformedMessage as error:
            wrong = error.args[0]
        if not wrong:
            return True
        if await asyncio.to_thread(self._partial.missing, manifest):
            raise OSError(errno.EIO, "what was written reads otherwise")
        for source in [source for source, its in self._manifests.items() if its == manifest]:
            self._drop(source, CommitmentBroken(f"Its manifest led to another {self._goal.what}: {wrong}."))
        return False

    def _drop(self, source: Source, error: CommonweightError) -> None:
        """Ask it for nothing more."""
        emit("state.peer_dropped", peer=source.peer_id, code=error.code, message=error.args[0])
        self._manifests.pop(source, None)
        self._dropped.append(f"{source.peer_id}: {error}")

    def _tell(self, total_bytes: int, left_bytes: int, sources: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < PROGRESS_S:
            return
        self._told_s = now_s
        bytes_per_s = self._fetched_bytes / max(now_s - self._started_s, 1e-3)
        emit(
            "state.fetching",
            what=self._goal.what,
            done_bytes=total_bytes - left_bytes,
            total_bytes=total_bytes,
            bytes_per_s=round(bytes_per_s),
            eta_s=round(left_bytes / bytes_per_s, 1) if bytes_per_s else None,
            sources=sources,
        )


async def _answer(call: Coroutine[Any, Any, T]) -> T | CommonweightError:
    """What comes of the call."""
    try:
        return await call
    except CommonweightError as error:
        return error


async def _cancel(tasks: Collection["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
