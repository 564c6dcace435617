"""A referee passes answers that were generated honestly, and names what wasn't."""

import asyncio
import gc
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from commonweight.errors import PeerUnreachable
from commonweight.model.inference import InferenceStage
from commonweight.rules.answer import CHOICE, Answer
from commonweight.rules.audits import Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.statement import to_hex
from commonweight.watch.fraud import FalseAnswerEvidence, parse_document
from referee.answers import audit_answer
from referee.auditor import Auditor, Outcome
from tests.unit.answers_world import (
    PROMPT,
    ROUND,
    SPEC,
    STEPS,
    VERSION,
    Kept,
    Make,
    Model,
    Server,
    low_precision,
    rounded,
    stale,
    unit,
)
from tests.unit.tiny import tiny_spec

FED = sum(STEPS)
CHOICES = FED - len(PROMPT) + 1
SHORT = (5, *[1] * 8)
STAGES = range(SPEC.stages)
NAMES = {"fed": "the tokens fed", "ids": "the ids", "taken": "what came in", "passed": "what went out"}


@pytest.fixture(scope="module", autouse=True)
def _as_in_the_process() -> Iterator[None]:
    """One thread, and what was there before isn't looked at after each audit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.trained()


@pytest.fixture(scope="module")
def referee() -> Auditor:
    return Auditor(SPEC)


def judge(
    referee: Auditor, model: Model, kept: Kept, stage: int, answer: Answer | None = None, root: bytes | None = None
) -> Outcome:
    return asyncio.run(
        audit_answer(referee, unit(stage), answer or kept.answer, root or model.roots[stage], [Server(kept)])  # type: ignore[list-item]
    )


def difference(outcome: Outcome, stage: int, answer: Answer) -> tuple[str, int | None]:
    """What the evidence says differs first, after everything else in it has been checked."""
    assert outcome.verdict is Verdict.FAILED, outcome
    found = parse_document(FalseAnswerEvidence, outcome.evidence)
    assert canonical_json(found.model_dump(mode="json")) == outcome.evidence
    assert found.contradictions(stage, SPEC.spec_hash) == []
    assert found.unit.audit == unit(stage)
    assert found.part.answer == answer
    assert outcome.why.startswith(NAMES[found.difference.what])
    assert found.difference.note in outcome.why
    return found.difference.what, found.difference.position


@pytest.mark.parametrize("temperature", [0.0, 0.8, 3.0])
@pytest.mark.parametrize("steps", [STEPS, (5,), (1, 1, 3, 1), (5, *[1] * 91)])
def test_honest_answers_pass_with_a_tenth_of_the_tolerance(
    model: Model, steps: tuple[int, ...], temperature: float
) -> None:
    referee = Auditor(tiny_spec(stages=3, sequence_length=96, tolerance="0.000001"))
    kept = model.answered(steps=steps, temperature=temperature, seed=7)
    for stage in STAGES:
        outcome = judge(referee, model, kept[stage], stage)
        assert outcome.verdict is Verdict.PASSED, outcome
        assert not outcome.evidence


def test_honest_answers_in_bfloat16_pass() -> None:
    spec = tiny_spec(
        stages=3, sequence_length=96, compute_dtype="bfloat16", boundary_dtype="bfloat16", tolerance="0.02"
    )
    model, referee = Model.trained(spec), Auditor(spec)
    for temperature in (0.0, 1.0):
        kept = model.answered(steps=SHORT, temperature=temperature)
        for stage in STAGES:
            outcome = judge(referee, model, kept[stage], stage)
            assert outcome.verdict is Verdict.PASSED, outcome
    kept = model.answered(steps=SHORT, lies=dict.fromkeys(STAGES, stale))
    assert all(judge(referee, model, kept[stage], stage).verdict is Verdict.FAILED for stage in STAGES)


def test_only_what_is_needed_is_fetched(referee: Auditor, model: Model) -> None:
    code = FED * SPEC.architecture.boundary_dim * 4
    sizes = (4 * FED + code, 4 * FED + 2 * code, 4 * FED + code + CHOICES * CHOICE.size)
    for stage, (kept, trace) in enumerate(zip(model.answered(), sizes, strict=True)):
        assert judge(referee, model, kept, stage).fetched_bytes == trace + len(model.served[stage])
        assert kept.asked == [("answer", ROUND, kept.session), ("version", ROUND, VERSION)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "lie", [low_precision, lambda model: rounded(model, 8), lambda _: stale], ids=["low", "weights", "stale"]
)
def test_who_computes_something_else_fails(
    referee: Auditor, model: Model, lie: Callable[[Model], Make], stage: int
) -> None:
    """And nobody beside it: the others computed with what they got."""
    kept = model.answered(lies={stage: lie(model)}, temperature=0.9)
    for each in STAGES:
        outcome = judge(referee, model, kept[each], each)
        if each == stage:
            assert difference(outcome, each, kept[each].answer)[0] == "passed"
            measured = json.loads(outcome.evidence)["difference"]
            assert float(measured["error"]) > float(measured["tolerance"]) > 0
        else:
            assert outcome.verdict is Verdict.PASSED


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_who_makes_up_tokens_fails(referee: Auditor, model: Model, temperature: float) -> None:
    """Though it has computed the logits, and signs the true ones."""
    kept = model.answered(temperature=temperature, choose=lambda logits, t, s, position: position % len(logits))
    outcome = judge(referee, model, kept[2], 2)
    what, position = difference(outcome, 2, kept[2].answer)
    assert what == "passed"
    assert position is not None
    assert "agree on other choices" in outcome.why
    assert all(judge(referee, model, kept[stage], stage).verdict is Verdict.PASSED for stage in STAGES[:2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_who_sends_other_tokens_than_it_signs_fails(referee: Auditor, model: Model, temperature: float) -> None:
    """Though all that it signs is what it has computed: its choices aren't what was fed."""
    kept = model.answered(temperature=temperature, send=lambda chosen: (chosen + 1) % 61)
    outcome = judge(referee, model, kept[2], 2)
    assert difference(outcome, 2, kept[2].answer) == ("passed", len(PROMPT))
    assert "another token than was chosen" in outcome.why
    assert all(judge(referee, model, kept[stage], stage).verdict is Verdict.PASSED for stage in STAGES[:2])


def test_the_last_token_is_not_fed_and_so_only_the_buyer_sees_another(referee: Auditor, model: Model) -> None:
    kept = model.answered(steps=(5,), send=lambda chosen: (chosen + 1) % 61)
    assert judge(referee, model, kept[2], 2).verdict is Verdict.PASSED


def changed(kept: Kept, piece: str, at: int, value: bytes) -> Kept:
    data = bytearray(getattr(kept, piece))
    data[at : at + len(value)] = value
    return replace(kept, asked=[], **{piece: bytes(data)})


CODE = SPEC.architecture.boundary_dim * 4


@pytest.mark.parametrize(
    ("stage", "piece", "at", "value", "position"),
    [
        (0, "ids", 4 * 7, struct.pack("<I", 61), 7),
        (0, "ids", 4 * 7, struct.pack("<I", 2**32 - 1), 7),
        (1, "taken", 9 * CODE + 4, struct.pack("<f", float("nan")), 9),
        (2, "taken", 9 * CODE + 4, struct.pack("<f", float("inf")), 9),
        (0, "passed", 9 * CODE + 4, struct.pack("<f", float("-inf")), 9),
        (1, "passed", 9 * CODE, struct.pack("<f", 0.5), 9),
        (2, "passed", 2 * 8, struct.pack("<I", 61), 7),
        (2, "passed", 2 * 8 + 4, struct.pack("<f", float("nan")), 7),
        (2, "passed", 2 * 8 + 4, struct.pack("<f", 0.5), 7),
        (2, "passed", 60 * 8, struct.pack("<I", 61), FED),
        (2, "passed", 60 * 8 + 4, struct.pack("<f", float("inf")), FED),
    ],
)
def test_what_no_honest_stage_signs_is_named(
    referee: Auditor, model: Model, stage: int, piece: str, at: int, value: bytes, position: int
) -> None:
    kept = changed(model.answered()[stage], piece, at, value)
    assert difference(judge(referee, model, kept, stage), stage, kept.answer) == (piece, position)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("said", [{"nonce": bytes(16)}, {"session": bytes(16)}, {"temperature": 0.5}, {"seed": 8}])
def test_a_session_s_id_of_something_else_is_fraud(
    referee: Auditor, model: Model, said: dict[str, Any], stage: int
) -> None:
    """At temperature 0, where the seed draws nothing; an honest stage refuses it."""
    kept = model.answered(seed=7)[stage]
    answer = replace(kept.answer, **said)
    outcome = judge(referee, model, kept, stage, answer)
    assert difference(outcome, stage, answer) == ("ids", None)
    assert "another prompt, temperature or seed" in outcome.why


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("at", range(len(PROMPT)))
def test_another_prompt_than_the_session_s_id_is_of_is_fraud(
    referee: Auditor, model: Model, at: int, stage: int
) -> None:
    kept = changed(model.answered()[stage], "ids", 4 * at, struct.pack("<I", PROMPT[at] + 1))
    assert difference(judge(referee, model, kept, stage), stage, kept.answer) == ("ids", None)


def test_more_tokens_than_the_context_has_are_no_answer(referee: Auditor, model: Model) -> None:
    kept = replace(model.answered()[1], fed=97)
    assert difference(judge(referee, model, kept, 1), 1, kept.answer) == ("fed", None)
    assert not kept.asked


def test_whoever_says_another_prompt_has_another_trace(referee: Auditor, model: Model) -> None:
    """A choice too many, or one too few."""
    kept = model.answered()[2]
    assert len(kept.passed) == CHOICES * CHOICE.size
    for prompt_tokens in (len(PROMPT) - 1, len(PROMPT) + 1):
        outcome = judge(referee, model, kept, 2, replace(kept.answer, prompt_tokens=prompt_tokens))
        assert outcome.verdict is Verdict.WITHHELD, outcome


@pytest.mark.parametrize("served", [None, b"", b"\xff" * 40, "shorter", "longer", "other"])
def test_a_trace_that_is_not_the_signed_one_is_withheld(referee: Auditor, model: Model, served: Any) -> None:
    for stage in STAGES:
        kept = model.answered()[stage]
        answer, whole = kept.answer, kept.whole
        match served:
            case "shorter":
                kept.served = whole[:-1]
            case "longer":
                kept.served = whole + bytes(12)
            case "other":
                kept.served = whole[:-1] + bytes([whole[-1] ^ 1])
            case None:
                kept.trace = none  # type: ignore[method-assign]
            case _:
                kept.served = served
        outcome = judge(referee, model, kept, stage, answer)
        assert outcome.verdict is Verdict.WITHHELD, outcome
        assert f"the trace of session {answer.session.hex()}" in outcome.why
        assert f"node {stage}" in outcome.why
        assert not outcome.evidence


async def none(*_: Any) -> bytes:
    raise PeerUnreachable("not kept.")


def test_another_version_is_withheld(referee: Auditor, model: Model) -> None:
    kept = model.answered()[1]
    for parameters in (None, b"", bytes(40), model.served[0], model.served[1][:-1]):
        outcome = judge(referee, model, replace(kept, parameters=parameters), 1)
        assert outcome.verdict is Verdict.WITHHELD, outcome
        assert f"the parameters of version {VERSION} ({model.roots[1].hex()})" in outcome.why
    assert judge(referee, model, kept, 1, root=bytes(32)).verdict is Verdict.WITHHELD
    other_round = replace(kept.answer, version=VERSION + 1)
    assert judge(referee, model, kept, 1, answer=other_round).verdict is Verdict.WITHHELD


def test_what_overflows_in_the_replay_alone_decides_nothing(referee: Auditor, model: Model) -> None:
    """Codes near the largest number: the order of sums decides."""
    kept = model.answered()[1]
    kept.taken = struct.pack("<f", 3e38) * (len(kept.taken) // 4)
    outcome = judge(referee, model, kept, 1)
    assert outcome.verdict is Verdict.UNDECIDED, outcome
    assert "rounding decides" in outcome.why


def floats_alive() -> set[int]:
    return {id(each) for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.is_floating_point()}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["honest", "false", "breaks off"])
def test_nothing_of_a_version_outlives_its_audit(
    referee: Auditor, model: Model, monkeypatch: pytest.MonkeyPatch, stage: int, how: str
) -> None:
    kept = model.answered(lies={stage: stale} if how == "false" else {})[stage]
    judge(referee, model, kept, stage)  # U and F stay: they are public
    gc.collect()
    before = floats_alive()
    seen: list[int] = []
    forward = InferenceStage.forward_all

    def spy(*given: Any) -> torch.Tensor:
        seen.append(len(floats_alive() - before))
        if how == "breaks off":
            raise RuntimeError("no")
        return forward(*given)

    monkeypatch.setattr(InferenceStage, "forward_all", spy)
    outcome = judge(referee, model, kept, stage)
    due = {"honest": Verdict.PASSED, "false": Verdict.FAILED, "breaks off": Verdict.UNDECIDED}
    assert outcome.verdict is due[how]
    assert floats_alive() <= before
    assert seen
    assert seen[0] >= len(model.stages[stage].parameters())


def test_evidence_about_something_else_contradicts_itself(referee: Auditor, model: Model) -> None:
    kept = model.answered(lies={1: stale})[1]
    fields = json.loads(judge(referee, model, kept, 1).evidence)

    def said(stage: int = 1, spec_hash: bytes = SPEC.spec_hash, **changes: dict[str, Any]) -> list[str]:
        text = canonical_json(fields | {name: fields[name] | value for name, value in changes.items()})
        return parse_document(FalseAnswerEvidence, text).contradictions(stage, spec_hash)

    assert said() == []
    assert "about stage 1, the proposal about stage 0" in said(stage=0)[0]
    assert "about the spec" in said(spec_hash=bytes(32))[0]
    assert "isn't one of an answer" in said(unit={"kind": "round"})[0]
    assert "isn't one of an answer" in said(unit={"microbatch": None})[0]
    assert said(part={"version": ROUND + 1}) == [f"no version {ROUND + 1} was published by round {ROUND}"]
    assert said(difference={"position": FED + 1}) == [f"position {FED + 1} isn't in an answer of {FED} tokens"]
    assert fields["version_root"] == to_hex(model.roots[1])
