"""Who makes and who keeps the pieces of each stage's versions, as nodes were told, and who has which by their word.

Nothing of it is in the ledger: a coordinator that comes back is told by the keepers what they have.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from commonweight.errors import MalformedMessage
from commonweight.rules.keeping import MAX_KEEPERS, MIN_KEEPERS, Holder, choose_keepers
from commonweight.rules.round_state import RoundState
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.state import HASH_BYTES
from coordinator.members import Member

MAX_HELD = 4
"""Pieces of each stage that a node may say that it keeps."""


@dataclass(frozen=True)
class Found:
    """What is left of a version."""

    keepers: tuple[str, ...]
    """Who is online and keeps a piece of it, in order of address."""
    threshold: int
    """So many restore it; 0 where nobody keeps one."""
    together: int
    """Of the keepers, as many as have pieces of one making, at most."""
    state_root: bytes = b""
    """Of that version."""

    @property
    def is_enough(self) -> bool:
        """Whether they restore it, if none of them lies."""
        return 0 < self.threshold <= self.together


Restorers = tuple[Sequence[str], Sequence[str]]
"""Nodes of an empty stage, and the keepers that have enough pieces of it together."""


@dataclass
class Keepers:
    """Of one model."""

    before_report: bool = False
    """Whether rounds are sealed only when there are pieces of the states that they led to."""
    _online: frozenset[str] | None = None
    _chosen: tuple[tuple[str, ...], ...] = ()
    """Of each stage its keepers."""
    _held: dict[str, tuple[pb.PieceHeld, ...]] = field(default_factory=dict)
    """By node."""
    _orders: dict[str, pb.MakePieces] = field(default_factory=dict)
    """What each that is online was told last; nothing: what it takes as given."""
    _grants: dict[str, pb.KeepPieces] = field(default_factory=dict)

    def note(self, node: str, held: pb.PiecesHeld, stages: int) -> None:
        """What a node says that it keeps. Raises MalformedMessage."""
        if len(held.pieces) > stages * MAX_HELD:
            raise MalformedMessage(f"pieces: {len(held.pieces)} of {stages} stages.")
        for each in held.pieces:
            if len(each.state_root) != HASH_BYTES or not MIN_KEEPERS <= each.threshold <= MAX_KEEPERS:
                raise MalformedMessage("pieces: one has no state root, or a threshold that none can have.")
        self._held[node] = tuple(held.pieces)

    def find(self, stage: int, round_: int, state_root: bytes, online: frozenset[str]) -> Found:
        """Who keeps pieces of this version."""
        having = {
            node: each
            for node, pieces in self._held.items()
            for each in pieces
            if node in online and (each.stage, each.round, each.state_root) == (stage, round_, state_root)
        }
        makings = Counter((each.manifest, each.threshold) for each in having.values())
        if not makings:
            return Found((), 0, 0, state_root)
        (_, threshold), together = max(makings.items(), key=lambda item: item[1] - item[0][1])
        return Found(tuple(sorted(having)), threshold, together, state_root)

    def tell(self, state: RoundState, members: Mapping[str, Member], empty: Mapping[int, Restorers]) -> None:
        """Tell who is to make pieces, for whom, who is to keep them, and who may have them back: of the stages whose
        state nobody has, those that are to restore it, and from whom.
        """
        if state.online is not self._online:
            self._online = state.online
            there = {node: Holder(state.seats[node], members[node].owner) for node in state.online}
            self._chosen = tuple(choose_keepers(stage, there) for stage in range(state.stages))
            for told in (self._held, self._orders, self._grants):
                for node in told.keys() - state.online:
                    del told[node]
        orders: dict[str, pb.MakePieces] = dict.fromkeys(self._orders, pb.MakePieces())
        grants: defaultdict[str, pb.KeepPieces] = defaultdict(pb.KeepPieces)
        for stage, keepers in enumerate(self._chosen):
            maker = next((node for node in state.holders(stage) if state.versions.get(node) == state.round), None)
            if maker is not None:
                sources = [source_of(members[node]) for node in keepers]
                orders[maker] = pb.MakePieces(keepers=sources, before_report=self.before_report)
                for node in keepers:
                    grants[node].makers.add(stage=stage, certificate=members[maker].certificate)
            for seeker in empty.get(stage, ((), ()))[0]:
                for node in empty[stage][1]:
                    grants[node].seekers.add(stage=stage, certificate=members[seeker].certificate)
        for node in self._grants.keys() | grants.keys():  # first: who is told of keepers goes to them at once
            if (grant := grants[node]) != self._grants.get(node, pb.KeepPieces()):
                members[node].send(pb.CoordinatorMessage(keep=grant))
        for node, order in orders.items():
            if order.keepers != self._orders.get(node, pb.MakePieces()).keepers:
                members[node].send(pb.CoordinatorMessage(make=order))
        self._orders, self._grants = orders, dict(grants)


def source_of(member: Member) -> pb.EvidenceSource:
    """Where a node serves what it keeps."""
    return pb.EvidenceSource(peer_id=member.peer_id, address=member.evidence_address, certificate=member.certificate)
