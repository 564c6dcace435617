"""The evidence of a dispute: what a coordinator writes, and what a stranger may write instead."""

import json
from typing import Any

import pytest
import safetensors.torch
import torch
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import MalformedMessage
from commonweight.identity import NodeIdentity
from commonweight.model.operators import rerun_operator, tensor_hash, write_arguments
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.canonical import canonical_json
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.panel import recording_receipt
from commonweight.rules.receipt import Domain
from commonweight.rules.recording import (
    MAX_OPERATORS,
    MAX_RECORD_BYTES,
    OperatorRecord,
    first_difference,
    join_hashes,
    operator_hash,
)
from commonweight.rules.statement import to_hex
from commonweight.watch import disputes
from commonweight.watch.disputes import DisputeEvidence, dispute_evidence
from commonweight.watch.fraud import parse_document
from tests.unit.tiny import tiny_spec

SPEC = tiny_spec()
MODEL_ID, CLAIM = keccak(b"model"), keccak(b"claim")
DOMAIN = Domain(31337, "0x" + 40 * "1")
UNIT = Audit(5, 1, Kind.MICROBATCH, 2)
AUDITOR = NodeIdentity(keccak(b"auditor"))
NUMERICS = "torch 2, cpu, 1 thread"
GIVEN = torch.arange(6.0)


def record_of(number: int, output: torch.Tensor) -> OperatorRecord:
    return OperatorRecord(
        microbatch=0,
        phase="forward",
        layer=f"layers.{number}.ffn",
        operator="aten.mul.Tensor",
        arguments=write_arguments([GIVEN, 2.0], {}),
        inputs=(tensor_hash(GIVEN),),
        strides=((1,),),
        outputs=(tensor_hash(output),),
    )


HONEST = [record_of(number, GIVEN * 2) for number in range(4)]
FALSE = [*HONEST[:2], record_of(2, GIVEN * 3), *HONEST[3:]]


def signed(operators: bytes, key: NodeIdentity = AUDITOR) -> bytes:
    return key.sign_digest(recording_receipt(MODEL_ID, UNIT, CLAIM, operators).digest(DOMAIN))


def evidence(ours: list[OperatorRecord], others: list[OperatorRecord], **changed: Any) -> bytes:
    mine, said = join_hashes(NUMERICS, ours), join_hashes(NUMERICS, others)
    index = first_difference(mine, said)
    assert index is not None
    shown = ours[index] if index < len(ours) else None
    made = {
        "spec_hash": SPEC.spec_hash,
        "audit": UNIT,
        "claim": CLAIM,
        "numerics": NUMERICS,
        "auditor": AUDITOR.address,
        "theirs": said,
        "signature": signed(said),
        "ours": mine,
        "record": b"" if shown is None else canonical_json(shown.model_dump(mode="json")),
        "tensors": b"" if shown is None else safetensors.torch.save({"input.0": GIVEN, "output.0": GIVEN * 2}),
    }
    return dispute_evidence(**(made | changed))


def parse_dispute(text: bytes) -> DisputeEvidence:
    return parse_document(DisputeEvidence, text, disputes.MAX_DISPUTE_BYTES)


def contradictions(found: DisputeEvidence, stage: int = 1) -> list[str]:
    return found.contradictions(stage, SPEC.spec_hash, MODEL_ID, DOMAIN)


def test_a_false_operator_is_shown_and_can_be_run_again() -> None:
    text = evidence(HONEST, FALSE)
    found = parse_dispute(text)
    assert canonical_json(json.loads(text)) == text
    assert contradictions(found) == []
    assert (found.index, found.record, found.unit.audit) == (2, HONEST[2], UNIT)
    assert found.signed == FALSE[2].hash
    assert found.record is not None
    assert found.tensor_bytes is not None
    again = rerun_operator(found.record, found.tensor_bytes)
    assert again.hash == found.record.hash != found.signed, "the referee is right"


def test_who_lies_may_be_the_referee() -> None:
    found = parse_dispute(evidence(FALSE, HONEST))
    assert found.record is not None
    assert found.tensor_bytes is not None
    assert rerun_operator(found.record, found.tensor_bytes).hash == found.signed


@pytest.mark.parametrize(("ours", "theirs"), [(HONEST, HONEST[:2]), (HONEST[:2], HONEST)])
def test_a_replay_that_ends_early(ours: list[OperatorRecord], theirs: list[OperatorRecord]) -> None:
    found = parse_dispute(evidence(ours, theirs))
    assert found.index == 2
    assert (found.record is None) == (len(ours) == 2)
    assert (found.signed == b"") == (len(theirs) == 2)
    assert contradictions(found) == []


def test_tensors_that_are_too_large_are_left_out() -> None:
    found = parse_dispute(evidence(HONEST, FALSE, tensors=bytes(disputes.MAX_TENSORS_BYTES + 1)))
    assert found.tensors is found.tensor_bytes is None
    assert contradictions(found) == []


def test_the_largest_evidence_is_within_its_limit() -> None:
    theirs = join_hashes(NUMERICS, FALSE).ljust(HASH_BYTES * (MAX_OPERATORS + 1), b"\0")
    text = evidence(HONEST, FALSE, theirs=theirs, signature=signed(theirs), tensors=bytes(disputes.MAX_TENSORS_BYTES))
    assert len(text) + MAX_RECORD_BYTES < disputes.MAX_DISPUTE_BYTES
    assert contradictions(parse_dispute(text)) == []


def test_no_dispute() -> None:
    mine = join_hashes(NUMERICS, HONEST)
    for theirs in (mine, join_hashes("another class", FALSE)):
        assert first_difference(mine, theirs) is None
        with pytest.raises(MalformedMessage, match="There is no dispute"):
            evidence(HONEST, FALSE, theirs=theirs)
    with pytest.raises(MalformedMessage, match="There is no dispute"):
        evidence(HONEST, FALSE, numerics="another class")
    for record in (b"", canonical_json(HONEST[1].model_dump(mode="json"))):
        with pytest.raises(MalformedMessage, match="record of operator 2 has hash"):
            evidence(HONEST, FALSE, record=record)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=6), st.lists(st.binary(min_size=32, max_size=32)))
def test_the_first_difference_is_the_first(ours: list[bytes], theirs: list[bytes]) -> None:
    head = keccak(b"class")
    mine, other = b"".join([head, *ours]), b"".join([head, *theirs])
    index = first_difference(mine, other)
    assert index == first_difference(other, mine)
    if index is None:
        assert ours == theirs
    else:
        assert ours[:index] == theirs[:index]
        assert operator_hash(mine, index) != operator_hash(other, index)
        assert index < max(len(ours), len(theirs))


OTHER = NodeIdentity(keccak(b"other"))
THEIRS = join_hashes(NUMERICS, FALSE)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"spec_hash": "0x" + 64 * "2"}, "about the spec"),
        ({"unit": {"round": 5, "stage": 0, "replica": 0, "kind": "microbatch", "microbatch": 2}}, "about stage 0"),
        ({"auditor": OTHER.address}, "isn't signed by"),
        ({"claim": "0x" + 64 * "2"}, "isn't signed by"),
        ({"signature": to_hex(signed(THEIRS, OTHER))}, "isn't signed by"),
        ({"operators": to_hex(THEIRS[:-32])}, "isn't signed by"),
        ({"numerics": "another"}, "of another numerics class"),
        ({"index": 3}, ""),
        ({"index": 9}, "ends before operator 9"),
        ({"record": FALSE[2].model_dump(mode="json")}, "is the one that was signed"),
        ({"index": 4, "record": None}, "is the one that was signed"),
    ],
)
def test_what_doesn_t_add_up(changed: dict[str, Any], words: str) -> None:
    found = parse_dispute(canonical_json(json.loads(evidence(HONEST, FALSE)) | changed))
    assert words in "; ".join(contradictions(found))


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "commonweight.fraud/3"},
        {"operators": "0x"},
        {"operators": "0x" + 63 * "1"},
        {"record": {"operator": "exit"}},
        {"signature": "0x"},
        {"tensors": 5},
        {"more": 1},
    ],
)
def test_another_form_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="isn't of the form"):
        parse_dispute(canonical_json(json.loads(evidence(HONEST, FALSE)) | changed))


def test_tensors_that_aren_t_base64() -> None:
    found = parse_dispute(canonical_json(json.loads(evidence(HONEST, FALSE)) | {"tensors": "#"}))
    with pytest.raises(MalformedMessage, match="base64"):
        _ = found.tensor_bytes
