"""Codes from which rounding decides what comes out: whoever sends such to an honest stage doesn't get it convicted."""

import asyncio
import copy
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from commonweight.model.answers import logits_apart, replay_answer
from commonweight.model.compare import relative_error
from commonweight.model.inference import InferenceStage, choose_token
from commonweight.rules.answer import CHOICE, pack_ids, session_id
from commonweight.rules.audits import Verdict
from commonweight.wire.tensors import to_bytes
from referee.answers import audit_answer
from referee.auditor import Auditor, Outcome
from tests.unit.answers_world import NONCE, PROMPT, SPEC, Kept, Model, Server, unit

FED, STRANGE = 14, 8
"""Tokens; at the position STRANGE the stage before has made its code up."""
STEPS = (len(PROMPT), *[1] * (FED - len(PROMPT)))
ODD_STEPS = (2, 3, *[1] * 2, 2, *[1] * 5)
K = SPEC.architecture.boundary_dim


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.trained()


@pytest.fixture(scope="module")
def referee() -> Auditor:
    return Auditor(SPEC)


def replayed(stage: InferenceStage, ids: Tensor, taken: Tensor, steps: Sequence[int]) -> Tensor:
    return torch.stack(list(replay_answer(stage, ids, taken, steps)))


def signed(model: Model, index: int, taken: Tensor, steps: Sequence[int] = STEPS) -> Kept:
    """The honest part of stage `index`: its results in these steps, of PROMPT and what the last stage has chosen."""
    stage = model.inference(SPEC, index)
    kept = Kept(parameters=model.served[index], session=session_id(NONCE, pack_ids(PROMPT), 0.0, 0), fed=FED)
    kept.taken = bytes(to_bytes(taken))
    ids = list(PROMPT) + [0] * (FED - len(PROMPT))
    if not stage.is_last:
        kept.ids, kept.passed = pack_ids(ids), bytes(to_bytes(replayed(stage, torch.tensor(ids), taken, steps)))
        return kept
    for position in range(len(PROMPT), FED + 1):
        row = replayed(stage, torch.tensor(ids), taken, steps)[position - 1]
        token = choose_token(row, 0.0, 0, position)
        kept.passed += CHOICE.pack(token, float(row[token]))
        if position < FED:
            ids[position] = token
    kept.ids = pack_ids(ids)
    return kept


def judge(referee: Auditor, model: Model, kept: Kept, index: int) -> Outcome:
    source = Server(kept)
    return asyncio.run(audit_answer(referee, unit(index), kept.answer, model.roots[index], [source]))


def on_the_cliff(model: Model, index: int) -> Iterator[Tensor]:
    """Codes of which the squares at STRANGE sum up to about float32's largest number: above, the norm gives 0."""
    stage, generator = model.inference(SPEC, index), torch.Generator().manual_seed(3)
    assert stage.module.subspace is not None
    basis, base = stage.module.subspace.U.double(), torch.randn(FED, K, generator=generator)
    for _ in range(60):
        direction = torch.randn(K, generator=generator).double()
        size = math.sqrt(torch.finfo(torch.float32).max / float((basis @ direction).square().sum()))
        for off in (-2e-7, -1e-7, 0.0, 1e-7, 2e-7):
            taken = base.clone()
            taken[STRANGE] = (direction * size * (1 + off)).float()
            yield taken


def cancelling(model: Model, index: int) -> Tensor:
    """Codes with which the stage's result at STRANGE, its residual and all that it adds, is all but 0."""
    stage, generator = model.inference(SPEC, index), torch.Generator().manual_seed(3)
    module, base = copy.deepcopy(stage.module).double(), torch.randn(FED, K, generator=generator)
    ids = torch.tensor(list(PROMPT) + [0] * (FED - len(PROMPT)))[None]

    def result(code: Tensor) -> Tensor:
        codes = torch.cat([base[:STRANGE].double(), code[None], base[STRANGE + 1 :].double()])
        row: Tensor = module(ids, codes[None])[0, STRANGE]
        return row

    code = torch.zeros(K, dtype=torch.float64)
    for step in range(30):
        slope = torch.autograd.functional.jacobian(result, code)  # type: ignore[no-untyped-call]
        code = code - torch.linalg.solve(slope, result(code)) * (0.5 if step < 6 else 1.0)
    assert float(result(code).norm()) < 1e-12, "the search has found a zero"
    base[STRANGE] = code.float()
    return base


def apart(model: Model, index: int, taken: Tensor, ids: bytes, *steps: Sequence[int]) -> float:
    stage = model.inference(SPEC, index)
    one, other = (replayed(stage, torch.frombuffer(ids, dtype=torch.uint32).long(), taken, each) for each in steps)
    return max((logits_apart if stage.is_last else relative_error)(*rows) for rows in zip(one, other, strict=True))


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("steps", [STEPS, ODD_STEPS], ids=["as the referee", "in other steps"])
def test_a_norm_that_overflows_or_does_not_convicts_nobody(
    referee: Auditor, model: Model, index: int, steps: tuple[int, ...]
) -> None:
    bitten = 0
    for taken in on_the_cliff(model, index):
        kept = signed(model, index, taken, steps)
        if apart(model, index, taken, kept.ids, steps, (FED,)) < 1e-3:
            continue
        bitten += 1
        outcome = judge(referee, model, kept, index)
        assert outcome.verdict in (Verdict.PASSED, Verdict.UNDECIDED), outcome
        assert not outcome.evidence
        if bitten == 3:
            break
    assert bitten, "steps and chunks differ"


def test_replays_that_happen_to_agree_convict_nobody(referee: Auditor, model: Model) -> None:
    """They are on one side of the cliff, and a machine that rounds a little differently is on the other."""
    stage, after = model.inference(SPEC, 1), slice(STRANGE + 1, None)
    for taken in on_the_cliff(model, 1):
        kept = signed(model, 1, taken * (1 + 3e-7))
        kept.taken = bytes(to_bytes(taken))
        theirs = torch.frombuffer(bytearray(kept.passed), dtype=torch.float32).view(FED, K)
        ids = torch.frombuffer(bytearray(kept.ids), dtype=torch.uint32).long()
        ours = [replayed(stage, ids, taken, steps) for steps in (STEPS, (FED,))]
        if (
            relative_error(*(each[after] for each in ours)) < 1e-6
            and relative_error(theirs[after], ours[0][after]) > 1e-3
        ):
            outcome = judge(referee, model, kept, 1)
            assert outcome.verdict in (Verdict.PASSED, Verdict.UNDECIDED), outcome
            return
    pytest.fail("no such codes were found")


@pytest.mark.parametrize("steps", [STEPS, ODD_STEPS, [1] * FED, (FED,)])
def test_terms_that_cancel_convict_nobody(referee: Auditor, model: Model, steps: Sequence[int]) -> None:
    outcome = judge(referee, model, signed(model, 1, cancelling(model, 1), steps), 1)
    assert outcome.verdict in (Verdict.PASSED, Verdict.UNDECIDED), outcome


def test_what_no_replay_can_tell_is_undecided(referee: Auditor, model: Model) -> None:
    """A lie there, and honest work of another machine, look the same."""
    kept = signed(model, 1, cancelling(model, 1))
    passed = torch.frombuffer(bytearray(kept.passed), dtype=torch.float32).view(FED, K)
    passed[STRANGE] = passed[STRANGE] + 1e-6
    kept.passed = bytes(to_bytes(passed))
    outcome = judge(referee, model, kept, 1)
    assert outcome.verdict is Verdict.UNDECIDED, outcome
    assert f"At position {STRANGE} what went out is" in outcome.why
    assert "rounding decides" in outcome.why
    assert not outcome.evidence


@pytest.mark.parametrize("made_up", ["cliff", "cancelling"])
def test_a_lie_elsewhere_in_such_an_answer_is_still_fraud(referee: Auditor, model: Model, made_up: str) -> None:
    taken = next(on_the_cliff(model, 1)) if made_up == "cliff" else cancelling(model, 1)
    kept, at = signed(model, 1, taken), STRANGE - 2
    passed = torch.frombuffer(bytearray(kept.passed), dtype=torch.float32).view(FED, K)
    passed[at] = passed[at] * 1.001
    kept.passed = bytes(to_bytes(passed))
    outcome = judge(referee, model, kept, 1)
    assert outcome.verdict is Verdict.FAILED, outcome
    assert outcome.why.startswith(f"what went out at position {at}: All replays agree on other codes.")


def test_a_lying_last_stage_in_such_an_answer_fails(referee: Auditor, model: Model) -> None:
    for taken in (next(on_the_cliff(model, 2)), torch.randn(FED, K)):
        kept = signed(model, 2, taken)
        id_, logit = CHOICE.unpack(kept.passed[: CHOICE.size])
        kept.passed = CHOICE.pack(id_, logit * 1.01) + kept.passed[CHOICE.size :]
        outcome = judge(referee, model, kept, 2)
        assert outcome.verdict is Verdict.FAILED, outcome
        assert f"position {len(PROMPT)}:" in outcome.why
