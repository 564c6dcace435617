"""How a newcomer gets the state of its stage: it is told who has it, and they are told that it may fetch. Where nobody
has it, it is told who keeps pieces of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from commonweight.events import emit
from commonweight.rules.round_state import RoundState
from commonweight.wire.generated import control_pb2 as pb
from coordinator.keepers import Found, Keepers, Restorers, source_of
from coordinator.members import Member


@dataclass
class Handover:
    """What those who are connected were told of it."""

    keepers: Keepers = field(default_factory=Keepers)
    _state: RoundState | None = None
    """As of which they were told."""
    _versions: dict[str, pb.Version] = field(default_factory=dict)
    """By node: what those are to have that haven't said that they have it."""
    _grants: dict[str, pb.ReplicaGrant] = field(default_factory=dict)
    _empty: dict[int, Restorers] = field(default_factory=dict)
    """Of the stages whose state nobody has who is to restore it, and from whose pieces."""
    _found: dict[int, tuple[int, Found]] = field(default_factory=dict)
    """What was told of them: the round, and what is left."""

    def note_pieces(self, node: str, held: pb.PiecesHeld, state: RoundState, members: Mapping[str, Member]) -> None:
        """A node says which pieces it keeps. Raises MalformedMessage."""
        self.keepers.note(node, held, state.stages)
        if self._empty:
            self._state = None
            self.tell(state, members)

    def tell(self, state: RoundState, members: Mapping[str, Member]) -> None:
        """Tell everybody who is connected what it doesn't know yet: which version it is to have, unless it has it, and
        which replicas of its stage are in want of it; who is to make pieces, and who keeps them.
        """
        last, self._state = self._state, state
        if last is not None and last.online is state.online and last.versions is state.versions:
            return
        versions: dict[str, pb.Version] = {}
        grants: dict[str, pb.ReplicaGrant] = {}
        self._empty = {}
        for stage in range(state.stages):
            replicas = [members[node] for node in state.holders(stage)]
            have = [each for each in replicas if state.versions.get(each.node) == state.round]
            want = [each for each in replicas if each not in have]
            root = state.roots[stage] if state.roots else None
            version = pb.Version(round=state.round, state_root=root or b"", sources=map(source_of, have))
            if want and not have and root:
                found = self.keepers.find(stage, state.round, root, state.online)
                keepers = found.keepers if found.is_enough else ()
                makers = sorted(node for node, its in state.seats.items() if its == stage) if keepers else ()
                self._empty[stage] = [each.node for each in want], keepers
                version.keepers.extend(source_of(members[node]) for node in keepers)
                version.makers.extend(bytes.fromhex(node[2:]) for node in makers)
                self._tell_empty(stage, state.round, found)
            versions |= {each.node: version for each in want}
            for member in replicas:
                certificates = [each.certificate for each in want if each is not member]
                grants[member.node] = pb.ReplicaGrant(certificates=certificates)
        self._found = {stage: told for stage, told in self._found.items() if stage in self._empty}
        for node, grant in grants.items():  # first: who is told where to fetch does so at once
            if grant != self._grants.get(node, pb.ReplicaGrant()):
                members[node].send(pb.CoordinatorMessage(replicas=grant))
        self.keepers.tell(state, members, self._empty)
        for node, version in versions.items():
            if version != self._versions.get(node):
                members[node].send(pb.CoordinatorMessage(version=version))
        self._versions, self._grants = versions, grants

    def _tell_empty(self, stage: int, round_: int, found: Found) -> None:
        if self._found.get(stage) != (round_, found):
            self._found[stage] = (round_, found)
            emit("stage.empty", stage=stage, round=round_, keepers=found.together, threshold=found.threshold)
