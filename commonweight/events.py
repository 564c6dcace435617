"""Structured events: the one source of telemetry.

Every process emits its events as JSON lines; logs, the live view, reports and tests fold these same records, and no
program parses prose. A person at a terminal sees the same events as readable lines.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

Sink = Callable[["Event"], None]


@dataclass(frozen=True)
class Event:
    """What happened, when, in which process."""

    name: str
    """Dotted, past tense: "round.sealed". The names are listed in docs/events.md."""
    fields: dict[str, Any]
    time: float
    """Seconds since the Unix epoch, for people only: no rule depends on it."""
    pid: int

    def to_json(self) -> str:
        """One line of JSON; floats are allowed here, nothing of it is hashed."""
        return json.dumps({"event": self.name, "time": round(self.time, 6), "pid": self.pid, **self.fields})


def parse_event(line: str | bytes) -> Event | None:
    """The event in a line, or None where the line is something else (another program's output)."""
    try:
        fields = json.loads(line)
        return Event(fields.pop("event"), fields, fields.pop("time"), fields.pop("pid"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def emit(name: str, /, **fields: Any) -> None:
    """Record that something happened. Fields are JSON values, never secrets. Safe from any thread."""
    assert not fields.keys() & {"event", "time", "pid"}, "these say who emitted the event, and when"
    event = Event(name, fields, time.time(), os.getpid())
    with _lock:
        for sink in _sinks:
            sink(event)


def add_sink(sink: Sink) -> None:
    """Pass every later event to `sink`, too."""
    with _lock:
        _sinks.append(sink)


def write_to(stream: TextIO) -> Sink:
    """A sink that writes to `stream`: JSON lines, or readable lines where it is a terminal.

    A line and its end are written at once: a node and its workers share one pipe, and `print` writes the end of a line
    by itself where Python's output is unbuffered.
    """
    render = _render if stream.isatty() else Event.to_json

    def sink(event: Event) -> None:
        stream.write(render(event) + "\n")
        stream.flush()

    return sink


def log_to_stdout() -> None:
    """What every long-running command does first."""
    add_sink(write_to(sys.stdout))


def _render(event: Event) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    fields = "  ".join(f"{key}={value}" for key, value in event.fields.items())
    return f"{clock}  {event.name:<22} {fields}"


_sinks: list[Sink] = []
_lock = threading.Lock()
