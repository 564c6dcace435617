"""The evidence of fraud as anybody reads it: what the referee writes, and what a stranger may write instead."""

import json
from dataclasses import replace
from typing import Any

import pytest

from commonweight.errors import MalformedMessage
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.canonical import canonical_json
from commonweight.rules.statement import to_hex
from commonweight.watch.fraud import MAX_EVIDENCE_BYTES, FraudEvidence, parse_document
from referee.fraud import Difference, fraud_evidence
from tests.unit.tiny import tiny_spec
from tools.build_vectors import honest_reports

SPEC = tiny_spec()
REPORT = replace(honest_reports(SPEC.stages, 3, 5)[1], hops=honest_reports(SPEC.stages, 3, 5)[1].hops[::-1])
"""Its microbatches were added up from the last to the first."""
HOPS = {hop.microbatch: hop for hop in REPORT.hops}


def evidence(difference: Difference, kind: Kind = Kind.MICROBATCH) -> bytes:
    return evidence_of(Audit(5, 1, kind, difference.microbatch), difference)


def evidence_of(unit: Audit, difference: Difference) -> bytes:
    return fraud_evidence(SPEC, unit, REPORT, difference, provider="theirs", auditor="ours")


def of_microbatch(**changed: Any) -> bytes:
    """Of an output that differs, by how much wasn't measured, and with these members replaced."""
    signed = to_hex(HOPS[2].gradient_out)
    fields = json.loads(evidence(Difference("gradient_out", 2, signed, "0x" + 64 * "1")))
    return canonical_json(fields | {name: fields[name] | value for name, value in changed.items()})


@pytest.mark.parametrize(
    "difference",
    [
        Difference("gradient_out", 2, to_hex(HOPS[2].gradient_out), "", 0.25, 1e-05, "A note."),
        Difference("sketch", 1, to_hex(HOPS[1].sketch), "0x" + 64 * "1", 0.5, 1e-05),
        Difference("loss", 0, repr(HOPS[0].loss), "nan", float("nan"), 0.0),
        Difference("state_after", None, to_hex(REPORT.state_after), "0x" + 64 * "1", float("inf"), 1e16),
        Difference("gradient of layers.0.wq", None, to_hex(REPORT.state_after), "0x" + 64 * "1", 1e-300),
    ],
)
def test_what_a_referee_writes_is_read_and_adds_up(difference: Difference) -> None:
    found = parse_document(FraudEvidence, evidence(difference))
    assert found.unit.audit == Audit(5, 1, Kind.MICROBATCH, difference.microbatch)
    assert (found.difference.what, found.difference.found) == (difference.what, difference.found)
    assert (found.numerics.provider, found.numerics.auditor) == ("theirs", "ours")
    assert found.contradictions(1, SPEC.spec_hash) == []


@pytest.mark.parametrize(
    "difference",
    [
        Difference("sketch", 2, to_hex(HOPS[2].sketch), "0x" + 64 * "1"),
        Difference("gradient_hash", None, to_hex(REPORT.gradient_hash), "0x" + 64 * "1"),
    ],
)
def test_an_audit_of_a_microbatch_may_find_what_is_false_elsewhere_in_the_round(difference: Difference) -> None:
    """Where it replays the whole."""
    found = parse_document(FraudEvidence, evidence_of(Audit(5, 1, Kind.MICROBATCH, 0), difference))
    assert found.contradictions(1, SPEC.spec_hash) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"unit": {"stage": 0}}, "about stage 0, the proposal about stage 1"),
        ({"unit": {"kind": "answer"}}, "it is about an answer"),
        ({"hop": {"tokens": "0x" + 64 * "2"}}, "microbatch 2 is not in the report"),
        ({"hop": {"sketch": "0x" + 64 * "2"}}, "microbatch 2 is not in the report"),
        ({"hop": {"loss": "0.5"}}, "microbatch 2 is not in the report"),
        ({"hop": {"position": 2}}, "microbatch 2 is not in the report"),
        ({"commitments": {"hops_root": "0x" + 64 * "2"}}, "microbatch 2 is not in the report"),
        ({"difference": {"signed": "0x" + 64 * "2"}}, "was signed, the report that it names has 0x"),
        ({"difference": {"microbatch": 1}}, "different microbatches"),
        ({"difference": {"microbatch": None}}, "different microbatches"),
    ],
)
def test_what_contradicts_itself_or_the_proposal_is_named(changed: dict[str, Any], words: str) -> None:
    (said,) = parse_document(FraudEvidence, of_microbatch(**changed)).contradictions(1, SPEC.spec_hash)
    assert words in said


def test_evidence_about_another_model_is_none() -> None:
    (said,) = parse_document(FraudEvidence, of_microbatch()).contradictions(1, bytes(32))
    assert said == f"it is about the spec {to_hex(SPEC.spec_hash)}, the model has {to_hex(bytes(32))}"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'{"format":"commonweight.fraud/3"}',
        b"[" * 60_000,
        b" " * (MAX_EVIDENCE_BYTES + 1),
        of_microbatch(difference={"error": "much"}),
        of_microbatch(difference={"tolerance": "9" * 100}),
        of_microbatch(unit={"round": -1}),
        of_microbatch(unit={"more": 1}),
    ],
)
def test_another_text_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedMessage, match="The evidence"):
        parse_document(FraudEvidence, text)
