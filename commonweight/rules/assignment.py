"""Which replica of each stage computes which microbatch of a round: by how fast each one was measured to be.

Whoever would finish one more microbatch first gets the next one. All microbatches of a stage cost the same, so no other
division is done sooner, and the shares are those of the speeds, but for what doesn't divide. Each stage is expected
to finish microbatches in the order of their numbers, so that the next one gets them in that order.

A newcomer's speed isn't known. It gets one microbatch, one of the round's last, behind all that is measured; from then
on it is measured, too.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from types import MappingProxyType

LAST_ROUND_WEIGHT = 0.3
"""Of the last round in a replica's pace; the rest is the pace before."""
MEASURED_ROUNDS = 50
"""So many rounds without a microbatch a pace is good for. Whoever was measured cold, or beside other work, may have got
none since, and nothing else shows that it is faster now.
"""


@dataclass(frozen=True)
class Pace:
    """How fast a replica computes its stage."""

    microbatch_s: float | None = None
    """Seconds of work per microbatch, forward and backward; None for a newcomer, which hasn't been measured."""
    idle_rounds: int = 0
    """Since it was measured."""

    @property
    def is_stale(self) -> bool:
        """Whether it is to be measured anew."""
        return self.idle_rounds >= MEASURED_ROUNDS


def update(pace: Pace, microbatches: int, busy_s: float) -> Pace:
    """The pace after a round in which the replica computed so many microbatches in `busy_s` seconds of work.

    An exponential moving average over rounds; of a stale pace nothing is left. As it was where it computed nothing.
    """
    if not microbatches:
        return replace(pace, idle_rounds=pace.idle_rounds + 1)
    measured = busy_s / microbatches
    if not 0 < measured < math.inf:
        raise ValueError(f"{microbatches} microbatches in {busy_s} s say nothing about a replica's pace")
    if pace.microbatch_s is None or pace.is_stale:
        return Pace(measured)
    return Pace(pace.microbatch_s + LAST_ROUND_WEIGHT * (measured - pace.microbatch_s))


def assign(microbatches: int, paces: Sequence[Mapping[str, float | None]]) -> tuple[tuple[str, ...], ...]:
    """For each stage, in order, the node that computes each microbatch, by its number.

    `paces` are the seconds per microbatch of each stage's replicas, None for newcomers. How many each gets says
    `divide`; newcomers get the last ones. Equals are ordered by address. Raises ValueError where a stage has no
    replica, or a pace isn't positive and finite.
    """
    return tuple(_in_order(divide(microbatches, replicas), replicas, Counter()) for replicas in paces)


def reassign(assignment: Sequence[str], lost: str, paces: Mapping[str, float | None]) -> Mapping[int, str]:
    """The lost replica's microbatches of a stage, by number, and who computes each of them instead.

    `assignment` is the stage's, with what was reassigned before; `paces` are its replicas', the lost one's no matter.
    Divided as by `divide`, on top of what the others have already. Raises ValueError where nobody is left.
    """
    numbers = [number for number, node in enumerate(assignment) if node == lost]
    others = {node: pace for node, pace in paces.items() if node != lost}
    loads = Counter(assignment)
    more = divide(len(numbers), others, loads)
    return MappingProxyType(dict(zip(numbers, _in_order(more, others, loads), strict=True)))


def divide(
    microbatches: int, paces: Mapping[str, float | None], loads: Mapping[str, int] | None = None
) -> dict[str, int]:
    """How many of a stage's microbatches each of its replicas gets; with `loads`, on top of those that it has.

    Newcomers get at most one each: those that are left when every measured replica could have one, and at least one of
    two or more; on top of others' loads none. Where all are newcomers they share alike. Takes a time that grows with
    the replicas, and not with the microbatches.
    """
    if not paces:
        raise ValueError(f"no replica is there to compute {microbatches} microbatches of its stage")
    newcomers = sorted(node for node, pace in paces.items() if pace is None)
    measured = {node: pace for node, pace in paces.items() if pace is not None}
    for node, pace in measured.items():
        if not 0 < pace < math.inf:
            raise ValueError(f"{node} can't need {pace} s for a microbatch")
    if not measured:
        return _divide(microbatches, dict.fromkeys(newcomers, 1.0), loads or {})
    tried = 0 if loads else min(len(newcomers), max(microbatches - len(measured), int(microbatches > 1)))
    shares = _divide(microbatches - tried, measured, loads or {})
    return shares | {node: int(number < tried) for number, node in enumerate(newcomers)}


def _divide(microbatches: int, paces: Mapping[str, float], loads: Mapping[str, int]) -> dict[str, int]:
    """Each to who would finish it first, on top of `loads`."""
    begun = {node: loads.get(node, 0) for node in paces}
    # What all could have finished by the time at which speeds alone, undivided, would have done everything is given out
    # at once: it is no more than there is, but for loads that are over their share. The margin is for rounding.
    even_s = (microbatches + sum(begun.values())) / math.fsum(1 / pace for pace in paces.values()) * (1 - 1e-9)
    now = {node: max(begun[node], int(even_s / pace)) for node, pace in paces.items()}
    if (left := microbatches + sum(begun.values()) - sum(now.values())) < 0:
        now, left = dict(begun), microbatches
    # A product, not a running sum: equal paces stay equal, however many microbatches there are.
    heap = [((now[node] + 1) * pace, node) for node, pace in paces.items()]
    heapify(heap)
    for _ in range(left):
        node = heap[0][1]
        now[node] += 1
        heapreplace(heap, ((now[node] + 1) * paces[node], node))
    return {node: now[node] - begun[node] for node in paces}


def _in_order(
    shares: Mapping[str, int], paces: Mapping[str, float | None], loads: Mapping[str, int]
) -> tuple[str, ...]:
    """Each node as often as `shares` says, in the order in which its microbatches will be finished; newcomers last."""
    is_anybody_measured = any(pace is not None for pace in paces.values())
    finished = []
    for node, share in shares.items():
        pace = paces[node] or (math.inf if is_anybody_measured else 1.0)
        begun = loads.get(node, 0)
        finished += [((begun + count) * pace, node) for count in range(1, share + 1)]
    return tuple(node for _, node in sorted(finished))
