"""What a bench's processes hand to each other, and how they judge it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commonweight.bench.lies import FIRST, INNER, LAST, LIES, Lie, listen
from commonweight.bench.replays import (
    Made,
    Replays,
    Taken,
    apart,
    bits,
    judge,
    judge_round,
    put_together,
    take_apart,
    work,
)
from commonweight.bench.round_files import read_made, read_round, write_made, write_round
from commonweight.model.hashing import tensors_hash
from commonweight.model.stage import Stage
from commonweight.rules.audits import TRAINING, Audit, Kind, Verdict
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


def replays(taken: list[Taken], stage: int) -> Replays:
    return Replays(Stage(SPEC, stage, blank=True), taken[stage])


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
    assert tensors_hash(claimed.gradient) == made.gradient_hash
    assert [sketch.norm for sketch in claimed.sketches.values()] == [each.norm for each in made.sketches.values()]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("stage", range(3))
def test_honest_work_passes_every_audit_and_only_what_was_drawn_is_replayed(
    taken: list[Taken], stage: int, exact: bool
) -> None:
    made = honest(taken, stage)
    for kind in (kind for kind in Kind if kind in TRAINING):
        for unit in units(kind, stage):
            auditor = replays(taken, stage)
            assert judge(SPEC, unit, made, auditor, exact=exact)[0] is Verdict.PASSED
            assert auditor.is_whole == (kind is Kind.ROUND)
            assert auditor.numbers == ([unit.microbatch] if kind in (Kind.MICROBATCH, Kind.LOSS) else [])


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_every_audit_within_a_class_that_looks_at_a_lie_finds_it(taken: list[Taken], lie: Lie) -> None:
    stage = lie.stage % SPEC.stages
    liar = listen(Stage(SPEC, stage, blank=True), taken[stage], seed=1)
    claimed = lie.tell(liar)
    assert bits(liar.honest) == bits(honest(taken, stage))
    found = {
        unit: judge(SPEC, unit, claimed, replays(taken, stage), exact=True)[0]
        for kind in Kind
        for unit in units(kind, stage)
        if kind in lie.shown_by and (unit.microbatch is None or unit.microbatch >= lie.true_first)
    }
    if lie.is_hidden:
        last = SPEC.training.microbatches_per_round - 1
        hits = {unit for unit, verdict in found.items() if verdict is Verdict.FAILED}
        assert hits == {unit for unit in found if unit.microbatch in (None, last)}
    else:
        assert set(found.values()) == {Verdict.FAILED}
    assert {FIRST, INNER, LAST} >= {lie.stage}


def test_a_sketch_that_stands_out_is_looked_at_by_the_audits_of_others(taken: list[Taken]) -> None:
    (lie,) = (lie for lie in LIES if lie.name == "round's gradient × 10, in the last sketch alone")
    claimed = lie.tell(listen(Stage(SPEC, INNER, blank=True), taken[INNER], seed=1))
    auditor = replays(taken, INNER)
    assert judge(SPEC, units(Kind.MICROBATCH, INNER)[0], claimed, auditor, exact=False)[0] is Verdict.FAILED
    assert auditor.numbers == [0, SPEC.training.microbatches_per_round - 1]
    assert auditor.is_whole


def test_an_honest_audit_in_doubt_is_decided_by_the_whole_round(taken: list[Taken]) -> None:
    """Its sketch is off by more than one microbatch's audit allows, and by less than the round's across classes."""
    made = honest(taken, INNER)
    first = made.sketches[0]
    shift = 3 * float(SPEC.verification.tolerance) * first.norm / math.sqrt(len(first.sums))
    moved = replace(made, sketches=made.sketches | {0: replace(first, sums=first.sums + shift)})
    unit = units(Kind.MICROBATCH, INNER)[0]
    for exact, verdict in ((False, Verdict.PASSED), (True, Verdict.FAILED)):
        auditor = replays(taken, INNER)
        assert judge(SPEC, unit, moved, auditor, exact=exact)[0] is verdict
        assert (auditor.numbers, auditor.is_whole) == ([0], True)


@pytest.mark.parametrize("kind", [Kind.ROUND, Kind.MICROBATCH])
def test_across_classes_a_root_without_a_state_is_withheld(taken: list[Taken], kind: Kind) -> None:
    (lie,) = (lie for lie in LIES if lie.name == "false root")
    claimed = lie.tell(listen(Stage(SPEC, INNER, blank=True), taken[INNER], seed=1))
    for unit in units(kind, INNER):
        assert judge(SPEC, unit, claimed, replays(taken, INNER), exact=False)[0] is Verdict.WITHHELD


@pytest.mark.parametrize("stage", range(3))
def test_sequences_apart_come_to_the_same_but_for_rounding(taken: list[Taken], stage: int) -> None:
    made = work(Stage(apart(SPEC), stage, blank=True), take_apart(taken[stage]))
    together = put_together(made, SPEC.training.microbatch_sequences)
    verdict, found = judge_round(SPEC, taken[stage], together, honest(taken, stage), exact=False)
    assert verdict is Verdict.PASSED, found
