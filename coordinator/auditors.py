"""The auditors that are connected: who may be asked, and their answers to what they were asked.

One question at a time for each. Who is late, or says what can't be, isn't asked again about that epoch.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field

from commonweight.errors import CommonweightError, Refused, UnplannedMessage
from commonweight.events import emit
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import Conviction
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.referee import audit_limit_s
from coordinator.members import AuditorMember, Place

Answer = pb.AuditOpinion | pb.AuditRecording


@dataclass(frozen=True)
class _Asked:
    """An order that isn't answered."""

    unit: pb.AuditUnit
    kind: type[Answer]
    answer: asyncio.Future[Answer | None]


@dataclass
class Auditors:
    """Those of one model. All methods run on the event loop; only the questions wait."""

    spec: ModelSpec
    place: Place
    _members: dict[str, AuditorMember] = field(default_factory=dict)
    """By node."""
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _unreliable: dict[str, int] = field(default_factory=dict)
    """By owner, the last epoch about which a key of its was late, or said what can't be, or what helped nobody."""

    @property
    def members(self) -> tuple[AuditorMember, ...]:
        """Who is connected, the first to come first."""
        return tuple(self._members.values())

    def is_connected(self, node: str) -> bool:
        """Whether it is there."""
        return node in self._members

    def join(self, member: AuditorMember) -> None:
        """It is there and has said who it is. Raises Refused while an earlier connection of its key counts."""
        if self.is_connected(member.node):
            raise Refused("an auditor with this key is already connected")
        self._members[member.node] = member
        member.send(
            pb.CoordinatorMessage(
                enlisted=pb.Enlisted(
                    spec=canonical_json(self.spec.model_dump()),
                    model_id=self.place.model_id,
                    chain_id=self.place.domain.chain_id,
                    settlement=self.place.domain.settlement,
                )
            )
        )
        emit("auditor.joined", node=member.node, owner=member.owner, stages=sorted(member.stages))

    def leave(self, member: AuditorMember) -> None:
        """That connection is gone."""
        if self._members.get(member.node) is not member:
            return
        del self._members[member.node]
        if (asked := self._asked.get(member.node)) is not None and not asked.answer.done():
            asked.answer.set_result(None)
        emit("auditor.lost", node=member.node)

    def hang_up(self, member: AuditorMember, error: CommonweightError) -> None:
        """End its connection, and tell it why."""
        emit("node.refused", node=member.node, why=error.args[0])
        member.send(error)
        self.leave(member)

    def distrust(self, member: AuditorMember, round_: int, error: CommonweightError) -> None:
        """Hang up, and ask it nothing more about this round's epoch."""
        self.pass_over(member.owner, round_)
        self.hang_up(member, error)

    def pass_over(self, owner: str, round_: int) -> None:
        """Ask none of its keys anything more about this round's epoch."""
        self._unreliable[owner] = self._epoch(round_)

    def say_finished(self) -> None:
        """Tell every one that it may go."""
        for member in self.members:
            member.send(pb.CoordinatorMessage(finished=pb.Finished()))

    def of_owner(self, owner: str, round_: int, stage: int, convicted: Collection[Conviction]) -> AuditorMember | None:
        """Who is there to audit this stage in this round for who has the seat."""
        members = [member for member in self.members if member.owner == owner and stage in member.stages]
        if self._unreliable.get(owner) == self._epoch(round_):
            return None
        return next((each for each in members if Conviction(stage=stage, node=each.node) not in convicted), None)

    async def opinion(self, member: AuditorMember, order: pb.AuditOrder) -> pb.AuditOpinion | None:
        """What it says, unchecked; None where it is gone or late."""
        found = await self._ask(member, order.unit, pb.AuditOpinion, pb.CoordinatorMessage(order=order))
        assert found is None or isinstance(found, pb.AuditOpinion)
        return found

    async def recording(self, member: AuditorMember, order: pb.AuditOrder) -> pb.AuditRecording | None:
        """How it has come to its opinion, unchecked; None where it is gone or late."""
        found = await self._ask(member, order.unit, pb.AuditRecording, pb.CoordinatorMessage(recording=order))
        assert found is None or isinstance(found, pb.AuditRecording)
        return found

    def answer(self, member: AuditorMember, answer: Answer) -> None:
        """It answers. Raises UnplannedMessage for what it wasn't asked; what comes too late is passed over."""
        asked = self._asked.get(member.node)
        if asked is not None and isinstance(answer, asked.kind) and answer.unit == asked.unit:
            if not asked.answer.done():
                asked.answer.set_result(answer)
        elif member.owner not in self._unreliable:
            raise UnplannedMessage(f"The auditor wasn't asked for this {type(answer).__name__}.")

    async def _ask(
        self, member: AuditorMember, unit: pb.AuditUnit, kind: type[Answer], message: pb.CoordinatorMessage
    ) -> Answer | None:
        if self._members.get(member.node) is not member:
            return None
        asked = _Asked(unit, kind, asyncio.get_running_loop().create_future())
        self._asked[member.node] = asked
        limit_s = audit_limit_s(self.spec)
        try:
            member.send(message)
            async with asyncio.timeout(limit_s):
                return await asked.answer
        except TimeoutError:
            self.pass_over(member.owner, unit.round)
            emit("auditor.late", node=member.node, round=unit.round, stage=unit.stage, limit_s=round(limit_s, 1))
            return None
        finally:
            del self._asked[member.node]

    def _epoch(self, round_: int) -> int:
        return round_ // self.spec.economics.rounds_per_epoch
