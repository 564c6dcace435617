"""A stage that computes something else than it should.

What hosts it is an honest trainer: that sends, keeps, hashes and reports what the stage gives it. So reports, traces
and checkpoints all tell the same lie.
"""

from typing import Any

import torch
from torch import Tensor

from adversary.cheat import Cheat
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec


class DishonestStage(Stage):
    """A stage that knows which of its units it cheats on, and which microbatch it is at, each way."""

    def __init__(self, cheat: Cheat, spec: ModelSpec, index: int, **options: Any) -> None:
        """`options` are those of `Stage`."""
        super().__init__(spec, index, **options)
        self.cheat = cheat
        self.forwarded = self.returned = 0
        """Microbatches of the round that have passed, each way."""

    def gradients(self) -> dict[str, Tensor]:
        """As `Stage.gradients`; zeros as long as none was computed."""
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return super().gradients()

    def discard_gradients(self) -> None:
        """As `Stage.discard_gradients`: the round begins again, or the next one."""
        super().discard_gradients()
        self.forwarded = self.returned = 0

    @property
    def _microbatches(self) -> int:
        return self.spec.training.microbatches_per_round
