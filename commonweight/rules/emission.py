"""How many shares an epoch mints, and for whom. The contract EmissionSchedule computes the same."""

from dataclasses import dataclass

from commonweight.rules.spec import Economics

BPS = 10_000
MIN_SUPPLY = 10**18
"""Base units of shares below which a model takes no revenue, and which it must reach in its first halving period."""


@dataclass(frozen=True)
class EmissionSplit:
    """The parts of one epoch's shares, in base units; they sum to what was minted."""

    designer: int
    data: int
    compute: int


def emission(economics: Economics, epoch: int) -> int:
    """The most that epoch (from 0) may mint: halves every `halving_epochs`. What isn't minted is lost."""
    return int(economics.initial_emission) >> (epoch // economics.halving_epochs)


def split_emission(minted: int, designer_bps: int, data_bps: int) -> EmissionSplit:
    """Designer and data provider get their part rounded down; computing gets the rest."""
    designer = minted * designer_bps // BPS
    data = minted * data_bps // BPS
    return EmissionSplit(designer, data, minted - designer - data)
