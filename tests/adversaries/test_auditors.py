"""Auditors that cheat, as processes in a real network on a real chain: what they say is found out, and the provider
whose work it is about is paid what it is worth.
"""

from pathlib import Path
from typing import Any

import pytest

from adversary.auditor import false_evidence
from commonweight.devnet.deployment import SEAT_STAKE
from commonweight.rules.audits import NO_EVIDENCE
from commonweight.rules.statement import to_hex
from commonweight.watch.fraud import FraudEvidence, parse_document
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import report_to_proto
from tests.adversaries.scene import Scene, scene
from tests.integration.scripted import honest_report
from tests.unit.tiny import tiny_spec

NETWORK = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(400)]
STAGE, OTHER = 1, 0


def network(function: Any) -> Any:
    for mark in NETWORK:
        function = mark(function)
    return function


def epoch_of(case: Scene, event: Any) -> int:
    """In which that happened."""
    return int(event.fields["round"]) // case.network.spec.economics.rounds_per_epoch


def paid_rounds_of(case: Scene, epoch: int) -> list[int]:
    """All of an epoch."""
    return [3 * epoch + number for number in range(3)]


@network
def test_who_colludes_with_its_auditor_is_convicted_by_another(tmp_path: Path) -> None:
    """What its friend draws passes, what the referee draws doesn't."""
    with scene(tmp_path, STAGE, "collude", auditors=STAGE + 1) as case:
        assert case.friend is not None
        helped = case.friend.wait_for("audit.answered", lambda event: event.fields["verdict"] == "passed")
        convicted = case.coordinator.wait_for("provider.convicted")
        assert (convicted.fields["node"], convicted.fields["stage"]) == (case.address, STAGE)
        assert (helped.fields["stage"], bool(case.cheated())) == (STAGE, True), "the faults fired"
        case.coordinator.wait_for("slash.executed")
        assert case.network.slashed() == [(case.address, STAGE, SEAT_STAKE)]
        epoch = epoch_of(case, convicted)
        assert case.paid_rounds(STAGE, epoch) == []
        assert case.paid_rounds(OTHER, epoch) == paid_rounds_of(case, epoch)
        shares = case.shares(epoch)
        assert case.address not in shares
        verdicts = {line.verdict for line, _ in case.opinions(case.auditor, epoch)}
        assert verdicts <= {"passed"}, "with one auditor of the stage, a friend's word decides what it draws"


@network
def test_who_waves_everything_through_is_convicted_for_what_is_known_to_be_bad(tmp_path: Path) -> None:
    with scene(tmp_path, STAGE, "wave-through", auditors=STAGE + 1, known_bad_rate="1") as case:
        convicted = case.coordinator.wait_for("auditor.convicted")
        assert case.cheated(), "the fault fired"
        assert (convicted.fields["node"], convicted.fields["stage"]) == (case.auditor, STAGE)
        assert convicted.fields["why"] == "known bad"
        executed = case.coordinator.wait_for("slash.executed")
        assert executed.fields["node"] == case.auditor
        assert case.network.slashed() == [(case.auditor, STAGE, SEAT_STAKE)]
        epoch = epoch_of(case, convicted)
        assert [(line.stage, line.node) for line in case.statement(epoch).convicted] == [(STAGE, case.auditor)]
        assert case.auditor not in case.shares(epoch)
        for stage in (STAGE, OTHER):
            assert case.paid_rounds(stage, epoch) == paid_rounds_of(case, epoch)
        assert {found["verdict"] for found in case.verdicts(case.address)} == {"passed"}
        ((line, opinion), *_) = case.opinions(case.auditor, epoch)
        assert line.is_known_bad(opinion)
        evidence = case.evidence(opinion.disproof)
        assert evidence["format"] == "commonweight.known-bad/3"
        case.coordinator.wait_for("audit.decided", lambda event: event.fields["round"] // 3 > epoch)
        accused = [event.fields["node"] for event in case.coordinator.events if event.name == "auditor.convicted"]
        assert set(accused) == {case.auditor}, "an honest one finds what is known to be bad"


@network
def test_who_raises_false_alarms_is_overruled_and_harms_nobody_but_itself(tmp_path: Path) -> None:
    with scene(tmp_path, STAGE, "false-alarm", auditors=STAGE + 1) as case:
        convicted = case.coordinator.wait_for("auditor.convicted")
        assert case.cheated(), "the fault fired"
        assert (convicted.fields["node"], convicted.fields["stage"]) == (case.auditor, STAGE)
        assert convicted.fields["why"] == "overruled"
        case.coordinator.wait_for("slash.executed")
        assert case.network.slashed() == [(case.auditor, STAGE, SEAT_STAKE)]
        epoch = epoch_of(case, convicted)
        for stage in (STAGE, OTHER):
            assert case.paid_rounds(stage, epoch) == paid_rounds_of(case, epoch)
        assert [(line.stage, line.node) for line in case.statement(epoch).convicted] == [(STAGE, case.auditor)]
        assert case.auditor not in case.shares(epoch)
        ((line, opinion), *_) = case.opinions(case.auditor, epoch)
        assert (opinion.verdict, line.verdict) == ("failed", "passed")
        assert case.evidence(opinion.disproof)["format"] == "commonweight.dispute/2"
        assert case.evidence(opinion.evidence)["format"] == "commonweight.fraud/3"
        assert not [event for event in case.coordinator.events if event.name == "provider.convicted"]


@network
def test_who_never_answers_is_passed_over_and_loses_its_pay_alone(tmp_path: Path) -> None:
    with scene(tmp_path, STAGE, "auditor-silent", auditors=STAGE + 1, audit_s=10) as case:
        late = case.coordinator.wait_for("auditor.late", lambda event: event.fields["node"] == case.auditor)
        assert case.cheated(), "the fault fired"
        epoch = epoch_of(case, late)
        for stage in (STAGE, OTHER):
            assert case.paid_rounds(stage, epoch) == paid_rounds_of(case, epoch)
        of_epoch = [
            event
            for event in case.coordinator.events
            if event.name == "auditor.late" and event.fields["node"] == case.auditor and epoch_of(case, event) == epoch
        ]
        assert len(of_epoch) == 1, "it isn't asked again about that epoch"
        assert case.opinions(case.auditor, epoch) == []
        assert not case.statement(epoch).convicted
        assert case.network.slashed() == []


@pytest.mark.parametrize("microbatch", [None, 2])
@pytest.mark.parametrize("stage", [0, 1])
def test_false_evidence_looks_like_evidence(stage: int, microbatch: int | None) -> None:
    spec = tiny_spec(microbatches_per_round=4)
    report = honest_report(3, stage, 2, 4)
    kind = "round" if microbatch is None else ("microbatch", "loss")[stage]
    unit = pb.AuditUnit(round=3, stage=stage, kind=kind, microbatch=microbatch)
    order = pb.AuditOrder(unit=unit, report=report_to_proto(report))
    evidence = parse_document(FraudEvidence, false_evidence(spec, order, bytes(32)))
    assert evidence.contradictions(stage, spec.spec_hash) == []
    assert (evidence.unit.round, evidence.unit.microbatch) == (3, microbatch)
    assert evidence.difference.found == to_hex(NO_EVIDENCE) != evidence.difference.signed
