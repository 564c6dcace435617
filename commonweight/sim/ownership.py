"""Who owns what after a run, by the rules of settlement; and how that compares with what everybody did."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from commonweight.rules.accounting import divide_shares
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.spec import Economics
from commonweight.sim.population import Provider
from commonweight.sim.records import RoundRecord


@dataclass(frozen=True)
class Ownership:
    """Of the epochs that were over at the end; all by provider."""

    shares: dict[str, int]
    """Base units."""
    credited: dict[str, int]
    """Units of sealed rounds."""
    computed: dict[str, int]
    """Those, and what was lost with the provider."""
    offered: dict[str, float]
    """FLOPs that it could have computed while it was there."""

    @property
    def worst_deviation(self) -> float:
        """By how much a provider's part of the shares differs most from its part of the credited work, relatively."""
        shares, credited = sum(self.shares.values()), sum(self.credited.values())
        return max(
            (abs(self.shares[node] * credited / (units * shares) - 1) for node, units in self.credited.items()),
            default=0.0,
        )

    @property
    def gini(self) -> float:
        """Of the shares per unit computed: 0 where all are paid alike for what they did."""
        return gini([self.shares.get(node, 0) / units for node, units in self.computed.items()])

    def pay(self) -> list[float]:
        """Shares per FLOP offered, of each provider, over those of all together."""
        per_flop = sum(self.shares.values()) / sum(self.offered.values())
        return [self.shares.get(node, 0) / (flops * per_flop) for node, flops in self.offered.items()]


def settle(economics: Economics, rounds: Sequence[RoundRecord], providers: Sequence[Provider]) -> Ownership | None:
    """What the epochs that are over pay for computing; None before the first is over."""
    length = economics.rounds_per_epoch
    epochs = len(rounds) // length
    if not epochs:
        return None
    shares: Counter[str] = Counter()
    credited: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    for epoch in range(epochs):
        units: Counter[str] = Counter()
        for record in rounds[epoch * length : (epoch + 1) * length]:
            units.update(record.units)
            computed.update(record.lost)
        minted = emission(economics, epoch)
        shares.update(divide_shares(split_emission(minted, economics.designer_bps, economics.data_bps).compute, units))
        credited.update(units)
        computed.update(units)
    ended_s = rounds[epochs * length - 1].ended_s
    offered = {
        each.address: each.speed * (min(ended_s, ended_s if each.left_s is None else each.left_s) - each.arrived_s)
        for each in providers
        if each.arrived_s < ended_s
    }
    return Ownership(dict(shares), dict(credited), {node: units for node, units in computed.items() if units}, offered)


def gini(values: Sequence[float]) -> float:
    """The Gini coefficient: half of the mean difference between two values, over their mean; 0 of none."""
    ordered = np.sort(np.asarray(values, dtype=float))
    total = ordered.sum()
    if not total:
        return 0.0
    ranks = np.arange(1, len(ordered) + 1)
    return max(0.0, float((2 * (ranks * ordered).sum() / (len(ordered) * total)) - (len(ordered) + 1) / len(ordered)))
