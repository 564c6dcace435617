"""How a newcomer gets the state of its stage: it is told who has it, and they are told that it may fetch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from commonweight.rules.rounds import RoundState
from commonweight.wire.generated import control_pb2 as pb
from coordinator.members import Member


@dataclass
class Handover:
    """What those who are connected were told of it."""

    _state: RoundState | None = None
    """As of which they were told."""
    _versions: dict[str, pb.Version] = field(default_factory=dict)
    """By node: what those are to have that haven't said that they have it."""
    _grants: dict[str, pb.ReplicaGrant] = field(default_factory=dict)

    def tell(self, state: RoundState, members: Mapping[str, Member]) -> None:
        """Tell everybody who is connected what it doesn't know yet: which version it is to have, unless it has it, and
        which replicas of its stage are in want of it.
        """
        last, self._state = self._state, state
        if last is not None and last.online is state.online and last.versions is state.versions:
            return
        versions: dict[str, pb.Version] = {}
        grants: dict[str, pb.ReplicaGrant] = {}
        for stage in range(state.stages):
            replicas = [members[node] for node in state.holders(stage)]
            have = [each for each in replicas if state.versions.get(each.node) == state.round]
            want = [each for each in replicas if each not in have]
            root = state.roots[stage] if state.roots else None
            version = pb.Version(round=state.round, state_root=root or b"", sources=map(_source, have))
            versions |= {each.node: version for each in want}
            for member in replicas:
                certificates = [each.certificate for each in want if each is not member]
                grants[member.node] = pb.ReplicaGrant(certificates=certificates)
        for node, grant in grants.items():  # first: who is told where to fetch does so at once
            if grant != self._grants.get(node, pb.ReplicaGrant()):
                members[node].send(pb.CoordinatorMessage(replicas=grant))
        for node, version in versions.items():
            if version != self._versions.get(node):
                members[node].send(pb.CoordinatorMessage(version=version))
        self._versions, self._grants = versions, grants


def _source(member: Member) -> pb.EvidenceSource:
    return pb.EvidenceSource(peer_id=member.peer_id, address=member.evidence_address, certificate=member.certificate)
