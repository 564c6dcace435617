"""What a bench's processes hand to each other, and how they judge it."""

from pathlib import Path

import pytest
import torch

from commonweight.bench.lies import FIRST, INNER, LAST, LIES, listen
from commonweight.bench.replays import Made, Taken, apart, bits, judge, put_together, take_apart, work
from commonweight.bench.round_files import read_made, read_round, write_made, write_round
from commonweight.model.stage import Stage
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.spec import ModelSpec
from tests.unit.replay_world import ROUND, trained
from tests.unit.tiny import tiny_spec

torch.set_num_threads(1)

SPEC = tiny_spec(stages=3)


@pytest.fixture(scope="module")
def taken() -> list[Taken]:
    batches, traces = trained(SPEC)
    stale = [Stage(SPEC, index).state() for index in range(SPEC.stages)]
    return [
        Taken(ROUND, trace.state, batches, trace.inputs, trace.gradients, old)
        for trace, old in zip(traces, stale, strict=True)
    ]


def honest(taken: list[Taken], stage: int) -> Made:
    return work(Stage(SPEC, stage, blank=True), taken[stage])


def units(kind: Kind, stage: int, spec: ModelSpec = SPEC) -> list[Audit]:
    if kind is Kind.ROUND:
        return [Audit(ROUND, stage, kind)]
    return [Audit(ROUND, stage, kind, n) for n in range(spec.training.microbatches_per_round)]


@pytest.mark.parametrize("stage", range(3))
def test_a_round_in_a_file_is_the_round(taken: list[Taken], stage: int, tmp_path: Path) -> None:
    made = honest(taken, stage)
    write_round(tmp_path / "round", taken[stage], made)
    write_made(tmp_path / "made", made)
    again, claimed = read_round(tmp_path / "round")
    assert bits(claimed) == bits(made) == bits(read_made(tmp_path / "made"))
    assert bits(work(Stage(SPEC, stage, blank=True), again)) == bits(made)
    assert again.round == ROUND
    assert again.stale.keys() == again.state.keys() == claimed.next_state.keys()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("stage", range(3))
def test_honest_work_passes_every_audit(taken: list[Taken], stage: int, exact: bool) -> None:
    made = honest(taken, stage)
    for kind in Kind:
        for unit in units(kind, stage):
            some = None if unit.microbatch is None else [unit.microbatch]
            replayed = work(Stage(SPEC, stage, blank=True), taken[stage], some)
            assert judge(SPEC, unit, taken[stage].state, made, replayed, exact=exact)[0] is Verdict.PASSED


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_every_audit_within_a_class_that_looks_at_a_lie_finds_it(taken: list[Taken], lie) -> None:
    stage = lie.stage % SPEC.stages
    liar = listen(Stage(SPEC, stage, blank=True), taken[stage], seed=1)
    claimed = lie.tell(liar)
    made = honest(taken, stage)
    assert bits(liar.honest) == bits(made)
    for kind in Kind:
        for unit in units(kind, stage):
            verdict, _ = judge(SPEC, unit, taken[stage].state, claimed, made, exact=True)
            if kind in lie.shown_by and (unit.microbatch is None or unit.microbatch >= lie.true_first):
                assert verdict is Verdict.FAILED
    assert {FIRST, INNER, LAST} >= {lie.stage}


def test_across_classes_a_root_without_a_state_is_withheld(taken: list[Taken]) -> None:
    (lie,) = (lie for lie in LIES if lie.name == "false root")
    claimed = lie.tell(listen(Stage(SPEC, INNER, blank=True), taken[INNER], seed=1))
    (unit,) = units(Kind.ROUND, INNER)
    verdict, _ = judge(SPEC, unit, taken[INNER].state, claimed, honest(taken, INNER), exact=False)
    assert verdict is Verdict.WITHHELD


@pytest.mark.parametrize("stage", range(3))
def test_sequences_apart_come_to_the_same_but_for_rounding(taken: list[Taken], stage: int) -> None:
    made = work(Stage(apart(SPEC), stage, blank=True), take_apart(taken[stage]))
    together = put_together(made, SPEC.training.microbatch_sequences)
    for kind in (Kind.ROUND, Kind.LOSS):
        for unit in units(kind, stage):
            verdict, found = judge(SPEC, unit, taken[stage].state, together, honest(taken, stage), exact=False)
            assert verdict is Verdict.PASSED, found
