"""A clock that stands until it is told to go on, with an event loop's `time` and `call_at`."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any


@dataclass(order=True)
class FakeTimer:
    when: float
    number: int
    callback: Callable[[], Any] | None = field(compare=False)

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers: list[FakeTimer] = []
        self._numbers = count()

    def time(self) -> float:
        return self._now_s

    def call_at(self, when: float, callback: Callable[[], Any]) -> FakeTimer:
        timer = FakeTimer(when, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def run_until(self, until_s: float) -> None:
        """All that is due by then happens at its time, in order."""
        while self._timers and self._timers[0].when <= until_s:
            timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._now_s = max(self._now_s, timer.when)
                timer.callback()
        self._now_s = max(self._now_s, until_s)

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._timers:
            self.run_until(self._timers[0].when)
