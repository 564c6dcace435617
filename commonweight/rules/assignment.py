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
from dataclasses import dataclass
from heapq import heapify, heapreplace
from types import MappingProxyType

LAST_ROUND_WEIGHT = 0.3
"""Of the last round in a replica's pace; the rest is the pace before."""


@dataclass(frozen=True)
class Pace:
    """How fast a replica computes its stage."""

    microbatch_s: float | None = None
    """Seconds of work per microbatch, forward and backward; None for a newcomer, which hasn't been measured."""


def update(pace: Pace, microbatches: int, busy_s: float) -> Pace:
    """The pace after a round in which the replica computed so many microbatches in `busy_s` seconds of work.

    An exponential moving average over rounds; unchanged where it computed nothing.
    """
    if not microbatches:
        return pace
    measured = busy_s / microbatches
    if not 0 < measured < math.inf:
        raise ValueError(f"{microbatches} microbatches in {busy_s} s say nothing about a replica's pace")
    if pace.microbatch_s is None:
        return Pace(measured)
    return Pace(pace.microbatch_s + LAST_ROUND_WEIGHT * (measured - pace.microbatch_s))


def assign(microbatches: int, paces: Sequence[Mapping[str, float | None]]) -> tuple[tuple[str, ...], ...]:
    """For each stage, in order, the node that computes each microbatch, by its number.

    `paces` are the seconds per microbatch of each stage's replicas, None for newcomers. Newcomers get the last
    microbatches, at most one each: those that are left when every measured replica could have one, and at least one of
    two or more. Where all of a stage are newcomers they share alike. Equals are ordered by address. Raises ValueError
    where a stage has no replica, or a pace isn't positive and finite.
    """
    return tuple(_assign_stage(microbatches, stage, replicas) for stage, replicas in enumerate(paces))


def reassign(assignment: Sequence[str], lost: str, paces: Mapping[str, float | None]) -> Mapping[int, str]:
    """The lost replica's microbatches of a stage, by number, and who computes each of them instead.

    `assignment` is the stage's, with what was reassigned before; `paces` are its replicas', the lost one's no matter.
    On top of what the others have already, by the rule of `assign`; newcomers get nothing more where anybody is
    measured. Raises ValueError where nobody is left.
    """
    numbers = [number for number, node in enumerate(assignment) if node == lost]
    others = {node: pace for node, pace in paces.items() if node != lost}
    if not others:
        raise ValueError(f"nobody but {lost} holds its stage: its microbatches wait until somebody does")
    measured, newcomers = _split(others)
    eligible = measured or dict.fromkeys(newcomers, 1.0)
    return MappingProxyType(dict(zip(numbers, _spread(len(numbers), eligible, Counter(assignment)), strict=True)))


def _assign_stage(microbatches: int, stage: int, paces: Mapping[str, float | None]) -> tuple[str, ...]:
    if not paces:
        raise ValueError(f"stage {stage} has no replica that could compute its {microbatches} microbatches")
    measured, newcomers = _split(paces)
    if not measured:
        return _spread(microbatches, dict.fromkeys(newcomers, 1.0), Counter())
    tried = min(len(newcomers), max(microbatches - len(measured), int(microbatches > 1)))
    return _spread(microbatches - tried, measured, Counter()) + tuple(newcomers[:tried])


def _split(paces: Mapping[str, float | None]) -> tuple[dict[str, float], list[str]]:
    """Those that are measured, and the newcomers in order."""
    measured = {node: pace for node, pace in paces.items() if pace is not None}
    for node, pace in measured.items():
        if not 0 < pace < math.inf:
            raise ValueError(f"{node} can't need {pace} s for a microbatch")
    return measured, sorted(paces.keys() - measured.keys())


def _spread(microbatches: int, paces: Mapping[str, float], loads: Counter[str]) -> tuple[str, ...]:
    """So many more microbatches, each to who would finish it first, on top of `loads`."""
    loads = Counter({node: loads[node] for node in paces})
    # A product, not a running sum: equal paces stay equal, however many microbatches there are.
    heap = [((loads[node] + 1) * pace, node) for node, pace in paces.items()]
    heapify(heap)
    chosen = []
    for _ in range(microbatches):
        node = heap[0][1]
        chosen.append(node)
        loads[node] += 1
        heapreplace(heap, ((loads[node] + 1) * paces[node], node))
    return tuple(chosen)
