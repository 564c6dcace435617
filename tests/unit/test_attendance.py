"""Who is taken in on a control stream, and what it may say there."""

import asyncio
from typing import Any

import pytest

from commonweight.errors import CommonweightError, MalformedMessage, Refused, UnplannedMessage
from commonweight.identity import NodeIdentity
from commonweight.rules.load import Load
from commonweight.rules.report import report_receipt
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import report_to_proto
from commonweight.wire.tls import make_certificate
from coordinator.attendance import AttendingAuditor, AttendingNode, Reception
from coordinator.auditors import Auditors
from coordinator.members import Member, Submission
from coordinator.seats import Standing
from tests.unit.auditing_world import MICROBATCHES, PLACE, SPEC
from tools.build_vectors import honest_reports

pytestmark = pytest.mark.asyncio

IDENTITY, OTHER = (NodeIdentity(bytes([number]) * 32) for number in (0x51, 0x52))
CERTIFICATE = make_certificate(IDENTITY)
OWNER = OTHER.address
ACCOUNT = NodeIdentity(b"\x53" * 32).address
TIP = b"\x09" * 32


class World:
    """Training, serving, answers and seats, as far as the reception asks them."""

    def __init__(self, stages: frozenset[int] | None = frozenset({0, 2})) -> None:
        self.stages = stages
        self.holds: int | None = None
        self.joined: list[Member] = []
        self.left: list[Member] = []
        self.sent: list[Any] = []
        self.answered: list[tuple[str, int | None, bytes]] = []
        self.said: list[tuple[Any, ...]] = []
        """To the training."""
        self.free = asyncio.Event()
        """Whether the training has taken what was said."""
        self.free.set()
        self.place, self.spec, self.round = PLACE, SPEC, 0
        self.auditors = Auditors(SPEC, PLACE)
        self.reception = Reception(self, self, self, self.auditors, self)  # type: ignore[arg-type]

    def standing(self, node: str, wished: str, holds: int | None = None) -> Standing:
        assert (node, holds) == (IDENTITY.address, self.holds)
        assert wished in (ACCOUNT, node), "an auditor has no wish"
        return Standing(self.stages, ACCOUNT, OWNER)

    def stage_of(self, node: str) -> int | None:
        return self.holds

    async def take(self, member: Member, stage: int | None, signed: pb.SignedAnswer) -> None:
        self.answered.append((member.node, stage, signed.part.session))

    def join(self, member: Member) -> None:
        self.joined.append(member)

    def leave(self, member: Member) -> None:
        self.left.append(member)

    def note_version(self, member: Member, round_: int) -> None:
        self.said.append(("version", member.node, round_))

    def break_pipes(self, member: Member, generation: int, why: str, peer: str | None) -> None:
        self.said.append(("broken", member.node, generation, why, peer))

    def submit(self, member: Member, submission: Submission) -> None:
        self.said.append(("report", member.node, submission.report.load))

    async def taken(self) -> None:
        await self.free.wait()

    def tip_of(self, round_: int) -> bytes:
        return TIP

    def send(self, message: pb.CoordinatorMessage | CommonweightError) -> None:
        self.sent.append(message)

    async def introduce(self, **body: Any) -> AttendingNode | AttendingAuditor:
        return await self.reception.introduce(pb.NodeMessage(**body), IDENTITY.peer_id, self.send)


def auditor_join(**fields: Any) -> pb.AuditorJoin:
    return pb.AuditorJoin(**({"certificate": CERTIFICATE.der} | fields))


def node_join() -> pb.Join:
    return pb.Join(
        certificate=CERTIFICATE.der,
        payout_account=ACCOUNT,
        data_address="127.0.0.1:9",
        evidence_address="127.0.0.1:9",
        has_data=True,
    )


async def test_an_auditor_is_enlisted_with_its_owner_s_seats() -> None:
    world = World()
    attending = await world.introduce(auditor=auditor_join())
    (member,) = world.auditors.members
    assert attending.node == member.node == IDENTITY.address
    assert (member.owner, member.account, member.stages) == (OWNER, ACCOUNT, frozenset({0, 2}))
    assert member.certificate == CERTIFICATE.der
    assert [message.WhichOneof("body") for message in world.sent] == ["enlisted"]
    await attending.take(pb.NodeMessage(heartbeat=pb.Heartbeat()))
    with pytest.raises(UnplannedMessage):
        await attending.take(pb.NodeMessage(opinion=pb.AuditOpinion()))
    with pytest.raises(UnplannedMessage):
        await attending.take(pb.NodeMessage(recording=pb.AuditRecording()))
    with pytest.raises(MalformedMessage, match="doesn't send report"):
        await attending.take(pb.NodeMessage(report=pb.SignedReport()))
    attending.leave()
    assert world.auditors.members == ()
    attending.leave()  # it was hung up on before


async def test_who_audits_trains_nothing_and_who_trains_doesn_t_audit() -> None:
    world = World()
    await world.introduce(auditor=auditor_join())
    with pytest.raises(Refused, match="connected as an auditor's"):
        await world.introduce(join=node_join())
    world = World()
    world.holds = 1
    with pytest.raises(Refused, match="trains stage 1"):
        await world.introduce(auditor=auditor_join())


async def test_a_second_connection_of_a_key_is_refused_while_the_first_counts() -> None:
    world = World()
    first = await world.introduce(auditor=auditor_join())
    with pytest.raises(Refused, match="already connected"):
        await world.introduce(auditor=auditor_join())
    first.leave()
    await world.introduce(auditor=auditor_join())


async def test_a_model_without_seats_has_no_auditors() -> None:
    with pytest.raises(Refused, match="no seats"):
        await World(stages=None).introduce(auditor=auditor_join())


async def test_what_an_auditor_says_of_itself_is_checked() -> None:
    world = World()
    with pytest.raises(Refused, match="certificate is of"):
        await world.introduce(auditor=auditor_join(certificate=make_certificate(OTHER).der))
    with pytest.raises(MalformedMessage, match="begins with a join"):
        await world.introduce(opinion=pb.AuditOpinion())
    assert world.auditors.members == ()


async def test_a_node_joins_with_its_owner() -> None:
    world = World()
    attending = await world.introduce(join=node_join())
    (member,) = world.joined
    assert (member.owner, member.account, member.stages) == (OWNER, ACCOUNT, frozenset({0, 2}))
    with pytest.raises(MalformedMessage, match="doesn't send opinion"):
        await attending.take(pb.NodeMessage(opinion=pb.AuditOpinion()))
    attending.leave()
    assert world.left == [member]


async def test_a_node_s_answers_are_taken_as_those_of_the_stage_that_it_holds() -> None:
    world = World()
    attending = await world.introduce(join=node_join())
    message = pb.NodeMessage(answer=pb.SignedAnswer(part=pb.AnswerPart(session=b"s" * 16)))
    await attending.take(message)
    world.holds = 2
    await attending.take(message)
    assert world.answered == [(IDENTITY.address, stage, b"s" * 16) for stage in (None, 2)]


async def test_a_node_is_heard_no_faster_than_what_it_says_is_taken() -> None:
    """The rest stays with gRPC, which has the node wait."""
    world = World()
    attending = await world.introduce(join=node_join())
    world.free.clear()
    taking = asyncio.create_task(attending.take(pb.NodeMessage(version=pb.HasVersion(round=7))))
    await asyncio.sleep(0)
    assert world.said == [("version", IDENTITY.address, 7)]
    assert not taking.done()
    await attending.take(pb.NodeMessage(heartbeat=pb.Heartbeat()))  # costs nothing
    world.free.set()
    await taking


async def test_a_node_says_which_version_it_has_and_with_whom_a_pipe_broke() -> None:
    world = World()
    attending = await world.introduce(join=node_join())
    await attending.take(pb.NodeMessage(version=pb.HasVersion(round=7)))
    for peer_id in ("", OTHER.peer_id):
        failed = pb.PipesFailed(generation=3, code="WIRE_UNREACHABLE", why="nobody there", peer_id=peer_id)
        await attending.take(pb.NodeMessage(pipes_failed=failed))
    node, why = IDENTITY.address, "WIRE_UNREACHABLE: nobody there"
    assert world.said == [
        ("version", node, 7),
        ("broken", node, 3, why, None),
        ("broken", node, 3, why, OTHER.address),
    ]
    with pytest.raises(MalformedMessage):
        await attending.take(pb.NodeMessage(pipes_failed=pb.PipesFailed(generation=3, peer_id="nobody")))


def signed(load: Load, busy_s: float) -> pb.SignedReport:
    """IDENTITY's, of round 0."""
    (report,) = honest_reports(1, max(MICROBATCHES, *load, 0) + 1, 0, [[load]])
    signed = pb.SignedReport(generation=1, report=report_to_proto(report, 0.5, busy_s))
    if max(load, default=0) < MICROBATCHES:
        receipt = report_receipt(PLACE.model_id, 1, 0, 0, report.commitments(MICROBATCHES), TIP)
        signed.signature = IDENTITY.sign_digest(receipt.digest(PLACE.domain))
    return signed


async def test_a_replica_reports_its_load_or_none() -> None:
    world = World()
    attending = await world.introduce(join=node_join())
    for load, busy_s in (((0, 2), 0.25), ((), 0.0)):
        await attending.take(pb.NodeMessage(report=signed(load, busy_s)))
    assert world.said == [("report", IDENTITY.address, load) for load in ((0, 2), ())]
    other = signed((0, 2), 0.25)
    other.report.round_gradient_hash = bytes(32)
    with pytest.raises(Refused, match="is signed by"):
        await attending.take(pb.NodeMessage(report=other))


@pytest.mark.parametrize(
    ("report", "match"),
    [
        (signed((0, MICROBATCHES), 0.25), "microbatch 3 of a round of 3"),
        (signed((0,), 0.0), "in 0.0 s"),
        (signed((0, 1, 2), 5e-324), "in 5e-324 s"),
    ],
)
async def test_a_load_that_can_t_be_and_work_in_no_time_are_malformed(report: pb.SignedReport, match: str) -> None:
    world = World()
    attending = await world.introduce(join=node_join())
    with pytest.raises(MalformedMessage, match=match):
        await attending.take(pb.NodeMessage(report=report))
    assert world.said == []
