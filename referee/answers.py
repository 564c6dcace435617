"""One audit of an answer: fetch what a stage keeps of it and the version that it names, and compute it again.

What makes it fail is always the provider's own signature:

* More tokens than the model's context has, ids outside the vocabulary, or codes with NaN or infinity that came in:
  an honest stage refuses them. Such codes that went out, or such logits: an honest stage ends the session instead.
* Another prompt, temperature or seed than the session's id is of: likewise.
* On the last stage, other tokens fed after the prompt than those that it signed as chosen: likewise.
* Codes or choices beyond the tolerance of `commonweight.model.answers`. Where a replay in large chunks finds such, it
  is done again in a node's steps, and from codes that are hardly other ones. Fraud is what all of these contradict, at
  positions at which they agree: from codes that the stage before has made up, rounding may decide what comes out.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from commonweight.model.answers import (
    Choice,
    choice_errors,
    choice_tolerance,
    code_tolerance,
    find_unchosen,
    logits_apart,
    overall,
    read_codes,
    replay_answer,
)
from commonweight.model.compare import relative_error
from commonweight.model.inference import InferenceStage
from commonweight.model.stage import Stage
from commonweight.rules.answer import TOKEN_BYTES, Answer, session_id
from commonweight.rules.audits import Audit, Kind
from commonweight.watch.fraud import AnswerWhat
from commonweight.wire.decode import chunk_tokens
from referee.auditor import Auditor, Contradicted, Outcome, Undecidable, conclude
from referee.fraud import AnswerDifference, false_answer_evidence
from referee.sources import Evidence, Source

CHUNK_TOKENS = 128
"""That are replayed at once."""
AGREEMENT = 0.1
"""Replays agree where they are apart by this part of the tolerance at most."""
NUDGE = 0.05
"""By this part of the spec's tolerance the codes that came in are scaled, up and down: several float32 roundings. In
half precision it is below one, and changes nothing.
"""


@dataclass(frozen=True)
class Signed:
    """What went out, as it is held against a replay."""

    what: str
    positions: range
    """Of what is compared."""
    skipped: int
    """Rows of the replay before the one that the first is compared with."""
    error: Callable[[int, Tensor], float]
    """Of the one with this index, against the replay's row."""
    apart: Callable[[Tensor, Tensor], float]
    """Likewise of two replays' rows."""
    tolerance: Callable[[int], float]
    """Of so many errors' root mean square."""


async def audit_answer(
    auditor: Auditor, unit: Audit, answer: Answer, version_root: bytes, sources: Sequence[Source]
) -> Outcome:
    """Decide about a stage's part of an answer. Raises nothing: what goes wrong here leaves the unit undecided.

    `version_root` is the signed state root of the version that the part names; the first of `sources` is the provider.
    When this returns no tensor of that version is left.
    """
    evidence = Evidence(unit.round, sources)

    def prove(difference: AnswerDifference) -> bytes:
        return false_answer_evidence(auditor.spec, unit, answer, version_root, difference)

    return await conclude(AnswerCase(auditor, unit, answer, version_root, evidence).decide(), evidence, prove)


class AnswerCase:
    """One audit under way."""

    def __init__(self, auditor: Auditor, unit: Audit, answer: Answer, version_root: bytes, evidence: Evidence) -> None:
        assert unit.kind is Kind.ANSWER, "of no other unit is there a part of an answer"
        self._spec, self._device = auditor.spec, auditor.device
        self._index, self._is_last = unit.stage, unit.stage == auditor.spec.stages - 1
        self._answer, self._version_root, self._evidence = answer, version_root, evidence

    async def decide(self) -> str:
        """Why it passed. Raises Contradicted, Withheld or Undecidable."""
        spec, answer = self._spec, self._answer
        assert answer.fed >= answer.prompt_tokens, "what was sold has a token at least"
        if answer.fed > (room := spec.training.sequence_length):
            raise _refused("fed", None, f"An honest stage takes no {answer.fed} tokens: the context has {room}.")
        trace = await self._evidence.answer(spec, self._index, answer)
        ids, taken = trace.token_ids(), read_codes(spec, trace.taken) if self._index > 0 else None
        self._check_ids("ids", ids, range(answer.fed))
        if taken is not None:
            _check_finite("taken", taken, range(answer.fed), "An honest stage refuses it.")
        self._check_prompt(trace.ids)
        if self._is_last:
            choices = trace.choices(answer.prompt_tokens)
            self._check_choices(choices, ids)
            stage = await self._stage()
            return await asyncio.to_thread(self._compare, stage, ids, taken, self._signed_choices(choices))
        passed = read_codes(spec, trace.passed)
        _check_finite("passed", passed, range(answer.fed), "An honest stage ends the session instead.")
        stage = await self._stage()
        return await asyncio.to_thread(self._compare, stage, ids, taken, self._signed_codes(passed))

    def _check_prompt(self, ids: bytes) -> None:
        answer = self._answer
        prompt = ids[: answer.prompt_tokens * TOKEN_BYTES]
        if answer.session != session_id(answer.nonce, prompt, answer.temperature, answer.seed):
            note = "The session's id is of another prompt, temperature or seed. An honest stage refuses it."
            raise _refused("ids", None, note)

    async def _stage(self) -> InferenceStage:
        blank = await asyncio.to_thread(Stage, self._spec, self._index, blank=True)
        state = await self._evidence.version(blank, self._answer.version, self._version_root)
        parameters = {name.removeprefix("parameter."): tensor for name, tensor in state.items()}
        return await asyncio.to_thread(InferenceStage, self._spec, self._index, parameters, self._device)

    def _check_ids(self, what: AnswerWhat, ids: Tensor, positions: Sequence[int]) -> None:
        outside = ((ids < 0) | (ids >= (size := self._spec.architecture.vocab_size))).nonzero()
        if len(outside):
            at = int(outside[0])
            raise _refused(what, positions[at], f"It has an id that isn't in the vocabulary of {size}.")

    def _check_choices(self, choices: Sequence[Choice], ids: Tensor) -> None:
        if (position := find_unchosen(choices, ids)) is not None:
            raise _refused("passed", position, "Fed was another token than was chosen; an honest stage refuses it.")
        positions = [choice.position for choice in choices]
        self._check_ids("passed", torch.tensor([choice.id for choice in choices]), positions)
        logits = torch.tensor([[choice.logit] for choice in choices])
        _check_finite("passed", logits, positions, "An honest stage ends the session instead.")

    def _signed_codes(self, passed: Tensor) -> Signed:
        return Signed(
            what="codes",
            positions=range(len(passed)),
            skipped=0,
            error=lambda index, row: relative_error(passed[index], row),
            apart=relative_error,
            tolerance=partial(code_tolerance, self._spec),
        )

    def _signed_choices(self, choices: Sequence[Choice]) -> Signed:
        answer = self._answer
        return Signed(
            what="choices",
            positions=range(answer.prompt_tokens, answer.fed + 1),
            skipped=answer.prompt_tokens - 1,
            error=lambda index, row: max(choice_errors(choices[index], row, answer.temperature, answer.seed)),
            apart=logits_apart,
            tolerance=partial(choice_tolerance, self._spec),
        )

    def _compare(self, stage: InferenceStage, ids: Tensor, taken: Tensor | None, signed: Signed) -> str:
        def replay(sizes: Sequence[int], scale: float = 1.0) -> Iterator[Tensor]:
            codes = None if taken is None else taken * scale
            return islice(replay_answer(stage, ids, codes, sizes), signed.skipped, None)

        chunks = _cut(len(ids), CHUNK_TOKENS)
        errors = [signed.error(index, row) for index, row in enumerate(replay(chunks))]
        if not _passed(signed, errors):
            nudge = float(self._spec.verification.tolerance) * NUDGE
            nudged = [] if taken is None else [replay(chunks, 1 + nudge), replay(chunks, 1 - nudge)]
            errors = _compare_again(signed, replay(chunks), replay(self._steps(chunks)), *nudged)
        return (
            f"{len(errors)} {signed.what} are the signed ones: the largest error is {max(errors):.3g}, over all "
            f"{overall(errors):.3g}; allowed is {signed.tolerance(len(errors)):.3g}."
        )

    def _steps(self, chunks: list[int]) -> list[int]:
        """A node's steps; where they are the `chunks`, single tokens."""
        prompt, fed = self._answer.prompt_tokens, self._answer.fed
        steps = _cut(prompt, chunk_tokens(self._spec)) + [1] * (fed - prompt)
        return steps if steps != chunks else [1] * fed


def _cut(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]


def _passed(signed: Signed, errors: Sequence[float]) -> bool:
    return max(errors) <= signed.tolerance(1) and overall(errors) <= signed.tolerance(len(errors))


def _compare_again(signed: Signed, *replays: Iterator[Tensor]) -> list[float]:
    """The errors against the nearest of these replays, all within the tolerance. Raises Contradicted where they agree
    with each other and not with what was signed, and Undecidable where they don't agree.
    """
    errors, apart = [], []
    for index, rows in enumerate(zip(*replays, strict=True)):
        errors.append(min(signed.error(index, row) for row in rows))
        apart.append(max(signed.apart(row, rows[0]) for row in rows[1:]))
    agreed = [index for index, distance in enumerate(apart) if distance <= signed.tolerance(1) * AGREEMENT]
    for index in agreed:
        _contradict(signed, signed.positions[index], [errors[index]], [apart[index]])
    if agreed:
        _contradict(signed, None, [errors[index] for index in agreed], [apart[index] for index in agreed])
    if not _passed(signed, errors):
        worst = max(range(len(errors)), key=errors.__getitem__)
        raise Undecidable(
            f"At position {signed.positions[worst]} what went out is {errors[worst]:.3g} off, but replays "
            f"themselves are {apart[worst]:.3g} apart: what came in is such that rounding decides. "
            f"{len(agreed)} of {len(errors)} {signed.what} could be judged, and show no fraud."
        )
    return errors


def _contradict(signed: Signed, position: int | None, errors: Sequence[float], apart: Sequence[float]) -> None:
    error, tolerance = overall(errors), signed.tolerance(len(errors))
    if math.isfinite(error) and error > tolerance and overall(apart) <= tolerance * AGREEMENT:
        note = f"All replays agree on other {signed.what}."
        raise Contradicted(AnswerDifference("passed", position, note, error, tolerance))


def _refused(what: AnswerWhat, position: int | None, note: str) -> Contradicted:
    return Contradicted(AnswerDifference(what, position, note))


def _check_finite(what: AnswerWhat, rows: Tensor, positions: Sequence[int], else_: str) -> None:
    broken = (~rows.isfinite().all(-1)).nonzero()
    if len(broken):
        raise _refused(what, positions[int(broken[0])], f"It has NaN or infinity. {else_}")
