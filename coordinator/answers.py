"""What nodes say of the answers that went through them: each part is checked, put into the ledger, and acknowledged."""

import asyncio
from dataclasses import dataclass

from commonweight.errors import LedgerError
from commonweight.events import emit
from commonweight.identity import recover_address
from commonweight.rules.answer import Answer
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto, answer_to_proto
from coordinator.answer_ledger import RecordedPart
from coordinator.ledger import Ledger
from coordinator.members import Member, Place
from coordinator.serving import Serving

MAX_PARTS = 16_384
"""Of a stage, whose answers are neither sealed nor dropped."""


@dataclass(frozen=True)
class Answers:
    """Those of one model."""

    spec: ModelSpec
    place: Place
    ledger: Ledger
    serving: Serving

    async def take(self, member: Member, stage: int | None, signed: pb.SignedAnswer) -> None:
        """A node's part of an answer, `stage` being the one that it holds; it is told when the part needn't be said
        again.

        That is so, too, where the part can't count: said again after each attachment, it wouldn't then, either. Where
        the ledger's database fails, the node is told nothing, and says it again. Raises MalformedMessage for what is no
        part.
        """
        answer = answer_from_proto(signed.part)
        node, session = member.node, answer.session.hex()
        try:
            if why := self._fault(member, stage, answer, signed.signature):
                emit("answer.refused", node=node, stage=stage, session=session, why=why)
            elif stage is not None and not await self._record(member, stage, answer, signed.signature):
                emit("answer.contradicted", node=node, stage=stage, session=session)
        except LedgerError as error:
            emit("answer.unrecorded", node=node, stage=stage, session=session, message=error.args[0])
            return
        member.send(pb.CoordinatorMessage(answer=pb.AnswerRecorded(session=answer.session)))

    async def _record(self, member: Member, stage: int, answer: Answer, signature: bytes) -> bool:
        """Put it into the ledger, if its version is still kept. False where another part counts, as `record_part`."""
        if answer.version not in self.serving.kept:
            return True
        part = RecordedPart(
            version=answer.version,
            session=answer.session,
            stage=stage,
            node=member.node,
            message=answer_to_proto(answer).SerializeToString(deterministic=True),
            signature=signature,
        )
        return await asyncio.to_thread(self.ledger.record_part, part, MAX_PARTS)

    def _fault(self, member: Member, stage: int | None, answer: Answer, signature: bytes) -> str | None:
        """Why a part can never count, or None."""
        if stage is None:
            return "this node holds no stage"
        if not self.serving.was_published(answer.version):
            return f"the version of round {answer.version} was never published"
        if answer.fed > (longest := self.spec.training.sequence_length):
            return f"{answer.fed} tokens don't fit in the context of {longest}"
        receipt = answer.receipt(self.place.model_id, stage)
        signer = recover_address(receipt.digest(self.place.domain), signature)
        return None if signer == member.node else f"as stage {stage}'s part it is signed by {signer}"
