"""Every way of cheating on a stage, by the real trainer: which audits convict it, and that nobody else is convicted."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from adversary.auditor import REPLAYS
from adversary.cheat import Cheat
from adversary.decoder import OTHERS
from adversary.node import NODES
from adversary.versions import Stale
from adversary.worker import STAGES
from commonweight.devnet.byzantine import KINDS, SESSIONS, Cheating, Who
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.spec import ModelSpec
from tests.adversaries.conftest import Done
from tests.adversaries.pipeline import Pipeline
from tests.integration.network import pack_text, tiny_spec

ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
ROUNDS = 3
MICROBATCHES = 4
FIRST, INNER, LAST = 0, 1, 2
ONE, WHOLE, LOSS, DATA = Kind.MICROBATCH, Kind.ROUND, Kind.LOSS, Kind.DATA

CAUGHT_BY: dict[tuple[str, int], set[Kind]] = {
    ("zeros", FIRST): {ONE, WHOLE},
    ("zeros", INNER): {ONE, WHOLE},
    ("zeros", LAST): {LOSS, WHOLE},
    ("noise", FIRST): {ONE, WHOLE},
    ("noise", INNER): {ONE, WHOLE},
    ("noise", LAST): {LOSS, WHOLE},
    ("cached", FIRST): {ONE, WHOLE},
    ("cached", INNER): {ONE, WHOLE},
    ("cached", LAST): {LOSS, WHOLE},
    ("copied", INNER): {ONE, WHOLE},
    ("no-backward", FIRST): {ONE, WHOLE},
    ("no-backward", INNER): {ONE, WHOLE},
    ("no-backward", LAST): {LOSS, WHOLE},
    ("no-weight-gradients", FIRST): {ONE, WHOLE},
    ("no-weight-gradients", INNER): {ONE, WHOLE},
    ("no-weight-gradients", LAST): {LOSS, WHOLE},
    ("biased", INNER): {ONE, WHOLE},
    ("biased", LAST): {LOSS, WHOLE},
    ("low-precision", INNER): {ONE, WHOLE},
    ("low-precision", LAST): {LOSS, WHOLE},
    ("false-loss", LAST): {LOSS, WHOLE},
    ("wrong-data", FIRST): {DATA, ONE, WHOLE},
    ("scaled-gradient", INNER): {ONE, WHOLE},
    ("flipped-gradient", INNER): {ONE, WHOLE},
    ("hidden-gradient", INNER): {ONE, WHOLE},
    ("hidden-gradient", LAST): {LOSS, WHOLE},
    ("unseen-gradient", INNER): {WHOLE},
    ("stale", INNER): {ONE, WHOLE},
    ("stale", LAST): {LOSS, WHOLE},
    ("no-step", FIRST): {ONE, WHOLE},
    ("no-step", INNER): {ONE, WHOLE},
    ("no-step", LAST): {LOSS, WHOLE},
    ("false-root", INNER): {ONE, WHOLE},
}
"""The audits of a unit that was cheated on that convict, by kind and stage."""
IN_THE_LAST_LINE = ("hidden-gradient", "flipped-gradient")
"""What is false in the whole round shows there alone, or, where that line stands out beside the audited one, to others,
too. Of four microbatches the flipped sum is about as large as that takes; scaled by ten it always is.
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Path]:
    torch.set_num_threads(1)
    data = tmp_path_factory.mktemp("text") / "data"
    return tiny_spec(*pack_text(data), stages=3), data


def cheating(model: tuple[ModelSpec, Path], folder: Path, text: str, stage: int) -> Pipeline:
    return Pipeline(*model, folder, at=stage, cheat=Cheat(Cheating.parse(text), ADDRESS))


def test_every_kind_is_tried() -> None:
    """Those of the control process are in test_processes.py; that which isn't caught is in test_choosing.py; those with
    an auditor, in test_auditors.py; those with answers, in test_answers.py.
    """
    providers = {kind for kind, way in KINDS.items() if way.who is not Who.AUDITOR}
    colluding = {kind for kind, way in KINDS.items() if way.who is Who.BOTH}
    assert {kind for kind, _ in CAUGHT_BY} | {"under-tolerance"} == providers - colluding - NODES.keys()
    assert STAGES.keys() | NODES.keys() | {"wrong-data"} == providers
    assert {kind for kind, way in KINDS.items() if way.fraction == SESSIONS} == OTHERS.keys() | {"withhold-answers"}
    assert REPLAYS.keys() == KINDS.keys() - providers | colluding


@pytest.mark.parametrize(("kind", "stage"), CAUGHT_BY)
def test_it_is_caught_in_the_first_round_that_it_cheats_in(
    model: tuple[ModelSpec, Path], tmp_path: Path, told: Done, kind: str, stage: int
) -> None:
    with cheating(model, tmp_path, kind, stage) as pipeline:
        for round_ in range(ROUNDS):
            assert not told, "until now it worked honestly"
            pipeline.train(round_)
            if check_convicted(pipeline, round_, kind, told):
                return
    raise AssertionError(f"it never cheated in {ROUNDS} rounds")


@pytest.mark.parametrize("kind", ["zeros", "no-weight-gradients"])
def test_of_single_microbatches_those_are_caught_that_are_false(
    model: tuple[ModelSpec, Path], tmp_path: Path, told: Done, kind: str
) -> None:
    with cheating(model, tmp_path, f"{kind}:0.4", INNER) as pipeline:
        pipeline.train(0)
        failed = check_convicted(pipeline, 0, kind, told)
        assert 0 < len(failed) - 1 < len(pipeline.sealed[0, INNER].hops)


def check_convicted(pipeline: Pipeline, round_: int, kind: str, told: Done) -> set[Audit]:
    """Audit all of a round: the units that fail. They are those that must, and the others pass."""
    verdicts = {unit: pipeline.audit(unit).verdict for unit in pipeline.units(round_)}
    failed = {unit for unit, verdict in verdicts.items() if verdict is Verdict.FAILED}
    must = due(kind, pipeline.at, verdicts, told)
    if kind == "flipped-gradient":
        assert must <= failed
        assert {unit.stage for unit in failed - must} <= {pipeline.at}
    else:
        assert failed == must
    assert {verdicts[unit] for unit in verdicts.keys() - failed} <= {Verdict.PASSED}
    return failed


def due(kind: str, stage: int, units: Iterable[Audit], told: Done) -> set[Audit]:
    """The units of these whose audits must convict."""
    if not told:
        return set()
    numbers = {MICROBATCHES - 1} if kind in IN_THE_LAST_LINE else {number for _, number in told}
    return {
        unit
        for unit in units
        if unit.stage == stage and unit.kind in CAUGHT_BY[kind, stage]
        if unit.kind is WHOLE or None in numbers or unit.microbatch in numbers
    }


@pytest.mark.parametrize("text", ["zeros:0.4", "no-step:0.4"])
def test_a_fraction_of_the_units_is_cheated_on_and_the_same_ones_again(
    model: tuple[ModelSpec, Path], tmp_path: Path, told: Done, text: str
) -> None:
    runs = []
    for name in ("a", "b"):
        told.clear()
        with cheating(model, tmp_path / name, text, INNER) as pipeline:
            for round_ in range(4):
                pipeline.train(round_)
                unit = Audit(round_, INNER, WHOLE)
                lied = any(number == round_ for number, _ in told)
                assert (pipeline.audit(unit).verdict is Verdict.FAILED) == lied
            runs.append((list(told), {unit: report.state_after for unit, report in pipeline.sealed.items()}))
    assert runs[0] == runs[1]
    units = 4 * (1 if KINDS[text.partition(":")[0]].fraction == "rounds" else MICROBATCHES)
    assert 0 < len(runs[0][0]) < units


def test_the_fraction_is_kept_in_the_long_run() -> None:
    cheat = Cheat(Cheating("zeros", 0.1), ADDRESS)
    picked = sum(cheat.picks(round_, number) for round_ in range(1000) for number in range(10))
    assert picked == pytest.approx(1000, abs=100)
    assert all(Cheat(Cheating("no-step"), ADDRESS).picks(round_) for round_ in range(100))


def test_it_goes_on_after_a_round_that_is_given_up(model: tuple[ModelSpec, Path], tmp_path: Path) -> None:
    """Stale weights are put back before anything else is loaded."""
    spec, _ = model
    stage = Stale(Cheat(Cheating("stale"), ADDRESS), spec, LAST)
    tokens = torch.zeros((2, 17), dtype=torch.uint8)
    code = torch.ones((2, 16, spec.architecture.boundary_dim))
    roots = []
    for _ in range(3):
        stage.backward(stage.forward(tokens, code), None)
        stage.step()
        roots.append(stage.state_root())
    before = {name: tensor.clone() for name, tensor in stage.state().items()}
    stage.forward(tokens, code)
    assert stage.state_root() == roots[-1]
    computing = stage.module.named_parameters()
    due = stage.parameters()
    assert any(not torch.equal(parameter, due[f"parameter.{name}"]) for name, parameter in computing), "older weights"
    stage.discard_gradients()
    assert stage.state_root() == roots[-1]
    stage.forward(tokens, code)
    stage.load(before, 3)
    assert stage.state_root() == roots[-1]
