"""What the tolerance between numerics classes lets through: training with the worst bias that passes.

A biased stage shifts what it sends on towards a higher loss, by its whole tolerance in relative L2. It knows the exact
direction, which a real one would only know afterwards. What it sends back, and its own gradient, are shortened by as
much. Beyond that its step may go uphill by what the comparison of movements alone would let through: an upper bound,
since the parts that compare gradients and elementwise formulas let through less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from commonweight.model.compare import movement_tolerance, travelled_tolerance
from commonweight.model.data import Dataset
from commonweight.model.stage import Forward, Stage
from commonweight.rules.spec import ModelSpec


@dataclass(frozen=True)
class Bias:
    """Who biases what."""

    stages: tuple[int, ...] = ()
    sent: bool = False
    """What is sent on and back, and the gradient of the weights."""
    step: bool = False
    """How the weights move."""
    random: bool = False
    """In a random direction instead of uphill: shows how far equal training runs drift apart by chance."""


def train_biased(spec: ModelSpec, dataset: Dataset, rounds: int, bias: Bias) -> list[float]:
    """The mean loss of each round, nats."""
    stages = [Stage(spec, index) for index in range(spec.stages)]
    random = torch.Generator().manual_seed(0)
    losses = []
    for round_ in range(rounds):
        batches = [dataset.microbatch(round_, n) for n in range(spec.training.microbatches_per_round)]
        losses.append(fmean(_train_microbatch(stages, tokens, bias, random) for tokens in batches))
        for stage in stages:
            _step(stage, bias, random)
    return losses


def _train_microbatch(stages: Sequence[Stage], tokens: Tensor, bias: Bias, random: torch.Generator) -> float:
    shifts = _uphill(stages, tokens, bias) if bias.sent and not bias.random else {}
    tolerance = travelled_tolerance(stages[0].spec)
    pending: list[Forward] = []
    code: Tensor | None = None
    loss = 0.0
    for stage in stages:
        pending.append(stage.forward(tokens, code))
        output = pending[-1].output
        if not isinstance(output, Tensor):
            loss = output
        elif bias.sent and stage.index in bias.stages:
            shift = shifts.get(stage.index)
            code = _towards(output, _noise(output, random) if shift is None else shift, tolerance)
        else:
            code = output
    gradient: Tensor | None = None
    for stage in reversed(stages):
        gradient = stage.backward(pending.pop(), gradient)
        if gradient is not None and bias.sent and stage.index in bias.stages:
            gradient = _towards(gradient, _noise(gradient, random) if bias.random else -gradient, tolerance)
    return loss


def _uphill(stages: Sequence[Stage], tokens: Tensor, bias: Bias) -> dict[int, Tensor]:
    """The gradient of the loss with respect to each biased stage's output, without any bias."""
    pending: list[Forward] = []
    code: Tensor | None = None
    for stage in stages:
        pending.append(stage.forward(tokens, code))
        code = pending[-1].output if isinstance(pending[-1].output, Tensor) else None
    gradient, found = None, {}
    for stage in reversed(stages):
        gradient = stage.input_gradient(pending.pop(), gradient)
        if gradient is not None and stage.index - 1 in bias.stages:
            found[stage.index - 1] = gradient
    return found


def _step(stage: Stage, bias: Bias, random: torch.Generator) -> None:
    if stage.index not in bias.stages:
        stage.step()
        return
    if bias.sent:
        share = 1 - float(stage.spec.verification.tolerance)
        for gradient in stage.gradients().values():
            gradient.mul_(share)
    if not bias.step:
        stage.step()
        return
    parameters = {name: tensor.detach() for name, tensor in stage.module.named_parameters()}
    before = {name: tensor.clone() for name, tensor in parameters.items()}
    uphill = {name: tensor.clone() for name, tensor in stage.gradients().items()}
    if bias.random:
        uphill = {name: _noise(tensor, random) for name, tensor in uphill.items()}
    stage.step()
    moved = torch.nn.utils.get_total_norm([parameters[name] - before[name] for name in parameters])
    size = moved / torch.nn.utils.get_total_norm(list(uphill.values()))
    allowed = movement_tolerance(stage.spec, sum(tensor.numel() for tensor in parameters.values()))
    for name, parameter in parameters.items():
        parameter.add_(uphill[name] * (allowed * size))


def _towards(tensor: Tensor, direction: Tensor, tolerance: float) -> Tensor:
    """`tensor`, shifted by `tolerance` in relative L2."""
    size = tolerance * torch.linalg.vector_norm(tensor.float()) / torch.linalg.vector_norm(direction.float())
    return torch.add(tensor.float(), direction.float() * size).to(tensor.dtype)


def _noise(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random).to(like.dtype)
