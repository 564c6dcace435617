"""Doing a stage's part of an answer again, and holding what it has signed against that.

A stage generates step by step, with keys and values kept between the steps. It is replayed in chunks, which takes a
small part of the time, but has other bits, even on the same machine. So what it signed is always compared within a
tolerance, at each position and over all of them:

* Codes: the relative L2 error of each position's k numbers.
* Chosen tokens: how far the signed logit is off, and by how much all logits must be off for the token to be chosen,
  both relative to the largest of that position's logits.

With the spec's tolerance t one position may err by 4t, and many by t in root mean square. In 6,000 positions of each
stage of the devnet's model after 60 rounds, and of a wider one, steps and chunks differed at most by 2.9e-6 at one
position and 8.6e-7 over a part in float32 (t = 1e-5), also between instruction sets; in bfloat16 by 9.7e-3 and 4.6e-3
(t = 2e-2, for codes 3.2e-2). Computing in bfloat16 what should be float32 differed by 7e-4 over a part at least,
weights rounded to bfloat16 by 2e-4, to ten bits by 2e-5. In bfloat16 another version is told apart (5e-2 and more), but
not weights in eight bits (2e-3 to 2e-2).

That holds for codes as honest stages send them. Whoever is before a stage can send others, from which the order of sums
decides what comes out: a norm that overflows or doesn't, terms that cancel. So nobody is convicted where honest replays
are apart themselves.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from commonweight.errors import MalformedMessage
from commonweight.model.compare import travelled_tolerance
from commonweight.model.inference import InferenceStage, token_draw
from commonweight.rules.answer import CHOICE, TOKEN_BYTES
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import code_bytes


class Choice(NamedTuple):
    """A token that the last stage has chosen."""

    position: int
    """Of the token in the sequence; it was chosen by what was fed before it."""
    id: int
    logit: float


@dataclass(frozen=True, slots=True)
class Trace:
    """What a stage keeps of an answer, as bytes; see rules/answer.py."""

    ids: bytes
    taken: bytes
    """Empty on the first stage."""
    passed: bytes

    def token_ids(self) -> Tensor:
        """int64 [t]"""
        return torch.frombuffer(self.ids, dtype=torch.uint32).to(torch.int64)

    def choices(self, prompt_tokens: int) -> tuple[Choice, ...]:
        """Of the last stage, in the order in which they were made: the first is of the token after the prompt."""
        fields = enumerate(CHOICE.iter_unpack(self.passed), prompt_tokens)
        return tuple(Choice(position, id_, logit) for position, (id_, logit) in fields)


def trace_bytes(spec: ModelSpec, stage: int, prompt_tokens: int, fed: int) -> int:
    """Of a trace of `fed` tokens; without choices where they ended in mid-prompt."""
    is_last = stage == spec.stages - 1
    choices = max(0, fed - prompt_tokens + 1) if is_last else 0
    return fed * (TOKEN_BYTES + ((stage > 0) + (not is_last)) * code_bytes(spec)) + choices * CHOICE.size


def split_trace(spec: ModelSpec, stage: int, prompt_tokens: int, fed: int, data: bytes | bytearray) -> Trace:
    """The pieces of a trace of so many tokens. Raises MalformedMessage where it has another size."""
    due, view = trace_bytes(spec, stage, prompt_tokens, fed), memoryview(data)
    if len(data) != due:
        raise MalformedMessage(f"A trace of {fed} tokens on stage {stage} has {len(data)} bytes; due are {due}.")
    taken = fed * TOKEN_BYTES
    passed = taken + (fed * code_bytes(spec) if stage > 0 else 0)
    return Trace(bytes(view[:taken]), bytes(view[taken:passed]), bytes(view[passed:]))


def read_codes(spec: ModelSpec, codes: bytes) -> Tensor:
    """[t, k] in the boundary dtype: read-only."""
    dtype: torch.dtype = getattr(torch, spec.training.boundary_dtype)
    return torch.frombuffer(codes, dtype=dtype).view(-1, spec.architecture.boundary_dim)


def find_unchosen(choices: Sequence[Choice], ids: Tensor) -> int | None:
    """The first position after the prompt at which another token was fed than was chosen: an honest last stage takes
    none but that. `ids`: all that were fed.
    """
    followed = (choice for choice in choices if choice.position < len(ids))
    return next((choice.position for choice in followed if choice.id != int(ids[choice.position])), None)


def replay_answer(stage: InferenceStage, ids: Tensor, taken: Tensor | None, sizes: Sequence[int]) -> Iterator[Tensor]:
    """What `stage` makes of all tokens `ids` [t] and the codes `taken` [t, k] that came in, in chunks of these `sizes`:
    of each position the code [k], or from the last stage the logits [v] of what follows it.

    On the CPU. Raises as `InferenceStage.forward` does.
    """
    cache = stage.new_cache(len(ids))
    for size in sizes:
        chunk = slice(cache.length, cache.length + size)
        result = stage.forward_all(ids[None, chunk], None if taken is None else taken[None, chunk], cache)
        yield from (result if stage.is_last else result[0]).cpu()


def logits_apart(one_v: Tensor, other_v: Tensor) -> float:
    """The largest difference of two replays' logits, relative to the largest of the first: `choice_errors` of anything
    against either differ by hardly more.
    """
    return _ratio(float((one_v.double() - other_v.double()).abs().max()), float(one_v.abs().max()))


def choice_errors(choice: Choice, logits_v: Tensor, temperature: float, seed: int) -> tuple[float, float]:
    """How far the signed logit is off the replayed `logits_v`, and how far all of these must be off for this token to
    be chosen, relative to the largest of them.
    """
    size = float(logits_v.abs().max())
    needed = least_error(logits_v, temperature, seed, choice.position, choice.id)
    return _ratio(abs(choice.logit - float(logits_v[choice.id])), size), _ratio(needed, size)


def least_error(logits_v: Tensor, temperature: float, seed: int, position: int, token: int) -> float:
    """Where `choose_token` takes this token from some logits, each of them differs from these by at most e, and e is at
    least this. So it is 0 for the token that it takes from these themselves.

    Logits that are off by e change the odds of the tokens up to any one by at most exp(2e / temperature), and the
    token is the first whose odds exceed those of the uniform number that was drawn. All is computed in units of a
    large temperature, in which nothing overflows.
    """
    logits = logits_v.double()
    if temperature == 0:
        return float(logits.max() - logits[token]) / 2
    unit = max(1.0, temperature)
    logits, temperature = logits / unit, temperature / unit
    draw = token_draw(seed, position)
    slack = len(logits) * 2.0**-51  # of the cumulative sum that `choose_token` takes

    def scaled(part: Tensor) -> float:
        """temperature · log of the sum of exp(part / temperature)"""
        if not len(part):
            return -math.inf
        most = part.max()
        return float(most + temperature * torch.exp((part - most) / temperature).sum().log())

    below, above = scaled(logits[:token]), scaled(logits[token + 1 :])
    too_high = below - scaled(logits[token:]) - temperature * _log_odds(draw + slack)
    too_low = temperature * _log_odds(draw - slack) - (scaled(logits[: token + 1]) - above)
    return max(0.0, too_high / 2, too_low / 2) * unit


def code_tolerance(spec: ModelSpec, positions: int) -> float:
    """For codes of so many positions, as the root mean square of their errors."""
    return travelled_tolerance(spec) * _peak(positions)


def choice_tolerance(spec: ModelSpec, choices: int) -> float:
    """For so many choices, as the root mean square of their errors. Logits don't travel."""
    return float(spec.verification.tolerance) * _peak(choices)


def _peak(count: int) -> float:
    """A single position errs several times as much as many do on the average."""
    return 1 + 3 / math.sqrt(count)


def overall(errors: Sequence[float]) -> float:
    """The root mean square of all errors of a part; 0 of none."""
    return math.hypot(*errors) / math.sqrt(max(1, len(errors)))


def _log_odds(probability: float) -> float:
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability) - math.log1p(-probability)


def _ratio(distance: float, size: float) -> float:
    if not (math.isfinite(distance) and math.isfinite(size)):
        return math.inf
    return distance / size if size > 0 else (0.0 if distance == 0 else math.inf)
