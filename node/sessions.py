"""Generation on one stage: the sessions of one version of the model, with no socket in it.

A session is one sequence that grows. It is opened, stepped and closed by whoever feeds this stage (a gateway the first
one, the stage before the others); each step's result goes down to the next stage, or from the last one as a token
to the gateway. What goes wrong with a session ends it: the feeder is told, the next stage closes it, and its memory is
free again. So a session is over everywhere as soon as it is over anywhere.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from commonweight.errors import CommonweightError, MalformedMessage, NoRoom, NotServed, StageLost, UnplannedMessage
from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.model.answers import trace_bytes
from commonweight.model.inference import InferenceStage, KVCache, cache_bytes, choose_token
from commonweight.rules.answer import MAX_TEMPERATURE, pack_ids, session_id
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import code_bytes
from commonweight.wire.decode import check_id, chunk_tokens
from commonweight.wire.generated import decode_pb2 as pb
from commonweight.wire.tensors import check_finite, to_bytes
from node.answers import OpenTrace

MAX_SESSIONS = 4096
"""On one stage at a time, however little memory they take."""
MAX_CODE, MAX_MESSAGE = 80, 500
"""Letters of what the next stage says went wrong that are passed on."""


@dataclass
class Room:
    """The memory that all sessions of this process share, in bytes."""

    limit: int
    used: int = 0
    sessions: int = 0

    def take(self, size: int) -> None:
        """Reserve it. Raises NoRoom."""
        if self.used + size > self.limit or self.sessions >= MAX_SESSIONS:
            raise NoRoom(
                f"A session needs {size:,} bytes; {self.used:,} of {self.limit:,} are taken by {self.sessions} "
                f"sessions (at most {MAX_SESSIONS:,}). Try again when others have ended."
            )
        self.used += size
        self.sessions += 1

    def give_back(self, size: int) -> None:
        """The reverse of `take`."""
        self.used -= size
        self.sessions -= 1


def session_bytes(spec: ModelSpec, stage: int, prompt_tokens: int, capacity: int) -> int:
    """That a session with room for `capacity` tokens reserves: keys, values and trace."""
    return cache_bytes(spec, stage, capacity) + trace_bytes(spec, stage, prompt_tokens, capacity)


class Outlet(Protocol):
    """Where answers go: to a feeder of this stage, or to a gateway that listens for tokens."""

    def put(self, answer: pb.DecodeAnswer) -> None:
        """Send it, in order, without waiting."""


@dataclass(frozen=True, eq=False)
class Feeder:
    """An open stream of steps."""

    outlet: Outlet
    gateway: str = ""
    """PeerId, where a gateway feeds this stage; empty where the stage before does."""
    client: bytes = b""


@dataclass(slots=True)
class _Session:
    feeder: Feeder
    tokens: Outlet | None
    """On the last stage."""
    cache: KVCache
    size: int
    trace: OpenTrace
    stepped_s: float
    computed_s: float = 0.0
    """By all of its steps."""
    chosen: int | None = None
    """On the last stage: the token that is due, once the prompt is fed."""


@dataclass
class Sessions:
    """All sessions of one version on this stage."""

    stage: InferenceStage
    round: int
    room: Room
    clock: Callable[[], float]
    send_down: Callable[[pb.DecodeFrame], None]
    """To the next stage; not called on the last one."""
    keep: Callable[[OpenTrace], None]
    """Takes what went through this stage in a session that is over, unless no token was fed."""
    retired: bool = False
    """There is a later version: no session begins any more."""
    listeners: dict[tuple[str, bytes], Outlet] = field(default_factory=dict)
    """On the last stage, by gateway and client: who waits for tokens."""
    _open: dict[bytes, _Session] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chunk = chunk_tokens(self.stage.spec)
        self._code_bytes = code_bytes(self.stage.spec)

    def __len__(self) -> int:
        return len(self._open)

    def take(self, feeder: Feeder, frame: pb.DecodeFrame) -> None:
        """Do what a feeder's frame says.

        Raises MalformedMessage for a frame that is of no session: the stream has no meaning any more. Whatever else is
        wrong ends the session that the frame is of.
        """
        match frame.WhichOneof("body"):
            case "step":
                check_id(frame.step.session, "session's id")
                self._attempt(feeder, frame.step.session, lambda: self._step(feeder, frame.step))
            case "open":
                check_id(frame.open.session, "session's id")
                self._attempt(feeder, frame.open.session, lambda: self._begin(feeder, frame.open))
            case "close":
                session = self._open.get(frame.close.session)
                if session is not None and session.feeder is feeder:
                    self._end(frame.close.session)
            case other:
                raise MalformedMessage(f"A feeder doesn't send {other} here.")

    def forget_feeder(self, feeder: Feeder) -> None:
        """Its stream is gone, and its sessions with it."""
        for id_ in [id_ for id_, session in self._open.items() if session.feeder is feeder]:
            self._end(id_)

    def forget_listener(self, gateway: str, client: bytes) -> None:
        """Nobody waits for these tokens any more."""
        outlet = self.listeners.pop((gateway, client))
        gone = StageLost("The gateway's stream from the last stage ended.")
        self._fail_all((id_ for id_, session in self._open.items() if session.tokens is outlet), gone)

    def lose_next(self, error: CommonweightError) -> None:
        """The stream to the next stage broke, or doesn't open: what was sent on it is lost."""
        self._fail_all(self._open, error)

    def expire(self, idle_s: float) -> None:
        """End the sessions that weren't stepped for so long."""
        oldest = self.clock() - idle_s
        late = UnplannedMessage(f"The session had no step for {idle_s:g} s and was ended.")
        self._fail_all((id_ for id_, session in self._open.items() if session.stepped_s < oldest), late)

    def _attempt(self, feeder: Feeder, id_: bytes, act: Callable[[], None]) -> None:
        try:
            act()
        except CommonweightError as error:
            self._fail(id_, error, feeder)
        except torch.OutOfMemoryError as error:
            self._fail(id_, NoRoom(f"The device has no memory left: {error}"), feeder)

    def _begin(self, feeder: Feeder, request: pb.SessionOpen) -> None:
        if request.session in self._open:
            raise UnplannedMessage("A session with this id is open already.")
        if self.retired:
            raise NotServed(f"The version of round {self.round} runs out. Ask the coordinator for the route again.")
        if not 0 <= request.temperature <= MAX_TEMPERATURE:
            raise MalformedMessage(f"The temperature {request.temperature} isn't from 0 to {MAX_TEMPERATURE:g}.")
        check_id(request.nonce, "nonce")
        if not 1 <= request.prompt_tokens <= request.capacity:
            raise MalformedMessage(
                f"A session with room for {request.capacity} tokens and a prompt of {request.prompt_tokens} is none."
            )
        gateway, client = (feeder.gateway, feeder.client) if feeder.gateway else (request.gateway, request.client)
        tokens = self.listeners.get((gateway, client))
        if self.stage.is_last and tokens is None:
            raise UnplannedMessage("The gateway doesn't listen for tokens on the last stage. Open that stream first.")
        longest = self.stage.spec.training.sequence_length  # `new_cache` refuses more
        capacity = min(request.capacity, longest)
        size = session_bytes(self.stage.spec, self.stage.index, request.prompt_tokens, capacity)
        self.room.take(size)
        try:
            cache = self.stage.new_cache(request.capacity)
        except BaseException:
            self.room.give_back(size)
            raise
        temperature = request.temperature + 0.0  # of -0.0 it makes 0.0: its bits are signed
        trace = OpenTrace(self.round, request.session, request.nonce, request.prompt_tokens, temperature, request.seed)
        self._open[request.session] = _Session(feeder, tokens, cache, size, trace, self.clock())
        if not self.stage.is_last:
            down = pb.SessionOpen()
            down.CopyFrom(request)
            down.gateway, down.client = gateway, client
            self.send_down(pb.DecodeFrame(open=down))

    def _step(self, feeder: Feeder, step: pb.SessionStep) -> None:
        session = self._open.get(step.session)
        if session is None or session.feeder is not feeder:
            raise UnplannedMessage("There is no such session: it has ended, or was never opened here.")
        ids = list(step.ids)
        if not 1 <= len(ids) <= self._chunk:
            raise MalformedMessage(f"A step has 1 to {self._chunk} tokens; this one has {len(ids)}.")
        if step.position != session.cache.length:
            raise UnplannedMessage(f"The step begins at token {step.position}; due is {session.cache.length}.")
        self._check_due(step, session, ids)
        failpoint("decode.step")
        started_s = self.clock()
        output = self.stage.forward(torch.tensor([ids]), self._code(step, len(ids)), session.cache).cpu()
        session.stepped_s = self.clock()
        session.computed_s += session.stepped_s - started_s
        trace = session.trace
        if not self.stage.is_last:
            check_finite(output)  # before it is in the trace: who signs it has passed it on
            trace.take(ids, step.code)
            code = bytes(to_bytes(output))
            trace.passed += code
            down = pb.SessionStep(session=step.session, position=step.position, ids=ids, code=code)
            self.send_down(pb.DecodeFrame(step=down))
        else:
            position = session.cache.length
            id_ = choose_token(output, trace.temperature, trace.seed, position)
            trace.take(ids, step.code)
            if position >= trace.prompt_tokens:
                trace.choose(id_, float(output[id_]))
                session.chosen = id_
            assert session.tokens is not None, "a session of the last stage has a listener"
            token = pb.SessionToken(session=step.session, position=position, id=id_)
            session.tokens.put(pb.DecodeAnswer(token=token))

    def _check_due(self, step: pb.SessionStep, session: _Session, ids: list[int]) -> None:
        """Steps end with the prompt, which is the one that the session is of; after it one token is due, and the last
        stage knows which: what it signs of the answer says that it has chosen what was fed.
        """
        trace = session.trace
        begin, prompt = session.cache.length, trace.prompt_tokens
        if begin + len(ids) == prompt:
            asked = bytes(trace.ids) + pack_ids(ids)
            if session_id(trace.nonce, asked, trace.temperature, trace.seed) != step.session:
                raise UnplannedMessage(
                    "The session's id is of another prompt, temperature or seed: somebody changed it."
                )
        if begin < prompt < begin + len(ids):
            raise UnplannedMessage(f"The step goes beyond the prompt, which ends at token {prompt}.")
        if begin >= prompt and len(ids) > 1:
            raise UnplannedMessage(f"{len(ids)} tokens came at once after the prompt; due is the one that was chosen.")
        if self.stage.is_last and begin >= prompt and ids[0] != session.chosen:
            raise UnplannedMessage(f"Token {ids[0]} came at {begin}; chosen was {session.chosen}.")

    def _code(self, step: pb.SessionStep, count: int) -> Tensor | None:
        raw = step.code
        due = 0 if self.stage.is_first else count * self._code_bytes
        if len(raw) != due:
            raise MalformedMessage(f"The code of {count} tokens has {len(raw)} bytes; due are {due}.")
        if self.stage.is_first:
            return None
        code = torch.frombuffer(raw, dtype=self.stage.boundary_dtype).view(1, count, -1)
        check_finite(code)
        return code

    def _fail_all(self, ids: Iterable[bytes], error: CommonweightError) -> None:
        for id_ in list(ids):
            self._fail(id_, error, self._open[id_].feeder)

    def _fail(self, id_: bytes, error: CommonweightError, feeder: Feeder) -> None:
        """Tell the feeder; end the session if it is that feeder's."""
        if (session := self._open.get(id_)) is not None and session.feeder is feeder:
            self._end(id_, error.code)
        failed = pb.SessionFailed(session=id_, code=error.code, message=error.args[0])
        feeder.outlet.put(pb.DecodeAnswer(failed=failed))

    def take_failure(self, failed: pb.SessionFailed) -> None:
        """The next stage has ended a session."""
        if (session := self._open.get(failed.session)) is not None:
            code, message = failed.code[:MAX_CODE], failed.message[:MAX_MESSAGE]
            self._forget(failed.session, code)
            told = pb.SessionFailed(session=failed.session, code=code, message=message)
            session.feeder.outlet.put(pb.DecodeAnswer(failed=told))

    def _end(self, id_: bytes, code: str = "") -> None:
        self._forget(id_, code)
        if not self.stage.is_last:
            self.send_down(pb.DecodeFrame(close=pb.SessionClose(session=id_)))

    def _forget(self, id_: bytes, code: str) -> None:
        session = self._open.pop(id_)
        self.room.give_back(session.size)
        emit(
            "decode.session",
            stage=self.stage.index,
            round=self.round,
            tokens=session.cache.length,
            computed_s=round(session.computed_s, 6),
            code=code,
        )
        if session.trace.fed:
            self.keep(session.trace)
