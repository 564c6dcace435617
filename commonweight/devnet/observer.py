"""Holds the one current state of a devnet: folds every event into it, shows it to `devnet status`, wakes who waits."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from commonweight.devnet.folder import RunFolder, write_whole
from commonweight.devnet.processes import start_time
from commonweight.devnet.state import DEVNET, DevnetState, Frozen, fold
from commonweight.errors import ConfigError
from commonweight.events import Event

Watcher = Callable[[DevnetState, str, Event], None]
"""Gets the state after an event, the name of the process that it came from, and the event."""


class StateFile(Frozen):
    """What state.json holds."""

    pid: int
    """Of `devnet up`."""
    start_time: int
    """When that process started, as the kernel counts it: tells it from a later one with the same pid."""
    state: DevnetState

    @property
    def runs(self) -> bool:
        """Whether that very process is still there."""
        return start_time(self.pid) == self.start_time


def read_state(path: Path | None) -> StateFile:
    """How the devnet in that folder stands; by default the newest under runs/. Raises ConfigError."""
    folder = RunFolder.find(path)
    try:
        return StateFile.model_validate_json(folder.state.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{folder.state} is not the state of a devnet of this release: start another one.") from error


class Observer:
    """Not thread-safe: belongs to the event loop.

    Logs what the devnet itself says, as each child's output is logged: all logs folded again give the same state.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.state = DevnetState()
        self._folder = folder
        self._pid = os.getpid()
        self._start_time = start_time(self._pid) or 0
        self._waiting: list[tuple[Callable[[DevnetState], bool], asyncio.Future[DevnetState]]] = []
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """Calls `watcher` after every event."""
        self._watchers.append(watcher)

    def record(self, source: str, event: Event) -> None:
        """Takes in an event of the process named `source`."""
        if source == DEVNET:
            with (self._folder.logs / f"{DEVNET}.jsonl").open("a") as log:
                log.write(event.to_json() + "\n")
        before, state = self.state, fold(self.state, source, event)
        if state is not before:
            self.state = state
            file = StateFile(pid=self._pid, start_time=self._start_time, state=state)
            write_whole(self._folder.state, file.model_dump_json())
        for watcher in self._watchers:
            watcher(state, source, event)
        for condition, future in self._waiting:
            if not future.done() and condition(state):
                future.set_result(state)
        self._waiting = [(condition, future) for condition, future in self._waiting if not future.done()]

    def note(self, name: str, /, **fields: Any) -> None:
        """Takes in an event of the devnet itself, which happens now."""
        now = round(time.time(), 6)  # as in the log
        self.record(DEVNET, Event(name, fields, now, self._pid))

    async def until(self, condition: Callable[[DevnetState], bool]) -> DevnetState:
        """The first state, now or later, that meets `condition`."""
        if condition(self.state):
            return self.state
        future: asyncio.Future[DevnetState] = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        return await future
