"""How a newcomer gets the state of its stage: it is told who has it, and they are told that it may fetch; and by which
steps the last versions came to be, so that it can follow. Where nobody has it, it is told who keeps pieces of it.
"""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from commonweight.events import emit
from commonweight.rules.following import FOLLOWED_ROUNDS
from commonweight.rules.report import Report
from commonweight.rules.round_state import RoundState
from commonweight.wire.generated import control_pb2 as pb
from coordinator.keepers import Found, Keepers, Restorers, source_of
from coordinator.members import Member

NOTHING = Found((), 0, 0)


@dataclass(frozen=True)
class Told:
    """What the replicas of one stage were told."""

    of: tuple[int, tuple[Member, ...], frozenset[str], Found] = (-1, (), frozenset(), NOTHING)
    """As of which: round, who is connected, who of them has the version, and what is left of it where nobody has."""
    versions: Mapping[str, pb.Version] = field(default_factory=dict)
    """By node: what those are to have that haven't said that they have it."""
    grants: Mapping[str, pb.ReplicaGrant] = field(default_factory=dict)


@dataclass
class Handover:
    """What those who are connected were told of it."""

    keepers: Keepers = field(default_factory=Keepers)
    _state: RoundState | None = None
    """As of which they were told."""
    _told: dict[int, Told] = field(default_factory=dict)
    """By stage."""
    _empty: dict[int, Restorers] = field(default_factory=dict)
    """Of the stages whose state nobody has who is to restore it, and from whose pieces."""
    _found: dict[int, tuple[int, Found]] = field(default_factory=dict)
    """What was told of them: the round, and what is left."""
    _steps: defaultdict[int, deque[pb.SealedStep]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=FOLLOWED_ROUNDS))
    )
    """By stage, the last ones, without a gap."""

    def note_sealed(self, state: RoundState, reports: Mapping[str, Report]) -> None:
        """A round was sealed by these, to which `state` has come."""
        if state.averaging_rounds > 1:
            return  # each has stepped by itself
        for report in {report.stage: report for report in reports.values()}.values():
            step = pb.SealedStep(
                round=report.round, state_before=report.state_before, gradient_hash=report.round_gradient_hash
            )
            self._steps[report.stage].append(step)

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
        changed: dict[int, Told] = {}
        for stage in range(state.stages):
            replicas = tuple(members[node] for node in state.holders(stage))
            have = frozenset(each.node for each in replicas if state.versions.get(each.node) == state.round)
            found = NOTHING
            roots = state.roots[stage] if state.roots else {}
            self._empty.pop(stage, None)
            if roots and replicas and not have:
                found = max(
                    (self.keepers.find(stage, state.round, root, state.online) for root in sorted({*roots.values()})),
                    key=lambda each: (each.is_enough, each.together),
                )
                self._empty[stage] = [each.node for each in replicas], found.keepers if found.is_enough else ()
            told = self._told.get(stage, Told())
            if told.of != (of := (state.round, replicas, have, found)):
                changed[stage] = self._stage(state, stage, of, members)
        # Who is told where to fetch does so at once: so first those are told from whom.
        for stage, now in changed.items():
            before = self._told.get(stage, Told())
            for node, grant in now.grants.items():
                if grant != before.grants.get(node, pb.ReplicaGrant()):
                    members[node].send(pb.CoordinatorMessage(replicas=grant))
        self.keepers.tell(state, members, self._empty)
        for stage, now in changed.items():
            before = self._told.get(stage, Told())
            for node, version in now.versions.items():
                if version != before.versions.get(node):
                    members[node].send(pb.CoordinatorMessage(version=version))
        self._told |= changed
        self._found = {stage: self._tell_empty(stage, state.round) for stage in self._empty}

    def _tell_empty(self, stage: int, round_: int) -> tuple[int, Found]:
        found = self._told[stage].of[3]
        if self._found.get(stage) != (round_, found):
            emit("stage.empty", stage=stage, round=round_, keepers=found.together, threshold=found.threshold)
        return round_, found

    def _stage(
        self,
        state: RoundState,
        stage: int,
        of: tuple[int, tuple[Member, ...], frozenset[str], Found],
        members: Mapping[str, Member],
    ) -> Told:
        """What the replicas of this stage are to be told."""
        round_, replicas, have, found = of
        _, keepers = self._empty.get(stage, ((), ()))
        makers = sorted(node for node, its in state.seats.items() if its == stage) if keepers else ()
        roots = state.roots[stage] if state.roots else {}
        sealed = found.state_root or min(roots.values(), default=b"")
        root = next((roots[node] for node in sorted(have) if node in roots), sealed)
        is_open = not have or state.averages_in(state.round) or state.averages_in(state.round + 1)
        want: dict[str, bytes] = {}
        for node in (each.node for each in replicas if each.node not in have):
            if node in roots and not keepers:
                want[node] = roots[node]  # where replicas step alone each goes on from its own
            elif is_open:
                want[node] = root

        def version(wanted: bytes) -> pb.Version:
            sources = [each for each in replicas if each.node in have and roots.get(each.node, root) == wanted]
            return pb.Version(
                round=round_,
                state_root=wanted,
                sources=map(source_of, sources),
                keepers=(source_of(members[node]) for node in keepers),
                steps=self._steps[stage] if sources else (),
                makers=(bytes.fromhex(node[2:]) for node in makers),
            )

        of_root = {wanted: version(wanted) for wanted in {*want.values()}}
        versions = {node: of_root[wanted] for node, wanted in want.items()}
        wanting = {node: members[node].certificate for node in want}
        grants = {
            each.node: pb.ReplicaGrant(certificates=[wanting[node] for node in wanting if node != each.node])
            for each in replicas
        }
        return Told(of, versions, grants)
