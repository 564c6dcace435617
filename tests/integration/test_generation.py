"""Decode processes of a whole model, and gateways that are the test: what is generated, and what can go wrong."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
import pytest_asyncio
import torch

from commonweight.bench.decode_workers import DecodeWorkers
from commonweight.errors import CommonweightError, ContextExceeded, NoRoom, NotServed, StageLost, UnplannedMessage
from commonweight.identity import NodeIdentity
from commonweight.model.inference import InferenceStage, generate
from commonweight.wire.channel import open_channel
from commonweight.wire.decode import DECODE_FRAME_BYTES, MAX_CHUNK_TOKENS
from commonweight.wire.generated import decode_pb2 as pb
from commonweight.wire.generated import decode_pb2_grpc
from commonweight.wire.generation import Generator, open_generator
from commonweight.wire.tls import Certificate, make_certificate
from node.sessions import session_bytes
from tests.integration.network import seconds_since, tiny_spec
from tests.unit.tiny import open_session

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

DEADLINE_S = 60.0
STAGES, CONTEXT = 3, 2 * MAX_CHUNK_TOKENS + 64
SPEC = tiny_spec("0x" + "00" * 32, 10_000, stages=STAGES, sequence_length=CONTEXT)
GATEWAY, STRANGER = (make_certificate(NodeIdentity(bytes([n]) * 32)) for n in (0x21, 0x22))
PROMPT = list(b"It is a truth")


def expected(prompt: Sequence[int], count: int, temperature: float = 0.0, seed: int = 0) -> list[int]:
    """By the unsplit model in this process."""
    torch.set_num_threads(1)
    whole = InferenceStage.initial(SPEC.model_copy(update={"stages": 1}), 0)
    return list(generate([whole], prompt, count, temperature, seed))


async def answer(generator: Generator, prompt: Sequence[int] = PROMPT, count: int = 8, **options: Any) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        return [token async for token in generator.generate(prompt, count, **options)]


async def take_all(running: AsyncIterator[int], tokens: list[int]) -> None:
    """The rest of an answer, added to `tokens`, which holds what came even where it fails."""
    async with asyncio.timeout(DEADLINE_S):
        async for token in running:
            tokens.append(token)  # noqa: PERF401 - a comprehension would lose them


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers() -> AsyncIterator[DecodeWorkers]:
    async with DecodeWorkers(SPEC, GATEWAY) as workers:
        yield workers


@pytest_asyncio.fixture(loop_scope="module")
async def generator(workers: DecodeWorkers) -> AsyncIterator[Generator]:
    async with open_generator(workers.route(), GATEWAY) as generator:
        yield generator


@asynccontextmanager
async def room_for(
    workers: DecodeWorkers, stage: int, sessions: int, capacity: int, idle_s: float | None = None
) -> AsyncIterator[None]:
    """That stage has memory for so many sessions of that length only, which may rest for `idle_s`."""
    await workers.limit(stage, cache_bytes=sessions * session_bytes(SPEC, stage, 1, capacity), idle_s=idle_s)
    try:
        yield
    finally:
        await workers.limit(stage)


async def once_there_is_room(generator: Generator) -> list[int]:
    """The answer, asked for until no stage refuses it."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await answer(generator)
            except NoRoom:
                continue


# What is generated


async def test_tokens_are_those_of_the_unsplit_model(generator: Generator) -> None:
    assert await answer(generator, count=40) == expected(PROMPT, 40)


async def test_a_prompt_in_several_steps_and_an_answer_up_to_the_context_s_end(generator: Generator) -> None:
    prompt = [(7 * n) % 251 for n in range(2 * MAX_CHUNK_TOKENS + 3)]
    count = CONTEXT - len(prompt) + 1
    assert await answer(generator, prompt, count) == expected(prompt, count)


async def test_prompts_in_many_steps_take_turns_and_are_answered_as_if_alone(generator: Generator) -> None:
    prompts = [[(factor * n) % 251 for n in range(2 * MAX_CHUNK_TOKENS + 3)] for factor in (3, 5, 7, 11)]
    answers = await asyncio.gather(*(answer(generator, prompt) for prompt in [*prompts, PROMPT]))
    assert answers == [expected(prompt, 8) for prompt in [*prompts, PROMPT]]


async def test_drawn_tokens_follow_from_the_seed(generator: Generator) -> None:
    drawn = [await answer(generator, count=30, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] == expected(PROMPT, 30, 1.5, 1)
    assert drawn[2] == expected(PROMPT, 30, 1.5, 2)
    assert drawn[2] != drawn[0]
    assert await answer(generator, temperature=-0.0) == expected(PROMPT, 8)


async def test_sessions_at_the_same_time_don_t_mix(generator: Generator, workers: DecodeWorkers) -> None:
    prompts = [PROMPT[: 2 + n] for n in range(10)]
    async with open_generator(workers.route(), GATEWAY) as another:
        answers = await asyncio.gather(
            *(answer(each, prompt, 20) for prompt, each in zip(prompts, [generator, another] * 5, strict=True))
        )
    assert answers == [expected(prompt, 20) for prompt in prompts]


@pytest.mark.parametrize(
    ("prompt", "count", "error"),
    [
        ([1] * CONTEXT, 2, ContextExceeded),
        ([1], CONTEXT + 1, ContextExceeded),
        ([1, 256], 1, CommonweightError),
        ([], 1, ValueError),
        ([1], 0, ValueError),
    ],
    ids=["long prompt", "long answer", "no such token", "no prompt", "no answer"],
)
async def test_what_can_t_be_answered_is_refused_at_once(
    generator: Generator, prompt: list[int], count: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await answer(generator, prompt, count)
    assert await answer(generator) == expected(PROMPT, 8)


# Memory


@pytest.mark.parametrize("stage", range(STAGES))
async def test_a_session_too_many_is_refused_until_another_has_ended(workers: DecodeWorkers, stage: int) -> None:
    capacity = len(PROMPT) + 8 - 1
    async with room_for(workers, stage, 2, capacity), open_generator(workers.route(), GATEWAY) as generator:
        async with aclosing(generator.generate(PROMPT, 8)) as first, aclosing(generator.generate(PROMPT, 8)) as second:
            begun = [await anext(first), await anext(second)]
            with pytest.raises(NoRoom, match="are taken by 2 sessions"):
                await answer(generator)
            rest = [[token async for token in each] for each in (first, second)]
            assert [[token, *more] for token, more in zip(begun, rest, strict=True)] == [expected(PROMPT, 8)] * 2
        assert await once_there_is_room(generator) == expected(PROMPT, 8)


async def test_closing_an_answer_and_leaving_free_the_memory(workers: DecodeWorkers) -> None:
    capacity = len(PROMPT) + 8 - 1
    async with room_for(workers, STAGES - 1, 1, capacity), open_generator(workers.route(), GATEWAY) as generator:
        async with open_generator(workers.route(), GATEWAY) as leaving:
            abandoned = leaving.generate(PROMPT, 8)
            await anext(abandoned)
            with pytest.raises(NoRoom):
                await answer(generator)
        assert await once_there_is_room(generator) == expected(PROMPT, 8)
        with pytest.raises(StageLost, match="closed this generator"):
            await anext(abandoned)
        closed = generator.generate(PROMPT, 8)
        await anext(closed)
        await closed.aclose()
        assert await once_there_is_room(generator) == expected(PROMPT, 8)


async def test_a_session_that_nobody_steps_is_ended(workers: DecodeWorkers) -> None:
    capacity = len(PROMPT) + 8 - 1
    async with (
        room_for(workers, 1, 1, capacity, idle_s=0.5),
        open_generator(workers.route(), GATEWAY) as generator,
        aclosing(generator.generate(PROMPT, 8)) as idle,
    ):
        await anext(idle)
        with pytest.raises(NoRoom):
            await answer(generator)
        assert await once_there_is_room(generator) == expected(PROMPT, 8)
        with pytest.raises(UnplannedMessage, match=r"no step for 0\.5 s"):
            await anext(idle)


# Stages that go away


@pytest.mark.parametrize("stage", range(STAGES))
async def test_a_stage_killed_in_mid_answer_is_named_and_its_successor_answers(
    workers: DecodeWorkers, stage: int
) -> None:
    async with open_generator(workers.route(), GATEWAY) as generator:
        running = generator.generate(PROMPT, CONTEXT - len(PROMPT))
        tokens = [await anext(running) for _ in range(5)]
        os.kill(workers.workers[stage].process.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        with pytest.raises(StageLost):
            await take_all(running, tokens)
        assert seconds_since(killed_s) < 5
        assert tokens == expected(PROMPT, len(tokens))
        assert await workers.workers[stage].process.wait() == -signal.SIGKILL
        await workers.restart(stage)
    async with open_generator(workers.route(), GATEWAY) as generator:
        assert await answer(generator) == expected(PROMPT, 8)


async def test_a_frozen_stage_is_noticed(workers: DecodeWorkers) -> None:
    pid = workers.workers[1].process.pid
    async with open_generator(workers.route(), GATEWAY) as generator:
        async with aclosing(generator.generate(PROMPT, 50)) as tokens:
            await anext(tokens)
            os.kill(pid, signal.SIGSTOP)
            started_s = time.monotonic()
            try:
                with pytest.raises(StageLost, match="Stage 1"):
                    await take_all(tokens, [])
                assert seconds_since(started_s) < 12
            finally:
                os.kill(pid, signal.SIGCONT)
        assert await answer(generator) == expected(PROMPT, 8)  # the link opens again by itself


# Versions


async def test_sessions_of_the_version_before_run_out(workers: DecodeWorkers) -> None:
    before, after = 0, 3
    async with open_generator(workers.route(before), GATEWAY) as old:
        async with aclosing(old.generate(PROMPT, 8)) as running:
            tokens = [await anext(running)]
            for stage in range(STAGES):
                await workers.load(stage, after)
            assert await answer(old) == expected(PROMPT, 8)  # until all are ready, it is the one
            for stage in range(STAGES):
                await workers.introduce(stage, after)
            async with open_generator(workers.route(after), GATEWAY) as new:
                assert await answer(new) == expected(PROMPT, 8)
                with pytest.raises(NotServed):
                    await answer(old)
                tokens += [token async for token in running]
        assert tokens == expected(PROMPT, 8)
        async with asyncio.timeout(DEADLINE_S):
            while old.failure is None:  # dropped once its last session has ended
                with pytest.raises((NotServed, StageLost)):  # gRPC may call the end of the stream an internal error
                    await answer(old)
    with pytest.raises(CommonweightError, match="isn't served"):
        async with open_generator(workers.route(before), GATEWAY):
            pass
    workers.round = after


# Gateways and stages that don't keep to it


class Rogue:
    """Streams to one stage, as anybody who has a certificate can open them."""

    def __init__(self, workers: DecodeWorkers, stage: int, mine: Certificate) -> None:
        worker = workers.workers[stage]
        self.round = workers.round
        self._channel = open_channel(
            worker.address, mine, worker.certificate.der, max_message_bytes=4 * DECODE_FRAME_BYTES
        )
        self.stub = decode_pb2_grpc.StageDecodeStub(self._channel)

    async def __aenter__(self) -> "Rogue":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    def hello(self, **fields: Any) -> pb.DecodeHello:
        right = {"spec_hash": SPEC.spec_hash, "round": self.round, "stage": 0, "client": b"c" * 16}
        return pb.DecodeHello(**(right | fields))

    async def listen(self) -> bytes:
        """For tokens of the last stage, until this is left; as a client with this id."""
        client = secrets.token_bytes(16)
        async with asyncio.timeout(DEADLINE_S):
            self._tokens = self.stub.Tokens(self.hello(stage=STAGES - 1, client=client))
            assert (await self._tokens.read()).WhichOneof("body") == "hello"
        return client

    async def feed(self, *frames: pb.DecodeFrame, answers: int = 0) -> list[pb.DecodeAnswer]:
        """Send these, await so many answers, and say that no more come: whatever isn't answered by then may be lost."""
        async with asyncio.timeout(DEADLINE_S):
            call = self.stub.Feed()
            came: list[pb.DecodeAnswer] = []
            try:
                for frame in frames:
                    await call.write(frame)
                came += [await call.read() for _ in range(answers)]
                await call.done_writing()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # it has been refused already; reading says so
            while (answer := await call.read()) is not grpc.aio.EOF:
                came.append(answer)
            return came

    async def outcome(self, *frames: pb.DecodeFrame) -> tuple[grpc.StatusCode, str]:
        """How a stream of these is ended."""
        try:
            await self.feed(*frames)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""


SESSION = open_session([1, 2]).session


def opening(session: bytes = SESSION, **fields: Any) -> pb.DecodeFrame:
    right = {"session": session, "capacity": 20, "gateway": GATEWAY.peer_id}
    return pb.DecodeFrame(open=open_session([1, 2], **(right | fields)))


def step(session: bytes = SESSION, **fields: Any) -> pb.DecodeFrame:
    right = {"session": session, "position": 0, "ids": [1, 2]}
    return pb.DecodeFrame(step=pb.SessionStep(**(right | fields)))


def for_client(frame: pb.DecodeFrame, client: bytes) -> pb.DecodeFrame:
    """The same, and tokens of a session that it opens are this client's."""
    found = pb.DecodeFrame()
    found.CopyFrom(frame)
    if found.HasField("open"):
        found.open.client = client
    return found


CODE = bytes(2 * SPEC.architecture.boundary_dim * 4)
OTHER = expected([1, 2], 1)[0] ^ 1
NAN = b"\xff\xff\xff\x7f" * (len(CODE) // 4)

# Frames that end a session: to a stage as if from the one before it (or from a gateway), and what is answered.
SESSION_FAULTS: dict[str, tuple[int, list[pb.DecodeFrame], str, str]] = {
    "no such session": (0, [step()], "WIRE_UNPLANNED", "no such session"),
    "opened twice": (0, [opening(), opening()], "WIRE_UNPLANNED", "open already"),
    "no room for a token": (0, [opening(capacity=0)], "WIRE_MALFORMED", "room for 0 tokens"),
    "no prompt": (0, [opening(prompt_tokens=0)], "WIRE_MALFORMED", "a prompt of 0"),
    "a prompt beyond its room": (0, [opening(prompt_tokens=21)], "WIRE_MALFORMED", "a prompt of 21"),
    "over the context": (0, [opening(capacity=CONTEXT + 1)], "CONTEXT_EXCEEDED", "at most"),
    "far over the context": (0, [opening(capacity=2**32 - 1)], "CONTEXT_EXCEEDED", "at most"),
    "negative temperature": (0, [opening(temperature=-1.0)], "WIRE_MALFORMED", "temperature"),
    "no temperature": (0, [opening(temperature=float("nan"))], "WIRE_MALFORMED", "temperature"),
    "far too hot": (0, [opening(temperature=100.5)], "WIRE_MALFORMED", "isn't from 0 to 100"),
    "no nonce": (0, [opening(nonce=b"")], "WIRE_MALFORMED", "nonce has 16 bytes"),
    "another prompt": (0, [opening(), step(ids=[1, 3])], "WIRE_UNPLANNED", "of another prompt"),
    "another prompt from a stage": (1, [opening(), step(ids=[1, 3], code=CODE)], "WIRE_UNPLANNED", "of another prompt"),
    "another temperature": (2, [opening(temperature=0.5), step(code=CODE)], "WIRE_UNPLANNED", "of another prompt"),
    "no ids": (0, [opening(), step(ids=[])], "WIRE_MALFORMED", "this one has 0"),
    "too many ids": (0, [opening(), step(ids=[1] * (MAX_CHUNK_TOKENS + 1))], "WIRE_MALFORMED", "1 to 128 tokens"),
    "no such token": (0, [opening(), step(ids=[256])], "WIRE_MALFORMED", "vocabulary of 256"),
    "huge token": (0, [opening(), step(ids=[2**32 - 1])], "WIRE_MALFORMED", "vocabulary of 256"),
    "out of turn": (0, [opening(), step(position=1)], "WIRE_UNPLANNED", "due is 0"),
    "twice": (0, [opening(), step(), step()], "WIRE_UNPLANNED", "due is 2"),
    "over its room": (0, [opening(capacity=2), step(), step(position=2, ids=[1])], "CONTEXT_EXCEEDED", "room for 2"),
    "beyond the prompt": (0, [opening(prompt_tokens=1), step()], "WIRE_UNPLANNED", "ends at token 1"),
    "two at once after the prompt": (0, [opening(), step(), step(position=2)], "WIRE_UNPLANNED", "came at once"),
    "not what was chosen": (0, [opening(), step(), step(position=2, ids=[OTHER])], "WIRE_UNPLANNED", "chosen was"),
    "code for the first stage": (0, [opening(), step(code=CODE)], "WIRE_MALFORMED", "due are 0"),
    "no code": (1, [opening(), step()], "WIRE_MALFORMED", f"due are {len(CODE)}"),
    "short code": (1, [opening(), step(code=CODE[1:])], "WIRE_MALFORMED", f"due are {len(CODE)}"),
    "not finite": (1, [opening(), step(code=NAN)], "WIRE_NOT_FINITE", "NaN"),
    "nobody listens": (2, [opening(gateway="nobody")], "WIRE_UNPLANNED", "doesn't listen"),
}


@pytest.mark.parametrize(("stage", "frames", "code", "match"), SESSION_FAULTS.values(), ids=SESSION_FAULTS)
async def test_a_wrong_frame_ends_its_session_only(
    workers: DecodeWorkers, generator: Generator, stage: int, frames: list[pb.DecodeFrame], code: str, match: str
) -> None:
    async with aclosing(generator.generate(PROMPT, 8)) as running:
        tokens = [await anext(running)]
        mine = GATEWAY if stage == 0 else workers.workers[stage - 1].certificate
        async with Rogue(workers, stage, mine) as rogue, Rogue(workers, STAGES - 1, GATEWAY) as listener:
            client = await listener.listen()  # or the last stage's refusal may come between two frames
            hello = pb.DecodeFrame(hello=rogue.hello(stage=max(0, stage - 1), client=client))
            answers = await rogue.feed(hello, *(for_client(frame, client) for frame in frames), answers=2)
        assert answers[0].WhichOneof("body") == "hello"
        failures = [each.failed for each in answers if each.WhichOneof("body") == "failed"]
        assert any(each.code == code and match in each.message for each in failures), failures
        assert all(each.session == SESSION for each in failures)
        tokens += [token async for token in running]
    assert tokens == expected(PROMPT, 8)


STREAM_FAULTS: dict[str, tuple[Callable[[Rogue], list[pb.DecodeFrame]], str, str]] = {
    "nothing": (lambda r: [], "INVALID_ARGUMENT", "begins with a hello"),
    "no hello": (lambda r: [opening()], "INVALID_ARGUMENT", "begins with a hello"),
    "empty": (lambda r: [pb.DecodeFrame()], "INVALID_ARGUMENT", "begins with a hello"),
    "other spec": (
        lambda r: [pb.DecodeFrame(hello=r.hello(spec_hash=b"\1" * 32))],
        "FAILED_PRECONDITION",
        "spec_hash",
    ),
    "other version": (lambda r: [pb.DecodeFrame(hello=r.hello(round=99))], "UNAVAILABLE", "isn't served here"),
    "other stage": (lambda r: [pb.DecodeFrame(hello=r.hello(stage=1))], "FAILED_PRECONDITION", "stage is 1"),
    "no client": (lambda r: [pb.DecodeFrame(hello=r.hello(client=b""))], "INVALID_ARGUMENT", "16 bytes"),
    "second hello": (lambda r: [pb.DecodeFrame(hello=r.hello())] * 2, "INVALID_ARGUMENT", "doesn't send hello here"),
    "empty frame": (
        lambda r: [pb.DecodeFrame(hello=r.hello()), pb.DecodeFrame()],
        "INVALID_ARGUMENT",
        "doesn't send None here",
    ),
    "short id": (
        lambda r: [pb.DecodeFrame(hello=r.hello()), opening(b"short")],
        "INVALID_ARGUMENT",
        "this one has 5",
    ),
    "long id": (
        lambda r: [pb.DecodeFrame(hello=r.hello()), step(b"long" * 1000)],
        "INVALID_ARGUMENT",
        "this one has 4000",
    ),
    "over the limit": (
        lambda r: [pb.DecodeFrame(hello=r.hello()), step(code=bytes(DECODE_FRAME_BYTES))],
        "RESOURCE_EXHAUSTED",
        "larger than max",
    ),
}


@pytest.mark.parametrize(("frames", "status", "match"), STREAM_FAULTS.values(), ids=STREAM_FAULTS)
async def test_a_stream_without_meaning_is_ended(
    workers: DecodeWorkers,
    generator: Generator,
    frames: Callable[[Rogue], list[pb.DecodeFrame]],
    status: str,
    match: str,
) -> None:
    async with Rogue(workers, 0, GATEWAY) as rogue:
        code, details = await rogue.outcome(*frames(rogue))
    assert code is grpc.StatusCode[status], details
    assert match in details
    assert await answer(generator) == expected(PROMPT, 8)


@pytest.mark.parametrize(
    ("stage", "mine", "status"),
    [
        (0, STRANGER, "UNAVAILABLE"),
        (2, STRANGER, "UNAVAILABLE"),
        (1, GATEWAY, "UNAVAILABLE"),
        (2, GATEWAY, "PERMISSION_DENIED"),
    ],
    ids=["stranger to the first", "stranger to the last", "gateway to the middle", "gateway as a stage"],
)
async def test_only_whom_the_coordinator_named_may_feed_a_stage(
    workers: DecodeWorkers, stage: int, mine: Certificate, status: str
) -> None:
    async with Rogue(workers, stage, mine) as rogue:
        code, _ = await rogue.outcome(pb.DecodeFrame(hello=rogue.hello(stage=max(0, stage - 1))))
    assert code is grpc.StatusCode[status]


async def test_only_gateways_listen_and_only_on_the_last_stage(workers: DecodeWorkers) -> None:
    for stage, mine, status in (
        (2, workers.workers[1].certificate, "PERMISSION_DENIED"),
        (0, GATEWAY, "FAILED_PRECONDITION"),
    ):
        async with Rogue(workers, stage, mine) as rogue:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await rogue.stub.Tokens(rogue.hello(stage=stage), timeout=DEADLINE_S).read()
            assert raised.value.code() is grpc.StatusCode[status]


async def test_nobody_steps_into_another_s_session(workers: DecodeWorkers, generator: Generator) -> None:
    async with aclosing(generator.generate(PROMPT, 8)) as running:
        tokens = [await anext(running)]
        (session,) = generator._inboxes
        async with Rogue(workers, 0, GATEWAY) as rogue:
            hello = pb.DecodeFrame(hello=rogue.hello(client=secrets.token_bytes(16)))
            close = pb.DecodeFrame(close=pb.SessionClose(session=session))
            frames = hello, step(session, position=len(PROMPT)), opening(session), close
            answers = await rogue.feed(*frames, answers=3)
        assert [each.failed.code for each in answers[1:]] == ["WIRE_UNPLANNED"] * 2
        tokens += [token async for token in running]
    assert tokens == expected(PROMPT, 8)
