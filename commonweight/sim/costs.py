"""How long things take a provider, by the spec: a microbatch, a stage's state, an average, the pipeline's ends."""

from collections.abc import Sequence

from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import boundary_bytes_per_token, stage_parameters, stage_units, state_bytes
from commonweight.sim.population import Provider

HASHED_BYTES_PER_S = 1.5e9
"""Of a state, for its root, after the optimizer's step."""


class Costs:
    """Of one spec."""

    def __init__(self, spec: ModelSpec, gradient_bytes: float) -> None:
        stages = range(spec.stages)
        self.units = [stage_units(spec, stage) for stage in stages]
        """Of one microbatch in each stage."""
        self._parameters = [stage_parameters(spec, stage) for stage in stages]
        self._state_bytes = [state_bytes(spec, stage) for stage in stages]
        self._gradient_bytes = gradient_bytes
        self._boundary_bits = 4 * boundary_bytes_per_token(spec).sent * spec.training.tokens_per_microbatch
        """Of one microbatch over one boundary, one way."""

    def microbatch_s(self, provider: Provider, stage: int) -> float:
        """The provider's seconds per microbatch of a stage: to compute, or to send or receive if that is longer."""
        bits = self._boundary_bits * ((stage > 0) + (stage < len(self.units) - 1))
        return max(self.units[stage] / provider.speed, bits / provider.up_bps, bits / provider.down_bps)

    def fetch_s(self, provider: Provider, stage: int) -> float:
        """To fetch a stage's state. Those who have it send it together; the provider's own link is what bounds it."""
        return 8 * self._state_bytes[stage] / provider.down_bps + 4 * provider.latency_s

    def average_s(self, replicas: Sequence[Provider], stage: int) -> float:
        """For a stage's replicas to have the same average of their gradients.

        Each sends all of its own, in parts, and gets all of the average; who averages a part is chosen by bandwidth
        (hivemind's butterfly all-reduce). So it takes the slowest link, or twice the mean one.
        """
        if len(replicas) < 2:
            return 0.0
        bits = 8 * self._gradient_bytes * self._parameters[stage]
        slowest = min(min(each.up_bps, each.down_bps) for each in replicas)
        mean = sum(each.up_bps for each in replicas) / len(replicas)
        return bits * max(1 / slowest, 2 / mean) + 4 * max(each.latency_s for each in replicas)

    def step_s(self) -> float:
        """For the slowest stage's step, and the hash of what comes of it."""
        return max(self._state_bytes) / HASHED_BYTES_PER_S

    def hop_s(self, replicas: Sequence[Provider]) -> float:
        """For a microbatch to get from one of a stage's replicas to the next stage."""
        return sum(self._boundary_bits / each.up_bps + each.latency_s for each in replicas) / len(replicas)


def pipeline_ends_s(microbatch_s: Sequence[float], hop_s: Sequence[float]) -> tuple[list[float], list[float]]:
    """How long each stage waits for its first microbatch, and after its last computation for what is still on its way.

    `microbatch_s` and `hop_s` are means over each stage's replicas; a third of a microbatch is its forward pass. It
    takes windows that are wide enough for a stage never to wait in between; see the test that follows each microbatch.
    """
    stages = range(len(microbatch_s))
    forward = [seconds / 3 + hop for seconds, hop in zip(microbatch_s, hop_s, strict=True)]
    there_and_back = [seconds + 2 * hop for seconds, hop in zip(microbatch_s, hop_s, strict=True)]
    return [sum(forward[:stage]) for stage in stages], [sum(there_and_back[stage:-1]) for stage in stages]
