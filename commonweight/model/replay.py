"""Doing a stage's work again: for an audit, or because what it computed was lost.

    stage = Stage(spec, index, blank=True)
    replayed = replay(stage, state, round_, microbatches, inputs, output_gradients)

Within one numerics class (`commonweight.model.numerics`) all of it is bit-equal to what the stage computed at first.
An auditor makes a blank stage for each replay and drops it afterwards: nothing else keeps the state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from commonweight.model.stage import Stage


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedRound:
    """What a round ends with."""

    gradient_hash: bytes
    """Of what its microbatches came to."""
    next_root: bytes
    """The state root after the step."""
    next_state: dict[str, Tensor]
    """The stage's own tensors: the next replay on it overwrites them."""


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """What was asked for, in the order of the microbatches; tensors are on the CPU, in the boundary dtype."""

    outputs: tuple[Tensor | None, ...]
    """[b, t, k]; None on the last stage."""
    input_gradients: tuple[Tensor | None, ...]
    """[b, t, k]; None on the first stage."""
    losses: tuple[float, ...]
    """Nats; as in a report, 0 where the stage isn't the last."""
    round: ReplayedRound | None
    """None where not all microbatches of the round were given."""


def replay(
    stage: Stage,
    state: Mapping[str, Tensor],
    round_: int,
    microbatches: Sequence[Tensor],
    inputs: Sequence[Tensor | None],
    output_gradients: Sequence[Tensor | None],
) -> Replayed:
    """Load `state`, which is ready to train `round_`, and compute some microbatches of that round again.

    `microbatches` are token ids [b, t + 1], `inputs` the codes from the stage before (None on the first),
    `output_gradients` what the stage after returned (None on the last). Where these are all microbatches of the
    round, in the order in which they were added up, the round is finished, too.

    The caller has checked that `state` has the committed root (`stage.root_of`) and the tensors the committed digests.
    Raises CheckpointError where the state, MalformedMessage where a tensor doesn't fit the stage, and NonFiniteTensor
    where the round's gradient isn't finite; an honest stage would have failed then, too.
    """
    stage.load(state, round_)
    whole = len(microbatches) == stage.spec.training.microbatches_per_round
    passed = [replay_microbatch(stage, *given) for given in zip(microbatches, inputs, output_gradients, strict=True)]
    outputs = tuple(output for output, _, _ in passed)
    gradients, losses = tuple(gradient for _, gradient, _ in passed), tuple(loss for _, _, loss in passed)
    return Replayed(outputs, gradients, losses, finish_round(stage) if whole else None)


def replay_microbatch(
    stage: Stage, tokens: Tensor, code: Tensor | None, gradient: Tensor | None
) -> tuple[Tensor | None, Tensor | None, float]:
    """(output, input gradient, loss) of one microbatch with what `stage` holds; see `Replayed`. It is added to the
    round's gradient.
    """
    forward = stage.forward(tokens, code)
    back = stage.backward(forward, gradient)
    result = None if back is None else back.cpu()
    if isinstance(forward.output, Tensor):
        return forward.output.cpu(), result, 0.0
    return None, result, forward.output


def finish_round(stage: Stage) -> ReplayedRound:
    """Hash the gradient, step with it, and hash the version that results. Raises NonFiniteTensor."""
    gradient_hash = stage.gradient_hash()
    return ReplayedRound(gradient_hash, *step_from(stage, None))


def step_from(stage: Stage, gradient: Mapping[str, Tensor] | None) -> tuple[bytes, dict[str, Tensor]]:
    """Step `stage` with this gradient of the round, by parameter name; None: with what was added up in it. The next
    root, and the stage's own tensors.

    Raises NonFiniteTensor where the gradient isn't finite, MalformedMessage where it is none of this stage.
    """
    if gradient is not None:
        stage.take_gradient(gradient)
    stage.step()
    return stage.state_root(), stage.state()
