"""What a gateway sends and takes, with stages that compute when the test says so, and stages that don't keep to it."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest

from commonweight.errors import CommonweightError, MalformedMessage, NoRoom, NotServed, PeerUnreachable, StageLost
from commonweight.identity import NodeIdentity
from commonweight.rules.answer import NONCE_BYTES
from commonweight.wire.channel import serve
from commonweight.wire.decode import MAX_CHUNK_TOKENS
from commonweight.wire.generated import decode_pb2 as pb
from commonweight.wire.generated import decode_pb2_grpc
from commonweight.wire.generation import PROMPT_STEPS, Generator, _watch, open_generator
from commonweight.wire.serving import Route, StageAddress
from commonweight.wire.tls import make_certificate, server_credentials
from tests.unit.tiny import open_session, tiny_spec

pytestmark = pytest.mark.asyncio

STAGES = 2
WINDOW = PROMPT_STEPS * STAGES
SPEC = tiny_spec(stages=STAGES, sequence_length=4096)
GATEWAY, STAGE = (make_certificate(NodeIdentity(bytes([n]) * 32)) for n in (0x21, 0x22))
LONG = [1] * (3 * WINDOW * MAX_CHUNK_TOKENS)
"""A prompt of several windows of steps."""
TOKEN = 7


def route(address: str = "127.0.0.1:1") -> Route:
    stage = StageAddress(STAGE.peer_id, address, STAGE.der, "0x" + "00" * 20)
    return Route(b"", SPEC, bytes(32), 30, (stage,) * STAGES)


class Stages:
    """Both streams' other end: steps lie in `steps` until they are answered."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[pb.SessionStep] = asyncio.Queue()
        self._answers: asyncio.Queue[pb.DecodeAnswer] = asyncio.Queue()
        self.sessions: asyncio.Queue[tuple[str | None, bytes]] = asyncio.Queue()
        """Of each frame, with its kind."""
        self.opened: list[pb.SessionOpen] = []

    async def write(self, frame: pb.DecodeFrame) -> None:
        kind = frame.WhichOneof("body")
        self.sessions.put_nowait((kind, getattr(frame, str(kind)).session))
        if frame.HasField("open"):
            self.opened.append(frame.open)
        if frame.HasField("step"):
            self.steps.put_nowait(frame.step)

    async def read(self) -> pb.DecodeAnswer:
        return await self._answers.get()

    @property
    def unread(self) -> int:
        return self._answers.qsize()

    def answer(self, step: pb.SessionStep) -> None:
        token = pb.SessionToken(session=step.session, position=step.position + len(step.ids), id=TOKEN)
        self._answers.put_nowait(pb.DecodeAnswer(token=token))

    def fail(self, step: pb.SessionStep, error: CommonweightError) -> None:
        failed = pb.SessionFailed(session=step.session, code=error.code, message=error.args[0])
        self._answers.put_nowait(pb.DecodeAnswer(failed=failed))


@asynccontextmanager
async def generating() -> AsyncIterator[tuple[Generator, Stages]]:
    generator, stages = Generator(route()), Stages()
    async with asyncio.timeout(30):
        writing = asyncio.create_task(generator.write_steps(stages))
        reading = asyncio.create_task(generator.read_answers(stages))
        try:
            yield generator, stages
        finally:
            writing.cancel()
            reading.cancel()
            await asyncio.gather(writing, reading, return_exceptions=True)


async def first_token(generator: Generator, prompt: list[int]) -> int:
    async with aclosing(generator.generate(prompt, 1)) as tokens:
        return await anext(tokens)


class Running:
    """An answer that has begun, and asks for a token when the test says so."""

    def __init__(self, tokens: AsyncGenerator[int, None], stages: Stages) -> None:
        self._tokens, self._stages = tokens, stages

    async def is_next(self) -> None:
        """No step of another session is sent before that for its next token."""
        token = asyncio.ensure_future(anext(self._tokens))
        step = await self._stages.steps.get()
        assert list(step.ids) == [TOKEN]
        self._stages.answer(step)
        assert await token == TOKEN


@asynccontextmanager
async def running(generator: Generator, stages: Stages) -> AsyncIterator[Running]:
    async with aclosing(generator.generate([1], 100)) as tokens:
        begun = asyncio.ensure_future(anext(tokens))
        stages.answer(await stages.steps.get())
        assert await begun == TOKEN
        yield Running(tokens, stages)


async def test_prompts_take_turns_and_a_running_answer_waits_behind_a_window_of_them() -> None:
    async with generating() as (generator, stages), running(generator, stages) as answer:
        prompts = [asyncio.create_task(first_token(generator, LONG)) for _ in range(3)]
        under_way = [await stages.steps.get() for _ in range(WINDOW)]
        await answer.is_next()
        for step in under_way[: len(prompts)]:
            stages.answer(step)
        turns = [await stages.steps.get() for _ in prompts]
        assert len({step.session for step in turns}) == len(prompts)
        await answer.is_next()
        for step in under_way[len(prompts) :] + turns:
            stages.answer(step)
        for _ in range(len(prompts) * len(LONG) // MAX_CHUNK_TOKENS - WINDOW - len(turns)):
            stages.answer(await stages.steps.get())
        assert await asyncio.gather(*prompts) == [TOKEN] * len(prompts)
        await answer.is_next()


async def test_the_stages_know_an_answer_by_what_was_asked_and_a_nonce() -> None:
    nonces = [bytes([number]) * NONCE_BYTES for number in range(2)]
    sessions = [open_session([1, 2], nonce=nonce, temperature=0.5, seed=3).session for nonce in nonces]
    async with generating() as (generator, stages):
        for nonce in nonces:
            async with aclosing(generator.generate([1, 2], 2, temperature=0.5, seed=3, nonce=nonce)) as tokens:
                for _ in range(2):
                    token = asyncio.ensure_future(anext(tokens))
                    stages.answer(await stages.steps.get())
                    assert await token == TOKEN
        for session in sessions:
            for kind in ("open", "step", "step", "close"):
                assert await stages.sessions.get() == (kind, session)


@pytest.mark.parametrize("temperature", [0.0, -0.0])
async def test_a_temperature_of_minus_zero_is_zero_and_a_nonce_is_random(temperature: float) -> None:
    """So an id is of the bits that a stage has signed."""
    async with generating() as (generator, stages):
        for _ in range(2):
            token = asyncio.create_task(anext(generator.generate([1, 2], 2, temperature=temperature)))
            stages.answer(await stages.steps.get())
            assert await token == TOKEN
    one, other = stages.opened
    assert one.nonce != other.nonce
    for opened in (one, other):
        assert opened == open_session([1, 2], nonce=opened.nonce, capacity=3)
        assert math.copysign(1.0, opened.temperature) == 1.0


async def test_an_answer_to_another_prompt_is_never_taken_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first stage that puts one in its place needs another id, or the stages after it refuse."""
    monkeypatch.setattr("commonweight.wire.generation.FIRST_TOKEN_S", 0.2)
    async with generating() as (generator, stages):
        asked = asyncio.create_task(first_token(generator, [1, 2]))
        step = await stages.steps.get()
        step.session = open_session([3, 4]).session
        stages.answer(step)
        with pytest.raises(StageLost, match=r"didn't come within 0\.2 s"):
            await asked
        assert stages.unread == 0, "the gateway has heard it"


async def test_a_prompt_that_fails_or_is_given_up_gives_its_turns_to_others() -> None:
    async with generating() as (generator, stages), running(generator, stages) as answer:
        for _ in range(2):
            refused = asyncio.create_task(first_token(generator, LONG))
            steps = [await stages.steps.get() for _ in range(WINDOW)]
            for step in steps:
                stages.fail(step, NoRoom("full"))
            with pytest.raises(NoRoom, match="full"):
                await refused
            left = asyncio.create_task(first_token(generator, LONG))
            stages.answer(await stages.steps.get())
            for _ in range(WINDOW):
                await stages.steps.get()
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
        last = asyncio.create_task(first_token(generator, LONG))
        for _ in range(WINDOW):
            await stages.steps.get()
        await answer.is_next()
        last.cancel()
        await asyncio.wait([last])


async def test_a_prompt_that_waits_for_its_turn_hears_that_a_stage_is_lost() -> None:
    async with generating() as (generator, stages):
        prompts = [asyncio.create_task(first_token(generator, LONG)) for _ in range(2)]
        for _ in range(WINDOW):
            await stages.steps.get()
        generator.fail(StageLost("gone"))
        for prompt in prompts:
            with pytest.raises(StageLost, match="gone"):
                await prompt


async def test_answers_that_nobody_asked_for_don_t_fill_the_memory() -> None:
    generator, stages = Generator(route()), Stages()
    writing = asyncio.create_task(generator.write_steps(stages))
    async with asyncio.timeout(30), aclosing(generator.generate([1], 2)) as answer:
        begun = asyncio.ensure_future(anext(answer))
        step = await stages.steps.get()
        for _ in range(WINDOW + 2):
            stages.answer(step)
        with pytest.raises(MalformedMessage, match="nobody asked for"):
            await generator.read_answers(stages)
        assert await begun == TOKEN
    writing.cancel()


class OddStage(decode_pb2_grpc.StageDecodeServicer):
    """Says hello on its streams but on the one named, where it says something else and keeps it open, or just ends."""

    def __init__(self, odd: str, says: pb.DecodeAnswer | None) -> None:
        self._odd, self._says = odd, says

    async def Tokens(self, request: pb.DecodeHello, context: grpc.aio.ServicerContext) -> None:
        await self._begin("Tokens", request.stage, context)

    async def Feed(self, requests: AsyncIterator[pb.DecodeFrame], context: grpc.aio.ServicerContext) -> None:
        await context.read()
        await self._begin("Feed", 0, context)

    async def _begin(self, name: str, stage: int, context: grpc.aio.ServicerContext) -> None:
        if name != self._odd:
            await context.write(pb.DecodeAnswer(hello=pb.DecodeHello(spec_hash=SPEC.spec_hash, round=30, stage=stage)))
        elif self._says is None:
            return
        else:
            await context.write(self._says)
        await asyncio.Event().wait()


@pytest.mark.parametrize("odd", ["Tokens", "Feed"])
@pytest.mark.parametrize(
    ("says", "error", "match"),
    [
        (pb.DecodeAnswer(token=pb.SessionToken()), MalformedMessage, "began with token"),
        (pb.DecodeAnswer(), MalformedMessage, "began with None"),
        (None, PeerUnreachable, "ended the stream before a hello"),
    ],
    ids=["a token", "nothing", "the end"],
)
async def test_a_stage_that_doesn_t_begin_with_a_hello_is_left_at_once(
    odd: str, says: pb.DecodeAnswer | None, error: type[Exception], match: str
) -> None:
    server, port = await serve(
        [(decode_pb2_grpc.add_StageDecodeServicer_to_server, OddStage(odd, says))],
        "127.0.0.1:0",
        server_credentials(STAGE, lambda: [GATEWAY.der]),
    )
    try:
        async with asyncio.timeout(30):
            with pytest.raises(error, match=match):
                async with open_generator(route(f"127.0.0.1:{port}"), GATEWAY):
                    pass
    finally:
        await server.stop(grace=0)


class EndedCall:
    """A call that the server has ended with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    async def write(self, _: pb.DecodeFrame) -> None:
        raise asyncio.InvalidStateError

    async def read(self) -> object:
        return grpc.aio.EOF

    async def code(self) -> grpc.StatusCode:
        return self._code

    async def details(self) -> str:
        return self._details


@pytest.mark.parametrize("part", ["write_steps", "read_answers"])
@pytest.mark.parametrize(
    ("code", "details", "error", "match"),
    [
        (grpc.StatusCode.UNAVAILABLE, "[WIRE_NOT_SERVED] version 30 isn't served", NotServed, "version 30"),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", StageLost, "The first stage is gone: .*Socket closed"),
        (grpc.StatusCode.OK, "", StageLost, "ended the stream"),
    ],
    ids=["not served", "gone", "ended"],
)
async def test_the_status_of_an_ended_call_says_why_whoever_notices_first(
    part: str, code: grpc.StatusCode, details: str, error: type[CommonweightError], match: str
) -> None:
    generator, call = Generator(route()), EndedCall(code, details)
    generator._steps.put_nowait(pb.DecodeFrame())
    async with asyncio.timeout(30):
        await _watch(generator, getattr(generator, part)(call), call, "The first stage")
    with pytest.raises(error, match=match):
        raise generator.failure  # type: ignore[misc]
