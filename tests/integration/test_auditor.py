"""An auditor against a coordinator that says what the test wants, over real TLS, with a real referee process."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from auditor import control as control_module
from auditor.control import Auditor, AuditorConfig
from commonweight.chain.keys import import_key
from commonweight.errors import CommonweightError, MalformedMessage, Refused, UnplannedMessage
from commonweight.events import Event, parse_event
from commonweight.identity import NodeIdentity, recover_address
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.merkle import keccak
from commonweight.rules.panel import opinion_receipt, recording_receipt
from commonweight.rules.receipt import Domain, Receipt
from commonweight.wire import attachment as attachment_module
from commonweight.wire import referee as referee_module
from commonweight.wire.channel import serve
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import control_pb2_grpc
from commonweight.wire.messages import audit_to_proto, report_to_proto
from commonweight.wire.tls import enrolment_credentials, make_certificate, peer_of, server_credentials
from tests.integration.fake_referee import EVIDENCE, OPERATORS
from tests.integration.scripted import honest_report
from tests.unit.tiny import tiny_spec

pytestmark = pytest.mark.asyncio

DEADLINE_S = 60
SPEC = tiny_spec()
STAGES, MICROBATCHES = SPEC.stages, SPEC.training.microbatches_per_round
IDENTITY = NodeIdentity(b"\x05" * 32)
MODEL = b"\xaa" * 32
DOMAIN = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
ENLISTED = pb.Enlisted(
    spec=canonical_json(SPEC.model_dump()), model_id=MODEL, chain_id=DOMAIN.chain_id, settlement=DOMAIN.settlement
)


class Stream:
    """One auditor's attachment, as the coordinator sees it."""

    def __init__(self, peer_id: str) -> None:
        self.peer_id = peer_id
        self.heartbeats = asyncio.Semaphore(0)
        self.heard: asyncio.Queue[pb.NodeMessage] = asyncio.Queue()
        """But for heartbeats."""
        self.outbox: asyncio.Queue[pb.CoordinatorMessage | None] = asyncio.Queue()

    def say(self, **body: Any) -> None:
        self.outbox.put_nowait(pb.CoordinatorMessage(**body))

    def end(self) -> None:
        self.outbox.put_nowait(None)

    async def hear(self, kind: str) -> Any:
        message = await self.heard.get()
        assert message.WhichOneof("body") == kind
        return getattr(message, kind)

    async def enlist(self, enlisted: pb.Enlisted = ENLISTED) -> pb.AuditorJoin:
        join: pb.AuditorJoin = await self.hear("auditor")
        self.say(enlisted=enlisted)
        return join


class Coordinator(control_pb2_grpc.ControlServicer, control_pb2_grpc.EnrolmentServicer):
    """Admits everybody."""

    def __init__(self) -> None:
        self.certificate = make_certificate(NodeIdentity(b"\x09" * 32))
        self.peer = ""
        self.control_port = 0
        self.admitted: list[bytes] = []
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()

    async def Enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolResponse:
        self.admitted.append(request.certificate)
        return pb.EnrolResponse(control_port=self.control_port)

    async def Attach(self, requests: AsyncIterator[pb.NodeMessage], context: Any) -> AsyncIterator[Any]:
        stream = Stream(peer_of(context, lambda: self.admitted))
        self.streams.put_nowait(stream)

        async def read() -> None:
            async for message in requests:
                if message.HasField("heartbeat"):
                    stream.heartbeats.release()
                else:
                    stream.heard.put_nowait(message)

        reader = asyncio.create_task(read())
        try:
            while (message := await stream.outbox.get()) is not None:
                yield message
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Coordinator"]:
        control = [(control_pb2_grpc.add_ControlServicer_to_server, self)]
        enrolment = [(control_pb2_grpc.add_EnrolmentServicer_to_server, self)]
        credentials = server_credentials(self.certificate, lambda: self.admitted)
        controller, self.control_port = await serve(control, "127.0.0.1:0", credentials)
        enroller, port = await serve(enrolment, "127.0.0.1:0", enrolment_credentials(self.certificate))
        self.peer = f"{self.certificate.peer_id}@127.0.0.1:{port}"
        try:
            yield self
        finally:
            await asyncio.gather(controller.stop(None), enroller.stop(None))


class Bench:
    """A coordinator, its auditor, and what that has told."""

    def __init__(self, coordinator: Coordinator, events: list[Event]) -> None:
        self.coordinator = coordinator
        self.events = events
        self.audited: asyncio.Task[None] | None = None

    async def start(self, how: str) -> Stream:
        """An auditor, whose referee is the fake one; it awaits the answer to its join."""
        config = AuditorConfig(IDENTITY, self.coordinator.peer, device=how, threads=1)
        self.audited = asyncio.create_task(Auditor(config).run())
        return await self.coordinator.streams.get()

    async def enlisted(self, how: str) -> Stream:
        stream = await self.start(how)
        await stream.enlist()
        return stream

    async def failure(self) -> CommonweightError:
        """What the auditor ends with."""
        assert self.audited is not None
        with pytest.raises(CommonweightError) as raised:
            await self.audited
        return raised.value

    def told(self, name: str) -> list[dict[str, Any]]:
        return [event.fields for event in self.events if event.name == name]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    found: list[Event] = []

    def emit(name: str, /, **fields: Any) -> None:
        found.append(Event(name, fields, 0.0, 0))

    for module in (control_module, attachment_module, referee_module):
        monkeypatch.setattr(module, "emit", emit)
    monkeypatch.setattr(referee_module, "MODULE", "tests.integration.fake_referee")
    monkeypatch.setattr(referee_module, "STOP_S", 0.2)
    monkeypatch.setattr(attachment_module, "HEARTBEAT_S", 0.02)
    return found


@pytest.fixture
def bench(events: list[Event]) -> Callable[[], Any]:
    @asynccontextmanager
    async def open_bench() -> AsyncIterator[Bench]:
        async with asyncio.timeout(DEADLINE_S), Coordinator().listening() as coordinator:
            opened = Bench(coordinator, events)
            try:
                yield opened
            finally:
                if opened.audited is not None:
                    opened.audited.cancel()
                    await asyncio.gather(opened.audited, return_exceptions=True)

    return open_bench


def order(audit: Audit) -> pb.AuditOrder:
    report = report_to_proto(honest_report(audit.round, audit.stage, STAGES, MICROBATCHES))
    return pb.AuditOrder(unit=audit_to_proto(audit), report=report)


def claim(audit: Audit) -> bytes:
    return honest_report(audit.round, audit.stage, STAGES, MICROBATCHES).commitments(MICROBATCHES).claim


def signer(receipt: Receipt, signature: bytes) -> str:
    return recover_address(receipt.digest(DOMAIN), signature)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


WHOLE = Audit(3, 1, Kind.ROUND)
SINGLE = Audit(4, 0, Kind.MICROBATCH, 1)
FIRST = Audit(4, 0, Kind.MICROBATCH, 0)


async def test_it_answers_one_order_after_the_other_and_ends_with_the_training(bench: Any) -> None:
    async with bench() as at:
        stream = await at.start("honest")
        join = await stream.enlist()
        assert stream.peer_id == IDENTITY.peer_id
        assert join.certificate == at.coordinator.admitted[0]
        for audit in (WHOLE, SINGLE):  # the second waits for the first
            stream.say(order=order(audit))
        for audit in (WHOLE, SINGLE):
            opinion = await stream.hear("opinion")
            assert (opinion.unit, opinion.verdict, opinion.evidence) == (order(audit).unit, "passed", b"")
            receipt = opinion_receipt(MODEL, audit, claim(audit), Verdict.PASSED, NO_EVIDENCE)
            assert signer(receipt, opinion.signature) == IDENTITY.address
        (started,) = at.told("referee.started")
        assert is_running(started["referee_pid"])
        stream.say(finished=pb.Finished())
        await at.audited
        assert not is_running(started["referee_pid"])
    assert at.told("auditor.started") == [{"node": IDENTITY.address, "peer_id": IDENTITY.peer_id}]
    assert at.told("auditor.enlisted") == [{"model_id": "0x" + MODEL.hex()}]
    units = [
        {"round": 3, "stage": 1, "replica": 0, "kind": "round", "microbatch": None},
        {"round": 4, "stage": 0, "replica": 0, "kind": "microbatch", "microbatch": 1},
    ]
    assert at.told("audit.ordered") == units
    said = {"verdict": "passed", "why": "", "seconds": 0.0, "cpu_seconds": 0.0, "fetched_bytes": 0}
    assert at.told("audit.answered") == [unit | said for unit in units]
    assert at.told("auditor.finished") == [{}]


async def test_no_referee_is_started_before_there_is_an_order(bench: Any) -> None:
    async with bench() as at:
        stream = await at.enlisted("honest")
        stream.say(finished=pb.Finished())
        await at.audited
    assert at.told("referee.started") == []


async def test_fraud_is_said_by_one_referee(bench: Any) -> None:
    """Others replay it, too, before it counts."""
    async with bench() as at:
        stream = await at.enlisted("fraud")
        stream.say(order=order(WHOLE))
        opinion = await stream.hear("opinion")
        assert (opinion.verdict, opinion.evidence) == ("failed", EVIDENCE)
        receipt = opinion_receipt(MODEL, WHOLE, claim(WHOLE), Verdict.FAILED, keccak(EVIDENCE))
        assert signer(receipt, opinion.signature) == IDENTITY.address
    assert len(at.told("referee.started")) == 1


async def test_what_three_referees_die_of_is_undecided(bench: Any) -> None:
    async with bench() as at:
        stream = await at.enlisted("dies")
        stream.say(order=order(SINGLE))
        opinion = await stream.hear("opinion")
        assert opinion.verdict == "undecided"
        assert opinion.why.startswith("3 attempts. The referee (pid ")
        receipt = opinion_receipt(MODEL, SINGLE, claim(SINGLE), Verdict.UNDECIDED, NO_EVIDENCE)
        assert signer(receipt, opinion.signature) == IDENTITY.address
    assert [(died["round"], died["stage"]) for died in at.told("referee.died")] == [(4, 0)] * 3


async def test_a_coordinator_that_is_gone_is_come_back_to_and_its_order_forgotten(bench: Any) -> None:
    async with bench() as at:
        stream = await at.enlisted("silent on microbatch 0")
        stream.say(order=order(FIRST))
        while not at.told("referee.started"):
            await stream.heartbeats.acquire()
        for _ in range(3):  # the stream goes on while the referee is at work
            await stream.heartbeats.acquire()
        (abandoned,) = at.told("referee.started")
        stream.end()
        stream = await at.coordinator.streams.get()
        assert not is_running(abandoned["referee_pid"])
        await stream.enlist()
        stream.say(order=order(SINGLE))
        assert (await stream.hear("opinion")).unit == order(SINGLE).unit
    (lost,) = at.told("coordinator.lost")
    assert (lost["code"], lost["retry_s"]) == ("WIRE_UNREACHABLE", 0.2)
    assert at.told("referee.died") == []


async def test_it_says_by_which_operators_it_came_to_its_opinion(bench: Any) -> None:
    async with bench() as at:
        stream = await at.enlisted("honest")
        stream.say(recording=order(WHOLE))
        recording = await stream.hear("recording")
        assert (recording.unit, recording.operators) == (order(WHOLE).unit, OPERATORS)
        receipt = recording_receipt(MODEL, WHOLE, claim(WHOLE), OPERATORS)
        assert signer(receipt, recording.signature) == IDENTITY.address
    unit = {"round": 3, "stage": 1, "replica": 0, "kind": "round", "microbatch": None}
    assert at.told("audit.recorded") == [unit | {"operators": 4, "why": ""}]


@pytest.mark.parametrize(("how", "why"), [("can't record", "It is of another class."), ("dies", "3 attempts. ")])
async def test_a_recording_that_it_can_t_give_is_an_empty_one(bench: Any, how: str, why: str) -> None:
    async with bench() as at:
        stream = await at.enlisted(how)
        stream.say(recording=order(SINGLE))
        recording = await stream.hear("recording")
        assert recording.operators == b""
        receipt = recording_receipt(MODEL, SINGLE, claim(SINGLE), b"")
        assert signer(receipt, recording.signature) == IDENTITY.address
    (told,) = at.told("audit.recorded")
    assert told["operators"] == 0
    assert told["why"].startswith(why)


async def test_what_makes_no_sense_ends_it(bench: Any) -> None:
    async with bench() as at:
        stream = await at.enlisted("honest")
        nonsense = order(WHOLE)
        nonsense.report.round += 1
        stream.say(order=nonsense)
        error = await at.failure()
        assert isinstance(error, MalformedMessage)
        assert "of round 4, stage 1" in str(error)
    assert at.told("referee.started") == []


@pytest.mark.parametrize("recording", [False, True])
async def test_more_orders_than_it_takes_end_it(bench: Any, recording: bool) -> None:
    async with bench() as at:
        stream = await at.enlisted("silent")
        for _ in range(control_module.MAX_WAITING + 2):
            stream.say(**{"recording" if recording else "order": order(WHOLE)})
        assert isinstance(await at.failure(), UnplannedMessage)
    assert all(not is_running(started["referee_pid"]) for started in at.told("referee.started"))


async def test_it_is_not_what_it_did_not_ask_for(bench: Any) -> None:
    async with bench() as at:
        stream = await at.start("honest")
        stream.say(assignment=pb.Assignment())
        error = await at.failure()
        assert isinstance(error, MalformedMessage)
        assert "assignment" in str(error)
    async with bench() as at:
        stream = await at.enlisted("honest")
        stream.say(plan=pb.RoundPlan())
        error = await at.failure()
        assert isinstance(error, UnplannedMessage)
        assert "plan" in str(error)


async def test_it_audits_one_model(bench: Any) -> None:
    async with bench() as at:
        stream = await at.enlisted("honest")
        stream.end()
        other = pb.Enlisted()
        other.CopyFrom(ENLISTED)
        other.model_id = b"\xbb" * 32
        await (await at.coordinator.streams.get()).enlist(other)
        error = await at.failure()
        assert isinstance(error, Refused)
        assert "Restart the auditor" in str(error)


@pytest.mark.parametrize("fields", [{"model_id": b"\xaa"}, {"settlement": "0x5FbD"}])
async def test_a_model_that_is_none_ends_it(bench: Any, fields: dict[str, Any]) -> None:
    async with bench() as at:
        stream = await at.start("honest")
        told = pb.Enlisted(spec=ENLISTED.spec, model_id=fields.get("model_id", MODEL), chain_id=1)
        told.settlement = fields.get("settlement", DOMAIN.settlement)
        await stream.enlist(told)
        assert isinstance(await at.failure(), MalformedMessage)


async def test_the_command_replays_with_the_real_referee(tmp_path: Path) -> None:
    """Nobody has what this unit takes: that is what it says, and it ends when all is done."""
    password = tmp_path / "password"
    password.write_text("a password\n")
    password.chmod(0o600)
    import_key(tmp_path / "auditor.json", "a password", b"\x05" * 32, scrypt_n=2)
    async with asyncio.timeout(DEADLINE_S), Coordinator().listening() as coordinator:
        words = [sys.executable, "-m", "commonweight", "auditor", "run", "--coordinator", coordinator.peer]
        words += ["--key", str(tmp_path / "auditor.json"), "--password-file", str(password)]
        process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
        try:
            stream = await coordinator.streams.get()
            await stream.enlist()
            stream.say(order=order(SINGLE))
            opinion = await stream.hear("opinion")
            assert opinion.verdict == "withheld", opinion.why
            receipt = opinion_receipt(MODEL, SINGLE, claim(SINGLE), Verdict.WITHHELD, NO_EVIDENCE)
            assert signer(receipt, opinion.signature) == IDENTITY.address
            stream.say(finished=pb.Finished())
            output, _ = await process.communicate()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert process.returncode == 0
    events = [event.name for line in output.splitlines() if (event := parse_event(line))]
    assert events == [
        "auditor.started",
        "auditor.enlisted",
        "audit.ordered",
        "referee.started",
        "audit.answered",
        "auditor.finished",
    ]
