"""Who cheats only where it should pay: in the share of rounds that pays best, or by less than the tolerance hides."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adversary import adaptive, tampering
from adversary.adaptive import Adapted, adapt, best_plan
from adversary.cheat import Cheat
from adversary.worker import FOREIGN
from commonweight.bench.verification_model import best_share
from commonweight.devnet.byzantine import Cheating
from commonweight.devnet.spec import devnet_spec
from commonweight.model.compare import relative_error, travelled_tolerance
from commonweight.rules import economics
from commonweight.rules.audits import Audit, Kind, Verdict, left_outstanding, paid_rounds
from commonweight.rules.spec import ModelSpec, build_spec
from tests.adversaries.pipeline import Pipeline
from tests.integration.network import pack_text, tiny_spec

ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
STAGES, INNER, LAST = 3, 1, 2
RARE = "0.12"
"""A rate of audits at which cheating pays who has little to lose."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("text") / "data"


@pytest.fixture(scope="module")
def packed(text: Path) -> tuple[str, int]:
    return pack_text(text)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What adaptive ones say that they do."""
    said: list[dict[str, Any]] = []

    def emit(name: str, **fields: Any) -> None:
        assert name == "adapted"
        said.append(fields)

    monkeypatch.setattr(adaptive, "emit", emit)
    return said


def rates(rate: str, rounds: int = 3) -> ModelSpec:
    fields = tiny_spec("0x" + "11" * 32, 10**4, audit_rate=rate).model_dump()
    return build_spec(fields | {"economics": fields["economics"] | {"rounds_per_epoch": rounds}})


def test_at_the_devnet_s_rates_and_stake_it_doesn_t_pay_to_cheat() -> None:
    plan = best_plan(devnet_spec(4, 0, "0x" + "ab" * 32, 10**6), adaptive.STAKE)
    assert (plan.share, plan.profit, plan.withheld_profit) == (0, 0, 0)


def test_where_little_is_audited_and_little_at_stake_it_does() -> None:
    assert best_plan(rates(RARE), stake=1.0).share == 0
    plan = best_plan(rates(RARE), stake=0.01)
    assert plan.share == 1
    assert plan.profit > 0.4
    assert plan.withheld_profit == pytest.approx(0, abs=1e-9), (
        "who withholds is never paid again, and has saved as much"
    )


@given(st.integers(1, 1000), st.floats(0, 3), st.integers(1, 40))
def test_it_chooses_as_the_simulated_one_does(thousandths: int, stake: float, rounds: int) -> None:
    """That one must cheat, in a hundredth of the rounds at least. To withhold never pays, so neither plans with it."""
    spec = rates(str(Decimal(thousandths) / 1000), rounds)
    plan = best_plan(spec, stake)
    assert plan.profit >= 0
    assert plan.withheld_profit <= 1e-9
    if plan.profit > 1e-6:
        simulated = best_share(spec, economics.Cheat.WORK, stake=stake, cost=adaptive.COST)
        assert simulated.name == f"best share, false work: {plan.share:.0%} of the rounds"


def test_the_first_round_is_honest_and_the_others_are_in_its_share() -> None:
    cheat = Adapted(Cheating("adaptive", 0.3), ADDRESS)
    assert not any(Adapted(Cheating("adaptive"), ADDRESS).picks(0, number) for number in range(4))
    assert sum(map(cheat.picks, range(1, 1001))) == pytest.approx(300, abs=50)
    assert all(cheat.picks(7) == cheat.picks(7, number) for number in range(4)), "a round is false as a whole"


def audits_of(pipeline: Pipeline, rounds: int, stage: int) -> dict[Audit, Verdict]:
    """What becomes of so many rounds of a stage if each is drawn whole."""
    verdicts = {}
    for round_ in range(rounds):
        pipeline.train(round_)
        unit = Audit(round_, stage, Kind.ROUND)
        verdicts[unit] = pipeline.audit(unit).verdict
    return verdicts


@pytest.mark.parametrize(("how", "share"), [("adaptive", 0), ("adaptive:0.01", 1)])
def test_who_adapts_is_honest_or_withholds_and_isn_t_paid(
    packed: tuple[str, int], text: Path, tmp_path: Path, told: list[dict[str, Any]], how: str, share: float
) -> None:
    spec = tiny_spec(*packed, stages=STAGES, audit_rate=RARE)
    cheat = Cheat(Cheating.parse(how), ADDRESS)
    with Pipeline(spec, text, tmp_path, at=INNER, cheat=cheat) as pipeline:
        pipeline.keepers[INNER] = replace(pipeline.keepers[INNER], withholds=adapt(cheat, spec).picks)
        verdicts = audits_of(pipeline, 3, INNER)
    (adapted,) = told
    assert (adapted["share"], adapted["stake"]) == (share, cheat.cheating.fraction)
    if share:
        assert adapted["profit"] > 0 > adapted["withheld_profit"] - 1e-6
        assert list(verdicts.values()) == [Verdict.PASSED, Verdict.WITHHELD, Verdict.WITHHELD]
        assert paid_rounds(range(3), verdicts) == {0}
        assert paid_rounds(range(3, 6), {}, left_outstanding(verdicts)) == frozenset(), "nor what it does later"
    else:
        assert adapted["profit"] == 0
        assert set(verdicts.values()) == {Verdict.PASSED}
        assert paid_rounds(range(3), verdicts) == {0, 1, 2}


@pytest.mark.parametrize("stage", [INNER, LAST])
@pytest.mark.parametrize(
    ("reach", "claims", "verdict"),
    [
        (0.9, True, Verdict.PASSED),
        (0.9, False, Verdict.FAILED),
        (2.0, True, Verdict.FAILED),
    ],
)
def test_a_bias_within_the_tolerance_takes_another_class(
    packed: tuple[str, int],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    reach: float,
    claims: bool,
    verdict: Verdict,
) -> None:
    monkeypatch.setattr(tampering, "REACH", reach)
    cheat = Cheat(Cheating("under-tolerance"), ADDRESS)
    with Pipeline(tiny_spec(*packed, stages=STAGES), text, tmp_path, at=stage, cheat=cheat) as pipeline:
        cheater = pipeline.trainers[stage]
        assert cheater.numerics == FOREIGN
        if not claims:
            cheater.numerics = pipeline.auditor.numerics
        for round_ in range(2):
            pipeline.train(round_)
            for unit in pipeline.units(round_):
                outcome = pipeline.audit(unit)
                assert outcome.verdict is (verdict if unit.stage == stage else Verdict.PASSED), outcome.why
                if unit.stage == stage and verdict is Verdict.PASSED:
                    assert "have other bits" in outcome.why, "the fault fired"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_added_is_just_under_the_tolerance_and_always_the_same(packed: tuple[str, int], dtype: str) -> None:
    """Also where it is rounded on the way."""
    tolerance = {"float32": "0.00001"}.get(dtype, "0.02")
    fields = tiny_spec(*packed, stages=STAGES, boundary_dtype=dtype).model_dump()
    spec = build_spec(fields | {"verification": fields["verification"] | {"tolerance": tolerance}})
    stage = tampering.UnderTolerance(Cheat(Cheating("under-tolerance"), ADDRESS), spec, INNER)
    random = torch.Generator().manual_seed(3)
    directions = []
    for _ in range(3):
        output = torch.randn((2, 16, spec.architecture.boundary_dim), generator=random).to(stage.boundary_dtype)
        shifted = stage.biased(output)
        assert 0.75 < relative_error(shifted, output) / travelled_tolerance(spec) < 0.95
        directions.append((shifted.float() - output.float()).mean((0, 1)))
    for other in directions[1:]:
        assert torch.cosine_similarity(directions[0], other, dim=0) > 0.9
