"""Rounds of a stage as somebody says that they went, and what an audit of them comes to.

The judging is the referee's (`commonweight.model.compare`, or hashes within one numerics class), without the fetching.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from commonweight.model.compare import (
    Deviation,
    compare_gradient,
    compare_loss,
    compare_round,
    compare_sketch,
    compare_travelled,
)
from commonweight.model.replay import finish_round, replay_microbatch, step_from
from commonweight.model.sketch import SignedSketches, Sketched, pack_sketch
from commonweight.model.stage import Stage
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
    sketches: dict[int, Sketched] = field(default_factory=dict)
    """Of the gradient of this microbatch and those before it; of its own where it was computed alone."""
    gradient: Tensors = field(default_factory=dict)
    """The round's, by parameter."""
    gradient_hash: bytes = b""
    next_root: bytes = b""
    next_state: Tensors = field(default_factory=dict)
    """Nothing where only a root was made up."""


class Replays:
    """An auditor's replays of a round, each from the state before it, and done once, when a judgement asks for it."""

    def __init__(self, stage: Stage, taken: Taken) -> None:
        """`stage` is used up: it may be blank."""
        self.taken = taken
        self.is_whole = False
        """Whether the whole round was replayed."""
        self._stage, self._is_loaded = stage, False
        self._alone: dict[int, Made] = {}

    @property
    def numbers(self) -> list[int]:
        """The microbatches that were replayed alone, in this order."""
        return list(self._alone)

    @cached_property
    def whole(self) -> Made:
        """All of the round."""
        self.is_whole, self._is_loaded = True, False
        return work(self._stage, self.taken)

    def alone(self, number: int) -> Made:
        """One microbatch."""
        if number not in self._alone:
            self._load()
            self._alone[number] = compute(self._stage, self.taken, [number])
        return self._alone[number]

    def step(self, gradient: Tensors) -> tuple[bytes, Tensors]:
        """The next root and state with this gradient of the round. Raises NonFiniteTensor."""
        self._load()
        self._is_loaded = False
        root, state = step_from(self._stage, gradient)
        return root, _copy(state)

    def sketched(self, gradient: Tensors) -> Sketched:
        """A gradient of the stage."""
        return self._stage.sketched(gradient)

    def _load(self) -> None:
        if not self._is_loaded:
            self._stage.load(self.taken.state, self.taken.round)
            self._is_loaded = True
        self._stage.discard_gradients()


def work(stage: Stage, taken: Taken) -> Made:
    """Do a stage's round again. `stage` is left with the weights after it."""
    stage.load(taken.state, taken.round)
    return finish(compute(stage, taken), stage)


def compute(stage: Stage, taken: Taken, microbatches: Iterable[int] | None = None) -> Made:
    """Compute all microbatches of a round, or these, with what `stage` holds; their gradient is left in it."""
    made = Made()
    for n in range(len(taken.tokens)) if microbatches is None else microbatches:
        given = taken.tokens[n], taken.codes[n], taken.gradients[n]
        made.outputs[n], made.input_gradients[n], made.losses[n] = replay_microbatch(stage, *given)
        made.tokens[n], made.sketches[n] = taken.tokens[n], stage.sketched()
    return made


def finish(made: Made, stage: Stage) -> Made:
    """End the round with the gradient that `stage` has."""
    gradient = _copy(stage.gradients())
    end = finish_round(stage)
    return replace(
        made,
        gradient=gradient,
        gradient_hash=end.gradient_hash,
        next_root=end.next_root,
        next_state=_copy(end.next_state),
    )


def _copy(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.cpu().clone() for name, tensor in tensors.items()}


Judgement = tuple[Verdict, list[Deviation]]
"""What an audit comes to, and what was compared for it."""


def judge(spec: ModelSpec, audit: Audit, claimed: Made, replays: Replays, *, exact: bool) -> Judgement:
    """The audit of `claimed`, within one numerics class or across. Of tokens, those that were taken are due."""
    n = audit.microbatch
    if n is None:
        return judge_round(spec, replays.taken, claimed, replays.whole, exact=exact)
    if audit.kind is Kind.DATA:
        return _conclude([_same("tokens", digest(claimed.tokens[n]) == digest(replays.taken.tokens[n]))])
    return _judge_one(spec, n, claimed, replays, exact=exact) or judge_round(
        spec, replays.taken, claimed, replays.whole, exact=exact
    )


def judge_round(spec: ModelSpec, taken: Taken, claimed: Made, replayed: Made, *, exact: bool) -> Judgement:
    """All of a round, given its replay."""
    found: list[Deviation] = []
    size = 0.0
    for n, own in sorted(replayed.sketches.items()):
        found += compare_microbatch(spec, n, claimed, replayed, exact=exact)
        signed, size = pack_sketch(claimed.sketches[n].sums), math.hypot(size, own.norm)
        if exact:
            found.append(_same("sketch", signed == pack_sketch(own.sums)))
        elif signed != pack_sketch(own.sums):
            found.append(compare_sketch("sketch", signed, own.sums, size, spec))
    if exact:
        found.append(_same("gradient hash", claimed.gradient_hash == replayed.gradient_hash))
        found.append(_same("next root", claimed.next_root == replayed.next_root))
        return _conclude(found)
    if claimed.gradient_hash != replayed.gradient_hash:
        found.append(compare_gradient("gradient", claimed.gradient, replayed.gradient, size, spec))
    if claimed.next_root != replayed.next_root:
        if not claimed.next_state and _passes(found):
            return Verdict.WITHHELD, found  # nobody has a state with that root
        found += compare_round(spec, taken.round, taken.state, claimed.next_state, replayed.next_state)
    return _conclude(found)


def _judge_one(spec: ModelSpec, n: int, claimed: Made, replays: Replays, *, exact: bool) -> Judgement | None:
    """One microbatch and the step; None where only the whole round can tell."""
    signed = SignedSketches([pack_sketch(claimed.sketches[number].sums) for number in sorted(claimed.sketches)])
    tolerance = 0.0 if exact else float(spec.verification.tolerance)
    whole = replays.sketched(claimed.gradient)
    found: list[Deviation] = []
    outliers = signed.outliers(replays.alone(n).sketches[n])
    for number in dict.fromkeys((n, *outliers)):
        replayed = replays.alone(number)
        found += compare_microbatch(spec, number, claimed, replayed, exact=exact)
        if not _passes(found):
            return Verdict.FAILED, found
        if signed.doubt_whole(whole) or signed.doubt_microbatch(number, replayed.sketches[number], tolerance):
            return None
    root, state = replays.step(claimed.gradient)  # finite, or the whole was in doubt before
    if root == claimed.next_root:
        return Verdict.PASSED, found
    if exact:
        return None
    if not claimed.next_state:
        return Verdict.WITHHELD, found
    found += compare_round(spec, replays.taken.round, replays.taken.state, claimed.next_state, state)
    return (Verdict.PASSED, found) if _passes(found) else None


def compare_microbatch(spec: ModelSpec, n: int, claimed: Made, replayed: Made, *, exact: bool) -> list[Deviation]:
    """What one microbatch came to, but for its gradient."""
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
            same = exact and digest(said) == digest(own)
            found.append(_same(what, same) if exact else compare_travelled(what, said, own, spec))
    return found


def _same(what: str, is_same: bool) -> Deviation:
    return Deviation(what, 0.0 if is_same else math.inf, 0.0)


def _passes(found: Iterable[Deviation]) -> bool:
    return all(each.passed for each in found)


def _conclude(found: list[Deviation]) -> Judgement:
    return (Verdict.PASSED if _passes(found) else Verdict.FAILED), found


def bits(made: Made) -> bytes:
    """What tells whether two have computed the same, to the bit."""
    travelled = [digest(t) for side in (made.outputs, made.input_gradients) for t in side.values() if t is not None]
    losses = repr(sorted(made.losses.items())).encode()
    sketches = [pack_sketch(sketch.sums) for sketch in made.sketches.values()]
    return b"".join((*travelled, losses, *sketches, made.gradient_hash, made.next_root))


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
    return replace(
        made,
        outputs=join(made.outputs),
        input_gradients=join(made.input_gradients),
        losses=losses,
        tokens={},
        sketches={n: made.sketches[(n + 1) * sequences - 1] for n in numbers},
    )
