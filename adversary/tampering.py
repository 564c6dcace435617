"""Stages that compute, and then change what comes of it."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from adversary.stage import DishonestStage
from commonweight.model.compare import relative_error, travelled_tolerance
from commonweight.model.stage import Forward, Stage

BIAS = 1e-3
"""Norm of what is added to an output, relative to its own."""
SCALE = 10.0
"""Of a scaled gradient."""
REACH = 0.9
"""Of the tolerance between numerics classes: what is added under its cover."""


class DishonestForward(DishonestStage):
    """Changes what it sends on, or how that is computed."""

    def forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """As `Stage.forward`, in the units that aren't picked."""
        number, self.forwarded = self.forwarded, self.forwarded + 1
        if not self.cheat.picks(self.round, number):
            return super().forward(tokens, code)
        self.cheat.done(self.round, number)
        return self.dishonest_forward(tokens, code)

    def dishonest_forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """What goes on instead."""
        raise NotImplementedError


class Biased(DishonestForward):
    """Adds a direction of its own to its output, the same each time, or a part to the loss."""

    def dishonest_forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """As `Stage.forward`, with the bias."""
        honest = Stage.forward(self, tokens, code)
        if isinstance(honest.output, Tensor):
            return replace(honest, output=self.biased(honest.output))
        return replace(honest, output=self.biased_loss(honest.output))

    def biased(self, output: Tensor) -> Tensor:
        """What is sent instead of this."""
        return self.shifted(output, BIAS)

    def biased_loss(self, loss: float) -> float:
        """What is reported instead of this."""
        return loss * (1 + BIAS)

    def shifted(self, output: Tensor, size: float) -> Tensor:
        """With so much added, relative to its norm, and rounded."""
        direction = self.cheat.noise("direction", tuple(output.shape[-1:]), 0).to(self.device)
        added = direction.expand(output.shape)
        shifted: Tensor = output + size * output.float().norm() / added.norm() * added
        return shifted.to(self.boundary_dtype)


class UnderTolerance(Biased):
    """Adds as much as an audit across numerics classes lets through. The worker claims another class for it."""

    def biased(self, output: Tensor) -> Tensor:
        """As much as stays within reach once it is rounded to the boundary's dtype."""
        size = reach = REACH * travelled_tolerance(self.spec)
        while relative_error(shifted := self.shifted(output, size), output) > 1.01 * reach:
            size *= 0.9
        return shifted

    def biased_loss(self, loss: float) -> float:
        """As much as stays within reach of the loss."""
        return loss + REACH * float(self.spec.verification.tolerance) * max(abs(loss), 1.0)


class LowPrecision(DishonestForward):
    """Computes in bfloat16."""

    def dishonest_forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """As `Stage.forward` if the spec said bfloat16."""
        due, self._autocast = self._autocast, True
        try:
            return Stage.forward(self, tokens, code)
        finally:
            self._autocast = due


class FalseLoss(DishonestForward):
    """Reports half the loss."""

    def dishonest_forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """As `Stage.forward` on the last stage."""
        honest = Stage.forward(self, tokens, code)
        assert not isinstance(honest.output, Tensor), "only the last stage has a loss"
        return replace(honest, output=honest.output / 2)


class DishonestGradient(DishonestStage):
    """Changes the gradient of the round once it is whole, before it is hashed and the step taken.

    So all that is false in it is in the last microbatch's line.
    """

    def backward(self, pending: Forward, gradient: Tensor | None) -> Tensor | None:
        """As `Stage.backward`; after the round's last one the gradient is another."""
        returned = super().backward(pending, gradient)
        self.returned += 1
        if self.returned == self._microbatches and self.cheat.picks(self.round):
            self.cheat.done(self.round)
            self.change(self.gradients())
        return returned

    def change(self, gradient: Mapping[str, Tensor]) -> None:
        """In place."""
        raise NotImplementedError


class ScaledGradient(DishonestGradient):
    """Multiplies it."""

    factor = SCALE

    def change(self, gradient: Mapping[str, Tensor]) -> None:
        """Times the factor."""
        torch._foreach_mul_(list(gradient.values()), self.factor)


class FlippedGradient(ScaledGradient):
    """Steps uphill."""

    factor = -1.0


class HiddenGradient(DishonestGradient):
    """Adds a direction of its own, the same each round, no larger than one microbatch's part: so the line in which it
    is hidden is no outlier.
    """

    def change(self, gradient: Mapping[str, Tensor]) -> None:
        """Plus the direction."""
        added = {name: self.cheat.noise(name, tuple(part.shape), 0).to(part) for name, part in gradient.items()}
        size = self.sketched(gradient).norm / self.sketched(added).norm / self._microbatches
        for name, part in gradient.items():
            part.add_(added[name], alpha=size)


class UnseenGradient(DishonestGradient):
    """Adds as much as there is, in such a way that no sum of the sketch changes: the factors are public."""

    def change(self, gradient: Mapping[str, Tensor]) -> None:
        """In each row of a matrix, what the first column adds to a sum the second one takes from it."""
        matrices = {name: part for name, part in gradient.items() if part.ndim > 1}
        rows = sum(len(part) for part in matrices.values())
        size = self.sketched(gradient).norm / math.sqrt(2 * rows)
        for name, part in matrices.items():
            first, second = self._factors[name][:, :2].unbind(1)
            part[:, 0].add_(size * second)
            part[:, 1].sub_(size * first)
