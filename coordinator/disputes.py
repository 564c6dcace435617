"""Where an auditor and the referee contradict each other: which operator of the replay they differ about.

Both record the hash of each operator. Within one numerics class the recordings are equal, or the first hash that
differs names an operator that whoever computes it again sees to be wrong. See commonweight/rules/recording.py and
commonweight/watch/disputes.py.

Nothing follows from a recording that is equal (a bit has flipped meanwhile), from one of another class, or from none:
then the opinion isn't paid, and that is all.
"""

from dataclasses import dataclass

from commonweight.errors import MalformedMessage, Refused, WireError
from commonweight.identity import recover_address
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.panel import recording_receipt
from commonweight.rules.recording import MAX_OPERATORS, first_difference
from commonweight.rules.spec import ModelSpec
from commonweight.watch.disputes import dispute_evidence
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import referee_pb2
from commonweight.wire.referee import Replays
from coordinator.auditors import Auditors
from coordinator.claims import Claim
from coordinator.holders import Holders
from coordinator.members import AuditorMember, Place


@dataclass(frozen=True)
class Disputes:
    """Those of one model; one at a time."""

    spec: ModelSpec
    place: Place
    certificate: bytes
    """DER, that the referee presents to nodes."""
    holders: Holders
    auditors: Auditors
    replays: Replays

    async def disprove(self, member: AuditorMember, claim: Claim) -> bytes | None:
        """Public evidence that the auditor's replay of the claim went wrong; None where there is none."""
        theirs = await self._recorded_by(member, claim)
        if theirs is None:
            return None
        ours = await self._record(claim)
        index = None if ours.failure else first_difference(ours.operators, theirs.operators)
        if index is None:
            return None
        detailed = await self._record(claim, index)
        try:
            return dispute_evidence(
                spec_hash=self.spec.spec_hash,
                audit=claim.audit,
                claim=claim.hash,
                numerics=detailed.numerics,
                auditor=member.node,
                theirs=theirs.operators,
                signature=theirs.signature,
                ours=ours.operators,
                record=detailed.record,
                tensors=detailed.tensors,
            )
        except MalformedMessage:
            return None  # a referee that doesn't agree with itself proves nothing about another

    async def _recorded_by(self, member: AuditorMember, claim: Claim) -> pb.AuditRecording | None:
        """What the auditor has signed, where it could, and did in time."""
        order = self.holders.order(claim, member.certificate)
        found = await self.auditors.recording(member, order)
        if found is None:
            return None
        try:
            if len(found.operators) % HASH_BYTES or len(found.operators) > HASH_BYTES * (MAX_OPERATORS + 1):
                raise MalformedMessage(
                    f"operators: {len(found.operators)} bytes; a recording has {HASH_BYTES} for each operator, of at "
                    f"most {MAX_OPERATORS}."
                )
            receipt = recording_receipt(self.place.model_id, claim.audit, claim.hash, found.operators)
            signer = recover_address(receipt.digest(self.place.domain), found.signature)
            if signer != member.node:
                raise Refused(f"The recording of {claim.audit} is signed by {signer}, not by {member.node}.")
        except WireError as error:
            self.auditors.distrust(member, claim.audit.round, error)
            return None
        return found if found.operators else None

    async def _record(self, claim: Claim, tensors_of: int | None = None) -> referee_pb2.Recording:
        order = self.holders.order(claim, self.certificate)
        return await self.replays.record(order, tensors_of)
