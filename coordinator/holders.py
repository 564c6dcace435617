"""The nodes that hold what an audit takes: who is there, who is waited for, and who is told to let whom fetch."""

import time
from dataclasses import dataclass, field

from commonweight.wire.generated import control_pb2 as pb
from coordinator.claims import Claim
from coordinator.members import Member

GRACE_S = 60.0
"""For a provider that is gone to come back with what it keeps on its disk, before that counts as withheld."""


@dataclass
class Holders:
    """Those of one model that are connected, by node."""

    _members: dict[str, Member] = field(default_factory=dict)
    _gone_since: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def joined(self, member: Member) -> None:
        """It is there."""
        self._members[member.node] = member

    def lost(self, member: Member) -> None:
        """It is gone."""
        del self._members[member.node]
        self._gone_since[member.node] = time.monotonic()

    def provider(self, claim: Claim) -> Member | None:
        """Who is there to be audited."""
        return self._members.get(claim.provider)

    def patience_s(self, node: str) -> float:
        """How long a node that is gone is still waited for; 0 where it is there."""
        if node in self._members:
            return 0.0
        return max(0.0, self._gone_since.get(node, self._started) + GRACE_S - time.monotonic())

    def order(self, claim: Claim, auditor: bytes) -> pb.AuditOrder:
        """What the auditor with this certificate (DER) is given. The claim's holders are told to let it fetch."""
        order = pb.AuditOrder()
        order.CopyFrom(claim.order)
        for node in claim.holders:
            if (member := self._members.get(node)) is not None:
                member.send(pb.CoordinatorMessage(audit=pb.AuditGrant(unit=order.unit, auditor=auditor)))
                order.sources.add(
                    peer_id=member.peer_id, address=member.evidence_address, certificate=member.certificate
                )
        return order
