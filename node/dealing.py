"""Which source is asked for which chunk: no clock, no socket, no disk.

Each source has some chunks under way, as many as it brings in IN_FLIGHT_S by what was measured: whoever is faster is
dealt more. What fails is dealt again. Once all chunks are dealt, a source with nothing to do is asked for those that
have been under way for too long, too: whoever brings one first counts.
"""

import math
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

IN_FLIGHT_S = 1.0
MAX_IN_FLIGHT = 4
"""Chunks of one source; the same number is served at a time to one peer."""
MAX_FAILURES = 3
"""In a row."""
SMOOTHING = 0.3
"""Weight of the last chunk in what is known of a source's speed."""

S = TypeVar("S", bound=Hashable)


@dataclass
class _Dealt:
    """What is known of one source."""

    chunks: Collection[int]
    """That it can bring."""
    under_way: dict[int, float] = field(default_factory=dict)
    """Since when."""
    chunk_s: float | None = None
    """How long it takes for a chunk, when it has nothing else to do."""
    failures: int = 0
    failed_s: float = -math.inf
    """When it did last."""

    @property
    def room(self) -> int:
        """How many chunks more it may have under way."""
        wanted = 1 if self.chunk_s is None else math.ceil(IN_FLIGHT_S / max(self.chunk_s, 1e-6))
        return min(wanted, MAX_IN_FLIGHT) - len(self.under_way)

    @property
    def patience_s(self) -> float:
        """For how long a chunk may be under way from elsewhere before this source is asked for it, too: one that is as
        fast, and has as much under way as it may, brings it earlier.
        """
        return IN_FLIGHT_S + 2 * (self.chunk_s or 0.0)


class Dealing(Generic[S]):
    """The chunks of one manifest that are missing, and the sources that have them. Times are of any one clock."""

    def __init__(self, missing: Iterable[int]) -> None:
        self._undealt = dict.fromkeys(missing)  # in the order in which they are dealt
        self._missing = set(self._undealt)
        self._sources: dict[S, _Dealt] = {}

    @property
    def missing(self) -> int:
        """Chunks that haven't come yet."""
        return len(self._missing)

    @property
    def sources(self) -> int:
        """That are asked."""
        return len(self._sources)

    def join(self, source: S, chunks: Collection[int]) -> None:
        """From now on this source is asked, too, for these chunks."""
        self._sources[source] = _Dealt(chunks)

    def deal(self, now_s: float) -> list[tuple[S, int]]:
        """Who is to be asked for what now, besides what is under way. If nothing is then under way, no source has what
        is missing.
        """
        orders = []
        for name, source in sorted(self._sources.items(), key=lambda item: item[1].chunk_s or 0.0):
            while source.room > 0 and (chunk := self._next(source, now_s)) is not None:
                self._undealt.pop(chunk, None)
                source.under_way[chunk] = now_s
                orders.append((name, chunk))
        return orders

    def received(self, source: S, chunk: int, now_s: float) -> list[S]:
        """The chunk has come from this source. Returns who else needn't bring it any more."""
        dealt = self._sources[source]
        took_s = (now_s - dealt.under_way[chunk]) / len(dealt.under_way)
        known_s = took_s if dealt.chunk_s is None else dealt.chunk_s
        dealt.chunk_s = known_s + SMOOTHING * (took_s - known_s)
        dealt.failures = 0
        self._missing.discard(chunk)
        holders = [name for name, other in self._sources.items() if other.under_way.pop(chunk, None) is not None]
        return [name for name in holders if name != source]

    def failed(self, source: S, chunk: int, now_s: float) -> bool:
        """The chunk hasn't come from this source. Whether the source has failed MAX_FAILURES times in a row, calls that
        were under way at the same time counting as one.
        """
        dealt = self._sources[source]
        if dealt.under_way.pop(chunk) >= dealt.failed_s:
            dealt.failures, dealt.failed_s = dealt.failures + 1, now_s
        self._return([chunk])
        return dealt.failures >= MAX_FAILURES

    def drop(self, source: S) -> None:
        """This source isn't asked any more."""
        self._return(self._sources.pop(source).under_way)

    def _return(self, chunks: Iterable[int]) -> None:
        for chunk in chunks:
            if not any(chunk in other.under_way for other in self._sources.values()):
                self._undealt[chunk] = None

    def _next(self, source: _Dealt, now_s: float) -> int | None:
        undealt = next((chunk for chunk in self._undealt if chunk in source.chunks), None)
        if undealt is not None:
            return undealt
        asked_s: dict[int, float] = {}
        for other in self._sources.values():
            for chunk, since_s in other.under_way.items():
                asked_s[chunk] = max(asked_s.get(chunk, since_s), since_s)
        late = [
            (since_s, chunk)
            for chunk, since_s in asked_s.items()
            if now_s - since_s >= source.patience_s and chunk in source.chunks and chunk not in source.under_way
        ]
        return min(late)[1] if late else None
