"""Which stage a newcomer gets, who moves to another one, and how much is sent to a replica at a time.

A pipeline is as fast as its weakest stage: the one whose replicas together compute the fewest microbatches per second.
Newcomers strengthen it. Where none come, a replica of a stronger stage moves. Both stages of a move are better off
after it than the weaker one was before, by enough to pay for it; so no move undoes another one, and they come to an
end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOVE_MARGIN = 0.02
"""A stage gives a replica only if it stays faster than the weakest stage by this part: less is measurement noise."""
MOVE_PAYBACK = 0.1
"""What the weaker of the two stages gains by a move, over what the moving replica computes there, at the least: a move
is paid for by ten times the time in which the replica computes nothing.
"""
MAX_IN_FLIGHT = 64
"""Microbatches sent to a replica and not answered."""
IN_FLIGHT_GAIN = 2.0
"""By how much the window is wider than what is on its way where nothing is lost and nobody waits."""
HEDGE_FACTOR = 3.0
"""A replica is late when it takes so many times as long as it did before…"""
HEDGE_MARGIN_S = 3.0
"""…and this longer: less may be a machine that does something else for a moment."""


@dataclass(frozen=True)
class Replica:
    """A node that holds a stage, and where else it could be."""

    microbatch_s: float | None
    """Seconds per microbatch of the stage that it holds; None for a newcomer, which hasn't been measured."""
    has_data: bool = True
    """Only a node with the text can hold the first stage."""
    stages: frozenset[int] | None = None
    """Those that its owner's seats let it hold; None where the model asks for no stake. A node that isn't to move, such
    as one that is fetching a stage's state, is given none.
    """


@dataclass(frozen=True)
class Move:
    """A node is asked to leave its stage, fetch another one's state, and compute there."""

    node: str
    source: int
    target: int
    before: float
    """Microbatches per second that the target computes without it…"""
    after: float
    """…and the weaker of the two stages with it: more."""


def stage_throughputs(stages: Sequence[Mapping[str, Replica]], work: Sequence[int]) -> tuple[float, ...]:
    """Microbatches per second that each stage's replicas compute together.

    `work` is what a microbatch costs in each stage (`stage_units`). A newcomer counts as much as a measured replica
    of the model does on average, work for work; where none is measured, all count alike.
    """
    speeds = [
        work[stage] / replica.microbatch_s
        for stage, replicas in enumerate(stages)
        for replica in replicas.values()
        if replica.microbatch_s is not None
    ]
    typical = math.fsum(speeds) / len(speeds) if speeds else 1.0
    return tuple(
        math.fsum(
            typical / work[stage] if replica.microbatch_s is None else 1 / replica.microbatch_s
            for replica in replicas.values()
        )
        for stage, replicas in enumerate(stages)
    )


def may_hold(stage: int, *, allowed: frozenset[int] | None, has_data: bool) -> bool:
    """Whether a node can be given the stage: it has the text where that is needed, and its owner a seat."""
    return (has_data or stage > 0) and (allowed is None or stage in allowed)


def weakest_stage(throughputs: Sequence[float], allowed: frozenset[int] | None, *, has_data: bool) -> int | None:
    """The stage that a newcomer gets: the one of least throughput among those that it may hold; None where there is
    none.

    A stage that nobody holds has none, so it comes first. Of equals the first goes to a node with the text, the last
    to one without.
    """
    open_to_it = [stage for stage in range(len(throughputs)) if may_hold(stage, allowed=allowed, has_data=has_data)]
    if not has_data:
        open_to_it.reverse()
    return min(open_to_it, key=throughputs.__getitem__, default=None)


def rebalance(stages: Sequence[Mapping[str, Replica]], work: Sequence[int]) -> Move | None:
    """Who is to move to the weakest stage; None where no move is worth it.

    Of all moves the one after which the weaker of its two stages is fastest. Never one that leaves a stage empty, or
    that the node's seats or its lack of the text forbid, nor that of a newcomer. After a move the throughputs, weakest
    first, are lexicographically greater than before. Whoever is on its way counts where it goes.
    """
    throughputs = stage_throughputs(stages, work)
    target = min(range(len(stages)), key=throughputs.__getitem__)
    weakest = throughputs[target]
    best, best_key = None, (0.0, "")
    for source, replicas in enumerate(stages):
        if source == target or len(replicas) < 2:
            continue
        for node, replica in replicas.items():
            if replica.microbatch_s is None:
                continue
            left = throughputs[source] - 1 / replica.microbatch_s
            if left <= weakest * (1 + MOVE_MARGIN):
                continue
            if not may_hold(target, allowed=replica.stages, has_data=replica.has_data):
                continue
            brought = work[source] / (work[target] * replica.microbatch_s)
            gained = min(left, weakest + brought) - weakest
            key = (-gained, node)
            if gained > MOVE_PAYBACK * brought and key < best_key:
                best, best_key = Move(node, source, target, weakest, weakest + gained), key
    return best


def hedge_deadline_s(answer_s: float) -> float:
    """Seconds after which a microbatch that was sent to a replica isn't waited for any longer: others compute it.

    `answer_s` is how long its gradients took until now. Who waits for a node that itself waits for a later stage has
    the longer time, by more than what is between them: so the one that holds up all is found late first.
    """
    return HEDGE_FACTOR * answer_s + HEDGE_MARGIN_S


def in_flight(least: int, per_s: float, answer_s: float) -> int:
    """How many microbatches a stage may have sent on without their gradients having come back.

    As many as come back, at `per_s`, while one is on its way, there and back through all later stages, at best
    `answer_s`: the bandwidth-delay product. Twice that, as BBR's window (Cardwell et al., ACM Queue 2016): it grows
    from round to round where it is what limits the rate, and not otherwise, and covers answers that come late, most of
    all where packets are lost. `answer_s` is of one that waited behind no other, or it would grow by itself. Never
    fewer than `least`, which keeps the later stages busy where the way takes no time.
    """
    return max(least, min(MAX_IN_FLIGHT, 1 + math.ceil(IN_FLIGHT_GAIN * per_s * answer_s)))
