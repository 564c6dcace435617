"""What nodes and gateways say of answers, and what the coordinator seals with a round: all that agrees, once."""

import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commonweight.errors import CommonweightError, LedgerError, MalformedMessage
from commonweight.identity import NodeIdentity, recover_address
from commonweight.rules.answer import Answer, answer_receipt, served_receipt
from commonweight.rules.audits import Kind
from commonweight.rules.epoch import answers_per_round
from commonweight.rules.receipt import Domain
from commonweight.rules.report import NO_TENSOR
from commonweight.rules.round_events import Seal
from commonweight.rules.statement import SealedRound
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto, answer_to_proto, report_from_proto, report_to_proto
from coordinator import answers as answers_module
from coordinator.answer_ledger import Reported
from coordinator.answers import Answers
from coordinator.draws import Draw, draw
from coordinator.ledger import Ledger
from coordinator.members import Member, Place, Submission
from coordinator.recording import Recorder
from tests.unit.tiny import tiny_spec
from tools.build_vectors import answer_line, beacon_chain, honest_answer, honest_reports, mark, share

STAGES = 3
SPEC = tiny_spec(stages=STAGES, answer_rate="0.5")
MICROBATCHES, CONTEXT = SPEC.training.microbatches_per_round, SPEC.training.sequence_length
PLACE = Place(b"\xaa" * 32, Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3"))
NODES = [NodeIdentity(bytes([stage + 1]) * 32) for stage in range(STAGES)]
GATEWAY, STRANGER = NodeIdentity(b"\x61" * 32), NodeIdentity(b"\x62" * 32)
VERSION, ROUND = 10, 10

Told = list[tuple[str, dict[str, Any]]]


def session_of(name: str) -> bytes:
    return mark("session", name)[:16]


def parts_of(name: str) -> tuple[Answer, ...]:
    return honest_answer(STAGES, VERSION, session_of(name), 4, 8, temperature=0.5, seed=7)


class World:
    """The coordinator's side of answers: a real ledger, a recorder, nodes that say what the test wants."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "ledger.sqlite"
        self.kept: frozenset[int] = frozenset({VERSION})
        self.published = VERSION
        self.inboxes: dict[int, list[bytes]] = {stage: [] for stage in range(STAGES)}
        """Sessions of which each node was told that its part is recorded."""
        self.start()
        self.seal(VERSION - 1)

    def start(self) -> None:
        """As another process."""
        self.ledger = Ledger(f"sqlite:///{self.file}")
        ids = {"model_id": PLACE.model_id, "spec_hash": SPEC.spec_hash}
        self.ledger.open_model(**ids, settlement=PLACE.domain.settlement, chain_id=PLACE.domain.chain_id)
        self.answers = Answers(SPEC, PLACE, self.ledger, self)  # type: ignore[arg-type]
        self.recorder = Recorder(SPEC, PLACE, self.ledger, self)

    # Serving's side, and the beacons'.

    def was_published(self, version: int) -> bool:
        return 0 < version <= self.published and version % 10 == 0

    def tip(self, round_: int) -> bytes:
        return beacon_chain(SPEC, round_ // 10)[0]

    def value(self, round_: int) -> bytes:
        return beacon_chain(SPEC, round_ // 10)[round_ % 10 + 1]

    def seed(self, round_: int) -> bytes:
        return mark("seed", round_ // 10)

    # What nodes and gateways do.

    def member(self, stage: int) -> Member:
        def send(message: pb.CoordinatorMessage | CommonweightError) -> None:
            assert isinstance(message, pb.CoordinatorMessage)
            self.inboxes[stage].append(message.answer.session)

        node = NODES[stage].address
        return Member(node, "peer", "", "", b"", node, node, True, None, False, send)

    def signed(
        self, stage: int, answer: Answer, signer: NodeIdentity | None = None, place: Place = PLACE, as_stage: int = -1
    ) -> pb.SignedAnswer:
        said = stage if as_stage < 0 else as_stage
        numbers = (answer.version, answer.session, answer.prompt_tokens, answer.fed)
        receipt = answer_receipt(place.model_id, said, *numbers, answer.trace)
        signature = (signer or NODES[stage]).sign_digest(receipt.digest(place.domain))
        return pb.SignedAnswer(part=answer_to_proto(answer), signature=signature)

    async def say(
        self,
        name: str,
        *stages: int,
        change: Callable[[int, Answer], Answer] = lambda _, a: a,
        nodes: Sequence[NodeIdentity] = NODES,
    ) -> None:
        """These stages' nodes say their parts; all of them where none is named."""
        parts = parts_of(name)
        for stage in stages or range(STAGES):
            member = replace(self.member(stage), node=nodes[stage].address)
            answer = change(stage, parts[stage])
            await self.answers.take(member, stage, self.signed(stage, answer, nodes[stage]))

    def report(self, name: str, prompt: int = 4, completion: int = 5, version: int = VERSION) -> None:
        receipt = served_receipt(PLACE.model_id, version, session_of(name), prompt, completion)
        signature = GATEWAY.sign_digest(receipt.digest(PLACE.domain))
        request_id = mark("request", name)
        reported = Reported(request_id, session_of(name), version, prompt, completion, GATEWAY.address, signature)
        assert self.ledger.record_served(reported)

    def seal(self, round_: int, second: NodeIdentity | None = None, instead: NodeIdentity | None = None) -> Draw:
        """Stage 1 is shared with a `second` node, or held by another one `instead`."""
        nodes = [[node] for node in NODES]
        nodes[1] = [NODES[1], second] if second else [instead or NODES[1]]
        nodes[1].sort(key=lambda node: node.address)
        loads = [share(MICROBATCHES, len(of_stage)) for of_stage in nodes]
        reports = honest_reports(STAGES, MICROBATCHES, round_, loads)
        submissions = {}
        for node, report in zip((node for of_stage in nodes for node in of_stage), reports, strict=True):
            who = (node.address, node.address, node.address)
            submissions[node.address] = Submission(*who, 1, report, bytes(65), report_to_proto(report))
        seal = Seal(round_, {node: each.report for node, each in submissions.items()})
        drawn = self.recorder.store([seal], submissions, self.kept)
        assert drawn is not None
        return drawn

    def sealed(self, round_: int) -> SealedRound:
        (found,) = self.ledger.sealed_rounds(round_, round_ + 1)
        return found


def sessions(sealed: SealedRound) -> list[bytes]:
    return [bytes.fromhex(line.session[2:]) for line in sealed.answers]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.ledger.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    said: Told = []
    for name in ("answers", "recording"):
        monkeypatch.setattr(f"coordinator.{name}.emit", lambda name, /, **fields: said.append((name, fields)))
    return said


@pytest.mark.asyncio
async def test_an_answer_that_all_have_signed_is_sealed_as_they_signed_it(world: World, told: Told) -> None:
    world.report("a")
    await world.say("a")
    assert world.inboxes == {stage: [session_of("a")] for stage in range(STAGES)}
    sealed = world.seal(ROUND).sealed
    signers = [lambda receipt, node=node: node.sign_digest(receipt.digest(PLACE.domain)) for node in (*NODES, GATEWAY)]
    line = answer_line(
        PLACE.model_id,
        parts_of("a"),
        completion_tokens=5,
        gateway=GATEWAY.address,
        served=signers.pop(),
        signs=signers,
    )
    assert sealed.answers == (line,)
    assert world.sealed(ROUND) == sealed
    sealed_event = {"round": ROUND, "session": session_of("a").hex(), "version": VERSION, "fed": 8}
    assert told == [("answer.sealed", sealed_event)]
    assert sessions(world.seal(ROUND + 1).sealed) == []


@pytest.mark.asyncio
async def test_killed_after_a_seal_the_coordinator_draws_of_the_same_answers(world: World) -> None:
    names = [str(number) for number in range(6)]
    for name in names:
        world.report(name)
        await world.say(name)
    drawn = world.seal(ROUND)
    world.ledger.close()
    world.start()
    assert sessions(world.sealed(ROUND)) == [session_of(name) for name in names]
    assert draw(SPEC, world.sealed(ROUND), world.tip(ROUND), world.seed(ROUND)) == drawn
    units = [audit for audit in drawn.audits if audit.kind is Kind.ANSWER]
    assert 0 < len(units) < STAGES * len(names)
    for audit in units:
        assert audit.microbatch is not None
        part, root = world.ledger.answer_claim(ROUND, audit.microbatch, audit.stage)
        answer = answer_from_proto(pb.AnswerPart.FromString(part))
        assert answer == parts_of(names[audit.microbatch])[audit.stage]
        assert "0x" + answer.trace.hex() == drawn.sealed.answers[audit.microbatch].parts[audit.stage].trace
        assert root == mark("state", VERSION, audit.stage)
    assert {(audit.stage, audit.replica) for audit in drawn.audits} == set(drawn.replicas)


@pytest.mark.asyncio
async def test_what_comes_after_a_restart_completes_what_came_before(world: World) -> None:
    await world.say("a", 0, 2)
    world.report("b")
    world.ledger.close()
    world.start()
    world.report("a")
    await world.say("b")
    await world.say("a", 1)
    assert sessions(world.seal(ROUND).sealed) == [session_of("b"), session_of("a")]


@pytest.mark.asyncio
async def test_a_part_that_is_said_again_is_answered_again_and_counts_once(world: World, told: Told) -> None:
    world.report("a")
    for _ in range(2):
        await world.say("a")
    assert len(world.seal(ROUND).sealed.answers) == 1
    await world.say("a")
    assert world.inboxes == {stage: [session_of("a")] * 3 for stage in range(STAGES)}
    assert world.seal(ROUND + 1).sealed.answers == ()
    assert [name for name, _ in told] == ["answer.sealed"]


@pytest.mark.asyncio
async def test_of_two_parts_the_first_counts_and_the_second_is_told(world: World, told: Told) -> None:
    world.report("a")
    await world.say("a")
    await world.say("a", 1, change=lambda _, answer: replace(answer, passed=mark("other")))
    assert world.inboxes[1] == [session_of("a")] * 2  # it needn't say it again
    assert len(world.seal(ROUND).sealed.answers) == 1
    contradicted = {"node": NODES[1].address, "stage": 1, "session": session_of("a").hex()}
    assert told[0] == ("answer.contradicted", contradicted)


def changed(**fields: Any) -> Callable[[int, Answer], Answer]:
    """By stage 1 only."""
    return lambda stage, answer: replace(answer, **fields) if stage == 1 else answer


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("change", "served", "why"),
    [
        (changed(ids=mark("others")), {}, "stages 0 and 1 have other ids"),
        (changed(taken=mark("others")), {}, "stage 0 has sent other codes than stage 1 has taken"),
        (changed(passed=mark("others")), {}, "stage 1 has sent other codes than stage 2 has taken"),
        (changed(nonce=mark("other nonce")[:16]), {}, "stages 0 and 1 have other nonce"),
        (changed(prompt_tokens=5), {}, "stages 0 and 1 have other prompt_tokens"),
        (changed(fed=9), {}, "stages 0 and 1 have other fed"),
        (changed(seed=8), {}, "stages 0 and 1 have other seed"),
        (changed(temperature=0.25), {}, "stages 0 and 1 have other temperature"),
        (changed(version=20), {}, "stages 0 and 1 have other version"),
        (
            lambda stage, answer: answer if stage else replace(answer, taken=mark("a code")),
            {},
            "a code came into the first stage",
        ),
        (changed(), {"completion": 6}, "the gateway reports 10 tokens; 8 were fed to the stages"),
        (changed(), {"prompt": 3}, "the gateway reports a prompt of 3 tokens, the stages one of 4"),
        (changed(), {"prompt": 5, "completion": 4}, "the gateway reports a prompt of 5 tokens, the stages one of 4"),
        (changed(), {"version": 20}, "the gateway reports version 20, the stages 10"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_an_answer_about_which_they_disagree_is_dropped_and_no_other_with_it(
    world: World, told: Told, change: Callable[[int, Answer], Answer], served: dict[str, int], why: str
) -> None:
    world.kept, world.published = frozenset({10, 20}), 20
    for name in ("a", "b"):
        world.report(name, **(served if name == "a" else {}))
        await world.say(name, change=change if name == "a" else changed())
    assert sessions(world.seal(20).sealed) == [session_of("b")]
    dropped = dict(told)["answer.dropped"]
    assert (dropped["session"], dropped["why"]) == (session_of("a").hex(), why)
    await world.say("a")
    assert world.seal(21).sealed.answers == ()
    assert [name for name, _ in told] == ["answer.dropped", "answer.sealed"]


@pytest.mark.asyncio
async def test_as_many_as_fit_are_sealed_and_the_others_with_the_next_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers_per_round(SPEC) > 100
    monkeypatch.setattr("coordinator.recording.answers_per_round", lambda _: 2)
    for name in "abcde":
        world.report(name)
    for name in "edcba":
        await world.say(name)
    sealed = [sessions(world.seal(round_).sealed) for round_ in range(ROUND, ROUND + 4)]
    assert sealed == [[session_of(name) for name in names] for names in ("ab", "cd", "e", "")]


@pytest.mark.asyncio
async def test_a_version_that_nodes_don_t_keep_takes_its_answers_with_it(world: World, told: Told) -> None:
    world.report("half")
    await world.say("half", 0, 2)
    world.report("late")
    world.kept, world.published = frozenset({20, 30, 40}), 40
    await world.say("late")
    assert world.inboxes[1] == [session_of("late")]  # it needn't keep the trace any longer, either
    assert world.seal(40).sealed.answers == ()
    missing = {"half": "[1]", "late": "[0, 1, 2]"}
    assert [(name, fields["session"], fields["why"]) for name, fields in told] == [
        (
            "answer.dropped",
            session_of(name).hex(),
            f"its version isn't kept any more: stages {n} haven't said their parts",
        )
        for name, n in missing.items()
    ]
    await world.say("half")
    assert world.seal(41).sealed.answers == ()


@pytest.mark.asyncio
async def test_an_answer_waits_for_a_round_in_which_all_who_gave_it_have_worked(
    world: World, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.recording.answers_per_round", lambda _: 1)
    for name in ("a", "b"):
        world.report(name)
        await world.say(name, nodes=NODES if name == "a" else (NODES[0], STRANGER, NODES[2]))
    assert sessions(world.seal(ROUND, instead=STRANGER).sealed) == [session_of("b")], "it holds up no other"
    assert sessions(world.seal(ROUND + 1, instead=STRANGER).sealed) == []
    assert sessions(world.seal(ROUND + 2).sealed) == [session_of("a")]
    assert [name for name, _ in told] == ["answer.sealed"] * 2


@pytest.mark.asyncio
async def test_whose_node_works_in_no_round_any_more_goes_with_its_version(world: World, told: Told) -> None:
    world.report("a")
    await world.say("a")
    world.seal(ROUND, instead=STRANGER)
    world.kept, world.published = frozenset({20, 30, 40}), 40
    world.seal(40)
    assert "whoever said a part has worked in no round since" in dict(told)["answer.dropped"]["why"]


@pytest.mark.asyncio
async def test_parts_of_any_replica_count_as_its_own(world: World) -> None:
    names = [str(number) for number in range(6)]
    for number, name in enumerate(names):
        world.report(name)
        await world.say(name, nodes=NODES if number % 2 else (NODES[0], STRANGER, NODES[2]))
    drawn = world.seal(ROUND, second=STRANGER)
    in_order = sorted((NODES[1].address, STRANGER.address))
    for number, line in enumerate(drawn.sealed.answers):
        signer = NODES[1] if number % 2 else STRANGER
        assert [part.replica for part in line.parts] == [0, in_order.index(signer.address), 0]
        digest = line.part_receipt(PLACE.model_id, 1).digest(PLACE.domain)
        assert recover_address(digest, bytes.fromhex(line.parts[1].signature[2:])) == signer.address
    told = drawn.told.answers
    assert [list(each.replicas) for each in told] == [
        [part.replica for part in line.parts] for line in drawn.sealed.answers
    ]
    units = [audit for audit in drawn.audits if audit.kind is Kind.ANSWER and audit.stage == 1]
    assert units
    for audit in units:
        assert drawn.sealed.provider(audit).node == (NODES[1] if audit.answer % 2 else STRANGER).address
        whole = pb.StageReport.FromString(world.ledger.unaudited_report(ROUND, 1, audit.replica))
        assert report_from_proto(whole).load == share(MICROBATCHES, 2)[audit.replica]
        part, root = world.ledger.answer_claim(ROUND, audit.answer, 1)
        assert answer_from_proto(pb.AnswerPart.FromString(part)) == parts_of(names[audit.answer])[1]
        assert root == mark("state", VERSION, 1)


@pytest.mark.asyncio
async def test_a_flood_of_one_replica_pushes_out_none_of_another_s_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "MAX_PARTS", 4)
    await world.say("a")
    for number in range(8):
        await world.say(f"flood {number}", 1, nodes=(NODES[0], STRANGER, NODES[2]))
    world.report("a")
    assert sessions(world.seal(ROUND, second=STRANGER).sealed) == [session_of("a")]


@pytest.mark.asyncio
async def test_a_flood_of_sessions_that_nobody_reports_pushes_out_its_own_node_s_parts_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "MAX_PARTS", 4)
    await world.say("a")
    for number in range(4):
        await world.say(f"flood {number}", 1)
    await world.say("b")
    for name in "ab":
        world.report(name)
    assert sessions(world.seal(ROUND).sealed) == [session_of("b")]


@pytest.mark.asyncio
async def test_a_flood_doesn_t_push_out_what_a_gateway_has_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "MAX_PARTS", 4)
    world.report("a")
    await world.say("a")
    for number in range(8):
        await world.say(f"flood {number}", 1)
    assert sessions(world.seal(ROUND).sealed) == [session_of("a")]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("table", "change", "why"),
    [
        ("served", "completion_tokens = 0", "completion_tokens"),
        ("served", "signature = x'07'", "signature"),
        ("parts", "part = x'ff'", "Error parsing message"),
        ("parts", "part = x''", "session: an id has 16 bytes"),
    ],
)
async def test_no_row_of_the_ledger_stops_a_round(world: World, told: Told, table: str, change: str, why: str) -> None:
    for name in ("a", "b"):
        world.report(name)
        await world.say(name)
    with closing(sqlite3.connect(world.file)) as connection, connection:
        connection.execute(f"UPDATE {table} SET {change} WHERE session = ?", (session_of("a"),))
    assert sessions(world.seal(ROUND).sealed) == [session_of("b")]
    assert [name for name, _ in told] == ["answer.dropped", "answer.sealed"]
    assert "what the ledger has of it is no answer" in told[0][1]["why"]
    assert why in told[0][1]["why"]
    world.seal(ROUND + 1)
    assert [name for name, _ in told] == ["answer.dropped", "answer.sealed"]


@pytest.mark.asyncio
async def test_while_the_database_fails_nothing_is_acknowledged_and_nobody_hung_up_on(
    world: World, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> bool:
        raise LedgerError("The ledger's database failed: database is locked.")

    world.report("a")
    with monkeypatch.context() as patched:
        patched.setattr(world.ledger, "record_part", failing)
        await world.say("a", 1)
    assert world.inboxes[1] == []
    await world.say("a")
    assert sessions(world.seal(ROUND).sealed) == [session_of("a")]
    failed = {"node": NODES[1].address, "stage": 1, "session": session_of("a").hex()}
    message = "The ledger's database failed: database is locked."
    assert told[0] == ("answer.unrecorded", failed | {"message": message})


ANSWER = parts_of("a")[1]
ELSEWHERE = Place(PLACE.model_id, Domain(1, PLACE.domain.settlement))
Bad = dict[str, tuple[Callable[[World], pb.SignedAnswer], str]]
NEVER_COUNTS: Bad = {
    "another stage's": (lambda w: w.signed(1, parts_of("a")[0], as_stage=0), "as stage 1's part it is signed by 0x"),
    "another node's": (lambda w: w.signed(1, ANSWER, NODES[0]), f"signed by {NODES[0].address}"),
    "another chain's": (lambda w: w.signed(1, ANSWER, place=ELSEWHERE), "it is signed by 0x"),
    "the first version": (lambda w: w.signed(1, replace(ANSWER, version=0)), "round 0 was never published"),
    "no epoch's end": (lambda w: w.signed(1, replace(ANSWER, version=9)), "round 9 was never published"),
    "not yet": (lambda w: w.signed(1, replace(ANSWER, version=20)), "round 20 was never published"),
    "never": (lambda w: w.signed(1, replace(ANSWER, version=2**64 - 1)), "was never published"),
    "too long": (lambda w: w.signed(1, replace(ANSWER, fed=CONTEXT + 1)), "don't fit"),
}
MALFORMED: Bad = {
    "no signature": (lambda w: pb.SignedAnswer(part=answer_to_proto(ANSWER)), "has 65 bytes"),
    "no part": (lambda w: pb.SignedAnswer(signature=bytes(65)), "session"),
    "nothing fed": (lambda w: w.signed(1, replace(ANSWER, fed=0)), "fed"),
    "no prompt": (lambda w: w.signed(1, replace(ANSWER, prompt_tokens=0)), "prompt_tokens"),
    "short session": (lambda w: w.signed(1, replace(ANSWER, session=b"s" * 15)), "session"),
    "short nonce": (lambda w: w.signed(1, replace(ANSWER, nonce=b"n" * 15)), "nonce"),
    "short hash": (lambda w: w.signed(1, replace(ANSWER, passed=b"p" * 31)), "passed"),
    "too hot": (lambda w: w.signed(1, replace(ANSWER, temperature=100.5)), "temperature"),
    "no number": (lambda w: w.signed(1, replace(ANSWER, temperature=float("nan"))), "temperature"),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("bad", NEVER_COUNTS)
async def test_a_part_that_can_t_count_is_never_said_again_and_the_right_one_still_counts(
    world: World, told: Told, bad: str
) -> None:
    make, why = NEVER_COUNTS[bad]
    await world.answers.take(world.member(1), 1, make(world))
    assert world.inboxes[1] == [session_of("a")]
    ((name, fields),) = told
    assert (name, fields["node"], fields["stage"]) == ("answer.refused", NODES[1].address, 1)
    assert why in fields["why"]
    told.clear()
    world.report("a")
    await world.say("a")
    assert sessions(world.seal(ROUND).sealed) == [session_of("a")]
    assert [name for name, _ in told] == ["answer.sealed"]


@pytest.mark.asyncio
@pytest.mark.parametrize("bad", MALFORMED)
async def test_what_is_no_part_is_malformed_and_the_right_one_still_counts(world: World, told: Told, bad: str) -> None:
    make, match = MALFORMED[bad]
    with pytest.raises(MalformedMessage, match=match):
        await world.answers.take(world.member(1), 1, make(world))
    assert world.inboxes[1] == []
    world.report("a")
    await world.say("a")
    assert sessions(world.seal(ROUND).sealed) == [session_of("a")]
    assert [name for name, _ in told] == ["answer.sealed"]


@pytest.mark.asyncio
async def test_who_holds_no_stage_has_no_part(world: World, told: Told) -> None:
    await world.answers.take(world.member(1), None, world.signed(1, ANSWER))
    assert world.inboxes[1] == [session_of("a")]
    refused = {"node": NODES[1].address, "stage": None, "session": session_of("a").hex()}
    assert told == [("answer.refused", refused | {"why": "this node holds no stage"})]


@pytest.mark.asyncio
async def test_what_a_newer_node_adds_to_a_part_isn_t_taken_for_another(world: World, told: Told) -> None:
    """Fields that this coordinator doesn't know, or in another order, are no part of what was signed."""
    signed = world.signed(0, parts_of("a")[0])
    await world.answers.take(world.member(0), 0, signed)
    unknown = struct.pack("<BB", 15 << 3, 1)
    signed.part.MergeFromString(unknown)
    await world.answers.take(world.member(0), 0, pb.SignedAnswer.FromString(signed.SerializeToString()))
    assert told == []
    assert parts_of("a")[0].taken == NO_TENSOR
