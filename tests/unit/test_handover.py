"""Who is told to have which state, and how to come there: where replicas step alone each its own, newcomers that of one
who is there.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from commonweight.rules.following import FOLLOWED_ROUNDS
from commonweight.rules.report import Report
from commonweight.rules.round_state import RoundState
from commonweight.wire.generated import control_pb2 as pb
from coordinator.handover import Handover
from coordinator.members import Member

A, B, C = ("0x" + letter * 40 for letter in "abc")
ROOTS = {A: b"a" * 32, B: b"b" * 32}


class Stage:
    """One stage of three nodes, of which A and B ended the last round, and what these were told last."""

    def __init__(self, round_: int, averaging_rounds: int = 4) -> None:
        self.handover = Handover()
        self.told: dict[str, pb.Version] = {}
        self.members = {node: self._member(node) for node in (A, B, C)}
        self.state = RoundState(
            *(1, 8, averaging_rounds),
            seats=dict.fromkeys(self.members, 0),
            round=round_,
            roots=(ROOTS,),
        )

    def _member(self, node: str) -> Member:
        def send(message: Any) -> None:
            if message.WhichOneof("body") == "version":
                self.told[node] = message.version

        return Member(node, node, "", "", node.encode(), node, node, True, None, True, send)

    def tell(self, online: str, have: str = "") -> Mapping[str, tuple[bytes, list[str]]]:
        """The state root that each is told, and who has it."""
        nodes = dict(zip("ABC", (A, B, C), strict=True))
        versions = {nodes[each]: self.state.round for each in have}
        self.state = replace(self.state, online=frozenset(nodes[each] for each in online), versions=versions)
        self.told.clear()
        self.handover.tell(self.state, self.members)
        return {node: (told.state_root, [each.peer_id for each in told.sources]) for node, told in self.told.items()}


def test_each_goes_on_from_its_own_state() -> None:
    assert Stage(1).tell("AB") == {A: (ROOTS[A], []), B: (ROOTS[B], [])}


def test_a_newcomer_gets_that_of_one_who_is_there_for_a_round_in_which_they_average_or_the_one_before() -> None:
    for round_, is_open in ((0, False), (1, False), (2, True), (3, True), (4, False)):
        told = Stage(round_).tell("ABC", have="A")
        assert told == {B: (ROOTS[B], [])} | ({C: (ROOTS[A], [A])} if is_open else {})


def test_nobody_is_sent_to_who_has_another_state() -> None:
    told = Stage(3).tell("ABC", have="AB")
    assert told == {C: (ROOTS[A], [A])}
    assert Stage(3, averaging_rounds=1).tell("ABC", have="AB")[C][1] == [A]


def seal(stage: Stage, round_: int) -> None:
    """The round before `round_`."""
    stage.state = replace(stage.state, round=round_)
    names = [bytes([round_ - 1]) * 32, bytes([100 + round_]) * 32]
    report = Report(round_ - 1, 0, (), names[1], names[1], names[0], b"after" + bytes(27))
    stage.handover.note_sealed(stage.state, {A: report, B: report})


def steps(stage: Stage) -> list[tuple[int, bytes, bytes]]:
    told = stage.told[C].steps
    return [(each.round, each.state_before[:1], each.gradient_hash[:1]) for each in told]


def test_a_newcomer_is_told_of_the_last_steps() -> None:
    stage = Stage(1, averaging_rounds=1)
    stage.tell("ABC", have="AB")
    assert steps(stage) == [], "of rounds that this coordinator hasn't sealed it knows nothing"
    for round_ in range(2, 9):
        seal(stage, round_)
        stage.tell("ABC", have="AB")
        known = range(max(1, round_ - FOLLOWED_ROUNDS), round_)
        assert steps(stage) == [(each, bytes([each]), bytes([101 + each])) for each in known]
    stage.tell("C")
    assert steps(stage) == [], "nobody has their gradients"


def test_where_replicas_step_alone_nobody_can_be_followed() -> None:
    stage = Stage(3)
    seal(stage, 4)
    stage.tell("ABC", have="A")
    assert C not in stage.told
    seal(stage, 7)
    stage.tell("ABC", have="A")
    assert steps(stage) == []
