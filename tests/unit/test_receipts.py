"""What a node signs, and that it never signs twice for one unit."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest

from commonweight.disk import replace_file
from commonweight.errors import CommitmentBroken, MalformedMessage, PeerUnreachable, StateError
from commonweight.identity import NodeIdentity
from commonweight.rules.beacon import blinded, hash_chain
from commonweight.rules.canonical import canonical_json
from commonweight.rules.load import pack_load
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.report import Hop, Report
from commonweight.rules.statement import to_hex
from commonweight.watch.judge import OwnReceipt
from commonweight.wire.attachment import Attachment
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import worker_pb2
from commonweight.wire.messages import report_to_proto
from commonweight.wire.tls import make_certificate
from node import attending as attending_module
from node import receipts as receipts_module
from node.attending import Session
from node.evidence import Evidence
from node.receipts import Receipts
from node.watching import Watch
from tests.unit.tiny import tiny_spec


def receipts(folder: Path) -> Receipts:
    return Receipts(folder / "receipts", rounds_per_epoch=2)


def own(round_: int, generation: int = 1) -> OwnReceipt:
    return OwnReceipt(round=round_, stage=0, generation=generation, signature="0x" + f"{round_:02x}" * 65)


def test_later_units_are_promised_and_the_same_one_again(tmp_path: Path) -> None:
    mine = receipts(tmp_path)
    for generation, round_ in ((1, 0), (1, 1), (3, 1), (3, 2)):
        for _ in range(2):
            mine.promise(generation, round_, 0, bytes([generation, round_]) * 16, is_loaded=True)


@pytest.mark.parametrize(("generation", "round_"), [(3, 5), (3, 4), (2, 9)])
def test_no_second_output_for_a_unit_even_after_a_restart(tmp_path: Path, generation: int, round_: int) -> None:
    receipts(tmp_path).promise(3, 5, 0, b"\1" * 32, is_loaded=True)
    with pytest.raises(StateError, match="won't sign"):
        receipts(tmp_path).promise(generation, round_, 0, b"\2" * 32, is_loaded=True)
    receipts(tmp_path).promise(3, 5, 0, b"\1" * 32, is_loaded=True)  # a report that is sent again
    receipts(tmp_path).promise(3, 6, 0, b"\2" * 32, is_loaded=True)


def test_a_damaged_memory_is_not_taken_for_none(tmp_path: Path) -> None:
    receipts(tmp_path).promise(1, 0, 0, b"\1" * 32, is_loaded=True)
    (tmp_path / "receipts" / "last.json").write_text("{")
    with pytest.raises(StateError, match="can't be read"):
        receipts(tmp_path)


def test_only_sealed_rounds_are_kept_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    mine = receipts(tmp_path)
    mine.promise(1, 0, 0, b"\1" * 32, is_loaded=True)
    mine.signed(own(0))
    mine.signed(own(1))
    mine.signed(own(1, generation=2))  # the round was trained again
    mine.signed(own(2))
    assert mine.of_epoch(0) == ()
    mine.seal(0)
    mine.seal(1)
    mine.seal(1)
    with (tmp_path / "receipts" / "epoch-00000000.jsonl").open("a") as file:
        file.write('{"round": 1, "sta')
    assert receipts(tmp_path).of_epoch(0) == [own(0), own(1, generation=2)]
    assert mine.of_epoch(1) == ()


IDENTITY = NodeIdentity(b"\1" * 32)
SPEC = tiny_spec()
ASSIGNMENT = pb.Assignment(spec=canonical_json(SPEC.model_dump()), model_id=bytes(32), chain_id=1)
ASSIGNMENT.settlement = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
DOMAIN = Domain(ASSIGNMENT.chain_id, ASSIGNMENT.settlement)
HASH = b"\2" * 32
MICROBATCHES = SPEC.training.microbatches_per_round
REPORT = Report(5, 0, tuple(Hop(j, *[HASH] * 6, loss=0.0) for j in range(MICROBATCHES)), *[HASH] * 4)
CHAIN = hash_chain(HASH, SPEC.economics.rounds_per_epoch)
PLAN = pb.RoundPlan(generation=1, round=5, beacon_tip=CHAIN[0])
SALT = b"\3" * 32
COMMITMENTS = [blinded(REPORT.commitments(MICROBATCHES).output(CHAIN[0]), SALT), HASH]


def stages_with(commitments: list[bytes]) -> list[pb.SealedStage]:
    load = pack_load(range(MICROBATCHES), MICROBATCHES)
    return [pb.SealedStage(commitments=[each], loads=[load]) for each in commitments]


def a_seal(**changes: Any) -> pb.CoordinatorMessage:
    """Of round 5."""
    fields: dict[str, Any] = {"beacon": CHAIN[6], "salt": SALT, "retained": [5]} | {"stages": stages_with(COMMITMENTS)}
    return pb.CoordinatorMessage(sealed=pb.RoundSealed(round=5, **(fields | changes)))


def a_receipt(output: bytes) -> Receipt:
    return Receipt(bytes(32), stage=0, unit=HASH, output=output)


def watch_of(folder: Path) -> Watch:
    watch = Watch(IDENTITY.address, IDENTITY.address, folder, None)
    watch.begin(ASSIGNMENT)
    return watch


class Worker:
    """Has trained one round."""

    def __init__(self) -> None:
        self.commands: list[str | None] = []
        report = worker_pb2.WorkerReport(generation=1, report=report_to_proto(REPORT))
        self._events = [worker_pb2.WorkerEvent(report=report)]

    async def receive(self) -> worker_pb2.WorkerEvent:
        if not self._events:
            await asyncio.Event().wait()
        return self._events.pop()

    async def send(self, command: worker_pb2.WorkerCommand) -> None:
        self.commands.append(command.WhichOneof("body"))


class Coordinator:
    """Its stream: it says `messages`, and ends."""

    def __init__(self) -> None:
        self.messages: list[pb.CoordinatorMessage] = []
        self.outbox: asyncio.Queue[pb.NodeMessage] = asyncio.Queue()

    async def read(self) -> Any:
        return self.messages.pop(0) if self.messages else grpc.aio.EOF

    async def details(self) -> str:
        return ""


def a_session(folder: Path) -> tuple[Watch, Coordinator, Worker, Session]:
    """A node with its stage assigned."""
    watch, coordinator, worker = watch_of(folder), Coordinator(), Worker()
    evidence = Evidence(folder, make_certificate(IDENTITY))
    evidence.begin(ASSIGNMENT)
    attachment = Attachment(coordinator, coordinator.outbox)
    state = SimpleNamespace(has=lambda round_: True, trained=AsyncMock())
    parts: Any = (SimpleNamespace(identity=IDENTITY), worker, attachment, watch, None, evidence, state)
    session = Session(*parts)
    session._assigned.set_result(ASSIGNMENT)
    return watch, coordinator, worker, session


@pytest.mark.asyncio
async def test_the_event_loop_doesn_t_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written ends only once the loop has run meanwhile."""
    loop, written = asyncio.get_running_loop(), []

    def slow(method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> None:
            has_run = threading.Event()
            loop.call_soon_threadsafe(has_run.set)
            assert has_run.wait(timeout=10), "the event loop stands still"
            method(*arguments, **options)
            written.append(method.__name__)

        return call

    for method in (Receipts.promise, Receipts.seal):
        monkeypatch.setattr(Receipts, method.__name__, slow(method))
    watch, coordinator, worker, session = a_session(tmp_path)
    async with asyncio.timeout(30):
        coordinator.messages = [pb.CoordinatorMessage(plan=PLAN)]
        with pytest.raises(PeerUnreachable, match="ended the stream"):
            await session.obey()
        relaying = asyncio.create_task(session.relay())
        signed = (await coordinator.outbox.get()).report
        coordinator.messages = [a_seal(), pb.CoordinatorMessage(plan=PLAN)]
        with pytest.raises(PeerUnreachable, match="ended the stream"):
            await session.obey()
        relaying.cancel()
    assert worker.commands == ["plan", "retain", "plan"]
    assert written == ["promise", "seal"]
    assert watch.receipts is not None
    (receipt,) = watch.receipts.of_epoch(0)
    assert receipt.signature == to_hex(signed.signature)


LIES: dict[str, pb.CoordinatorMessage] = {
    "no tip": pb.CoordinatorMessage(plan=pb.RoundPlan(generation=1, round=6)),
    "another tip": pb.CoordinatorMessage(plan=pb.RoundPlan(generation=1, round=6, beacon_tip=HASH)),
    "another value": a_seal(beacon=CHAIN[5]),
    "another output": a_seal(stages=stages_with([HASH, HASH])),
    "another salt": a_seal(salt=HASH),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_coordinator_that_would_choose_what_is_audited_is_left(
    tmp_path: Path, lie: pb.CoordinatorMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(attending_module, "emit", lambda name, **fields: told.append((name, fields.get("code", ""))))
    _, coordinator, worker, session = a_session(tmp_path)
    async with asyncio.timeout(30):
        coordinator.messages = [pb.CoordinatorMessage(plan=PLAN)]
        with pytest.raises(PeerUnreachable):
            await session.obey()
        relaying = asyncio.create_task(session.relay())
        await coordinator.outbox.get()
        relaying.cancel()
        coordinator.messages = [lie]
        with pytest.raises((CommitmentBroken, MalformedMessage)) as raised:
            await session.obey()
    assert worker.commands == ["plan"]
    assert told[-1] == ("round.disputed", raised.value.code)


def test_a_signature_that_nobody_awaits_any_more_is_none_over_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that has lost its coordinator within a signature, and is asked for one of a later generation."""
    watch, writing, asked = watch_of(tmp_path), threading.Event(), threading.Semaphore(0)

    class Asked:
        lock = threading.Lock()

        def __enter__(self) -> None:
            asked.release()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    def write(path: Path, content: bytes) -> None:
        monkeypatch.setattr(receipts_module, "replace_file", replace_file)
        writing.set()
        assert all(asked.acquire(timeout=10) for _ in range(2)), "nobody else was to sign"
        replace_file(path, content)

    signing: Any = Asked()
    watch._signing = signing
    monkeypatch.setattr(receipts_module, "replace_file", write)
    with ThreadPoolExecutor(2) as threads:
        forgotten = threads.submit(watch.sign, IDENTITY, DOMAIN, 3, 5, a_receipt(b"\3" * 32), is_loaded=True)
        assert writing.wait(timeout=10)
        later = threads.submit(watch.sign, IDENTITY, DOMAIN, 4, 5, a_receipt(b"\4" * 32), is_loaded=True)
        later.result(timeout=30)
        forgotten.result(timeout=30)
    watch.credit(5)
    assert watch.receipts is not None
    assert [receipt.generation for receipt in watch.receipts.of_epoch(0)] == [4]
    with pytest.raises(StateError, match="generation 4"):
        watch_of(tmp_path).sign(IDENTITY, DOMAIN, 4, 5, a_receipt(bytes(32)), is_loaded=True)


def test_a_shadowed_round_is_signed_once_and_claims_nothing(tmp_path: Path) -> None:
    watch = watch_of(tmp_path)
    watch.sign(IDENTITY, DOMAIN, 1, 5, a_receipt(bytes(32)), is_loaded=False)
    with pytest.raises(StateError, match="won't sign"):
        watch.sign(IDENTITY, DOMAIN, 1, 5, a_receipt(HASH), is_loaded=True)
    watch.credit(5)
    assert watch.receipts is not None
    assert watch.receipts.of_epoch(0) == ()
