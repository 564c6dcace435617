"""Auditing badly doesn't pay, by the rules that a network plays by."""

import pytest

from commonweight.bench.auditor_model import AuditorOutcome, simulate_auditors
from commonweight.devnet.spec import devnet_spec
from commonweight.rules.spec import build_spec


@pytest.fixture(scope="module")
def outcomes() -> dict[str, AuditorOutcome]:
    fields = devnet_spec(4, 0, "0x" + "ab" * 32, 10**6).model_dump()
    fields["verification"] |= {"round_rate": "0.003", "microbatch_rate": "0.31"}
    spec = build_spec(fields)
    return {each.name: each for each in simulate_auditors(spec, epochs=150, seed=7, stake=1.0, cost=0.8)}


def test_who_replays_loses_nothing(outcomes: dict[str, AuditorOutcome]) -> None:
    honest = outcomes["honest auditor"]
    assert (honest.caught, honest.profit) == (0, 0)
    assert honest.audits > 1


@pytest.mark.parametrize("how", ["passes everything", "passes a tenth", "cries fraud", "alone in", "one of three"])
def test_who_doesn_t_is_caught_and_worse_off(how: str, outcomes: dict[str, AuditorOutcome]) -> None:
    (outcome,) = (each for name, each in outcomes.items() if how in name)
    assert outcome.caught > 0
    assert outcome.profit + 2 * outcome.profit_error < 0
