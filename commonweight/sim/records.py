"""What a run leaves behind."""

from dataclasses import dataclass, field

from commonweight.sim.population import Provider


@dataclass(frozen=True)
class RoundRecord:
    """A sealed round."""

    began_s: float
    ended_s: float
    ends_s: float
    """Filling and draining the pipeline."""
    average_s: float
    """Of the slowest stage."""
    offered: float
    """FLOPs that all who were there could have computed since the last seal…"""
    held: float
    """…and those of them who had a part in a round, from when on they had."""
    present: int
    """How many were there when it was planned, whether they had a part in it or not."""
    throughputs: tuple[float, ...]
    """Microbatches per second of each stage, when it was planned."""
    messages: int
    """To and from the coordinator since the last seal, without heartbeats."""
    units: dict[str, int]
    """Credited to each provider."""
    lost: dict[str, int]
    """Units that providers had computed of it, and took along when they left; also those of rounds given up before."""


@dataclass
class History:
    """All that happened until the last seal."""

    microbatches: int
    """In a round."""
    providers: list[Provider] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)
    recoveries_s: list[float] = field(default_factory=list)
    """From each loss in a round until others had its microbatches…"""
    delays_s: list[float] = field(default_factory=list)
    """…and by how much later its stage was done for having to compute them, as it seemed then."""
    moves: int = 0
    abandoned: int = 0
    """Rounds that ended because nobody was left in a stage."""
