"""What the host of the rounds does so that work can be audited: tips before the work, values after it."""

import asyncio
from typing import Any

import pytest
from eth_hash.auto import keccak

from commonweight.rules.beacon import blinded, seal_salt
from commonweight.rules.load import pack_load
from commonweight.rules.report import report_receipt
from commonweight.rules.statement import to_hex
from coordinator.ledger import Progress
from coordinator.members import Member
from tests.integration.scripted import honest_report
from tests.unit.test_training_host import DEADLINE_S, MICROBATCHES, PLACE, SPEC, A, B, World, a_world
from tools.build_vectors import beacon_chain, mark

pytestmark = pytest.mark.asyncio

PER_EPOCH = SPEC.economics.rounds_per_epoch
SEATED = {0: A, 1: B}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    said: list[tuple[str, dict[str, Any]]] = []
    for module in ("training", "recording"):
        monkeypatch.setattr(f"coordinator.{module}.emit", lambda name, /, **fields: said.append((name, fields)))
    return said


def heard(world: World, kind: str) -> list[Any]:
    """The messages of this kind that the head and the tail were sent, each twice, as one."""
    head, tail = both_heard(world, kind)
    assert head == tail
    return head


def both_heard(world: World, kind: str) -> tuple[list[Any], list[Any]]:
    bodies = [getattr(message, kind) for message in world.heard if message.WhichOneof("body") == kind]
    return bodies[::2], bodies[1::2]


async def open_pipes(world: World) -> list[Any]:
    """All that is missing is the plan."""
    members = await world.seat(A, B)
    await world.until("B", "formation", 1)
    for member in members:
        world.training.open_pipes(member, 1)
    world.training.join(world.member(A))  # its refusal shows that the openings were heard
    await world.until("A", "refused", "a node with this key is already connected")
    return members


async def waiting(told: list[tuple[str, dict[str, Any]]], round_: int) -> str:
    """Why this round isn't planned, once that was told."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for name, fields in told:
                if name == "training.waiting" and fields["round"] == round_:
                    return str(fields["why"])
            await asyncio.sleep(0)


def last_round_of_an_epoch(before: int = 0) -> Progress:
    """Or so many rounds before it."""
    round_ = PER_EPOCH - 1 - before
    roots = tuple({node: mark("state", round_, stage)} for stage, node in enumerate((A, B)))
    return Progress(0, round_, seats=SEATED, roots=roots)


async def test_a_plan_carries_its_epoch_s_tip_and_a_seal_what_the_beacon_follows_from() -> None:
    async with a_world(last_round_of_an_epoch()) as world:
        members = await world.seat(A, B)
        await world.start(members, 1, PER_EPOCH - 1)
        await world.seal(members, 1, PER_EPOCH - 1)
        await world.until("B", "plan", 1, PER_EPOCH)
        await world.seal(members, 1, PER_EPOCH)
        await world.until("B", "plan", 1, PER_EPOCH + 2)
        first, second = (beacon_chain(SPEC, epoch) for epoch in range(2))
        assert [plan.beacon_tip for plan in heard(world, "plan")] == [first[0], *[second[0]] * 3]
        head, tail = both_heard(world, "sealed")
        ended, begun = head
        assert (ended.beacon, begun.beacon) == (first[-1], second[1])
        assert keccak(begun.beacon) == second[0]
        assert world.sealed[PER_EPOCH].beacon == to_hex(second[1])
        reports = [honest_report(PER_EPOCH, stage, 2, MICROBATCHES) for stage in range(2)]
        outputs = [report.commitments(MICROBATCHES).output(second[0]) for report in reports]
        for stage, message in enumerate((begun, tail[1])):
            assert message.salt == seal_salt(world.seed(PER_EPOCH), PER_EPOCH, stage, 0)
            assert list(message.stages[stage].commitments) == [blinded(outputs[stage], message.salt)]
            assert list(message.stages[stage].loads) == [pack_load(range(MICROBATCHES), MICROBATCHES)]
            assert message.stages == begun.stages


async def test_no_round_is_planned_ahead_of_its_epoch() -> None:
    """Who has heard of an epoch's tip signs for no round before: it couldn't train the last one again."""
    async with a_world(last_round_of_an_epoch(before=2)) as world:
        members = await world.seat(A, B)
        await world.start(members, 1, PER_EPOCH - 3)
        await world.seal(members, 1, PER_EPOCH - 3)
        await world.until("B", "plan", 1, PER_EPOCH - 1)
        await world.seal(members, 1, PER_EPOCH - 2)
        await world.heard_all()
        assert heard(world, "plan")[-1].round == PER_EPOCH - 1
        world.training.break_pipes(members[0], 1, "gone")
        await world.start(members, 2, PER_EPOCH - 1)
        await world.seal(members, 2, PER_EPOCH - 1)
        await world.until("B", "plan", 2, PER_EPOCH + 1)
        assert [plan.round - PER_EPOCH for plan in heard(world, "plan")] == [-3, -2, -1, -1, 0, 1]


async def test_what_waited_when_it_was_taken_back_is_planned_once() -> None:
    async with a_world() as world:
        world.obstacles[2] = "audits of round 0 aren't decided"
        members = await world.seat(A, B)
        await world.start(members, 1)
        await world.seal(members, 1, 0)
        await world.until("B", "plan", 1, 1)
        world.training.convict(B, 1)  # it goes on, for want of another, and has the same load
        await world.seal(members, 1, 1)
        await world.heard_all()
        world.obstacles.clear()
        world.training.reconsider()
        assert [(plan.round, plan.since) for plan in heard(world, "plan")] == [(0, 0), (1, 0), (2, 1), (3, 0)]


class Published:
    """A follower of a model whose nodes keep two versions."""

    kept = frozenset({PER_EPOCH, 2 * PER_EPOCH})

    def joined(self, stage: int, member: Member) -> None:
        pass

    async def sealed(self, round_: int) -> None:
        pass


async def test_answers_by_versions_that_nodes_keep_are_sealed() -> None:
    async with a_world(follower=Published()) as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        await world.seal(members, 1, 0)
        assert world.kept == Published.kept


async def test_an_epoch_whose_tip_isn_t_on_chain_waits_and_goes_on(told: list[tuple[str, dict[str, Any]]]) -> None:
    async with a_world(last_round_of_an_epoch()) as world:
        world.committed = 0
        members = await open_pipes(world)
        world.training.reconsider()
        assert heard(world, "plan") == []
        why = "the beacon tip of epoch 0 isn't on chain yet"
        assert told.count(("training.waiting", {"round": PER_EPOCH - 1, "why": why})) == 1
        world.committed = 1
        world.training.reconsider()
        world.training.reconsider()
        assert [plan.round for plan in heard(world, "plan")] == [PER_EPOCH - 1]
        await world.seal(members, 1, PER_EPOCH - 1)
        await waiting(told, PER_EPOCH)
        assert world.training.tip_of(PER_EPOCH) is None  # nor is a report of it taken
        world.committed = 2
        world.training.reconsider()
        assert [plan.round for plan in heard(world, "plan")] == [PER_EPOCH - 1, PER_EPOCH, PER_EPOCH + 1]


async def test_a_plan_that_waits_is_not_sent_to_a_generation_that_is_over() -> None:
    async with a_world() as world:
        world.committed = 0
        members = await open_pipes(world)
        world.training.break_pipes(members[1], 1, "gone")
        await world.until("B", "formation", 2)
        world.committed = 1
        world.training.reconsider()
        assert heard(world, "plan") == []
        await world.start(members, 2)


async def test_training_waits_for_audits_that_are_far_behind(told: list[tuple[str, dict[str, Any]]]) -> None:
    async with a_world() as world:
        world.obstacles[1] = "audits of round 0 aren't decided"
        members = await world.seat(A, B)
        await world.start(members, 1)
        await world.seal(members, 1, 0)
        assert await waiting(told, 1) == world.obstacles[1]
        assert [plan.round for plan in heard(world, "plan")] == [0]
        world.obstacles.clear()
        world.training.reconsider()
        assert [plan.round for plan in heard(world, "plan")] == [0, 1, 2]


async def test_two_words_about_one_unit_are_kept_as_proof() -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        first = world.report(members[1], 1, 0, 1)
        other = world.report(members[1], 1, 0, 1, gradient_hash=mark("another"), signature=b"\x09" * 65)
        await world.until("audits", "equivocated")
        (found,) = world.equivocations
        tip, commitments = beacon_chain(SPEC, 0)[0], [each.commitments(MICROBATCHES) for each in (first, other)]
        receipts = [report_receipt(PLACE.model_id, 1, 0, 1, each, tip) for each in commitments]
        assert (found.stage, found.node) == (1, B)
        assert found.unit == to_hex(receipts[0].unit) == to_hex(receipts[1].unit)
        assert found.outputs == (to_hex(receipts[0].output), to_hex(receipts[1].output))
        assert found.signatures == (to_hex(b"\2" * 65), to_hex(b"\x09" * 65))


async def test_another_report_after_the_seal_is_proof_too_and_the_same_one_none() -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        await world.seal(members, 1, 0)
        world.report(members[1], 1, 0, 1)  # replayed
        late = "the report is of round 0; round 1 is being trained"
        await world.until("B", "refused", late)
        world.report(members[1], 1, 0, 1, gradient_hash=mark("another"), signature=b"\x09" * 65)
        await world.until("B", "refused", late, times=2)
        (found,) = world.equivocations
        assert found.signatures == (to_hex(b"\2" * 65), to_hex(b"\x09" * 65))
        assert world.credits[0][1].signature == to_hex(b"\2" * 65)  # what was credited stays


@pytest.mark.parametrize("what", ["another's stage", "a later round", "another generation", "another microbatch count"])
async def test_what_is_no_second_word_about_a_unit_is_no_proof(what: str) -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        world.report(members[0], 1, 0, 0)
        if what == "another's stage":
            world.report(members[1], 1, 0, 1, stage=0)
        elif what == "a later round":
            world.report(members[1], 1, 1, 1)
        elif what == "another microbatch count":
            world.report(members[1], 1, 0, 1, hops=honest_report(0, 1, 2, 1).hops)
        else:
            world.report(members[1], 7, 0, 1, gradient_hash=mark("another"))
            world.report(members[1], 1, 0, 1)
            world.report(members[1], 1, 0, 1, round=5)
        await world.until("B", "refused") if what != "another generation" else await world.until("B", "sealed", 0)
        assert world.equivocations == []


async def test_a_generation_that_is_trained_again_may_say_otherwise() -> None:
    """By right: another machine may have taken a seat."""
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        world.report(members[1], 1, 0, 1, gradient_hash=mark("of the first attempt"))
        world.training.break_pipes(members[0], 1, "broken")
        await world.start(members, 2)
        await world.seal(members, 2, 0)
        assert world.equivocations == []


async def test_no_report_of_a_later_epoch_has_a_tip_to_be_signed_over() -> None:
    async with a_world() as world:
        assert world.training.tip_of(0) == beacon_chain(SPEC, 0)[0]
        assert world.training.tip_of(PER_EPOCH) is None
        assert world.training.tip_of(2**62) is None
