"""What can befall a devnet's nodes and links, as it is written, and the kills that follow from a seed."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NoReturn

from commonweight.errors import ConfigError
from commonweight.links.churn import Fault, PlannedFault, plan_churn
from commonweight.links.control import check_stream_shape
from commonweight.links.link import LinkShape, parse_shape, parse_time
from commonweight.links.names import crossing

DOWN_S = 1.0
"""Until a node that was killed is started again, as a supervisor does it."""
HORIZON_S = 7 * 24 * 3600.0
"""No devnet is left running for longer."""
MAX_SLOW_S = 60.0
"""A neighbour gives a round up after two minutes in which nothing arrives."""

Way = Literal["both", "in", "out"]


@dataclass(frozen=True)
class Slow:
    """A node whose worker takes longer for each microbatch."""

    node: str
    delay_s: float


@dataclass(frozen=True)
class Partition:
    """Nodes that are cut off from all others."""

    nodes: tuple[str, ...]
    way: Way = "both"
    """"in": nothing reaches them; "out": nothing that they send reaches the others."""

    def paths(self, all_nodes: Collection[str]) -> list[tuple[str, str]]:
        """Those that it cuts, as (from, to)."""
        others = [node for node in all_nodes if node not in self.nodes]
        return [
            (source, target)
            for source, target in crossing((self.nodes, others))
            if self.way == "both" or (source in self.nodes) == (self.way == "out")
        ]


def parse_interval(text: str | None, option: str) -> float | None:
    """Seconds, as "30" or "30s". Raises ConfigError that names the option."""
    if text is None:
        return None
    if not (found := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)s?", text, re.ASCII)) or not float(found[1]) > 0:
        raise ConfigError(f"{option} {text!r} must be a number of seconds above 0, as in 30s.")
    return float(found[1])


def parse_node(text: str, nodes: Collection[str], option: str) -> str:
    """The name of one of `nodes`. Raises ConfigError that names the option, as all of these do."""
    if text not in nodes:
        raise ConfigError(f"{option}: there is no node {text!r}. There are {', '.join(nodes)}.")
    return text


def parse_slow(text: str, nodes: Collection[str], option: str) -> Slow:
    """NODE:TIME, as "node-1:200ms"."""
    name, colon, time = text.partition(":")
    if not colon:
        raise ConfigError(f"{option} {text!r} must be NODE:TIME, as in node-1:200ms.")
    try:
        delay_s = parse_time(time)
    except ConfigError as error:
        raise ConfigError(f"{option} {text!r}: {error.args[0]}, as in node-1:200ms.") from error
    if delay_s > MAX_SLOW_S:
        raise ConfigError(f"{option} {text!r}: at most {MAX_SLOW_S:g} s are possible, or neighbours give rounds up.")
    return Slow(parse_node(name, nodes, f"{option} {text!r}"), delay_s)


def parse_partition(text: str, nodes: Collection[str], option: str) -> Partition:
    """NODE[,NODE…][:in|:out], as "node-1" or "node-0,node-1:out"."""

    def refuse(why: str) -> NoReturn:
        raise ConfigError(f"{option} {text!r}: {why}")

    names, colon, way = text.partition(":")
    if colon and way not in ("in", "out"):
        refuse(f"{way!r} is neither `in` (nothing reaches them) nor `out` (nothing of theirs reaches others).")
    chosen = [parse_node(name, nodes, f"{option} {text!r}") for name in names.split(",")]
    if len(set(chosen)) == len(nodes):
        refuse("these are all nodes: leave one out from which they are cut off.")
    found: Way = "in" if way == "in" else "out" if way == "out" else "both"
    return Partition(tuple(dict.fromkeys(chosen)), found)


def parse_link(text: str, option: str) -> LinkShape:
    """RATE:DELAY[:jitter=TIME][:queue=SIZE], as docs/links.md has it, without loss."""
    try:
        check_stream_shape(shape := parse_shape(text))
    except ConfigError as error:
        raise ConfigError(f"{option}: {error.args[0]}") from error
    return shape


def plan_kills(seed: int, nodes: list[str], every_s: float) -> list[PlannedFault]:
    """Who is killed when, in seconds from when all nodes had come."""
    return plan_churn(seed, nodes, {Fault.KILL: every_s}, DOWN_S, HORIZON_S)
