"""The sessions of one stage without a socket: what is computed, what is said to whom, and what is forgotten when."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from commonweight.model.inference import InferenceStage, cache_bytes
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import decode_pb2 as pb
from node.decode_plane import MAX_UNSENT, MAX_UNSENT_BYTES, Outbox
from node.sessions import MAX_SESSIONS, Feeder, Room, Sessions
from tests.unit.tiny import tiny_spec

torch.set_num_threads(1)

SPEC = tiny_spec(stages=3)
LISTENER = ("gateway", b"client")


@dataclass
class Box:
    """An outlet that keeps what is put."""

    answers: list[pb.DecodeAnswer] = field(default_factory=list)

    def put(self, answer: pb.DecodeAnswer) -> None:
        self.answers.append(answer)

    @property
    def failures(self) -> list[tuple[bytes, str]]:
        return [(each.failed.session, each.failed.code) for each in self.answers if each.HasField("failed")]


class Stage:
    """One stage, its feeder, and what it sends down."""

    def __init__(self, index: int, room: int = 1 << 20, spec: ModelSpec = SPEC) -> None:
        self.now_s = 0.0
        self.down: list[pb.DecodeFrame] = []
        self.room = Room(room)
        stage = InferenceStage.initial(spec, index)
        self.sessions = Sessions(stage, 5, self.room, lambda: self.now_s, self.down.append)
        self.box, self.tokens = Box(), Box()
        self.feeder = Feeder(self.box, *(LISTENER if index == 0 else ()))
        self.sessions.listeners[LISTENER] = self.tokens
        self.index = index

    def open(self, session: bytes, feeder: Feeder | None = None, **fields: Any) -> None:
        right = {"session": session, "capacity": 4, "gateway": LISTENER[0], "client": LISTENER[1]}
        self.sessions.take(feeder or self.feeder, pb.DecodeFrame(open=pb.SessionOpen(**(right | fields))))

    def step(self, session: bytes, **fields: Any) -> None:
        code = b"" if self.index == 0 else bytes(4 * SPEC.architecture.boundary_dim)
        right = {"session": session, "ids": [1], "code": code}
        self.sessions.take(self.feeder, pb.DecodeFrame(step=pb.SessionStep(**(right | fields))))

    def closes(self) -> list[bytes]:
        return [frame.close.session for frame in self.down if frame.HasField("close")]


A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))


def test_the_first_stage_says_whose_session_it_is_and_not_the_gateway() -> None:
    stage = Stage(0)
    stage.open(A, gateway="somebody else", client=b"another")
    assert (stage.down[0].open.gateway, stage.down[0].open.client) == LISTENER
    between = Stage(1)
    between.open(A)
    assert (between.down[0].open.gateway, between.down[0].open.client) == LISTENER


def test_a_step_goes_down_with_its_ids_and_another_code_and_ends_as_a_token() -> None:
    stage = Stage(1)
    stage.open(A)
    stage.step(A, ids=[3])
    sent = stage.down[-1].step
    assert (sent.session, sent.position, list(sent.ids)) == (A, 0, [3])
    assert len(sent.code) == 4 * SPEC.architecture.boundary_dim
    assert any(sent.code)
    last = Stage(2)
    last.open(A)
    last.step(A, ids=[3])
    last.step(A, ids=[4], position=1)
    assert [(answer.token.session, answer.token.position) for answer in last.tokens.answers] == [(A, 1), (A, 2)]
    assert last.box.answers == []


def test_an_only_stage_is_the_first_and_the_last() -> None:
    stage = Stage(0, spec=tiny_spec(stages=1))
    stage.open(A, gateway="somebody else")
    stage.step(A)
    (answer,) = stage.tokens.answers
    assert answer.token.session == A
    assert stage.down == []


def test_a_session_that_fails_is_closed_below_and_reported_above() -> None:
    stage = Stage(1)
    stage.open(A)
    stage.open(B)
    stage.step(A, position=7)
    assert stage.box.failures == [(A, "WIRE_UNPLANNED")]
    assert stage.closes() == [A]
    assert stage.room.sessions == 1


def test_what_the_next_stage_gives_up_is_passed_on_once() -> None:
    stage = Stage(1)
    stage.open(A)
    failed = pb.SessionFailed(session=A, code="WIRE_NO_ROOM", message="full")
    stage.sessions.take_failure(failed)
    stage.sessions.take_failure(failed)
    stage.sessions.take_failure(pb.SessionFailed(session=B))
    assert stage.box.failures == [(A, "WIRE_NO_ROOM")]
    assert stage.closes() == []
    assert (stage.room.used, stage.room.sessions) == (0, 0)


def test_what_the_next_stage_says_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[str] = []
    monkeypatch.setattr("node.sessions.emit", lambda _name, /, **fields: codes.append(fields["code"]))
    stage = Stage(1)
    stage.open(A)
    stage.sessions.take_failure(pb.SessionFailed(session=A, code="X" * 100_000, message="y" * 100_000))
    (answer,) = stage.box.answers
    assert (answer.failed.code, answer.failed.message) == ("X" * 80, "y" * 500)
    assert codes == ["X" * 80]


def test_time_ends_only_what_nobody_steps() -> None:
    stage = Stage(0)
    stage.open(A)
    stage.open(B)
    stage.now_s = 50.0
    stage.step(B)
    stage.now_s = 61.0
    stage.sessions.expire(60.0)
    assert stage.box.failures == [(A, "WIRE_UNPLANNED")]
    assert stage.closes() == [A]
    stage.now_s = 200.0
    stage.sessions.expire(60.0)
    assert len(stage.sessions) == 0


def test_a_feeder_takes_its_sessions_along_and_no_other_s() -> None:
    stage, other = Stage(0), Feeder(Box(), "another", b"client")
    stage.open(A)
    stage.open(B, other)
    stage.sessions.forget_feeder(stage.feeder)
    assert stage.closes() == [A]
    assert len(stage.sessions) == 1
    assert stage.box.answers == []  # nobody is there to hear it


def test_a_listener_s_end_fails_its_sessions() -> None:
    stage, another = Stage(2), Box()
    stage.sessions.listeners["another", b"client"] = another
    stage.open(A)
    stage.open(B, gateway="another")
    stage.sessions.forget_listener(*LISTENER)
    assert stage.box.failures == [(A, "WIRE_STAGE_LOST")]
    stage.open(C)
    assert stage.box.failures[1:] == [(C, "WIRE_UNPLANNED")]


def test_a_retired_version_begins_nothing_and_ends_nothing() -> None:
    stage = Stage(0)
    stage.open(A)
    stage.sessions.retired = True
    stage.open(B)
    assert stage.box.failures == [(B, "WIRE_NOT_SERVED")]
    stage.step(A)
    assert stage.down[-1].HasField("step")


def test_memory_is_counted_to_the_byte() -> None:
    size = cache_bytes(SPEC, 1, 4)
    stage = Stage(1, room=2 * size)
    for session in (A, B, C):
        stage.open(session)
    assert stage.box.failures == [(C, "WIRE_NO_ROOM")]
    assert stage.room.used == 2 * size
    stage.sessions.forget_feeder(stage.feeder)
    assert (stage.room.used, stage.room.sessions) == (0, 0)
    stage.room.limit = 1 << 20
    stage.open(C, capacity=100)  # over the context
    assert stage.box.failures[1:] == [(C, "CONTEXT_EXCEEDED")]
    assert (stage.room.used, stage.room.sessions) == (0, 0)


def test_sessions_are_counted_too() -> None:
    stage = Stage(0)
    stage.room.sessions = MAX_SESSIONS
    stage.open(A)
    assert stage.box.failures == [(A, "WIRE_NO_ROOM")]


def test_a_device_without_memory_ends_the_session_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(0)
    stage.open(A)
    stage.open(B)

    def forward(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(stage.sessions.stage, "forward", forward)
        stage.step(A)
    assert stage.box.failures == [(A, "WIRE_NO_ROOM")]
    stage.step(B)
    assert stage.down[-1].step.session == B


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 1 << 20], ids=["messages", "bytes"])
async def test_a_peer_that_reads_nothing_is_hung_up_on(size: int) -> None:
    outbox, written, reading = Outbox(), asyncio.Queue[Any](), asyncio.Event()
    message = pb.DecodeFrame(step=pb.SessionStep(code=bytes(size)))
    count = min(MAX_UNSENT, MAX_UNSENT_BYTES // message.ByteSize())

    async def write(each: object) -> None:
        written.put_nowait(each)
        await reading.wait()

    pump = outbox.start(write)
    reading.set()
    for _ in range(count):
        outbox.put(message)
    for _ in range(count):
        await written.get()
    reading.clear()
    outbox.put(message)
    await written.get()  # and there it is stuck; what was sent before doesn't count
    for _ in range(count):
        outbox.put(message)
    await asyncio.sleep(0)
    assert not pump.done()
    outbox.put(message)
    async with asyncio.timeout(10):
        await asyncio.wait([pump])
    assert pump.cancelled()
