"""Generating with a model through the nodes that hold its stages: what a gateway does. No torch.

    async with open_generator(route, certificate) as generator:
        async for token in generator.generate(prompt, max_tokens=100):
            …

Steps go to the first stage, tokens come straight from the last one; both streams are shared by all sessions. A token is
asked for when the one before has been taken, so whoever stops reading stops the computing. Steps of prompts take turns:
of all prompts together only as many are under way as keep the stages busy, and a running answer waits behind no more.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from commonweight.errors import (
    CommonweightError,
    ContextExceeded,
    MalformedMessage,
    NotServed,
    PeerUnreachable,
    StageLost,
    UnplannedMessage,
    WireError,
    error_with_code,
)
from commonweight.rules.answer import NONCE_BYTES, pack_ids, session_id
from commonweight.wire.channel import open_channel
from commonweight.wire.decode import (
    DECODE_FRAME_BYTES,
    DECODE_PING_TIMEOUT_MS,
    ID_BYTES,
    OPEN_S,
    check_hello,
    chunk_tokens,
)
from commonweight.wire.generated import decode_pb2 as pb
from commonweight.wire.generated import decode_pb2_grpc
from commonweight.wire.serving import Route, StageAddress
from commonweight.wire.status import wire_error
from commonweight.wire.tls import Certificate

FIRST_TOKEN_S = 60.0
"""From the prompt to the first token; behind others' prompts it takes its time."""
TOKEN_S = 20.0
"""From one token to the next."""
PROMPT_STEPS = 2
"""Of all prompts together, under way at a time for each stage: one is computed while the next one travels."""

_Item = tuple[int, int] | CommonweightError
"""A token's position and id, or why there is none."""


class Generator:
    """A connection to one version of a model. Any number of answers may be generated at the same time.

    Once a stream to the first or the last stage is lost, `failure` says why, and the generator is of no more use.
    """

    def __init__(self, route: Route) -> None:
        """Use `open_generator`."""
        self.route = route
        self.failure: WireError | None = None
        self._chunk = chunk_tokens(route.spec)
        self._window = PROMPT_STEPS * len(route.stages)
        self._turns = asyncio.Semaphore(self._window)
        self._steps: asyncio.Queue[pb.DecodeFrame] = asyncio.Queue()
        self._inboxes: dict[bytes, asyncio.Queue[_Item]] = {}

    async def generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        nonce: bytes = b"",
    ) -> AsyncGenerator[int, None]:
        """The tokens that follow the prompt, `max_tokens` of them or as many as are taken.

        Close it (`contextlib.aclosing`) where it isn't read to its end: that frees the stages' memory at once.
        Temperature 0 takes the most likely token; otherwise equal seeds draw equal tokens. `nonce` is of NONCE_BYTES,
        random ones if not given; the stages know the answer by the `session_id` that follows. Raises ContextExceeded,
        before anything is sent; NoRoom where a stage has none; StageLost where one went away; NotServed where
        this version isn't served any more (ask for the route again); and what a stage refused.
        """
        self._check(prompt_ids, max_tokens)
        nonce = nonce or secrets.token_bytes(NONCE_BYTES)
        temperature += 0.0  # of -0.0 it makes 0.0: its bits are hashed
        session, inbox = session_id(nonce, pack_ids(prompt_ids), temperature, seed), asyncio.Queue[_Item]()
        self._inboxes[session] = inbox
        capacity = len(prompt_ids) + max_tokens - 1  # the last token isn't fed
        opened = pb.SessionOpen(
            session=session,
            nonce=nonce,
            prompt_tokens=len(prompt_ids),
            capacity=capacity,
            temperature=temperature,
            seed=seed,
        )
        try:
            self._steps.put_nowait(pb.DecodeFrame(open=opened))
            token = await _in_time(FIRST_TOKEN_S, self._first(session, inbox, prompt_ids))
            yield token
            for position in range(len(prompt_ids), capacity):
                self._step(session, position, (token,))
                token = await _in_time(TOKEN_S, self._next(inbox, position + 1))
                yield token
        finally:
            del self._inboxes[session]
            self._steps.put_nowait(pb.DecodeFrame(close=pb.SessionClose(session=session)))

    def _check(self, prompt_ids: Sequence[int], max_tokens: int) -> None:
        if self.failure is not None:
            raise _again(self.failure)
        if not prompt_ids or max_tokens < 1:
            raise ValueError(f"{max_tokens} tokens after a prompt of {len(prompt_ids)}: both must be at least 1")
        vocabulary, limit = self.route.spec.architecture.vocab_size, self.route.spec.training.sequence_length
        if not all(0 <= id_ < vocabulary for id_ in prompt_ids):
            raise MalformedMessage(f"The prompt has tokens outside the vocabulary of {vocabulary:,}.")
        if len(prompt_ids) + max_tokens - 1 > limit:
            raise ContextExceeded(
                f"A prompt of {len(prompt_ids):,} tokens and an answer of {max_tokens:,} don't fit in the context of "
                f"{self.route.spec.name}, {limit:,} tokens. Shorten the prompt, or ask for fewer tokens."
            )

    async def _first(self, session: bytes, inbox: "asyncio.Queue[_Item]", prompt_ids: Sequence[int]) -> int:
        """The first token after a prompt, whose steps take turns with those of others."""
        starts, under_way = range(0, len(prompt_ids), self._chunk), 0

        async def feed() -> None:
            nonlocal under_way
            for start in starts:
                await self._turns.acquire()
                under_way += 1
                self._step(session, start, prompt_ids[start : start + self._chunk])

        feeding = asyncio.create_task(feed())
        try:
            token = 0
            for start in starts:  # the token that would follow each step says that it is done
                token = await self._next(inbox, min(start + self._chunk, len(prompt_ids)))
                self._turns.release()
                under_way -= 1
            return token
        finally:
            feeding.cancel()
            for _ in range(under_way):
                self._turns.release()

    def _step(self, session: bytes, position: int, ids: Sequence[int]) -> None:
        step = pb.SessionStep(session=session, position=position, ids=ids)
        self._steps.put_nowait(pb.DecodeFrame(step=step))

    async def _next(self, inbox: "asyncio.Queue[_Item]", due: int) -> int:
        item = await inbox.get()
        if isinstance(item, CommonweightError):
            raise _again(item)
        position, id_ = item
        if position != due:
            raise UnplannedMessage(f"The last stage sent token {position}; due is {due}.")
        if id_ >= self.route.spec.architecture.vocab_size:
            raise MalformedMessage(f"The last stage sent {id_}, which isn't a token.")
        return id_

    async def write_steps(self, call: Any) -> None:
        """Send what sessions ask for, until the call ends."""
        with suppress(asyncio.InvalidStateError):  # it has ended
            while True:
                await call.write(await self._steps.get())

    async def read_answers(self, call: Any) -> None:
        """Hand tokens and failures to their sessions, until the call ends."""
        while (answer := await call.read()) is not grpc.aio.EOF:
            match answer.WhichOneof("body"):
                case "token":
                    self._hand(answer.token.session, (answer.token.position, answer.token.id))
                case "failed":
                    failed = answer.failed
                    self._hand(failed.session, error_with_code(failed.code, failed.message[:500]))
                case other:
                    raise MalformedMessage(f"A stage doesn't send {other} here.")

    def _hand(self, session: bytes, item: _Item) -> None:
        if (inbox := self._inboxes.get(session)) is None:
            return  # it has ended
        if inbox.qsize() > self._window:  # each step has one answer, and a session one failure
            raise MalformedMessage(f"The stages sent over {inbox.qsize()} answers that nobody asked for.")
        inbox.put_nowait(item)

    def fail(self, error: WireError) -> None:
        """Nothing more comes."""
        self.failure = error
        for inbox in self._inboxes.values():
            inbox.put_nowait(error)


@asynccontextmanager
async def open_generator(route: Route, certificate: Certificate) -> AsyncIterator[Generator]:
    """A generator over this route, for a gateway with this certificate, which the coordinator knows.

    Raises WireError where the first or the last stage can't be reached or refuses.
    """
    generator = Generator(route)
    first, last = route.stages[0], route.stages[-1]
    hello = pb.DecodeHello(spec_hash=route.spec.spec_hash, round=route.round, client=secrets.token_bytes(ID_BYTES))
    async with _channel(first, certificate) as first_channel, _channel(last, certificate) as last_channel:
        tokens = await _listen(last_channel, last, route, hello)
        steps = await _feed(first_channel, first, route, hello)
        tasks = [
            asyncio.create_task(_watch(generator, generator.read_answers(tokens), tokens, "The last stage")),
            asyncio.create_task(_watch(generator, generator.read_answers(steps), steps, "The first stage")),
            asyncio.create_task(_watch(generator, generator.write_steps(steps), steps, "The first stage")),
        ]
        try:
            yield generator
        finally:
            generator.fail(StageLost("The gateway has closed this generator."))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _channel(stage: StageAddress, certificate: Certificate) -> AsyncIterator[grpc.aio.Channel]:
    channel = open_channel(
        stage.decode_address,
        certificate,
        stage.certificate,
        max_message_bytes=DECODE_FRAME_BYTES,
        ping_timeout_ms=DECODE_PING_TIMEOUT_MS,
    )
    try:
        yield channel
    finally:
        await channel.close()


async def _listen(channel: grpc.aio.Channel, stage: StageAddress, route: Route, hello: pb.DecodeHello) -> Any:
    request = pb.DecodeHello()
    request.CopyFrom(hello)
    request.stage = len(route.stages) - 1

    async def open_() -> tuple[Any, Any]:
        await channel.channel_ready()
        call = decode_pb2_grpc.StageDecodeStub(channel).Tokens(request)
        return call, await call.read()

    return await _opened(open_(), stage, route, request.stage)


async def _feed(channel: grpc.aio.Channel, stage: StageAddress, route: Route, hello: pb.DecodeHello) -> Any:
    async def open_() -> tuple[Any, Any]:
        await channel.channel_ready()
        call = decode_pb2_grpc.StageDecodeStub(channel).Feed()
        await call.write(pb.DecodeFrame(hello=hello))
        return call, await call.read()

    return await _opened(open_(), stage, route, 0)


async def _opened(attempt: Coroutine[Any, Any, tuple[Any, Any]], stage: StageAddress, route: Route, index: int) -> Any:
    where = f"Stage {index} ({stage.peer_id} at {stage.decode_address})"
    try:
        async with asyncio.timeout(OPEN_S):
            call, answer = await attempt
            if answer is grpc.aio.EOF:
                raise PeerUnreachable(f"{where} ended the stream before a hello: {await call.details()}")
        if (kind := answer.WhichOneof("body")) != "hello":
            raise MalformedMessage(f"{where} began with {kind}, not with a hello.")
    except TimeoutError:
        raise PeerUnreachable(
            f"{where} didn't open a stream within {OPEN_S:g} s. Check that it can be reached from here; a stage closes "
            "the connection of a gateway that the coordinator didn't name to it."
        ) from None
    except grpc.aio.AioRpcError as error:
        raise wire_error(error, where) from error
    check_hello(answer.hello, route.spec, route.round, index)
    return call


async def _watch(generator: Generator, part: Coroutine[Any, Any, None], call: Any, where: str) -> None:
    """Run a part of the generator, which fails when the part ends; the call's status says why, whoever noticed."""
    try:
        with suppress(grpc.aio.AioRpcError):
            await part
        code, details, nothing = await call.code(), await call.details(), grpc.aio.Metadata()
        if code is grpc.StatusCode.OK:
            found: WireError = StageLost(f"{where} ended the stream.")
        else:
            found = wire_error(grpc.aio.AioRpcError(code, nothing, nothing, details), where)
        generator.fail(
            found if isinstance(found, NotServed | StageLost) else StageLost(f"{where} is gone: {found.args[0]}")
        )
    except WireError as error:
        generator.fail(error)
    finally:
        if generator.failure is None:  # a bug of ours: the task's exception tells which
            generator.fail(StageLost(f"{where} isn't listened to any more."))


async def _in_time(wait_s: float, token: Coroutine[Any, Any, int]) -> int:
    try:
        async with asyncio.timeout(wait_s):
            return await token
    except TimeoutError:
        raise StageLost(f"The next token didn't come within {wait_s:g} s. Ask again.") from None


def _again(error: CommonweightError) -> CommonweightError:
    """The same error for one more session: an exception is raised once."""
    return error_with_code(error.code, error.args[0])
