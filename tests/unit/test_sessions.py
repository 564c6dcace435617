"""The sessions of one stage without a socket: what is computed, what is said to whom, and what is forgotten when."""

import asyncio
import itertools
import math
import struct
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from commonweight.model.inference import InferenceStage, choose_token
from commonweight.rules.answer import CHOICE, MAX_TEMPERATURE, find_disagreement
from commonweight.rules.report import NO_TENSOR
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import decode_pb2 as pb
from node.answers import OpenTrace
from node.decode_plane import MAX_UNSENT, MAX_UNSENT_BYTES, Outbox
from node.sessions import MAX_SESSIONS, Feeder, Room, Sessions, session_bytes
from tests.unit.tiny import open_session, tiny_spec

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
        self.kept: list[OpenTrace] = []
        self.sessions = Sessions(stage, 5, self.room, lambda: self.now_s, self.down.append, self.kept.append)
        self.box, self.tokens = Box(), Box()
        self.feeder = Feeder(self.box, *(LISTENER if index == 0 else ()))
        self.sessions.listeners[LISTENER] = self.tokens
        self.index = index

    def open(self, session: bytes, feeder: Feeder | None = None, **fields: Any) -> None:
        """A session with an id of no prompt, which is noticed where four tokens are fed."""
        right = {"session": session, "nonce": bytes(16), "prompt_tokens": 4, "capacity": 4}
        right |= {"gateway": LISTENER[0], "client": LISTENER[1]}
        self.sessions.take(feeder or self.feeder, pb.DecodeFrame(open=pb.SessionOpen(**(right | fields))))

    def ask(self, prompt: list[int], **fields: Any) -> bytes:
        """Open the session that answers this prompt, up to four tokens; returns its id."""
        asked = open_session(prompt, **({"capacity": 4, "gateway": LISTENER[0], "client": LISTENER[1]} | fields))
        self.sessions.take(self.feeder, pb.DecodeFrame(open=asked))
        return asked.session

    def step(self, session: bytes, **fields: Any) -> None:
        code = b"" if self.index == 0 else bytes(4 * SPEC.architecture.boundary_dim)
        right = {"session": session, "ids": [1], "code": code}
        self.sessions.take(self.feeder, pb.DecodeFrame(step=pb.SessionStep(**(right | fields))))

    @property
    def chosen(self) -> int:
        """By the last stage, or whatever id on another."""
        return self.tokens.answers[-1].token.id if self.tokens.answers else 1

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


@pytest.mark.parametrize("index", range(3))
def test_a_step_that_comes_to_nan_is_neither_sent_nor_signed(index: int) -> None:
    """Who signs a trace with NaN in it has lied."""
    stage = Stage(index)
    a, b = (stage.ask([1], nonce=nonce) for nonce in (A, B))
    stage.step(a)
    with torch.no_grad():
        next(iter(stage.sessions.stage.module.layers.values())).ffn.zd.fill_(math.nan)
    stage.step(a, position=1, ids=[stage.chosen])
    stage.step(b)
    assert stage.box.failures == [(a, "WIRE_NOT_FINITE"), (b, "WIRE_NOT_FINITE")]
    (trace,) = stage.kept
    assert (trace.session, trace.fed, len(trace.ids)) == (a, 1, 4)
    assert len(trace.passed) == (CHOICE.size if index == 2 else 4 * SPEC.architecture.boundary_dim)
    assert sum(frame.HasField("step") for frame in stage.down) == (index < 2)


def test_what_went_through_a_session_is_kept_however_it_ends() -> None:
    stage = Stage(1)
    for session, temperature in ((A, -0.0), (B, 0.5), (C, 0.0)):
        stage.open(session, temperature=temperature, seed=7)
    code = torch.arange(2 * SPEC.architecture.boundary_dim, dtype=torch.float32).numpy().tobytes()
    stage.step(A, ids=[3, 60], code=code)
    stage.step(B)
    stage.step(A, ids=[4], position=2)
    first, single, second = (frame.step.code for frame in stage.down if frame.HasField("step"))
    stage.step(A, ids=[5], position=7)  # fails, and so it isn't among what was fed
    stage.sessions.take_failure(pb.SessionFailed(session=B))
    stage.sessions.forget_feeder(stage.feeder)  # nothing was fed to C
    a, b = stage.kept
    assert (a.version, a.session, a.fed, a.seed) == (5, A, 3, 7)
    assert math.copysign(1.0, a.temperature) == 1.0
    assert a.ids == struct.pack("<III", 3, 60, 4)
    assert a.taken == code + bytes(len(code) // 2)
    assert a.passed == first + second
    assert (b.session, b.fed, b.passed, b.temperature) == (B, 1, single, 0.5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("chunks", [[[3, 4, 5]], [[3, 4], [5]]])
def test_the_last_stage_keeps_each_choice_after_the_prompt_with_its_logit(
    chunks: list[list[int]], temperature: float
) -> None:
    stage, chosen = Stage(2), []
    session = stage.ask([3, 4, 5], temperature=temperature, seed=7)
    cache, width = stage.sessions.stage.new_cache(4), SPEC.architecture.boundary_dim

    def step(ids: list[int]) -> None:
        stage.step(session, ids=ids, position=cache.length, code=bytes(4 * width * len(ids)))
        logits = stage.sessions.stage.forward(torch.tensor([ids]), torch.zeros(1, len(ids), width), cache)
        token = choose_token(logits, temperature, 7, cache.length)
        assert stage.chosen == token
        if cache.length >= 3:
            chosen.append((token, float(logits[token])))

    for ids in chunks:
        step(ids)
    step([stage.chosen])
    stage.sessions.take(stage.feeder, pb.DecodeFrame(close=pb.SessionClose(session=session)))
    (trace,) = stage.kept
    assert list(CHOICE.iter_unpack(trace.passed)) == chosen
    assert len(chosen) == 2


def test_an_answer_that_ended_in_mid_prompt_has_no_choices() -> None:
    stage = Stage(2)
    stage.open(A)
    stage.step(A)
    stage.sessions.forget_feeder(stage.feeder)
    (trace,) = stage.kept
    assert len(stage.tokens.answers) == 1, "the step is done"
    assert (trace.prompt_tokens, trace.fed, trace.passed) == (4, 1, b"")
    assert trace.answer().passed == NO_TENSOR


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("prompt", [0, 5, 2**32 - 1])
def test_a_prompt_has_a_token_and_fits(index: int, prompt: int) -> None:
    stage = Stage(index)
    stage.open(A, prompt_tokens=prompt)
    assert stage.box.failures == [(A, "WIRE_MALFORMED")]
    assert (stage.room.used, len(stage.sessions)) == (0, 0)


@pytest.mark.parametrize(
    ("index", "fed", "ids", "message"),
    [
        *[(index, 0, [1, 2, 3], "beyond the prompt, which ends at token 2") for index in range(3)],
        *[(index, 1, [1, 2], "beyond the prompt, which ends at token 2") for index in range(3)],
        *[(index, 2, [None, 1], "2 tokens came at once after the prompt") for index in range(3)],
        (2, 2, [-1], "chosen was"),
    ],
)
def test_a_step_that_isn_t_due_ends_its_session_and_no_other(
    index: int, fed: int, ids: list[int | None], message: str
) -> None:
    """None stands for the token that was chosen, -1 for another one."""
    stage, width = Stage(index), SPEC.architecture.boundary_dim
    a, b = stage.ask([1, 1]), stage.ask([1, 2])

    def step(session: bytes, position: int, ids: list[int]) -> None:
        stage.step(session, position=position, ids=ids, code=bytes(4 * width * len(ids)) if index else b"")

    if fed:
        step(a, 0, [1] * fed)
    stands_for = {None: stage.chosen, -1: stage.chosen ^ 1}
    step(a, fed, [stands_for.get(id_, id_) for id_ in ids])  # type: ignore[misc]
    (answer,) = stage.box.answers
    assert (answer.failed.session, answer.failed.code) == (a, "WIRE_UNPLANNED")
    assert message in answer.failed.message
    assert stage.closes() == ([a] if index < 2 else [])
    assert [trace.fed for trace in stage.kept] == ([fed] if fed else [])
    step(b, 0, [1, 2])
    step(b, 2, [stage.chosen])
    stage.sessions.forget_feeder(stage.feeder)
    assert (stage.kept[-1].session, stage.kept[-1].fed) == (b, 3)
    assert len(stage.box.answers) == 1


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, 3], {}),
        ([2, 1], {}),
        ([1], {"prompt_tokens": 1}),
        ([1, 2, 3], {"prompt_tokens": 3}),
        ([1, 2], {"temperature": 0.25}),
        ([1, 2], {"seed": 4}),
        ([1, 2], {"nonce": B}),
    ],
)
def test_what_the_session_s_id_isn_t_of_is_refused_where_the_prompt_ends(
    index: int, at_once: bool, ids: list[int], said: dict[str, Any]
) -> None:
    """Whatever the stage before puts in the place of what was asked."""
    stage, width = Stage(index), SPEC.architecture.boundary_dim
    asked = {"nonce": A, "temperature": 0.5, "seed": 3}
    session = open_session([1, 2], **asked).session
    stage.open(session, **(asked | {"prompt_tokens": 2} | said))
    for position, step in enumerate([ids] if at_once else [[id_] for id_ in ids]):
        assert stage.box.failures == []
        stage.step(session, position=position, ids=step, code=bytes(4 * width * len(step)) if index else b"")
    assert stage.box.failures == [(session, "WIRE_UNPLANNED")]
    assert "another prompt, temperature or seed" in stage.box.answers[0].failed.message
    assert len(stage.sessions) == 0


def in_a_row() -> list[Stage]:
    stages = [Stage(index) for index in range(SPEC.stages)]
    for above, below in itertools.pairwise(stages):
        above.sessions.send_down = partial(below.sessions.take, below.feeder)
    return stages


@pytest.mark.parametrize("has_own_id", [False, True])
def test_a_first_stage_that_puts_another_prompt_in_place_of_the_gateway_s_answers_nothing(has_own_id: bool) -> None:
    """One whose answer it has recorded. With the gateway's id it is refused; with its own the gateway's session never
    has a token.
    """
    recorded = Stage(0)
    recorded.step(recorded.ask([5, 6], nonce=B), ids=[5, 6])
    own_open, own_step = recorded.down
    first, second, last = in_a_row()

    def swap(frame: pb.DecodeFrame) -> None:
        if frame.HasField("step"):
            if not has_own_id:
                own_step.step.session = frame.step.session
            second.sessions.take(second.feeder, own_step)
        else:
            second.sessions.take(second.feeder, own_open if has_own_id else frame)

    first.sessions.send_down = swap
    session = first.ask([1, 2])
    first.step(session, ids=[1, 2])
    if has_own_id:
        assert [answer.token.session for answer in last.tokens.answers] == [own_open.open.session] != [session]
        assert first.box.answers == []
    else:
        assert last.tokens.answers == []
        assert second.box.failures == [(session, "WIRE_UNPLANNED")]


def test_a_temperature_of_minus_zero_is_zero() -> None:
    stages = in_a_row()
    asked = open_session([1, 2], gateway=LISTENER[0], client=LISTENER[1])
    asked.temperature = -0.0
    stages[0].sessions.take(stages[0].feeder, pb.DecodeFrame(open=asked))
    stages[0].step(asked.session, ids=[1, 2])
    assert [answer.token.session for answer in stages[-1].tokens.answers] == [asked.session]
    stages[0].sessions.forget_feeder(stages[0].feeder)
    (trace,) = {stage.kept[0].answer().temperature for stage in stages}
    assert math.copysign(1.0, trace) == 1.0


@pytest.mark.parametrize("index", range(3))
def test_no_temperature_is_above_the_most(index: int) -> None:
    stage = Stage(index)
    for temperature in (math.nextafter(MAX_TEMPERATURE, math.inf), math.inf, math.nan, -1.0):
        session = stage.ask([1], temperature=temperature)
        assert stage.box.failures.pop() == (session, "WIRE_MALFORMED")
        assert stage.room.used == 0
        stage.box.answers.clear()
    session = stage.ask([1], temperature=MAX_TEMPERATURE)
    stage.step(session)
    assert stage.box.failures == []


@pytest.mark.parametrize("nonce", [b"", b"n" * 15, b"n" * 17])
def test_a_nonce_of_another_size_is_refused(nonce: bytes) -> None:
    stage = Stage(0)
    session = stage.ask([1], nonce=nonce)
    assert stage.box.failures == [(session, "WIRE_MALFORMED")]


def test_stages_in_a_row_agree_about_an_answer() -> None:
    stages = in_a_row()
    session = stages[0].ask([1, 2], temperature=0.5, seed=3)
    stages[0].step(session, ids=[1, 2])
    stages[0].step(session, ids=[stages[-1].chosen], position=2)
    stages[0].sessions.forget_feeder(stages[0].feeder)
    answers = [trace.answer() for stage in stages for trace in stage.kept]
    assert len(answers) == SPEC.stages
    assert find_disagreement(answers) is None
    assert [answer.taken == NO_TENSOR for answer in answers] == [True, False, False]


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
    size = session_bytes(SPEC, 1, 4, 4)
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
