"""`bench verification` and `bench calibrate` measure what they say, on a model small enough for a test."""

import pytest

from commonweight.bench.calibration import Calibration, Setting, run_calibration, show, to_results
from commonweight.bench.lies import LIES
from commonweight.bench.measure import Result
from commonweight.bench.verification import SECTIONS, run_verification_bench
from commonweight.bench.verification_world import FOREIGN, VerificationBench, small_spec

ONE = Setting("1 thread")
MATH = Setting("math attention", attention="math")
TINY = VerificationBench(
    audits=30, epochs=10, bias_rounds=4, lie_rounds=5, turns=1, long_epoch=60, foreign=(FOREIGN[0],), is_small=True
)


def named(results: list[Result], *parts: str) -> list[Result]:
    found = [result for result in results if all(part in result.name for part in parts)]
    assert found, f"nothing is named {parts}"
    return found


@pytest.mark.long
def test_audits_spare_the_honest_find_lies_and_cost_something() -> None:
    told: list[str] = []
    sections = run_verification_bench(TINY, told.append)
    assert list(sections) == list(SECTIONS)
    assert len(told) == len(SECTIONS)
    honest, lies, simulated, auditors, cost, bias = sections.values()
    for alarms in named(honest, "false alarms"):
        assert alarms.candidate.median == 0
    for doubts in named(honest, "replayed the whole round within a class"):
        assert doubts.candidate.median == 0
    assert sum(result.candidate.median for result in named(honest, "audits within a class")) >= TINY.audits
    assert any(result.candidate.median > 0 for result in named(honest, "other bits")), "another class is another class"
    for lie in LIES:
        (shown,) = (result for result in lies if result.name.startswith(f"{lie.name}, within a class"))
        assert 0 < shown.candidate.median < 1 if lie.is_hidden else shown.candidate.median == 1
    (withheld,) = named(lies, "false root, across classes")
    assert withheld.candidate.median == 0
    assert "else withheld" in withheld.name
    (caught,) = named(simulated, "40 rounds, lazy: all rounds: caught")
    assert caught.candidate.median == 1
    (convicted,) = named(auditors, "always cries fraud: caught")
    assert convicted.candidate.median == 1
    assert all(result.candidate.median > 0 for result in cost)
    assert len(named(bias, "cost of")) == 3


@pytest.mark.long
def test_settings_of_equal_bits_are_one_and_lies_are_farther_than_honest_machines() -> None:
    (found,) = run_calibration(Calibration(3, ("float32",), settings=(ONE, MATH, *FOREIGN[:1]), spec=small_spec))
    assert found.groups[0] == ["trained", "1 thread"]
    assert found.failures == []
    assert found.classes["1 thread"] != found.classes["math attention"]
    assert 0 < found.spread < found.tolerance
    assert found.recommended is not None
    assert found.spread < found.recommended < 1e-3
    (bias,) = (distance for distance in found.dishonest if distance.of == "biased by 0.001")
    assert bias.errors["activation"] == pytest.approx(1e-3, rel=1e-2)
    assert bias.tolerance == pytest.approx(1e-3, rel=1e-2)
    assert len({result.name for result in to_results(found)}) == len(to_results(found))
    assert show(found)
    assert found.refused == []
    codes, choices = (each for each in found.answers if each.of == "honest")
    assert 0 < codes.position < codes.position_allowed
    assert 0 < choices.part < choices.part_allowed
    lies = [each for each in found.answers if each.of != "honest"]
    assert {each.of for each in lies} == {"weights in bfloat16", "computed in bfloat16", "another version"}
    assert all(each.part > each.part_allowed for each in lies)


@pytest.mark.long
def test_one_class_with_two_kinds_of_bits_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that doesn't tell settings apart: as if the probe saw nothing."""
    from commonweight.bench import calibration

    class Blind(calibration.Worker):
        def ask(self, kind, **order):  # type: ignore[no-untyped-def]
            return "any" if kind == "numerics" else super().ask(kind, **order)

    monkeypatch.setattr(calibration, "Worker", Blind)
    (found,) = run_calibration(Calibration(3, ("float32",), settings=(ONE, MATH), spec=small_spec))
    assert len(found.failures) == 2, "with what was trained, and with what was replayed"
    assert "math attention" in found.failures[0]
    assert any("FALSE CONVICTION" in str(part) for part in show(found))
