"""How a newcomer gets the state of its stage: it is told who has it, and they are told that it may fetch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from commonweight.rules.rounds import RoundState
from commonweight.wire.generated import control_pb2 as pb
from coordinator.members import Member


@dataclass(frozen=True)
class Told:
    """What the replicas of one stage were told."""

    of: tuple[int, tuple[Member, ...], frozenset[str]] = (-1, (), frozenset())
    """As of which: round, who is connected, who of them has the version."""
    versions: Mapping[str, pb.Version] = field(default_factory=dict)
    """By node: what those are to have that haven't said that they have it."""
    grants: Mapping[str, pb.ReplicaGrant] = field(default_factory=dict)


@dataclass
class Handover:
    """What those who are connected were told of it."""

    _state: RoundState | None = None
    """As of which they were told."""
    _told: dict[int, Told] = field(default_factory=dict)
    """By stage."""

    def tell(self, state: RoundState, members: Mapping[str, Member]) -> None:
        """Tell everybody who is connected what it doesn't know yet: which version it is to have, unless it has it, and
        which replicas of its stage are in want of it.
        """
        last, self._state = self._state, state
        if last is not None and last.online is state.online and last.versions is state.versions:
            return
        for stage in range(state.stages):
            replicas = tuple(members[node] for node in state.holders(stage))
            have = frozenset(each.node for each in replicas if state.versions.get(each.node) == state.round)
            told = self._told.get(stage, Told())
            if told.of != (state.round, replicas, have):
                root = state.roots[stage] if state.roots else None
                self._told[stage] = _tell_stage(told, state.round, root, replicas, have)


def _tell_stage(
    told: Told, round_: int, root: bytes | None, replicas: tuple[Member, ...], have: frozenset[str]
) -> Told:
    want = [each for each in replicas if each.node not in have]
    version = pb.Version(
        round=round_, state_root=root or b"", sources=(_source(each) for each in replicas if each.node in have)
    )
    versions = {each.node: version for each in want}
    grants = {
        member.node: pb.ReplicaGrant(certificates=[each.certificate for each in want if each is not member])
        for member in replicas
    }
    for member in replicas:  # first: who is told where to fetch does so at once
        if grants[member.node] != told.grants.get(member.node, pb.ReplicaGrant()):
            member.send(pb.CoordinatorMessage(replicas=grants[member.node]))
    for member in want:
        if version != told.versions.get(member.node):
            member.send(pb.CoordinatorMessage(version=version))
    return Told((round_, replicas, have), versions, grants)


def _source(member: Member) -> pb.EvidenceSource:
    return pb.EvidenceSource(peer_id=member.peer_id, address=member.evidence_address, certificate=member.certificate)
