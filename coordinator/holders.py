"""The nodes that hold what an audit takes: who is there, who is waited for, and who is told to let whom fetch."""

import asyncio
import time
from dataclasses import dataclass, field

from commonweight.rules.audits import Audit, Kind
from commonweight.wire.generated import control_pb2 as pb
from coordinator.claims import Claim
from coordinator.members import Member

GRACE_S = 60.0
"""For a provider that is gone to come back with what it keeps on its disk, before that counts as withheld."""


@dataclass
class Holders:
    """Those of one model that are connected, by stage."""

    _members: dict[int, Member] = field(default_factory=dict)
    _gone_since: dict[int, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def joined(self, stage: int, member: Member) -> None:
        """It is there."""
        self._members[stage] = member
        self._came.set()

    def lost(self, stage: int) -> None:
        """It is gone."""
        del self._members[stage]
        self._gone_since[stage] = time.monotonic()

    def provider(self, audit: Audit) -> Member | None:
        """Who is there to be audited."""
        return self._members.get(audit.stage)

    async def can_serve(self, audit: Audit) -> bool:
        """Whether the provider is there, or has come back in time; tokens are drawn, whoever is there."""
        left_s = self._gone_since.get(audit.stage, self._started) + GRACE_S - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                while audit.kind is not Kind.DATA and audit.stage not in self._members:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            return audit.stage in self._members
        return True

    def order(self, claim: Claim, auditor: bytes) -> pb.AuditOrder:
        """What the auditor with this certificate (DER) is given. The provider is told to let it fetch, and so are the
        neighbours, who have what crossed the stage's sides; of an answer they have kept nothing that is needed.
        """
        order, stage = pb.AuditOrder(), claim.audit.stage
        order.CopyFrom(claim.order)
        neighbours = () if claim.audit.kind is Kind.ANSWER else (stage - 1, stage + 1)
        for each in (stage, *neighbours):
            if (member := self._members.get(each)) is not None:
                member.send(pb.CoordinatorMessage(audit=pb.AuditGrant(unit=order.unit, auditor=auditor)))
                order.sources.add(
                    peer_id=member.peer_id, address=member.evidence_address, certificate=member.certificate
                )
        return order
