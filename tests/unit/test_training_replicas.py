"""What the host of the rounds does where a stage has several replicas: newcomers, shadows, shared rounds."""

from typing import Any

import pytest

from commonweight.rules.beacon import seal_salt
from commonweight.rules.load import pack_load
from commonweight.wire.generated import control_pb2 as pb
from coordinator.members import Member
from tests.unit.test_training_host import MICROBATCHES, NAMES, A, B, C, D, World, a_world
from tools.build_vectors import honest_reports, mark

pytestmark = pytest.mark.asyncio

ALL = tuple(range(MICROBATCHES))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("coordinator.training.emit", lambda name, /, **fields: said.append((name, fields)))
    return said


async def training(world: World) -> list[Member]:
    """A and B train round 0, each alone on its stage; generation 1."""
    members = await world.seat(A, B)
    await world.start(members, 1)
    return members


async def shadowing(world: World) -> list[Member]:
    """A and B train round 3, and C shadows it on A's stage."""
    members = await training(world)
    (newcomer,) = await world.arrive(C)
    await world.seal(members, 1, 0)
    await world.seal(members, 1, 1)
    world.training.note_version(newcomer, 2)
    await world.until("C", "formation", 1, 2)
    world.training.open_pipes(newcomer, 1)
    await world.heard_all()
    await world.seal(members, 1, 2)  # the next one was planned without C, and is planned anew
    await world.until("C", "plan", 1, 3)
    world.training.note_version(newcomer, 3)
    await world.heard_all()
    return [*members, newcomer]


async def sharing(world: World) -> list[Member]:
    """A and C share round 4."""
    members = await shadowing(world)
    await world.seal(members, 1, 3)
    await world.until("C", "plan", 1, 4)
    return members


async def planned_ahead(world: World) -> list[Member]:
    """A and C share round 5, and have the plan of round 6."""
    members = await sharing(world)
    await world.seal(members, 1, 4)
    await world.until("C", "plan", 1, 6)
    return members


def names(neighbours: Any) -> str:
    return "".join(neighbour.peer_id[-1] for neighbour in neighbours)


def met(world: World, node: str) -> tuple[int, int, str, str, str]:
    """Whom the node was told to meet last."""
    formation = world.told(node, "formation")[-1]
    others = (formation.previous, formation.next, formation.replicas)
    return formation.generation, formation.round, *map(names, others)


def paused(world: World) -> list[int]:
    return [pause.generation for pause in world.told(A, "pause")]


async def test_seats_go_to_the_slowest_stage_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_training_host.SEATS", {})
    async with a_world() as world:
        members = await world.arrive(A, B, D, C)
        assert [world.training.stage_of(node) for node in (A, B, D, C)] == [0, 1, 1, 0], "the last one has the head"
        world.training.leave(members[3])
        await world.arrive(C)
        assert [entry[2:] for entry in world.log if entry[:2] == ("ledger", "seat")] == [
            (0, "A"),
            (1, "B"),
            (1, "D"),
            (0, "C"),
        ]


async def test_a_newcomer_is_told_who_has_its_state_and_they_whom_to_let_fetch_it() -> None:
    async with a_world() as world:
        members = await training(world)
        assert world.told(A, "version") == world.told(B, "version") == [pb.Version(round=0)]
        (newcomer,) = await world.arrive(C)
        source = pb.EvidenceSource(
            peer_id="peer of A", address=members[0].evidence_address, certificate=b"certificate of A"
        )
        assert world.told(C, "version") == [pb.Version(round=0, sources=[source])]
        assert world.told(A, "replicas") == [pb.ReplicaGrant(certificates=[b"certificate of C"])]
        await world.seal(members, 1, 0)
        await world.until("C", "version", 1)
        report = honest_reports(2, MICROBATCHES, 0)[0]
        step = pb.SealedStep(round=0, state_before=report.state_before, gradient_hash=report.round_gradient_hash)
        version = pb.Version(round=1, state_root=mark("state", 1, 0), sources=[source], steps=[step])
        assert world.told(C, "version")[1:] == [version]
        world.training.note_version(newcomer, 1)
        await world.until("A", "replicas", times=2)
        assert list(world.told(A, "replicas")[-1].certificates) == [], "who has it fetches no more"
        assert world.told(B, "replicas") == world.told(C, "replicas") == []
        assert len(world.told(A, "version")) == len(world.told(B, "version")) == 1


async def test_who_comes_first_is_told_of_sources_as_they_appear() -> None:
    async with a_world() as world:
        head, other = (*await world.arrive(A, B), *await world.arrive(C))[::2]
        assert [len(each.sources) for each in world.told(C, "version")] == [0]
        world.training.note_version(head, 0)
        await world.until("C", "version", times=2)
        assert names(world.told(C, "version")[-1].sources) == "A"
        world.training.leave(head)
        await world.until("C", "version", times=3)
        assert names(world.told(C, "version")[-1].sources) == ""
        world.training.note_version(other, 0)
        await world.arrive(A)
        assert names(world.told(A, "version")[-1].sources) == "C"
        assert list(world.told(C, "replicas")[-1].certificates) == [b"certificate of A"]


async def test_newcomers_extend_the_crew_without_a_pause(told: list[tuple[str, dict[str, Any]]]) -> None:
    async with a_world() as world:
        members = await training(world)
        newcomers = await world.arrive(C, D)
        for newcomer in newcomers:
            world.training.note_version(newcomer, 0)
        await world.until("D", "formation", 1, 0)
        assert met(world, A) == (1, 0, "", "DB", "C")
        assert met(world, B) == (1, 0, "AC", "", "D")
        assert met(world, C) == (1, 0, "", "DB", "A")
        assert met(world, D) == (1, 0, "AC", "", "B")
        extended = [fields for name, fields in told if name == "generation.extended"]
        assert [fields["nodes"] for fields in extended] == [[C], sorted((C, D))]
        await world.seal(members, 1, 0)
        assert paused(world) == []
        assert world.told(C, "plan") == world.told(D, "plan") == [], "their pipes aren't open"
        assert [plan.round for plan in world.told(A, "plan")] == [0, 1]


async def test_a_shadow_steps_with_the_others_and_isn_t_credited() -> None:
    async with a_world() as world:
        members = await shadowing(world)
        (plan,) = world.told(C, "plan")
        assert plan == world.told(A, "plan")[-1] == world.told(B, "plan")[-1]
        assert list(plan.stages[0].members) == [bytes.fromhex(node[2:]) for node in (A, C)]
        assert list(plan.stages[0].assignment) == [0] * MICROBATCHES
        assert [world.load(member) for member in members] == [ALL, ALL, ()]
        for member, load in zip(members[:2], (ALL, ALL), strict=True):
            world.report(member, 1, 3, world.training.stage_of(member.node) or 0, load=load)
        await world.heard_all()
        assert 3 not in world.sealed, "it waits for the shadow"
        world.report(members[2], 1, 3, 0, load=(), busy_s=0.0)
        await world.until("C", "sealed", 3)
        assert [line.node for line in world.sealed[3].reports] == [A, B]
        heard = world.told(C, "sealed")[-1]
        assert (heard.salt, heard.replica) == (b"", 0)
        assert world.told(A, "sealed")[-1].salt


async def test_two_replicas_share_a_round_and_both_are_credited(told: list[tuple[str, dict[str, Any]]]) -> None:
    async with a_world() as world:
        members = await sharing(world)
        assert [world.load(member) for member in members] == [ALL[:-1], ALL, ALL[-1:]]
        await world.seal(members, 1, 4)
        sealed = world.sealed[4]
        assert [(line.stage, line.node) for line in sealed.reports] == [(0, A), (0, C), (1, B)]
        heard = [world.told(node, "sealed")[-1] for node in (A, B, C)]
        for message, stage, replica in zip(heard, (0, 1, 0), (0, 0, 1), strict=True):
            assert message.replica == replica
            assert message.salt == seal_salt(world.seed(4), 4, stage, replica)
        loads = [pack_load(load, MICROBATCHES) for load in (ALL[:-1], ALL[-1:])]
        assert list(heard[0].stages[0].loads) == loads
        assert [len(stage.commitments) for stage in heard[0].stages] == [2, 1]
        assert heard[0].stages == heard[1].stages
        (event,) = (fields for name, fields in told if name == "round.sealed" and fields["round"] == 4)
        assert event["replicas"] == [2, 1]
        assert event["state_roots"] == [mark("state", 5, stage).hex() for stage in range(2)]
        # 10 bytes up from each report of stage 1, 10 down from each of stage 0
        assert event["bytes_per_token"] == [round(30 / event["tokens"], 2)]


async def test_the_loss_is_the_mean_over_all_replicas_of_the_last_stage(
    told: list[tuple[str, dict[str, Any]]],
) -> None:
    async with a_world() as world:
        members = await training(world)
        await world.arrive(C)
        (tail,) = await world.seat(D)
        await world.until("D", "formation", 1, 0)
        world.training.open_pipes(tail, 1)
        await world.heard_all()
        for round_ in range(3):
            await world.seal([*members, tail] if round_ else members, 1, round_)
        assert [line.stage for line in world.sealed[2].reports] == [0, 1, 1]
        losses = [fields["loss"] for name, fields in told if name == "round.sealed"]
        expected = [sum(5.5 - round_ / 8 + j / 64 for j in ALL) / MICROBATCHES for round_ in range(3)]
        assert losses == pytest.approx(expected)


async def test_a_shadow_that_is_lost_costs_nothing() -> None:
    async with a_world() as world:
        *members, shadow = await shadowing(world)
        for member in members:
            world.report(member, 1, 3, world.training.stage_of(member.node) or 0)
        world.training.leave(shadow)
        await world.until("A", "sealed", 3)
        assert paused(world) == []
        assert list(world.told(A, "plan")[-1].stages[0].members) == [bytes.fromhex(A[2:])]


async def test_the_load_of_a_worker_that_is_lost_is_replayed_by_another_in_the_same_round(
    told: list[tuple[str, dict[str, Any]]],
) -> None:
    async with a_world() as world:
        *members, worker = await sharing(world)
        planned = world.told(B, "plan")[-1]
        others, its = world.load(members[0]), world.load(worker)
        world.training.leave(worker)
        await world.until("B", "plan", 1, 4, times=2)
        assert paused(world) == []
        assert met(world, A) == (1, 4, "", "B", "")
        again = world.told(B, "plan")[-1]
        assert (planned.revision, again.revision) == (0, 1)
        assert [each.revision for each in again.stages] == [1, 0]
        assert again.beacon_tip == planned.beacon_tip
        assert tuple(sorted((*others, *its))) == world.load(members[0]) == ALL
        fields = next(fields for name, fields in told if name == "round.replayed")
        assert fields == {"generation": 1, "round": 4, "lost": C, "microbatches": {A: len(its)}}
        await world.seal(members, 1, 4)


@pytest.mark.parametrize("how", ["lost", "leaving"])
async def test_a_load_that_was_never_planned_is_others_once_the_round_can_be_and_nothing_is_replayed(
    how: str, told: list[tuple[str, dict[str, Any]]]
) -> None:
    async with a_world() as world:
        *members, worker = await shadowing(world)
        world.obstacles[4] = "an audit isn't decided"
        await world.seal([*members, worker], 1, 3)
        await world.heard_all()
        if how == "lost":
            world.training.leave(worker)
        else:
            world.training.let_go(worker)
            await world.until("C", "finished")
        await world.heard_all()
        assert world.told(A, "plan")[-1].round == 3
        del world.obstacles[4]
        world.training.reconsider()
        await world.until("A", "plan", 1, 4)
        plan = world.plan(members[0], 4)
        assert (plan.since, plan.revision, [stage.revision for stage in plan.stages]) == (0, 1, [1, 0])
        assert world.load(members[0]) == ALL
        assert "round.replayed" not in {name for name, _ in told}
        await world.seal(members, 1, 4)


async def test_who_asks_to_leave_while_the_round_s_plan_is_on_its_way_computes_it() -> None:
    """What counts is whether the round is planned when the wish is heard, not when it came."""
    async with a_world() as world:
        *members, worker = await shadowing(world)
        world.obstacles[4] = "an audit isn't decided"
        await world.seal([*members, worker], 1, 3)
        await world.heard_all()
        world.training.let_go(worker)
        del world.obstacles[4]
        world.training.reconsider()
        await world.heard_all()
        assert not world.told(C, "finished")
        await world.seal([*members, worker], 1, 4)
        await world.until("C", "finished")
        assert paused(world) == []


async def test_what_is_planned_ahead_goes_on_by_that_plan() -> None:
    async with a_world() as world:
        members = await planned_ahead(world)
        ahead = world.plan(members[2], 6)
        assert (ahead.since, ahead.revision, [stage.revision for stage in ahead.stages]) == (0, 0, [0, 0])
        assert [len(world.load(member, 6)) for member in members] == [2, 3, 1]
        for round_ in (5, 6):
            await world.seal(members, 1, round_)
            assert not world.told(A, "sealed")[-1].next_taken_back
            await world.until("C", "plan", 1, round_ + 2)
        plans = world.told(C, "plan")
        assert plans == world.told(A, "plan")[-len(plans) :] == world.told(B, "plan")[-len(plans) :]
        assert [plan.round for plan in plans] == [3, 4, 5, 6, 7, 8], "each once"


@pytest.mark.parametrize("how", ["lost", "leaving", "convicted"])
async def test_what_is_planned_ahead_is_taken_back_when_somebody_goes(how: str) -> None:
    async with a_world() as world:
        *members, worker = await planned_ahead(world)
        before = len(world.told(A, "plan"))
        match how:
            case "lost":
                world.training.leave(worker)
                await world.until("A", "plan", 1, 5, times=2)
                before += 1
            case "leaving":
                world.training.let_go(worker)
                members.append(worker)
            case "convicted":
                world.training.convict(C, 0)
                members.append(worker)
        await world.heard_all()
        assert len(world.told(A, "plan")) == before
        await world.seal(members, 1, 5)
        assert world.told(A, "sealed")[-1].next_taken_back
        assert not world.told(A, "sealed")[-2].next_taken_back
        await world.until("B", "plan", 1, 7)
        again, ahead = world.told(A, "plan")[before:]
        assert (again.round, again.since, again.revision, [each.revision for each in again.stages]) == (6, 1, 1, [1, 1])
        assert (ahead.round, ahead.since, ahead.revision, [each.revision for each in ahead.stages]) == (7, 0, 0, [0, 0])
        assert world.load(members[0], 6) == world.load(members[0], 7) == ALL
        if how != "convicted":
            assert all(list(plan.stages[0].members) == [bytes.fromhex(A[2:])] for plan in (again, ahead))
            members = members[:2]
        await world.seal(members, 1, 6)
        assert not world.told(A, "sealed")[-1].next_taken_back
        assert paused(world) == []


async def test_a_worker_that_is_lost_when_another_may_have_stepped_ends_the_generation() -> None:
    async with a_world() as world:
        *members, worker = await sharing(world)
        world.report(members[0], 1, 4, 0, load=world.load(members[0]))
        world.training.leave(worker)
        await world.until("B", "formation", 2, 4)
        assert paused(world) == [1]
        assert met(world, A) == (2, 4, "", "B", "")
        await world.start(members, 2, 4)
        assert [world.load(member) for member in members] == [ALL, ALL]
        await world.seal(members, 2, 4)
        (again,) = await world.arrive(C)
        assert world.told(C, "version")[-1].round == 5
        world.training.note_version(again, 5)
        await world.until("C", "formation", 2, 5)


async def test_who_can_t_be_reached_is_told_to_forget_the_round_that_others_go_on_with() -> None:
    async with a_world() as world:
        *members, worker = await sharing(world)
        world.training.break_pipes(members[1], 1, "WIRE_UNREACHABLE: it fell silent", C)
        await world.until("C", "pause", 1)
        assert [pause.why for pause in world.told(C, "pause")] == ["WIRE_UNREACHABLE: it fell silent"]
        assert paused(world) == []
        assert world.load(members[0]) == ALL
        world.training.note_version(worker, 4)
        await world.until("C", "formation", 1, 4)
        await world.seal(members, 1, 4)


async def test_who_is_convicted_gets_no_load_where_another_replica_is_there() -> None:
    async with a_world() as world:
        members = await sharing(world)
        world.training.convict(C, 0)
        await world.heard_all()
        await world.seal(members, 1, 4)
        assert [world.load(members[0]), world.load(members[2])] == [ALL, ()]
        await world.seal(members, 1, 5)
        assert [credit.node for credit in world.credits[5]] == [A, B]


async def test_who_wants_to_leave_is_let_go_after_its_round() -> None:
    async with a_world() as world:
        *members, worker = await sharing(world)
        world.training.let_go(worker)
        await world.heard_all()
        assert not world.told(C, "finished")
        await world.seal([*members, worker], 1, 4)
        await world.until("C", "finished")
        assert paused(world) == []
        assert world.load(members[0]) == ALL
        world.training.leave(worker)
        await world.seal(members, 1, 5)
        await world.arrive(C)
        assert world.told(C, "version")[-1].round == 6, "it may come back"


async def test_a_replica_moves_to_the_weakest_stage_and_is_told_of_its_last_round_as_what_it_was(
    monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, dict[str, Any]]]
) -> None:
    monkeypatch.setattr("commonweight.rules.round_facts.SETTLED_ROUNDS", 2)
    async with a_world() as world:
        members = await sharing(world)
        a, b, c = members
        slow = {B: 10.0}
        for round_ in (4, 5):
            await world.until("C", "plan", 1, round_)
            await world.seal(members, 1, round_, busy_s=slow)
        await world.until("A", "move")
        order = [entry for entry in world.log if entry in (("ledger", "moved", 1, "A"), ("A", "move", 1))]
        assert order == [("ledger", "moved", 1, "A"), ("A", "move", 1)], "what must survive is stored before"
        assert world.log.index(("A", "sealed", 5)) < world.log.index(order[0]) + 2
        ((_, moves),) = [said for said in told if said[0] == "member.moves"]
        assert (moves["node"], moves["source"], moves["target"]) == (A, 0, 1)
        assert moves["before"] < moves["after"]
        last = world.told(A, "sealed")[-1]
        numbers = [credit.node for credit in world.credits[5] if credit.stage == 0]
        seed = world.seed(5)
        assert (last.replica, last.salt) == (numbers.index(A), seal_salt(seed, 5, 0, numbers.index(A)))
        assert not last.next_taken_back

        world.training.break_pipes(b, 1, "WIRE_UNREACHABLE: it is gone", A)  # as its neighbours find
        world.training.leave(a)
        await world.until("C", "plan", 1, 6)
        await world.seal([b, c], 1, 6, busy_s=slow)
        (a,) = await world.arrive(A)
        assert world.told(A, "assignment")[-1].stage == 1
        world.training.note_version(a, 7)
        await world.until("A", "formation", 1)
        assert paused(world) == []


async def test_a_newcomer_that_can_t_be_reached_leaves_the_crew_and_nobody_else_does() -> None:
    async with a_world() as world:
        *members, shadow = await shadowing(world)
        before = len(world.told(C, "version"))
        world.training.break_pipes(members[1], 1, "WIRE_UNREACHABLE: nobody there", C)
        await world.until("C", "version", times=before + 1)
        assert world.told(C, "version")[-1].round == 3, "it is to say anew that it has it"
        world.training.break_pipes(members[0], 1, "WIRE_UNREACHABLE: nobody there", C)  # known already
        await world.seal(members, 1, 3)
        assert paused(world) == []
        world.training.note_version(shadow, 4)
        await world.until("C", "formation", 1, 4)


async def test_who_shadows_is_waited_for_a_moment_and_is_hung_up_on_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world:
        *members, _ = await shadowing(world)
        monkeypatch.setattr("coordinator.training.NEWCOMERS_S", 0)
        for member in members:
            world.report(member, 1, 3, world.training.stage_of(member.node) or 0)
        await world.until("A", "sealed", 3)
        assert paused(world) == []
        assert not any(entry[1] == "refused" and "holds up" in entry[2] for entry in world.log)
        assert [plan.round for plan in world.told(C, "plan")] == [3], "it has to come again"


async def test_a_shadow_s_report_begins_nobody_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world:
        *members, shadow = await shadowing(world)
        with monkeypatch.context() as patched:
            patched.setattr("coordinator.training.REPORT_S", 0)
            world.report(shadow, 1, 3, 0, load=(), busy_s=0.0)
            await world.heard_all()
            await world.heard_all()
        assert not any(entry[1] == "refused" and "late" in entry[2] for entry in world.log)
        for member in members:
            world.report(member, 1, 3, world.training.stage_of(member.node) or 0)
        await world.until("C", "sealed", 3)


async def test_two_words_of_one_replica_are_no_concern_of_the_other() -> None:
    async with a_world() as world:
        members = await sharing(world)
        world.report(members[0], 1, 4, 0, load=ALL[:-1])
        world.report(members[2], 1, 4, 0, load=ALL[-1:], signature=b"\x07" * 65)
        world.report(members[2], 1, 4, 0, load=ALL[-1:], gradient_hash=mark("other"), signature=b"\x08" * 65)
        await world.until("audits", "equivocated")
        (found,) = world.equivocations
        assert (found.stage, found.node) == (0, C)
        assert found.signatures == ("0x" + "07" * 65, "0x" + "08" * 65)
        world.report(members[1], 1, 4, 1)
        await world.until("A", "sealed", 4)
        world.report(members[0], 1, 4, 0, load=ALL[:-1], gradient_hash=mark("late"), signature=b"\x09" * 65)
        await world.until("audits", "equivocated", times=2)
        assert world.equivocations[-1].node == A
        assert NAMES[world.equivocations[-1].node] == "A"
