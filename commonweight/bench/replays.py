"""Rounds of a stage as somebody says that they went, and what an audit of them comes to.

The judging is the referee's (`commonweight.model.compare`, or hashes within one numerics class), without the fetching.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from commonweight.model.compare import Deviation, compare_loss, compare_round, compare_travelled
from commonweight.model.replay import ReplayedRound, finish_round, replay_microbatch
from commonweight.model.stage import Stage, state_parts
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.spec import ModelSpec
from commonweight.wire.tensors import digest

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Taken:
    """What one stage's round is computed from; by microbatch."""

    round: int
    state: Tensors
    """`Stage.state` before the round."""
    tokens: list[Tensor]
    codes: list[Tensor | None]
    """None on the first stage."""
    gradients: list[Tensor | None]
    """None on the last stage."""
    stale: Tensors = field(default_factory=dict)
    """The state of two rounds before; nothing in the first two."""


@dataclass(frozen=True)
class Made:
    """What somebody says, or finds, that came of it; by microbatch, of which some may be left out."""

    outputs: dict[int, Tensor | None] = field(default_factory=dict)
    input_gradients: dict[int, Tensor | None] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, Tensor] = field(default_factory=dict)
    gradient_hash: bytes = b""
    next_root: bytes = b""
    next_state: Tensors = field(default_factory=dict)
    """Nothing where only a root was made up."""


def work(stage: Stage, taken: Taken, microbatches: Iterable[int] | None = None) -> Made:
    """Do a stage's round again, or with `microbatches` only these, and nothing of the round's end.

    `stage` is left with the round's weights, or those after it.
    """
    if microbatches is not None:
        parameters, _ = state_parts(taken.state)
        stage.load_parameters(parameters, taken.round)
        return compute(stage, taken, microbatches)
    stage.load(taken.state, taken.round)
    return finish(compute(stage, taken), finish_round(stage))


def compute(stage: Stage, taken: Taken, microbatches: Iterable[int] | None = None) -> Made:
    """The same with whatever weights `stage` has; the round's gradient is left in it, where all are computed."""
    outputs, gradients, losses = {}, {}, {}
    for n in range(len(taken.tokens)) if microbatches is None else microbatches:
        given = taken.tokens[n], taken.codes[n], taken.gradients[n]
        outputs[n], gradients[n], losses[n] = replay_microbatch(stage, *given, accumulate=microbatches is None)
    return Made(outputs, gradients, losses, {n: taken.tokens[n] for n in outputs})


def finish(made: Made, end: ReplayedRound) -> Made:
    """With the end of the round."""
    state = {name: tensor.cpu().clone() for name, tensor in end.next_state.items()}
    passed = made.outputs, made.input_gradients, made.losses, made.tokens
    return Made(*passed, end.gradient_hash, end.next_root, state)


def judge(
    spec: ModelSpec, audit: Audit, before: Tensors, claimed: Made, replayed: Made, *, exact: bool
) -> tuple[Verdict, list[Deviation]]:
    """What the audit of `claimed` comes to, and what was compared of it: within one numerics class, or across."""
    numbers = sorted(claimed.outputs) if audit.microbatch is None else [audit.microbatch]
    if audit.kind is Kind.DATA:
        found = [_same("tokens", digest(claimed.tokens[n]) == digest(replayed.tokens[n])) for n in numbers]
    else:
        found = [deviation for n in numbers for deviation in _passed(spec, n, claimed, replayed, exact=exact)]
    if audit.kind is Kind.ROUND:
        if exact:
            found.append(_same("gradient hash", claimed.gradient_hash == replayed.gradient_hash))
            found.append(_same("next root", claimed.next_root == replayed.next_root))
        elif claimed.next_root != replayed.next_root and claimed.next_state:
            found += compare_round(spec, audit.round, before, claimed.next_state, replayed.next_state)
        elif claimed.next_root != replayed.next_root and all(each.passed for each in found):
            return Verdict.WITHHELD, found  # nobody has a state with that root
    return (Verdict.PASSED if all(each.passed for each in found) else Verdict.FAILED), found


def _passed(spec: ModelSpec, n: int, claimed: Made, replayed: Made, *, exact: bool) -> list[Deviation]:
    if exact:
        loss = _same("loss", claimed.losses[n] == replayed.losses[n])
    else:
        loss = compare_loss("loss", claimed.losses[n], replayed.losses[n], spec)
    found = [loss] if replayed.outputs[n] is None else []
    sides = (
        ("activation", claimed.outputs[n], replayed.outputs[n]),
        ("gradient back", claimed.input_gradients[n], replayed.input_gradients[n]),
    )
    for what, said, own in sides:
        if said is not None and own is not None:
            measured = compare_travelled(what, said, own, spec)
            found.append(_same(what, digest(said) == digest(own)) if exact else measured)
    return found


def _same(what: str, is_same: bool) -> Deviation:
    return Deviation(what, 0.0 if is_same else math.inf, 0.0)


def bits(made: Made) -> bytes:
    """What tells whether two have computed the same, to the bit."""
    travelled = [digest(t) for side in (made.outputs, made.input_gradients) for t in side.values() if t is not None]
    losses = repr(sorted(made.losses.items())).encode()
    return b"".join((*travelled, losses, made.gradient_hash, made.next_root))


def apart(spec: ModelSpec) -> ModelSpec:
    """The same rounds with one sequence in each microbatch."""
    training = spec.training
    count = training.microbatches_per_round * training.microbatch_sequences
    shape = {"microbatch_sequences": 1, "microbatches_per_round": count}
    return spec.model_copy(update={"training": training.model_copy(update=shape)})


def take_apart(taken: Taken) -> Taken:
    """What each sequence took."""

    def split(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [
            row
            for t, like in zip(tensors, taken.tokens, strict=True)
            for row in ([None] * len(like) if t is None else _rows(t))
        ]

    tokens = [row for tokens in taken.tokens for row in _rows(tokens)]
    return Taken(taken.round, taken.state, tokens, split(taken.codes), split(taken.gradients), taken.stale)


def _rows(tensor: Tensor) -> list[Tensor]:
    return [tensor[n : n + 1] for n in range(len(tensor))]


def put_together(made: Made, sequences: int) -> Made:
    """What the microbatches of so many sequences came to."""
    numbers = range(len(made.losses) // sequences)

    def join(tensors: Mapping[int, Tensor | None]) -> dict[int, Tensor | None]:
        groups = {n: [tensors[n * sequences + i] for i in range(sequences)] for n in numbers}
        return {
            n: None if None in rows else torch.cat([r for r in rows if r is not None]) for n, rows in groups.items()
        }

    losses = {n: sum(made.losses[n * sequences + i] for i in range(sequences)) / sequences for n in numbers}
    end = made.gradient_hash, made.next_root, made.next_state
    return Made(join(made.outputs), join(made.input_gradients), losses, {}, *end)
