"""A trained round, with all that its stages took and gave."""

from dataclasses import dataclass

from torch import Tensor

from commonweight.model.replay import Replayed, replay
from commonweight.model.stage import Stage, train_round
from commonweight.rules.spec import ModelSpec
from tests.unit.tiny import all_stages, random_batches

ROUND = 2
"""The round that is traced."""


@dataclass
class Trace:
    """What one stage took, gave and held in a round, as its own trainer saw it."""

    state: dict[str, Tensor]
    inputs: list[Tensor | None]
    gradients: list[Tensor | None]
    outputs: list[Tensor | None]
    input_gradients: list[Tensor | None]
    losses: list[float]
    gradient_hash: bytes = b""
    next_root: bytes = b""


def state_of(stage: Stage) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stage.state().items()}


def trained(spec: ModelSpec) -> tuple[list[Tensor], list[Trace]]:
    """The microbatches and traces of round 2, forward passes first and then the backward ones, as a pipeline may."""
    stages = all_stages(spec)
    for round_ in range(ROUND):
        train_round(stages, random_batches(spec, round_))
    batches = random_batches(spec, ROUND)
    traces = [Trace(state_of(stage), [], [], [], [], []) for stage in stages]
    pending = []
    for tokens in batches:
        code = None
        pending.append([])
        for stage, trace in zip(stages, traces, strict=True):
            forward = stage.forward(tokens, code)
            pending[-1].append(forward)
            trace.inputs.append(code)
            code = None if stage.is_last else forward.output
            trace.outputs.append(code)
            trace.losses.append(forward.output if stage.is_last else 0.0)
    for forwards in pending:
        gradient = None
        for stage, trace, forward in reversed(list(zip(stages, traces, forwards, strict=True))):
            trace.gradients.append(gradient)
            gradient = stage.backward(forward, gradient)
            trace.input_gradients.append(gradient)
    for stage, trace in zip(stages, traces, strict=True):
        trace.gradient_hash = stage.gradient_hash()
        stage.step()
        trace.next_root = stage.state_root()
    return batches, traces


def again(spec: ModelSpec, index: int, batches: list[Tensor], trace: Trace, *only: int) -> Replayed:
    chosen = only or range(len(batches))
    return replay(
        Stage(spec, index, blank=True),
        trace.state,
        ROUND,
        [batches[i] for i in chosen],
        [trace.inputs[i] for i in chosen],
        [trace.gradients[i] for i in chosen],
    )
