"""What the host of the rounds says of pieces: who makes them, who keeps them, and who gets them back when."""

from collections.abc import Iterable
from typing import Any

import pytest

from commonweight.errors import MalformedMessage
from commonweight.wire.generated import control_pb2 as pb
from coordinator.members import Member
from tests.unit.test_training_host import NAMES, A, B, C, D, World, a_world
from tools.build_vectors import mark

pytestmark = pytest.mark.asyncio

MAKING = b"\x4d" * 32


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("coordinator.handover.emit", lambda name, /, **fields: said.append((name, fields)))
    return said


def held(stage: int, round_: int, making: bytes = MAKING, threshold: int = 2) -> pb.PiecesHeld:
    root = mark("state", round_, stage)
    piece = pb.PieceHeld(stage=stage, round=round_, state_root=root, manifest=making, threshold=threshold)
    return pb.PiecesHeld(pieces=[piece])


def who(sources: Iterable[Any]) -> str:
    return "".join(sorted(source.peer_id[-1] for source in sources))


def may(world: World, node: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Of whose stages whom a node was last told to take pieces from, and to give them to."""
    keep = world.told(node, "keep")[-1] if world.told(node, "keep") else pb.KeepPieces()
    makers, seekers = (
        sorted((each.stage, each.certificate.decode()[-1]) for each in of) for of in (keep.makers, keep.seekers)
    )
    return makers, seekers


async def holding(world: World) -> list[Member]:
    """A alone holds stage 0, B, C and D stage 1; round 0 is sealed."""
    members = await world.seat(A, B)
    others = [world.member(node, stages=frozenset({1})) for node in (C, D)]
    for other in others:
        world.training.join(other)
    await world.start(members, 1)
    await world.seal(members, 1, 0)
    await world.heard_all()
    return [*members, *others]


async def test_keepers_are_of_other_stages_and_are_told_before_the_maker() -> None:
    async with a_world() as world:
        await holding(world)
        order = world.told(A, "make")[-1]
        assert who(order.keepers) == "BCD"
        assert not order.before_report
        assert [may(world, node)[0] for node in (B, C, D)] == [[(0, "A")]] * 3
        assert not world.told(B, "make"), "there is one keeper for its stage, and that one would have it"
        assert may(world, A) == ([], [])
        heard = [entry[:2] for entry in world.log]
        last = len(heard) - 1 - heard[::-1].index(("A", "make"))
        assert last > max(heard.index((name, "keep")) for name in "BCD")


async def test_who_comes_to_an_empty_stage_is_told_of_keepers_and_they_of_it(
    told: list[tuple[str, dict[str, Any]]],
) -> None:
    async with a_world() as world:
        members = await holding(world)
        for member in members[1:3]:
            world.training.note_pieces(member, held(0, 1))
        world.training.note_pieces(members[3], held(0, 1, b"\x4e" * 32))  # of another making
        world.training.leave(members[0])
        await world.until("B", "pause")
        assert not told, "nobody is there to restore it"
        newcomer = "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc"
        NAMES[newcomer], world.inboxes[newcomer] = "E", []
        (member,) = await world.arrive(newcomer)
        await world.until("E", "version", 1)
        version = world.told(newcomer, "version")[-1]
        assert who(version.keepers) == "BCD"
        assert not version.sources
        assert version.state_root == mark("state", 1, 0)
        assert sorted(maker.hex() for maker in version.makers) == sorted((A[2:].lower(), newcomer[2:].lower()))
        assert [may(world, node)[1] for node in (B, C, D)] == [[(0, "E")]] * 3
        log = [entry[:2] for entry in world.log]
        asked = log.index(("E", "version"))
        assert all("keep" in [kind for who_, kind in log[:asked] if who_ == name] for name in "BCD")
        assert told == [("stage.empty", {"stage": 0, "round": 1, "keepers": 2, "threshold": 2})]

        world.training.note_version(member, 1)
        await world.heard_all()
        assert [may(world, node)[1] for node in (B, C, D)] == [[]] * 3, "it has it"
        assert [may(world, node)[0] for node in (B, C, D)] == [[(0, "E")]] * 3, "and makes the next pieces"
        assert who(world.told(newcomer, "make")[-1].keepers) == "BCD"
        NAMES.pop(newcomer)


async def test_what_keepers_say_while_the_stage_is_empty_is_passed_on(
    told: list[tuple[str, dict[str, Any]]],
) -> None:
    async with a_world() as world:
        members = await holding(world)
        world.training.note_pieces(members[1], held(0, 0))  # of an older version
        world.training.leave(members[0])
        await world.arrive(A)
        await world.heard_all()
        assert who(world.told(A, "version")[-1].keepers) == ""
        world.training.note_pieces(members[2], held(0, 1))
        world.training.note_pieces(members[1], held(1, 1))
        assert who(world.told(A, "version")[-1].keepers) == "", "one of two restores nothing"
        assert may(world, C)[1] == []
        world.training.note_pieces(members[3], held(0, 1))
        assert who(world.told(A, "version")[-1].keepers) == "CD"
        assert may(world, C)[1] == may(world, D)[1] == [(0, "A")]
        world.training.leave(members[2])
        await world.heard_all()
        assert who(world.told(A, "version")[-1].keepers) == ""
        assert may(world, D)[1] == []
        found = [(fields["keepers"], fields["threshold"]) for name, fields in told if name == "stage.empty"]
        assert found == [(0, 0), (1, 2), (2, 2), (1, 2)]


@pytest.mark.parametrize(
    "said",
    [
        held(0, 1, threshold=1),
        held(0, 1, threshold=8),
        pb.PiecesHeld(pieces=[pb.PieceHeld(stage=0, round=1, threshold=2)]),
        pb.PiecesHeld(pieces=list(held(0, 1).pieces) * 9),
    ],
)
async def test_what_no_node_can_keep_is_refused(said: pb.PiecesHeld) -> None:
    async with a_world() as world:
        members = await holding(world)
        with pytest.raises(MalformedMessage, match="pieces"):
            world.training.note_pieces(members[1], said)


async def test_a_connection_that_is_over_says_nothing() -> None:
    async with a_world() as world:
        members = await holding(world)
        world.training.leave(members[1])
        await world.heard_all()
        world.training.note_pieces(members[1], held(0, 1))
        assert not world.training._handover.keepers._held
