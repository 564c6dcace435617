"""Stages that save themselves work: they make up what they send."""

import math
from typing import Any

import torch
from torch import Tensor

from adversary.cheat import Cheat
from adversary.stage import DishonestStage
from commonweight.model.stage import Forward
from commonweight.rules.spec import ModelSpec

MADE_UP = 1e-3
"""Size of the numbers in a made-up gradient of the weights."""


class Lazy(DishonestStage):
    """Computes nothing for a microbatch, neither way, and makes up what it sends."""

    def __init__(self, cheat: Cheat, spec: ModelSpec, index: int, **options: Any) -> None:
        """As `DishonestStage`."""
        super().__init__(cheat, spec, index, **options)
        self._skipped: dict[Forward, int] = {}
        """What waits to go back, of microbatches that weren't computed, and their numbers."""

    def can_make_up(self) -> bool:
        """Whether it knows what to send."""
        return True

    def make_up(self, what: str, number: int, given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """An "output" or a "gradient" of this shape; `given` is what came in from that direction."""
        raise NotImplementedError

    def make_up_loss(self, number: int) -> float:
        """On the last stage, instead of an output."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """As `Stage.forward`, in the units that aren't picked."""
        number = self.forwarded
        self.forwarded += 1
        if not self.cheat.picks(self.round, number) or not self.can_make_up():
            return super().forward(tokens, code)
        self.cheat.done(self.round, number)
        shape = (tokens.shape[0], tokens.shape[1] - 1, self.spec.architecture.boundary_dim)
        result = torch.empty(shape, dtype=self.boundary_dtype, device=self.device)
        if self.is_last:
            pending = Forward(self.make_up_loss(number), None, result)
        else:
            output = self.make_up("output", number, code, shape)
            pending = Forward(output.to(self.device, self.boundary_dtype), None, result)
        self._skipped[pending] = number
        return pending

    def backward(self, pending: Forward, gradient: Tensor | None) -> Tensor | None:
        """As `Stage.backward`, in the units that aren't picked."""
        number = self._skipped.pop(pending, None)
        if number is None:
            return super().backward(pending, gradient)
        if self.is_first:
            return None
        made_up = self.make_up("gradient", number, gradient, tuple(pending.result.shape))
        return made_up.to(self.device, self.boundary_dtype)

    def discard_gradients(self) -> None:
        """As `Stage.discard_gradients`."""
        super().discard_gradients()
        self._skipped = {}


class Zeros(Lazy):
    """Sends zeros."""

    def make_up(self, what: str, number: int, given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Zeros."""
        return torch.zeros(shape)

    def make_up_loss(self, number: int) -> float:
        """Zero."""
        return 0.0


class Noise(Lazy):
    """Sends noise."""

    def make_up(self, what: str, number: int, given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Normally distributed."""
        return self.cheat.noise(what, shape, self.round, number)

    def make_up_loss(self, number: int) -> float:
        """About that of a model that has learnt nothing."""
        error = self.cheat.noise("loss", (), self.round, number).item()
        return abs(math.log(self.spec.architecture.vocab_size) + error)


class Copied(Lazy):
    """Sends on what came in."""

    def make_up(self, what: str, number: int, given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """The same tensor."""
        assert given is not None, "it is between two others"
        return given


class Cached(Lazy):
    """Sends again what it has computed for the first microbatch that it saw."""

    def __init__(self, cheat: Cheat, spec: ModelSpec, index: int, **options: Any) -> None:
        """As `DishonestStage`."""
        super().__init__(cheat, spec, index, **options)
        self._output: Tensor | float | None = None
        self._gradient: Tensor | None = None

    def can_make_up(self) -> bool:
        """Once it has computed something."""
        return self._output is not None

    def make_up(self, what: str, number: int, given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """What it was then."""
        kept = self._output if what == "output" else self._gradient
        assert isinstance(kept, Tensor), "microbatches come back in order"
        return kept

    def make_up_loss(self, number: int) -> float:
        """What it was then."""
        assert isinstance(self._output, float)
        return self._output

    def forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """As `Lazy.forward`."""
        forward = super().forward(tokens, code)
        if self._output is None:
            self._output = forward.output
        return forward

    def backward(self, pending: Forward, gradient: Tensor | None) -> Tensor | None:
        """As `Lazy.backward`."""
        returned = super().backward(pending, gradient)
        if self._gradient is None:
            self._gradient = returned
        return returned


class NoBackward(DishonestStage):
    """Makes up the gradient of a microbatch: the one that it sends back, and that of its own weights."""

    def backward(self, pending: Forward, gradient: Tensor | None) -> Tensor | None:
        """As `Stage.backward`, in the units that aren't picked."""
        number = self.returned
        self.returned += 1
        if not self.cheat.picks(self.round, number):
            return super().backward(pending, gradient)
        self.cheat.done(self.round, number)
        for name, parameter in self._parameters.items():
            noise = self.cheat.noise(name, tuple(parameter.shape), self.round, number).to(parameter)
            parameter.grad = MADE_UP * noise if parameter.grad is None else parameter.grad + MADE_UP * noise
        if pending.leaf is None:
            return None
        made_up = self.cheat.noise("gradient", tuple(pending.leaf.shape), self.round, number)
        return made_up.to(self.device, self.boundary_dtype)


class NoWeightGradients(DishonestStage):
    """Sends what is due, both ways, and computes no gradient of its weights: saves a third of a microbatch's work."""

    def backward(self, pending: Forward, gradient: Tensor | None) -> Tensor | None:
        """As `Stage.backward`; the units that are picked add nothing to the round's gradient."""
        number = self.returned
        self.returned += 1
        if not self.cheat.picks(self.round, number):
            return super().backward(pending, gradient)
        self.cheat.done(self.round, number)
        return self.input_gradient(pending, gradient)
