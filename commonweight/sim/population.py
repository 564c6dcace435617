"""Who takes part: providers drawn from a seed, each with a speed, links and a lifetime of its own.

All draws of a provider come from one generator, in the order in which providers appear; so one seed gives one swarm.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from commonweight.rules.assignment import Pace

MEDIAN_SPEED = 10e12
"""FLOP/s that a provider sustains in training: a middling GPU of a home computer."""
SPEED_SPREAD = 0.6
"""Standard deviation of the speed's logarithm…"""
SPEED_RANGE = 4.0
"""…which is cut off at so many times the median, and as far below it."""
MEDIAN_DOWN_BPS, MEDIAN_UP_BPS, LINK_SPREAD = 300e6, 100e6, 0.6
LEAST_DOWN_BPS, LEAST_UP_BPS = 100e6, 50e6
"""Slower links aren't admitted: a stage averages as fast as the slowest of them."""
LATENCY_S = (0.01, 0.08)
"""One way."""
JITTER = 0.05
"""Standard deviation of a round's speed about the provider's own, as a part of it."""
WITH_DATA = 0.5
"""The part of all that has the text, and so can hold the first stage."""
SILENT = 0.5
"""The part of those leaving whose connections stay open, so that only their silence tells."""
FLEETING = 0.2
"""The part of those present who don't stay long: they make up FLEETING_CHURN of those leaving."""
FLEETING_CHURN = 0.75


@dataclass(eq=False)
class Provider:
    """One owner with one node."""

    address: str
    speed: float
    """FLOP/s."""
    down_bps: float
    up_bps: float
    latency_s: float
    has_data: bool
    stays_s: float
    """From its arrival."""
    arrived_s: float
    left_s: float | None = None
    stage: int = 0
    is_ready: bool = False
    """Whether it holds its stage's state, and can be planned with."""
    pace: Pace = field(default_factory=Pace)


class Population:
    """A source of providers and of all else that is left to chance."""

    def __init__(self, seed: int, churn_per_hour: float) -> None:
        self._random = np.random.default_rng(seed)
        self._count = 0
        per_s = churn_per_hour / 3600
        # So that those present leave at the given rate altogether. Without memory: in balance from the start.
        self._leaving_per_s = (per_s * FLEETING_CHURN / FLEETING, per_s * (1 - FLEETING_CHURN) / (1 - FLEETING))

    def initial(self, providers: int) -> Iterator[Provider]:
        """Those present at the start."""
        for _ in range(providers):
            yield self._draw(0.0, FLEETING)

    def newcomer(self, now_s: float) -> Provider:
        """One who arrives: mostly of those who don't stay long."""
        return self._draw(now_s, FLEETING_CHURN)

    def until_next_s(self, providers: int) -> float | None:
        """Seconds until the next one arrives, in a swarm that is to keep so many; None: nobody does."""
        fleeting, steady = self._leaving_per_s
        per_s = providers * (FLEETING * fleeting + (1 - FLEETING) * steady)
        return float(self._random.exponential(1 / per_s)) if per_s else None

    def jitter(self, count: int) -> list[float]:
        """By how much so many providers are slower than usual in a round: factors about 1."""
        return [float(factor) for factor in np.exp(JITTER * self._random.standard_normal(count))]

    def chance(self, probability: float) -> bool:
        """True so often."""
        return bool(self._random.random() < probability)

    def between(self, low: float, high: float) -> float:
        """Any number of the range, equally likely."""
        return float(self._random.uniform(low, high))

    def _draw(self, now_s: float, fleeting: float) -> Provider:
        normal = self._random.standard_normal(3)
        speed = MEDIAN_SPEED * float(
            np.exp(np.clip(SPEED_SPREAD * normal[0], -np.log(SPEED_RANGE), np.log(SPEED_RANGE)))
        )
        per_s = self._leaving_per_s[0 if self.chance(fleeting) else 1]
        provider = Provider(
            address=f"0x{self._count:040x}",
            speed=speed,
            down_bps=max(LEAST_DOWN_BPS, MEDIAN_DOWN_BPS * float(np.exp(LINK_SPREAD * normal[1]))),
            up_bps=max(LEAST_UP_BPS, MEDIAN_UP_BPS * float(np.exp(LINK_SPREAD * normal[2]))),
            latency_s=self.between(*LATENCY_S),
            has_data=self.chance(WITH_DATA),
            stays_s=float(self._random.exponential(1 / per_s)) if per_s else np.inf,
            arrived_s=now_s,
        )
        self._count += 1
        return provider
