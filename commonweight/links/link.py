"""What a link does to what is sent over it: pure arithmetic, of one direction.

A link sends one segment after the other at its rate; each is then under way for the delay, and for up to the jitter
more. Nothing overtakes: a segment that draws less jitter than the one before arrives with it.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from commonweight.errors import ConfigError

MAX_DELAY_S = 60.0
MIN_RATE_BPS, MAX_RATE_BPS = 1_000, 100_000_000_000
MIN_QUEUE_BYTES = 64 << 10
PACKET_BYTES = 1_448
"""What a TCP segment carries over Ethernet."""
SEGMENT_S = 0.001
"""A stream is cut into segments that take a link this long, or into packets where that is more."""
MAX_SEGMENT_BYTES = 64 << 10
QUEUE_S = 0.1
"""A queue holds what its link sends in this time, if nothing else is said, or in two delays where that is longer."""

_UNITS_BPS = {"bit": 1, "kbit": 1_000, "mbit": 1_000_000, "gbit": 1_000_000_000}
_UNITS_S = {"ms": 1_000, "s": 1}
_UNITS_BYTES = {"kib": 1 << 10, "mib": 1 << 20}
_QUANTITY = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(%|[a-z]+)", re.ASCII)


@dataclass(frozen=True)
class LinkShape:
    """One direction of a link. Raises ConfigError for what no link is."""

    rate_bps: int | None = None
    """Bits per second; None: as fast as this machine."""
    delay_s: float = 0.0
    """One way."""
    jitter_s: float = 0.0
    """Added to the delay: evenly distributed between nothing and this."""
    loss: float = 0.0
    """Of how many packets one is lost, as a fraction. Streams can't lose any: see docs/links.md."""
    queue_bytes: int | None = None
    """What may wait to be sent: packets beyond are dropped, streams are held up. None: as QUEUE_S says."""

    def __post_init__(self) -> None:
        if self.rate_bps is not None and not MIN_RATE_BPS <= self.rate_bps <= MAX_RATE_BPS:
            raise ConfigError(f"A link's rate is between 1 kbit and 100 gbit per second, not {self.rate_bps} bit.")
        for name, value_s in (("delay", self.delay_s), ("jitter", self.jitter_s)):
            if not 0 <= value_s <= MAX_DELAY_S:
                raise ConfigError(f"A link's {name} is between 0 and {MAX_DELAY_S:g} s, not {value_s:g} s.")
        if not 0 <= self.loss < 1:
            raise ConfigError(f"A link's loss is at least 0 and below 1, not {self.loss:g}.")
        if self.queue_bytes is not None and self.queue_bytes < MIN_QUEUE_BYTES:
            raise ConfigError(f"A link's queue has at least {MIN_QUEUE_BYTES} bytes, not {self.queue_bytes}.")

    @property
    def max_queued_bytes(self) -> int:
        """How much may wait to be sent."""
        if self.queue_bytes is not None:
            return self.queue_bytes
        if self.rate_bps is None:
            return 1 << 20
        return max(MIN_QUEUE_BYTES, int(self.rate_bps / 8 * max(QUEUE_S, 2 * self.delay_s)))

    @property
    def segment_bytes(self) -> int:
        """The most of a stream that is sent as one."""
        if self.rate_bps is None:
            return MAX_SEGMENT_BYTES
        return min(MAX_SEGMENT_BYTES, max(PACKET_BYTES, int(self.rate_bps / 8 * SEGMENT_S)))

    def sending_s(self, size_bytes: int) -> float:
        """How long the link is busy with so many bytes."""
        return 0.0 if self.rate_bps is None else size_bytes * 8 / self.rate_bps


@dataclass(frozen=True)
class LinkState:
    """Where one direction of a link stands; times are of any one clock."""

    free_s: float = -math.inf
    """When it has sent what it was given so far."""
    delivered_s: float = -math.inf
    """When the last of that arrives."""


def transmit(
    shape: LinkShape, state: LinkState, offered_s: float, size_bytes: int, jitter: float
) -> tuple[LinkState, float]:
    """The link after a segment that was given to it at `offered_s`, and when that arrives whole.

    `jitter`, in [0, 1], is the part of the jitter that it draws. Segments are sent in the order of the calls, so that
    they arrive in it, and what a link has sent never exceeds its rate times the time since it was given the first.
    """
    free_s = max(offered_s, state.free_s) + shape.sending_s(size_bytes)
    delivered_s = max(state.delivered_s, free_s + shape.delay_s + jitter * shape.jitter_s)
    return LinkState(free_s, delivered_s), delivered_s


def parse_time(text: str) -> float:
    """Seconds, of "200ms" or "1.5s". Raises ConfigError."""
    number, per_s = _quantity("time", text, _UNITS_S)
    return number / per_s


def parse_shape(text: str) -> LinkShape:
    """Reads RATE:DELAY[:LOSS][:jitter=TIME][:loss=LOSS][:queue=SIZE], such as "80mbit:50ms:1%:jitter=5ms".

    RATE is in bit, kbit, mbit or gbit per second, or `unlimited`; times are in ms or s, LOSS in %, SIZE in KiB or MiB.
    Raises ConfigError that says which part is wrong.
    """

    def refuse(why: str) -> NoReturn:
        raise ConfigError(
            f"{text!r} is no link: {why}. Write for example 80mbit:50ms or 8mbit:50ms:jitter=5ms:loss=1%."
        )

    def quantity(what: str, value: str, units: dict[str, int]) -> tuple[float, int]:
        try:
            return _quantity(what, value, units)
        except ConfigError as error:
            refuse(error.args[0])

    first, *rest = text.split(":")
    if not rest:
        refuse("it has a rate and a delay, separated by a colon")
    if first.lower() == "unlimited":
        rate_bps = None
    else:
        number, bps = quantity("rate", first, _UNITS_BPS)
        rate_bps = round(number * bps)
    found: dict[str, float] = {}
    for position, part in enumerate(rest):
        name, equals, value = part.partition("=")
        if not equals:
            name, value = "loss" if position else "delay", part
        if name in found:
            refuse(f"{part!r} is one too many")
        match name:
            case "delay" | "jitter":
                number, per_s = quantity(name, value, _UNITS_S)
                found[name] = number / per_s
            case "loss":
                found[name] = quantity(name, value, {"%": 1})[0] / 100
            case "queue":
                number, size = quantity(name, value, _UNITS_BYTES)
                found[name] = number * size
            case _:
                refuse(f"{name!r} is none of delay, jitter, loss, queue")
    if "delay" not in found:
        refuse("the delay is missing")
    return LinkShape(
        rate_bps,
        found["delay"],
        found.get("jitter", 0.0),
        found.get("loss", 0.0),
        int(found["queue"]) if "queue" in found else None,
    )


def _quantity(what: str, value: str, units: dict[str, int]) -> tuple[float, int]:
    match = _QUANTITY.fullmatch(value.lower())
    if match is None or match[2] not in units:
        raise ConfigError(f"{value!r} is no {what} in {', '.join(units)}")
    return float(match[1]), units[match[2]]
