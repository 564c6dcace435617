"""Which orders an auditor takes."""

from collections.abc import Callable
from functools import partial

import pytest

from auditor.orders import read_order
from commonweight.errors import MalformedMessage
from commonweight.rules.audits import Audit, Kind, draw_audits
from commonweight.rules.load import Loads
from commonweight.rules.report import Report
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import MAX_HOPS, audit_to_proto, report_to_proto
from commonweight.wire.referee import SOURCES
from tests.unit.tiny import tiny_spec
from tools.build_vectors import honest_reports, share

SPEC = tiny_spec(stages=3, round_rate="0.3", microbatch_rate="0.5", data_rate="0.5", answer_rate="0.5")
STAGES, MICROBATCHES = SPEC.stages, SPEC.training.microbatches_per_round


def order(audit: Audit) -> pb.AuditOrder:
    report = report_to_proto(report_of(audit))
    return pb.AuditOrder(unit=audit_to_proto(audit), report=report, sources=[pb.EvidenceSource()] * SOURCES)


LOADS: Loads = [share(MICROBATCHES, 1), share(MICROBATCHES, 2), share(MICROBATCHES, 3)]


def report_of(audit: Audit) -> Report:
    before = sum(len(of_stage) for of_stage in LOADS[: audit.stage])
    return honest_reports(STAGES, MICROBATCHES, audit.round, LOADS)[before + audit.replica]


def test_whatever_is_drawn_is_taken_but_for_the_text_and_for_answers() -> None:
    answers = [[number % len(of_stage) for of_stage in LOADS] for number in range(2)]
    drawn = [audit for round_ in range(20) for audit in draw_audits(SPEC, round_, bytes([round_]) * 32, LOADS, answers)]
    assert {audit.kind for audit in drawn} == set(Kind)
    for audit in drawn:
        if audit.kind in (Kind.DATA, Kind.ANSWER):
            with pytest.raises(MalformedMessage, match=rf"unit\.kind: '{audit.kind.value}'"):
                read_order(SPEC, order(audit))
        else:
            assert read_order(SPEC, order(audit)) == (audit, report_of(audit))


def changed(change: Callable[[pb.AuditOrder], object], audit: Audit) -> pb.AuditOrder:
    made = order(audit)
    change(made)
    return made


WHOLE, SINGLE, LAST = Audit(2, 1, Kind.ROUND), Audit(2, 1, Kind.MICROBATCH, 0), Audit(2, 2, Kind.LOSS, 0)
FIRST = Audit(2, 0, Kind.ROUND)


def cross(side: str, made: pb.AuditOrder) -> None:
    setattr(made.report.hops[0], side, b"\x01" * 32)


@pytest.mark.parametrize(
    ("audit", "change", "match"),
    [
        (WHOLE, lambda it: setattr(it.unit, "stage", STAGES), "unit.stage: 3 of a model with 3 stages"),
        (WHOLE, lambda it: setattr(it.unit, "microbatch", 0), "unit.kind: 'round' where a microbatch"),
        (WHOLE, lambda it: setattr(it.unit, "kind", ""), "unit.kind: ''"),
        (SINGLE, lambda it: it.unit.ClearField("microbatch"), "unit.kind: 'microbatch' where a round"),
        (SINGLE, lambda it: setattr(it.unit, "microbatch", 1), r"unit.microbatch: 1 of a report on \[0, 2\]"),
        (SINGLE, lambda it: setattr(it.unit, "kind", "loss"), "unit.kind: 'loss' where a microbatch"),
        (LAST, lambda it: setattr(it.unit, "kind", "microbatch"), "unit.kind: 'microbatch' where a loss"),
        (WHOLE, lambda it: setattr(it.unit, "round", 3), "of round 2, stage 1, for the audit of round 3, stage 1"),
        (WHOLE, lambda it: setattr(it.report, "stage", 0), "of round 2, stage 0"),
        (WHOLE, lambda it: it.report.ClearField("hops"), r"of the microbatches \[\], where a round's"),
        (WHOLE, lambda it: setattr(it.report.hops[0], "microbatch", 3), "where a round's are numbered up to 3"),
        (WHOLE, lambda it: it.report.hops.extend(list(it.report.hops) * MAX_HOPS), "hops: a report has"),
        (WHOLE, lambda it: setattr(it.report, "gradient_hash", bytes(31)), "gradient_hash: a hash has 32 bytes"),
        (WHOLE, lambda it: it.ClearField("report"), "gradient_hash: a hash has 32 bytes"),
        (WHOLE, lambda it: it.sources.add(), "sources: 4, of at most 3"),
        *((FIRST, partial(cross, side), "outer side of stage 0") for side in ("activation_in", "gradient_out")),
        *((LAST, partial(cross, side), "outer side of stage 2") for side in ("activation_out", "gradient_in")),
    ],
)
def test_what_this_model_has_no_unit_for_is_refused(
    audit: Audit, change: Callable[[pb.AuditOrder], object], match: str
) -> None:
    with pytest.raises(MalformedMessage, match=match):
        read_order(SPEC, changed(change, audit))
