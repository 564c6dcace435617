"""What stages that cheat say about a round that they were given: each kind in a few lines, without a network.

The nodes of the package `adversary` do the same over the wire; nothing may import them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from commonweight.bench.replays import Made, Taken, Tensors, compute, finish, work
from commonweight.model.hashing import tensors_hash
from commonweight.model.sketch import Sketched
from commonweight.model.stage import Stage, state_parts
from commonweight.rules.audits import Kind

FIRST, INNER, LAST = 0, 1, -1
WORK = frozenset({Kind.MICROBATCH, Kind.ROUND})
BIASES = (1e-5, 1.5e-5, 1e-4, 1e-3)
"""Norms of what is added to outputs, relative to these. The first is the tolerance in float32."""


@dataclass(frozen=True)
class Liar:
    """A stage that was given a round, and what an honest one makes of it."""

    stage: Stage
    taken: Taken
    honest: Made
    random: torch.Generator

    def noise(self, like: Tensor) -> Tensor:
        """Normally distributed, as large as `like`."""
        noise = torch.randn(like.shape, generator=self.random)
        return torch.mul(noise, _norm(like) / _norm(noise)).to(like.dtype)

    def step(self, made: Made, gradient: Mapping[str, Tensor]) -> Made:
        """End the round with another gradient of the weights, whatever sketches are told."""
        self.stage.load(self.taken.state, self.taken.round)
        for name, parameter in self.stage.module.named_parameters():
            parameter.grad = gradient[name].clone()
        return finish(made, self.stage)

    def make_up(self, made: Made, gradient: Tensors) -> Made:
        """End the round with a gradient that no microbatch has made, told as if each had an equal part in it."""
        whole, count = self.stage.sketched(gradient), len(made.sketches)
        sketches = {n: _times((n + 1) / count, whole) for n in made.sketches}
        return self.step(replace(made, sketches=sketches), gradient)

    def compute_with(self, weights: Tensors) -> Made:
        """Compute with other weights, and step from those that are due."""
        self.stage.load(weights, self.taken.round)
        made = compute(self.stage, self.taken)
        return self.step(made, {name: tensor.clone() for name, tensor in self.stage.gradients().items()})


@dataclass(frozen=True)
class Lie:
    """One way to cheat."""

    name: str
    tell: Callable[[Liar], Made]
    shown_by: frozenset[Kind] = WORK
    """The audits that look at what is false."""
    stage: int = INNER
    true_first: int = 0
    """So many microbatches of a round are true."""
    is_hidden: bool = False
    """From most of these audits."""


def listen(stage: Stage, taken: Taken, seed: int) -> Liar:
    """A liar that has been given a round."""
    return Liar(stage, taken, work(stage, taken), torch.Generator().manual_seed(seed))


def _lies() -> list[Lie]:
    return [
        Lie("zeros", lambda liar: _send(liar, torch.zeros_like, torch.zeros_like)),
        Lie("noise", lambda liar: _send(liar, liar.noise, liar.noise)),
        Lie("cached", _cached, true_first=1),
        Lie("copied", _copied),
        Lie("no backward", _no_backward),
        Lie("gradient sent back × 1.001", lambda liar: _scaled_back(liar, 1.001)),
        *(Lie(f"biased by {size:g}", partial(_biased, size)) for size in BIASES),
        Lie("low precision", _low_precision),
        Lie("stale weights", lambda liar: liar.compute_with(liar.taken.stale)),
        Lie("no weight gradients", lambda liar: _scaled(liar, 0.0)),
        Lie("round's gradient × 10", lambda liar: _scaled(liar, 10.0)),
        Lie("round's gradient × 1.001", lambda liar: _scaled(liar, 1.001)),
        Lie("round's gradient flipped", lambda liar: _scaled(liar, -1.0)),
        Lie("round's gradient × 10, in the last sketch alone", lambda liar: _hidden(liar, 10.0)),
        Lie("round's gradient × 1.1, in the last sketch alone", lambda liar: _hidden(liar, 1.1), is_hidden=True),
        Lie("no step", _no_step),
        Lie("false root", lambda liar: replace(liar.honest, next_root=bytes(32), next_state={})),
        Lie("false loss", _false_loss, frozenset({Kind.LOSS, Kind.ROUND}), LAST),
        Lie("wrong data", _wrong_data, frozenset({Kind.DATA}), FIRST),
    ]


def _send(liar: Liar, forward: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Made:
    outputs, returned = _map(liar.honest.outputs, forward), _map(liar.honest.input_gradients, back)
    made = replace(liar.honest, outputs=outputs, input_gradients=returned)
    return liar.make_up(made, _zeros(liar))


def _cached(liar: Liar) -> Made:
    output, gradient = liar.honest.outputs[0], liar.honest.input_gradients[0]
    assert output is not None, "an inner stage has outputs"
    assert gradient is not None, "and gradients to send back"
    return _send(liar, lambda _: output, lambda _: gradient)


def _copied(liar: Liar) -> Made:
    outputs, returned = dict(enumerate(liar.taken.codes)), dict(enumerate(liar.taken.gradients))
    made = replace(liar.honest, outputs=outputs, input_gradients=returned)
    return liar.make_up(made, _zeros(liar))


def _no_backward(liar: Liar) -> Made:
    made = replace(liar.honest, input_gradients=_map(liar.honest.input_gradients, liar.noise))
    return liar.make_up(made, {name: liar.noise(tensor) for name, tensor in liar.honest.gradient.items()})


def _scaled_back(liar: Liar, factor: float) -> Made:
    return replace(liar.honest, input_gradients=_map(liar.honest.input_gradients, lambda tensor: tensor * factor))


def _biased(size: float, liar: Liar) -> Made:
    def shift(output: Tensor) -> Tensor:
        return (output.float() + size * liar.noise(output.float())).to(output.dtype)

    return replace(liar.honest, outputs=_map(liar.honest.outputs, shift))


def _low_precision(liar: Liar) -> Made:
    """In bfloat16 what should be float32; with weights rounded to float8 (e4m3) what should be bfloat16."""
    stage = liar.stage
    if stage._autocast:
        rounded = {name: tensor.to(torch.float8_e4m3fn).to(tensor) for name, tensor in liar.taken.state.items()}
        return liar.compute_with(rounded)
    stage._autocast = True
    made = liar.compute_with(liar.taken.state)
    stage._autocast = False
    return made


def _scaled(liar: Liar, factor: float) -> Made:
    sketches = {n: _times(factor, sketch) for n, sketch in liar.honest.sketches.items()}
    gradient = {name: tensor * factor for name, tensor in liar.honest.gradient.items()}
    return liar.step(replace(liar.honest, sketches=sketches), gradient)


def _hidden(liar: Liar, factor: float) -> Made:
    """As who scales the sum after the last microbatch."""
    told, last = _scaled(liar, factor), max(liar.honest.sketches)
    return replace(told, sketches=liar.honest.sketches | {last: told.sketches[last]})


def _no_step(liar: Liar) -> Made:
    root = liar.stage.root_of(liar.taken.round + 1, *map(tensors_hash, state_parts(liar.taken.state)))
    return replace(liar.honest, next_root=root, next_state=liar.taken.state)


def _false_loss(liar: Liar) -> Made:
    return replace(liar.honest, losses={n: loss / 2 for n, loss in liar.honest.losses.items()})


def _wrong_data(liar: Liar) -> Made:
    return replace(liar.honest, tokens={n: tokens.flip(1) for n, tokens in liar.honest.tokens.items()})


def _zeros(liar: Liar) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in liar.honest.gradient.items()}


def _times(factor: float, sketch: Sketched) -> Sketched:
    return Sketched(factor * sketch.sums, abs(factor) * sketch.norm)


def _map(tensors: Mapping[int, Tensor | None], change: Callable[[Tensor], Tensor]) -> dict[int, Tensor | None]:
    return {n: None if tensor is None else change(tensor) for n, tensor in tensors.items()}


def _norm(tensor: Tensor) -> Tensor:
    return tensor.float().square().sum().sqrt()


LIES = _lies()
"""Each kind of lie."""
