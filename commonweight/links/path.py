"""One direction of a link while it runs: what waits, what is under way, and a clock that moves it on."""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from commonweight.links.link import LinkShape, LinkState, transmit

MAX_WIRE_BYTES = 32 << 20
"""Under way at once, whatever rate and delay are: streams over a link that would carry more are held up."""

Deliver = Callable[[], object]
"""Hands a segment to whom it was sent to."""


class Timer(Protocol):
    """What `call_at` returns."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """An event loop's time."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], Any], /) -> Timer: ...


@dataclass(frozen=True)
class PathStatistics:
    """What has become of all that was offered to a path."""

    offered_bytes: int
    delivered_bytes: int
    queued_bytes: int
    wire_bytes: int
    """Sent, and not yet there."""
    lost: int
    """Packets, by the shape's loss."""
    dropped: int
    """Packets, because the queue was full or the path was cut."""
    cut: bool


class Path:
    """A queue, then a wire. See StreamPath and PacketPath for what may be put into it.

    Invariants: what arrives keeps the order in which it was offered; nothing arrives before `transmit` says; nothing
    arrives while the path is cut.
    """

    def __init__(self, shape: LinkShape, clock: Clock, seed: str) -> None:
        self.shape = shape
        self.cut = False
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - chance that can be repeated
        self._state = LinkState()
        self._queue: deque[tuple[float, int, Deliver]] = deque()
        self._wire: deque[tuple[float, int, Deliver]] = deque()
        self._timer: Timer | None = None
        self._offered_bytes = self._delivered_bytes = self._queued_bytes = self._wire_bytes = 0
        self._lost = self._dropped = 0

    def change(self, shape: LinkShape) -> None:
        """From now on, also for what waits; what is under way arrives when it would have."""
        self.shape = shape
        self._advance()

    def set_cut(self, cut: bool) -> None:
        """Cut or heal the path; after a cut nothing arrives any more."""
        if self.cut and not cut:
            # The time of the cut isn't made up for.
            self._state = LinkState(max(self._state.free_s, self._clock.time()), self._state.delivered_s)
        self.cut = cut
        self._advance()

    def statistics(self) -> PathStatistics:
        return PathStatistics(
            self._offered_bytes,
            self._delivered_bytes,
            self._queued_bytes,
            self._wire_bytes,
            self._lost,
            self._dropped,
            self.cut,
        )

    def _put(self, size_bytes: int, deliver: Deliver) -> None:
        self._offered_bytes += size_bytes
        self._queued_bytes += size_bytes
        self._queue.append((self._clock.time(), size_bytes, deliver))

    def _advance(self) -> None:
        """Send and deliver all that is due, and wake up when the next is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.cut:
            return
        now_s = self._clock.time()
        # A link that is behind because this process slept begins when it would have: the rate is kept on average.
        while self._queue and max(self._queue[0][0], self._state.free_s) <= now_s:
            offered_s, size_bytes, deliver = self._queue.popleft()
            jitter = self._random.random() if self.shape.jitter_s else 0.0
            self._state, delivered_s = transmit(self.shape, self._state, offered_s, size_bytes, jitter)
            self._queued_bytes -= size_bytes
            self._wire_bytes += size_bytes
            self._wire.append((delivered_s, size_bytes, deliver))
        while self._wire and self._wire[0][0] <= now_s:
            _, size_bytes, deliver = self._wire.popleft()
            self._wire_bytes -= size_bytes
            self._delivered_bytes += size_bytes
            deliver()
        due_s = [self._state.free_s] if self._queue else []
        if self._wire:
            due_s.append(self._wire[0][0])
        if due_s:
            self._timer = self._clock.call_at(min(due_s), self._advance)


class StreamPath(Path):
    """For streams: loses nothing, holds up whoever sends faster than the link, and keeps what is cut off.

    A real connection would keep it, too, in its sender's buffers, and send it again after the cut.
    """

    def __init__(self, shape: LinkShape, clock: Clock, seed: str) -> None:
        super().__init__(shape, clock, seed)
        self._room = asyncio.Event()

    async def send(self, data: bytes, deliver: Callable[[memoryview], object]) -> None:
        """Takes `data` once there is room; `deliver` gets it piece by piece.

        At most `max_queued_bytes` and one `data` wait.
        """
        while not self._has_room():
            self._room.clear()
            await self._room.wait()
        view, size = memoryview(data), self.shape.segment_bytes
        for start in range(0, len(data), size):
            segment = view[start : start + size]
            self._put(len(segment), _delivering(deliver, segment))
        self._advance()

    async def pass_through(self) -> None:
        """Returns when what was sent before has arrived, and the delay is over."""
        arrived = asyncio.Event()
        self._put(0, arrived.set)
        self._advance()
        await arrived.wait()

    def _has_room(self) -> bool:
        return self._queued_bytes < self.shape.max_queued_bytes and self._wire_bytes < MAX_WIRE_BYTES

    def _advance(self) -> None:
        super()._advance()
        if self._has_room():
            self._room.set()


class PacketPath(Path):
    """For packets: some are lost, what the queue can't take is dropped, and so is everything during a cut."""

    def offer(self, size_bytes: int, deliver: Deliver) -> None:
        """Send a packet, or lose it."""
        if self.cut or self._queued_bytes + size_bytes > self.shape.max_queued_bytes:
            self._dropped += 1
            self._offered_bytes += size_bytes
        elif self.shape.loss and self._random.random() < self.shape.loss:
            self._lost += 1
            self._offered_bytes += size_bytes
        else:
            self._put(size_bytes, deliver)
            self._advance()

    def set_cut(self, cut: bool) -> None:
        if cut:
            self._dropped += len(self._queue) + len(self._wire)
            self._queue.clear()
            self._wire.clear()
            self._queued_bytes = self._wire_bytes = 0
        super().set_cut(cut)


def _delivering(deliver: Callable[[memoryview], object], segment: memoryview) -> Deliver:
    return lambda: deliver(segment)
