"""Faults that befall a network while it runs: which, when and whom follows from a seed."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum

from commonweight.errors import ConfigError


class Fault(StrEnum):
    """What can befall a process."""

    KILL = "kill"
    """SIGKILL. It ends when the process may be started again."""
    PAUSE = "pause"
    """SIGSTOP, until SIGCONT."""
    SLOW = "slow"
    """Its links get another shape."""
    PARTITION = "partition"
    """Its links to all others are cut, both ways."""


@dataclass(frozen=True, order=True)
class PlannedFault:
    """One fault; times are seconds since the churn began."""

    begins_s: float
    ends_s: float
    fault: Fault
    target: str


def plan_churn(
    seed: int, targets: Collection[str], every_s: Mapping[Fault, float], lasts_s: float, until_s: float
) -> list[PlannedFault]:
    """The faults in the order in which they begin, all before `until_s`; the same for the same arguments.

    Of each kind in `every_s` one begins in every stretch of so many seconds, at some moment of it that depends on seed
    and kind alone, and lasts `lasts_s`. It befalls one of those whom nothing befalls at that moment; nobody if there is
    none. Raises ConfigError for times that aren't positive and for no targets.
    """
    for name, value_s in (*every_s.items(), ("duration", lasts_s), ("end", until_s)):
        if not 0 < value_s < float("inf"):
            raise ConfigError(f"The {name} of a churn is {value_s:g} s: it must be positive.")
    if not targets:
        raise ConfigError("A churn needs somebody whom it may befall.")
    moments: list[tuple[float, Fault, float]] = []
    for fault, each_s in every_s.items():
        chance = random.Random(f"{seed} {fault}")  # noqa: S311 - chance that can be repeated
        begins_s = each_s * chance.random()
        for stretch in range(1, int(until_s / each_s) + 2):
            if begins_s < until_s:
                moments.append((begins_s, fault, chance.random()))
            begins_s = each_s * (stretch + chance.random())
    planned: list[PlannedFault] = []
    busy_until_s = dict.fromkeys(sorted(targets), 0.0)
    for begins_s, fault, choice in sorted(moments):
        free = [target for target, until in busy_until_s.items() if until <= begins_s]
        if free:
            target = free[int(choice * len(free))]
            busy_until_s[target] = begins_s + lasts_s
            planned.append(PlannedFault(begins_s, begins_s + lasts_s, fault, target))
    return planned


Inflict = Callable[[PlannedFault], Awaitable[None]]


async def run_churn(plan: Sequence[PlannedFault], begin: Inflict, end: Inflict) -> None:
    """Calls `begin` and `end` of each fault when it is time, one after the other.

    When it is cancelled, or one of them raises, it ends what is under way, what only half began as well: nothing stays
    paused or cut off.
    """
    started_s = asyncio.get_running_loop().time()
    timeline = [(fault.begins_s, True, fault) for fault in plan] + [(fault.ends_s, False, fault) for fault in plan]
    under_way: list[PlannedFault] = []
    try:
        for at_s, begins, fault in sorted(timeline):
            await asyncio.sleep(started_s + at_s - asyncio.get_running_loop().time())
            if begins:
                under_way.append(fault)
                await begin(fault)
            else:
                under_way.remove(fault)
                await end(fault)
    finally:
        async with AsyncExitStack() as rest:  # all of it, even if ending one fails
            for fault in under_way:
                rest.push_async_callback(end, fault)
