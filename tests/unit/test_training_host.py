"""The host of the round state machine: stores before it speaks, and tells the right members the right things."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from commonweight.errors import CommonweightError, LedgerError, Refused
from commonweight.rules.receipt import Domain
from commonweight.rules.report import Report
from commonweight.rules.statement import CreditedReport, EquivocationLine, SealedRound, to_hex
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import report_to_proto
from coordinator import training
from coordinator.draws import Draw
from coordinator.ledger import Progress
from coordinator.members import Follower, Member, Place, Submission
from coordinator.training import MAX_REFORM_DELAY_S, Training
from tests.integration.scripted import honest_report
from tests.unit.tiny import tiny_spec
from tools.build_vectors import beacon_chain, honest_reports, mark

pytestmark = pytest.mark.asyncio

DEADLINE_S = 20
STAGES = 2
SPEC = tiny_spec(stages=STAGES)
MICROBATCHES = SPEC.training.microbatches_per_round
PLACE = Place(b"\xaa" * 32, Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3"))
A, B, C, D = (
    "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
    "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
    "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65",
)
SEATS = {C: frozenset({0}), D: frozenset({1})}
"""The stages that these may hold; the others any."""
NAMES = {A: "A", B: "B", C: "C", D: "D"}
START = Progress(generation=0, round=0, seats={}, roots=())

Entry = tuple[Any, ...]


class World:
    """A Training whose ledger and members write all that they are told into one list, in the order in which it came."""

    def __init__(
        self,
        progress: Progress = START,
        end_round: int | None = None,
        faulty: str = "",
        follower: Follower | None = None,
    ) -> None:
        """`faulty`: the ledger's operation that fails."""
        self.log: list[Entry] = []
        self.heard: list[pb.CoordinatorMessage] = []
        """By all members, in order."""
        self.inboxes: dict[str, list[pb.CoordinatorMessage]] = {node: [] for node in NAMES}
        """The same by node."""
        self.kept: Collection[int] = ()
        """The versions whose answers could be sealed with the last round."""
        self.delays: list[float] = []
        self.faulty = faulty
        self.credits: dict[int, list[CreditedReport]] = {}
        self.sealed: dict[int, SealedRound] = {}
        self.unaudited: dict[int, Mapping[tuple[int, int], bytes]] = {}
        self.equivocations: list[EquivocationLine] = []
        self.committed = 10
        """Epochs whose tip is on chain."""
        self.obstacles: dict[int, str] = {}
        """By round, why it can't be planned."""
        self._loop = asyncio.get_running_loop()
        self._written = asyncio.Event()
        parts = (self, progress, end_round, self, Audits(self), follower)
        self.training = Training(SPEC, PLACE, *parts)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.training.run())

    # The ledger's side; called from a thread.

    def record_seat(self, stage: int, node: str) -> None:
        self.write("ledger", "seat", stage, NAMES[node])

    def move_seat(self, stage: int, node: str) -> None:
        self.write("ledger", "moved", stage, NAMES[node])

    def record_generation(self, generation: int) -> None:
        self.write("ledger", "generation", generation)

    def drop_versions(self, kept: Collection[int]) -> list[Any]:
        self.kept = kept
        return []

    def complete_answers(self, stages: int, nodes: Collection[str], limit: int) -> list[Any]:
        return []

    def drop_answers(self, sessions: Collection[bytes]) -> None:
        assert not sessions

    def record_round(
        self, sealed: SealedRound, unaudited: Mapping[tuple[int, int], bytes], parts: Mapping[Any, bytes]
    ) -> None:
        self.write("ledger", "round", sealed.round)
        self.sealed[sealed.round], self.unaudited[sealed.round] = sealed, unaudited
        self.credits[sealed.round] = list(sealed.reports)

    def sealed_rounds(self, first: int, end: int) -> tuple[SealedRound, ...]:
        return tuple(self.sealed[number] for number in range(first, end) if number in self.sealed)

    def record_equivocation(self, found: EquivocationLine) -> bool:
        self.equivocations.append(found)
        return True

    # The beacons' side.

    def tip(self, round_: int) -> bytes | None:
        epoch = round_ // SPEC.economics.rounds_per_epoch
        return beacon_chain(SPEC, epoch)[0] if epoch < self.committed else None

    def value(self, round_: int) -> bytes:
        epoch, index = divmod(round_, SPEC.economics.rounds_per_epoch)
        return beacon_chain(SPEC, epoch)[index + 1]

    def seed(self, round_: int) -> bytes:
        return mark("seed", round_ // SPEC.economics.rounds_per_epoch)

    # The members' side.

    def member(
        self, node: str, account: str | None = None, *, has_data: bool = True, stages: frozenset[int] | None = None
    ) -> Member:
        """A connection of this node; each call makes another one."""

        def send(message: pb.CoordinatorMessage | CommonweightError) -> None:
            if isinstance(message, CommonweightError):
                self.write(NAMES[node], "refused", message.args[0])
                return
            self.heard.append(message)
            self.inboxes[node].append(message)
            kind = message.WhichOneof("body")
            body = getattr(message, kind)
            numbers = [getattr(body, name) for name in ("generation", "round", "stage") if hasattr(body, name)]
            self.write(NAMES[node], kind, *numbers)

        name, account = NAMES[node], account or node
        address = f"127.0.0.1:{9000 + ord(name)}"
        certificate = f"certificate of {name}".encode()
        return Member(
            node, f"peer of {name}", address, address, certificate, node, account, has_data, stages, False, send
        )

    def write(self, *entry: Any) -> None:
        if entry[:2] == ("ledger", self.faulty):
            raise LedgerError(f"no {self.faulty} today")
        self.log.append(entry)
        self._loop.call_soon_threadsafe(self._written.set)

    async def until(self, *entry: Any, times: int = 1) -> None:
        """Return when the list holds an entry that begins so (that many times)."""

        def count() -> int:
            return sum(found[: len(entry)] == entry for found in self.log)

        async with asyncio.timeout(DEADLINE_S):
            while count() < times:
                assert not self.task.done(), self.task.result()
                self._written.clear()
                if count() < times:
                    await self._written.wait()

    def since(self, mark_: int) -> list[Entry]:
        return self.log[mark_:]

    def told(self, node: str, kind: str) -> list[Any]:
        """The messages of this kind that a node was sent."""
        return [getattr(message, kind) for message in self.inboxes[node] if message.WhichOneof("body") == kind]

    # What members do.

    async def arrive(self, *nodes: str) -> list[Member]:
        """These nodes join, one after another, without the state of their stage; returns their connections."""
        members = [self.member(node, stages=SEATS.get(node)) for node in nodes]
        for member in members:
            before = len(self.told(member.node, "version"))
            self.training.join(member)
            await self.until(NAMES[member.node], "version", times=before + 1)
        return members

    async def seat(self, *nodes: str) -> list[Member]:
        """The same, and they have the state of their stage."""
        members = []
        for node in nodes:
            members += await self.arrive(node)
            self.training.note_version(members[-1], self.training.round)
        return members

    async def heard_all(self) -> None:
        """Return when all that was said so far is acted upon: who connects twice is refused after it."""
        node = self.training.members[0].node
        before = sum(entry[:2] == (NAMES[node], "refused") for entry in self.log)
        self.training.join(self.member(node))
        await self.until(NAMES[node], "refused", times=before + 1)

    async def start(self, members: Sequence[Member], generation: int, round_: int = 0) -> None:
        """The pipes of a generation that is being formed are open."""
        await self.until(NAMES[members[-1].node], "formation", generation)
        for member in members:
            self.training.open_pipes(member, generation)
        await self.until(NAMES[members[-1].node], "plan", generation, round_)

    def plan(self, member: Member, round_: int) -> pb.RoundPlan:
        """That of this round, as the member was told last."""
        return [plan for plan in self.told(member.node, "plan") if plan.round == round_][-1]

    def load(self, member: Member, round_: int | None = None) -> tuple[int, ...]:
        """By that plan; None: of the round that is trained."""
        plan = self.plan(member, self.training.round if round_ is None else round_)
        stage = self.training.stage_of(member.node)
        assert stage is not None
        number = list(plan.stages[stage].members).index(bytes.fromhex(member.node[2:]))
        return tuple(j for j, each in enumerate(plan.stages[stage].assignment) if each == number)

    def report(self, member: Member, generation: int, round_: int, stage: int, /, **changes: Any) -> Report:
        """The member reports; returns what."""
        signature = changes.pop("signature", bytes([stage + 1]) * 65)
        load, busy_s = changes.pop("load", tuple(range(MICROBATCHES))), changes.pop("busy_s", 0.1)
        loads = [[load]] * STAGES
        if len(load) == MICROBATCHES and "gradient_hash" in changes:
            changes.setdefault("round_gradient_hash", changes["gradient_hash"])
        report = replace(honest_reports(STAGES, MICROBATCHES, round_, loads)[stage], **changes)
        message = report_to_proto(report, 0.1, busy_s, 10, 10)
        planned = [plan for plan in self.told(member.node, "plan") if plan.round == round_]
        message.revision = planned[-1].stages[stage].revision if planned else 0
        who = (member.node, member.owner, member.account)
        self.training.submit(member, Submission(*who, generation, report, signature, message))
        return report

    async def seal(
        self, members: Sequence[Member], generation: int, round_: int, *, busy_s: Mapping[str, float] | None = None
    ) -> None:
        """All report honestly, as planned. `busy_s`: by node, where it isn't a tenth of a second."""
        for member in members:
            stage, worked_s = self.training.stage_of(member.node), (busy_s or {}).get(member.node, 0.1)
            assert stage is not None
            self.report(member, generation, round_, stage, load=self.load(member, round_), busy_s=worked_s)
        await self.until(NAMES[members[-1].node], "sealed", round_)


class Audits:
    """Says of the world's rounds what nodes are told, and notes what it hears."""

    def __init__(self, world: World) -> None:
        self.world = world

    def joined(self, stage: int, member: Member) -> None:
        pass

    def lost(self, member: Member) -> None:
        pass

    def sealed(self, drawn: Draw) -> None:
        pass

    def announcement(self, drawn: Draw, node: str) -> pb.RoundSealed:
        return drawn.announcement(node, [])

    def obstacle(self, round_: int) -> str | None:
        return self.world.obstacles.get(round_)

    def equivocated(self) -> None:
        self.world.write("audits", "equivocated")


@asynccontextmanager
async def a_world(*arguments: Any, **options: Any) -> AsyncIterator[World]:
    """A world whose delays are noted and take no time."""
    loop = asyncio.get_running_loop()
    really = loop.call_later
    world = World(*arguments, **options)

    def call_later(delay_s: float, callback: Callable[..., object], *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        if getattr(callback, "__self__", None) is world.training:
            world.delays.append(delay_s)
            delay_s = 0
        return really(delay_s, callback, *args, **kwargs)

    loop.call_later = call_later  # type: ignore[method-assign]
    try:
        yield world
    finally:
        loop.call_later = really  # type: ignore[method-assign]
        world.task.cancel()
        with suppress(asyncio.CancelledError, CommonweightError):
            await world.task


async def test_what_must_survive_is_stored_before_anybody_hears_of_it() -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        await world.seal(members, 1, 0)
        await world.until("B", "plan", 1, 2)
        assert world.log == [
            ("ledger", "seat", 0, "A"),
            ("A", "assignment", 0),
            ("A", "version", 0),
            ("ledger", "seat", 1, "B"),
            ("B", "assignment", 1),
            ("B", "version", 0),
            ("ledger", "generation", 1),
            ("A", "formation", 1, 0),
            ("B", "formation", 1, 0),
            ("A", "plan", 1, 0),
            ("B", "plan", 1, 0),
            ("ledger", "round", 0),
            ("A", "sealed", 0),
            ("B", "sealed", 0),
            ("A", "plan", 1, 1),
            ("B", "plan", 1, 1),
            ("A", "plan", 1, 2),
            ("B", "plan", 1, 2),
        ]


@pytest.mark.parametrize(
    ("faulty", "unheard"), [("seat", "assignment"), ("generation", "formation"), ("round", "sealed")]
)
async def test_what_cant_be_stored_isnt_announced(faulty: str, unheard: str) -> None:
    async with a_world(faulty=faulty) as world:
        members = [world.member(A), world.member(B)]
        for member in members:
            world.training.join(member)
            world.training.note_version(member, 0)
        if faulty == "round":
            await world.start(members, 1)
            for stage, member in enumerate(members):
                world.report(member, 1, 0, stage)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(LedgerError, match=f"no {faulty} today"):
                await world.task
        assert not any(entry[0] == "B" and entry[1] == unheard for entry in world.log)
        assert world.training.round == 0


async def test_the_work_is_credited_to_the_account_and_with_the_signature_that_came_with_it() -> None:
    async with a_world() as world:
        paid = world.member(A, account=C)
        world.training.join(paid)
        world.training.note_version(paid, 0)
        (tail,) = await world.seat(B)
        await world.start([paid, tail], 1)
        world.report(tail, 1, 0, 1, signature=b"\x07" * 65)
        world.report(tail, 1, 0, 1, signature=b"\x08" * 65)  # the same again: the first counts
        world.report(paid, 1, 0, 0)
        await world.until("B", "sealed", 0)
        head, last = world.credits[0]
        assert (head.node, head.account, head.signature) == (A, C, to_hex(b"\x01" * 65))
        assert (last.node, last.account, last.signature) == (B, B, to_hex(b"\x07" * 65))
        assert (head.generation, last.generation) == (1, 1)


async def test_generations_that_fail_are_formed_again_ever_more_slowly_until_one_seals() -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        for generation in range(1, 1200):  # longer than a float can double
            world.training.break_pipes(members[0], generation, "WIRE_UNREACHABLE: nobody there")
        await world.start(members, 1200)
        assert world.delays[:8] == pytest.approx([0, 0.1, 0.3, 0.7, 1.5, 3.1, MAX_REFORM_DELAY_S, MAX_REFORM_DELAY_S])
        assert world.delays[8:] == [MAX_REFORM_DELAY_S] * 1192
        await world.seal(members, 1200, 0)
        world.training.break_pipes(members[0], 1200, "again")
        world.training.break_pipes(members[0], 1201, "and again")
        await world.start(members, 1202, 1)
        assert world.delays[1200:] == pytest.approx([0, 0.1])


async def test_a_generation_that_is_over_before_its_delay_is_never_formed() -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.until("B", "formation", 1)
        world.training.break_pipes(members[1], 1, "first")
        world.training.break_pipes(members[1], 2, "second")
        world.training.break_pipes(members[1], 2, "a late word of the second")
        await world.until("B", "formation", 3)
        formed = [entry[2] for entry in world.log if entry[:2] == ("A", "formation")]
        assert formed in ([1, 3], [1, 2, 3])
        assert [entry[2] for entry in world.log if entry[:2] == ("ledger", "generation")] == [1, 2, 3]
        assert [entry[2] for entry in world.log if entry[:2] == ("A", "pause")] == [1, 2]


MOMENTS = ("gathering", "forming", "one is ready", "training", "one has reported", "the other has reported", "sealed")


@pytest.mark.parametrize(
    ("moment", "leaver"), [case for case in product(MOMENTS, (A, B)) if case != ("the other has reported", A)]
)
async def test_whoever_hangs_up_when_the_round_is_trained_again_with_the_same_seats(moment: str, leaver: str) -> None:
    async with a_world() as world:
        stays = B if leaver == A else A
        if moment == "gathering":
            (gone,) = await world.seat(leaver)
            members = {stays: (await world.arrive(stays))[0]}
            world.training.leave(gone)
            world.training.note_version(members[stays], 0)
            sealed, generation = 0, 1
        else:
            members = dict(zip((A, B), await world.seat(A, B), strict=True))
            gone, rest = members[leaver], members[stays]
            await world.until("B", "formation", 1)
            if moment == "one is ready":
                world.training.open_pipes(rest, 1)
            elif moment != "forming":
                await world.start(list(members.values()), 1)
            if moment == "one has reported":
                world.report(rest, 1, 0, int(stays == B), signature=b"\x09" * 65)
            elif moment == "the other has reported":
                world.report(gone, 1, 0, int(leaver == B), signature=b"\x09" * 65)
            elif moment == "sealed":
                await world.seal(list(members.values()), 1, 0)
            sealed, generation = int(moment == "sealed"), 2
            world.training.leave(gone)
            await world.until(NAMES[stays], "pause", 1)
            assert (NAMES[leaver], "pause", 1) not in world.log
        before = len(world.log)
        (members[leaver],) = await world.seat(leaver)
        in_order = [members[node] for node in sorted(members, key=(A, B).index)]
        if moment == "gathering":
            in_order = [members[leaver], members[stays]]  # the leaver came first: its seat is stage 0
        else:
            await world.until("ledger", "generation", 2)
            assert not any(entry[:2] == ("ledger", "seat") for entry in world.since(before))  # it is known already
        await world.start(in_order, generation, sealed)
        await world.seal(in_order, generation, sealed)
        assert [credit.signature for credit in world.credits[sealed]] == [to_hex(b"\1" * 65), to_hex(b"\2" * 65)]
        assert sorted(world.credits) == list(range(sealed + 1))


async def test_who_hangs_up_when_nothing_more_is_needed_of_it_is_credited() -> None:
    """A's gradients are its last ones, of the first stage: nobody waits for them."""
    async with a_world() as world:
        first, rest = await world.seat(A, B)
        await world.start([first, rest], 1)
        world.report(first, 1, 0, 0)
        world.training.leave(first)
        world.report(rest, 1, 0, 1)
        await world.until("B", "pause", 1)
        assert sorted(world.credits) == [0]
        assert world.told(B, "pause")[0].why == "a stage has no replica any more"


async def test_what_a_connection_says_that_was_replaced_is_not_heard() -> None:
    async with a_world() as world:
        old, tail = await world.seat(A, B)
        await world.until("B", "formation", 1)
        world.training.leave(old)
        (new,) = await world.seat(A)
        await world.until("B", "formation", 2)
        world.training.open_pipes(old, 2)
        world.training.break_pipes(old, 2, "an echo")
        world.training.leave(old)
        world.training.open_pipes(tail, 2)
        world.training.open_pipes(new, 2)
        await world.until("B", "plan", 2, 0)
        world.report(old, 2, 0, 0, signature=b"\x09" * 65)
        await world.seal([new, tail], 2, 0)
        assert world.credits[0][0].signature == to_hex(b"\1" * 65)
        assert [entry[2] for entry in world.log if entry[:2] == ("B", "pause")] == [1]


async def test_a_second_connection_with_the_same_key_is_refused_and_its_end_ends_nothing() -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        second = world.member(A)
        world.training.join(second)
        await world.until("A", "refused", "a node with this key is already connected")
        world.training.leave(second)
        await world.seal(members, 1, 0)
        assert not any(entry[1] == "pause" for entry in world.log)
        assert [entry for entry in world.log if entry[1] == "assignment"] == [
            ("A", "assignment", 0),
            ("B", "assignment", 1),
        ]


async def test_a_node_gets_a_stage_of_which_its_owner_has_a_seat_on_chain_or_none() -> None:
    async with a_world() as world:
        for node in (B, C):
            world.training.join(world.member(node, stages=frozenset({1, 7})))
            await world.until(NAMES[node], "assignment", 1)
        for stages in ((), (7,)):
            world.training.join(world.member(A, stages=frozenset(stages)))
            await world.until("A", "refused", "its owner has no seat on chain in any stage of this model")
        world.training.join(world.member(A, stages=frozenset({0, 1})))
        await world.until("A", "assignment", 0)


async def test_a_node_whose_owner_lost_the_seat_doesnt_come_back() -> None:
    async with a_world() as world:
        (head,) = await world.seat(A)
        world.training.leave(head)
        world.training.join(world.member(A, stages=frozenset({1})))
        await world.until("A", "refused", "it holds stage 0, of which its owner has no seat on chain any more")
        world.training.join(world.member(A, stages=frozenset({0})))
        await world.until("A", "assignment", 0, times=2)


async def test_the_first_stage_waits_for_a_node_with_the_text() -> None:
    async with a_world() as world:
        for node in (A, B):
            world.training.join(world.member(node, has_data=False))
            await world.until(NAMES[node], "assignment", 1)
        world.training.join(world.member(C, has_data=False, stages=frozenset({0})))
        await world.until("C", "refused", "only the first stage is open to it, and that reads the text: give --data")
        world.training.join(world.member(C))
        await world.until("C", "assignment", 0)


async def test_who_isnt_ready_in_time_is_hung_up_on_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "FORM_S", 0)  # as soon as there is nothing else to be done
    async with a_world() as world:
        head, tail = world.member(A), world.member(B)
        for member in (head, tail):
            world.training.join(member)
            world.training.note_version(member, 0)
        world.training.open_pipes(head, 1)
        await world.until("B", "refused", "This node holds up the others: its pipes weren't open within 0 s.")
        world.training.leave(tail)
        await world.until("A", "pause", 1)
        assert not any(entry[:2] == ("A", "refused") for entry in world.log)
        monkeypatch.undo()
        (tail,) = await world.seat(B)
        await world.start([head, tail], 2)
        await world.seal([head, tail], 2, 0)


async def test_who_doesnt_report_in_time_is_hung_up_on_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "REPORT_S", 0)
    async with a_world() as world:
        head, tail = await world.seat(A, B)
        await world.start([head, tail], 1)
        world.report(tail, 1, 0, 1)
        await world.until("A", "refused", "This node holds up the others: its report came 0 s too late.")
        assert not any(entry[:2] == ("B", "refused") for entry in world.log)
        monkeypatch.undo()
        world.training.leave(head)
        (head,) = await world.seat(A)
        await world.start([head, tail], 2)
        await world.seal([head, tail], 2, 0)
        assert world.credits[0][1].signature == to_hex(b"\2" * 65)


REPORT_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "foreign stage": ({"stage": 0}, f"the report is of stage 0, which {B} doesn't train in this round"),
    "later round": ({"round": 1}, "the report is of round 1; round 0 is being trained"),
    "another load": ({"load": (0, 2)}, "the report has the microbatches [0, 2]; assigned were [0, 1, 2]"),
    "another gradient": (
        {"round_gradient_hash": mark("another")},
        "it was stepped with another gradient than its own, though there is no other one to be averaged with it",
    ),
}


@pytest.mark.parametrize(("changes", "why"), REPORT_FAULTS.values(), ids=REPORT_FAULTS.keys())
async def test_a_refused_report_is_answered_and_leaves_no_trace(changes: dict[str, Any], why: str) -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        world.report(members[1], 1, 0, 1, signature=b"\x09" * 65, **changes)
        await world.until("B", "refused")
        assert why in world.log[-1][2]
        await world.seal(members, 1, 0)
        assert [credit.signature for credit in world.credits[0]] == [to_hex(b"\1" * 65), to_hex(b"\2" * 65)]
        assert [entry[0] for entry in world.log if entry[1] == "refused"] == ["B"]


async def test_a_second_report_that_says_otherwise_is_refused_and_the_first_counts() -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        first = world.report(members[1], 1, 0, 1)
        world.report(members[1], 1, 0, 1, state_after=mark("another"), signature=b"\x09" * 65)
        await world.until("B", "refused", "it has reported round 0 already, and otherwise")
        world.report(members[0], 1, 0, 0)
        await world.until("B", "sealed", 0)
        assert world.credits[0][1].gradient_hash == to_hex(first.gradient_hash)
        assert world.credits[0][1].signature == to_hex(b"\2" * 65)


async def test_reports_that_contradict_each_other_three_times_stop_the_training() -> None:
    async with a_world() as world:
        members = await world.seat(A, B)
        right = honest_report(0, 1, 2, MICROBATCHES)
        wrong = (replace(right.hops[0], tokens=mark("lie")), *right.hops[1:])
        for generation in (1, 2, 3):
            await world.start(members, generation)
            world.report(members[0], generation, 0, 0)
            world.report(members[1], generation, 0, 1, hops=wrong)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(
                Refused, match=r"stopped in round 0\. The reports of round 0 disagree about the tokens of microbatch 0"
            ):
                await world.task
        assert [entry[2] for entry in world.log if entry[:2] == ("A", "pause")] == [1, 2]
        assert not world.credits


async def test_after_the_last_round_nothing_is_planned_and_everybody_is_told() -> None:
    async with a_world(end_round=2) as world:
        members = await world.seat(A, B)
        await world.start(members, 1)
        waiting = asyncio.create_task(world.training.wait_until_sealed(2))
        await world.seal(members, 1, 0)
        await world.until("B", "plan", 1, 1)
        assert not waiting.done()
        await world.seal(members, 1, 1)
        async with asyncio.timeout(DEADLINE_S):
            await waiting
            await world.training.wait_until_sealed(1)  # long past
        world.training.leave(members[0])
        again = await world.seat(A)  # it comes back while the last epoch is being settled
        await world.until("B", "formation", 2)
        for member in (*again, members[1]):
            world.training.open_pipes(member, 2)
        world.training.break_pipes(members[1], 2, "so that it is known that the openings were heard")
        await world.until("B", "pause", 2)
        assert max(entry[3] for entry in world.log if entry[1] == "plan") == 1
        before = len(world.log)
        world.training.say_finished()
        assert world.since(before)[:2] in (
            [("B", "finished"), ("A", "finished")],
            [("A", "finished"), ("B", "finished")],
        )


async def test_a_restarted_host_goes_on_from_the_ledger() -> None:
    roots = tuple(mark("state", 5, stage) for stage in range(2))
    async with a_world(
        Progress(generation=41, round=5, seats={B: 0, A: 1}, roots=({B: roots[0]}, {A: roots[1]}))
    ) as world:
        members = await world.seat(B, A)
        await world.start(members, 42, 5)
        assert world.log[:7] == [
            ("B", "assignment", 0),
            ("B", "version", 5),
            ("A", "assignment", 1),
            ("A", "version", 5),
            ("ledger", "generation", 42),
            ("B", "formation", 42, 5),
            ("A", "formation", 42, 5),
        ]
        assert [world.told(node, "version")[0].state_root for node in (B, A)] == list(roots)
        world.report(members[0], 42, 5, 0, state_before=mark("another"))
        await world.until(
            "B",
            "refused",
            f"stage 0 starts round 5 from state {mark('another').hex()}; sealed is "
            f"{roots[0].hex()}. Restore the checkpoint of that round",
        )
        await world.seal(members, 42, 5)
