"""The evidence of a dispute: an auditor's own signed word on how it came to its opinion, and where that goes wrong.

What it shows to whoever reads it, without a tensor of the unit: the auditor has signed these hashes; the record isn't
the one that it signed in that place; and, by running the record's operator again (`commonweight.model.operators`),
whose result is right. That the operator was due there, on these inputs, only a replay of the unit shows.
"""

from base64 import b64decode, b64encode
from typing import Literal

from eth_hash.auto import keccak
from pydantic import Field

from commonweight.errors import MalformedMessage
from commonweight.rules.audits import Audit
from commonweight.rules.canonical import canonical_json
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.panel import recording_receipt
from commonweight.rules.receipt import Domain
from commonweight.rules.recording import (
    MAX_OPERATORS,
    MAX_TENSORS_BYTES,
    OperatorRecord,
    first_difference,
    operator_hash,
)
from commonweight.rules.spec import Hash
from commonweight.rules.statement import Address, Number, Signature, to_hex
from commonweight.watch.fraud import Document, Unit
from commonweight.watch.judge import signer_of

MAX_DISPUTE_BYTES = 16 << 20
"""Of the evidence: a recording in hexadecimal, a record, and its tensors in base64."""


class DisputeEvidence(Document):
    """`commonweight.dispute/2`, see docs/protocol.md."""

    format: Literal["commonweight.dispute/2"]
    claim: Hash
    """`Commitments.claim`: what the auditor held against its replay."""
    numerics: str = Field(max_length=200)
    """The class in which both computed."""
    auditor: Address
    index: Number
    """Of the operator, from 0."""
    operators: str = Field(pattern=r"^0x([0-9a-f]{64})+$", max_length=2 + 2 * HASH_BYTES * (MAX_OPERATORS + 1))
    """The auditor's recording, which up to that operator is the referee's."""
    signature: Signature
    """The auditor's, over its `recording_receipt`."""
    record: OperatorRecord | None
    """The referee's; None where its replay ended before."""
    tensors: str | None
    """Of the record, safetensors in base64; None where they have more than MAX_TENSORS_BYTES."""

    @property
    def recording(self) -> bytes:
        return bytes.fromhex(self.operators[2:])

    @property
    def signed(self) -> bytes:
        """The hash of the auditor's own record in that place; empty where its replay ended before."""
        return operator_hash(self.recording, self.index)

    @property
    def tensor_bytes(self) -> bytes | None:
        """Safetensors. Raises MalformedMessage."""
        try:
            return None if self.tensors is None else b64decode(self.tensors, validate=True)
        except ValueError as error:
            raise MalformedMessage(f"The dispute's tensors aren't base64: {error}.") from error

    def contradictions(self, stage: int, spec_hash: bytes, model_id: bytes, domain: Domain) -> list[str]:
        """Why it can't be evidence against the auditor's seat of `stage` in this model; empty where it can."""
        found, recording = self.strays(stage, spec_hash), self.recording
        receipt = recording_receipt(model_id, self.unit.audit, bytes.fromhex(self.claim[2:]), recording)
        if signer_of(receipt, domain, self.signature) != self.auditor:
            found.append(f"its recording isn't signed by {self.auditor}")
        if operator_hash(recording, -1) != keccak(self.numerics.encode()):
            found.append(f"its recording is of another numerics class than {self.numerics!r}")
        if self.index > len(recording) // HASH_BYTES - 1:
            found.append(f"its recording ends before operator {self.index}")
        if self.signed == (b"" if self.record is None else self.record.hash):
            found.append(f"operator {self.index} is the one that was signed")
        return found


def dispute_evidence(
    *,
    spec_hash: bytes,
    audit: Audit,
    claim: bytes,
    numerics: str,
    auditor: str,
    theirs: bytes,
    signature: bytes,
    ours: bytes,
    record: bytes,
    tensors: bytes,
) -> bytes:
    """Canonical JSON, at most MAX_DISPUTE_BYTES, about the first operator in which two recordings differ.

    `theirs` is the auditor's, with its `signature`; `ours` is the referee's, in the class `numerics`, with the `record`
    of that operator, empty where there is none, and its `tensors`, empty where they are too large. Raises
    MalformedMessage where there is no such difference (`first_difference`) or the record isn't that operator's.
    """
    index = first_difference(ours, theirs)
    if index is None or operator_hash(ours, -1) != keccak(numerics.encode()):
        raise MalformedMessage("Two recordings don't differ, or are of two numerics classes. There is no dispute.")
    if (found := b"" if not record else keccak(record)) != (due := operator_hash(ours, index)):
        raise MalformedMessage(f"The record of operator {index} has hash {found.hex()}; the recording has {due.hex()}.")
    evidence = DisputeEvidence(
        format="commonweight.dispute/2",
        spec_hash=to_hex(spec_hash),
        unit=Unit.of(audit),
        claim=to_hex(claim),
        numerics=numerics,
        auditor=auditor,
        index=index,
        operators=to_hex(theirs),
        signature=to_hex(signature),
        record=OperatorRecord.model_validate_json(record) if record else None,
        tensors=b64encode(tensors).decode() if 0 < len(tensors) <= MAX_TENSORS_BYTES else None,
    )
    return canonical_json(evidence.model_dump(mode="json"))
