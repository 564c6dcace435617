"""The model as it is served: through the decode processes of its stages, along the coordinator's route."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager

from commonweight.errors import IdentityMismatch, NotServed, Refused, StageLost, WireError
from commonweight.events import emit
from commonweight.rules.answer import NONCE_BYTES, pack_ids, session_id
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generation import Generator, open_generator
from commonweight.wire.serving import Route, Served, ServingClient
from commonweight.wire.tls import Certificate
from gateway.backend import Generation

REFRESH_S = 2.0
"""Between two looks at the route: versions change with every epoch."""

BEGIN_S = 15.0
ATTEMPTS, FIRST_PAUSE_S = 6, 0.05
"""To begin an answer, with pauses between them: 1.6 s in all."""


class _Version:
    """A generator, which is closed when it is retired and its last answer has ended."""

    def __init__(self, generator: Generator, stack: AsyncExitStack) -> None:
        self.generator = generator
        self._stack, self._answers = stack, 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def used(self) -> Iterator[Generator]:
        self._answers += 1
        self._unused.clear()
        try:
            yield self.generator
        finally:
            self._answers -= 1
            if self._answers == 0:
                self._unused.set()

    async def retire(self) -> None:
        await self._unused.wait()
        await self._stack.aclose()


class Pipeline:
    """A Backend: the model of `serving`'s coordinator, for a gateway with this certificate.

    `check` raises ConfigError for a route of another model; `sign` is by the gateway's key, over the receipt.
    """

    def __init__(
        self,
        serving: ServingClient,
        certificate: Certificate,
        check: Callable[[Route], None],
        sign: Callable[[Served], bytes],
    ) -> None:
        self._check, self._sign = check, sign
        self._spec: ModelSpec | None = None
        self._serving, self._certificate = serving, certificate
        self._version: _Version | None = None
        self._refreshing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def spec(self) -> ModelSpec | None:
        """Of the model; None until a version has been served."""
        return self._spec

    async def served_round(self) -> int | None:
        """The version that would answer now; None where there is none."""
        version = self._version
        return None if version is None or version.generator.failure is not None else version.generator.route.round

    async def generate(self, ids: Sequence[int], max_tokens: int, temperature: float, seed: int) -> Generation:
        """Begin to answer; returns with the first token. Where the version or a stage has just gone, begins again.

        Stages may know of another version a moment before the coordinator has a route for it.
        """
        pause_s, give_up_s = FIRST_PAUSE_S, asyncio.get_running_loop().time() + BEGIN_S
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._begin(ids, max_tokens, temperature, seed)
            except (NotServed, StageLost):
                if asyncio.get_running_loop().time() > give_up_s:
                    raise  # it was silent, not gone: to ask once more would only make its queue longer
                try:
                    await self.refresh()
                except WireError:
                    if self._version is None:
                        raise
            await asyncio.sleep(pause_s)
            pause_s *= 2
        return await self._begin(ids, max_tokens, temperature, seed)

    async def report(self, served: Served) -> None:
        """As Backend says."""
        await self._serving.report(served, self._sign(served))

    async def keep_current(self) -> None:
        """Follow the route for as long as the gateway runs. What can't be reached is tried again.

        Raises Refused and IdentityMismatch where the coordinator doesn't want this gateway from the beginning, or is
        another one; ConfigError where it leads another model.
        """
        said = ""
        while True:
            try:
                await self.refresh()
                said = ""
            except WireError as error:
                if self._spec is None and isinstance(error, Refused | IdentityMismatch):
                    raise
                if error.code != said:
                    emit("route.failed", code=error.code, message=str(error), retry_s=REFRESH_S)
                said = error.code
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Ask for the route, and open it if it is a new one. Raises WireError; NotServed if there is none now."""
        async with self._refreshing:
            try:
                route = await self._serving.route()
            except NotServed:
                self._replace(None)
                raise
            present = self._version
            if present and present.generator.route.id == route.id and present.generator.failure is None:
                return
            self._check(route)
            self._spec = route.spec
            async with AsyncExitStack() as stack:
                generator = await stack.enter_async_context(open_generator(route, self._certificate))
                self._replace(_Version(generator, stack.pop_all()))
            emit("route.opened", round=route.round, stages=len(route.stages))

    async def close(self) -> None:
        """Close all streams."""
        self._replace(None)
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._serving.close()

    def _replace(self, version: _Version | None) -> None:
        if self._version is not None:
            task = asyncio.create_task(self._version.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        self._version = version

    async def _begin(self, ids: Sequence[int], max_tokens: int, temperature: float, seed: int) -> Generation:
        version = self._version
        if version is None:
            raise NotServed("No version of the model is served at the moment. Try again in a while.")
        nonce = secrets.token_bytes(NONCE_BYTES)
        session = session_id(nonce, pack_ids(ids), temperature + 0.0, seed)
        tokens = _tokens(version, nonce, ids, max_tokens, temperature, seed)
        first = await anext(tokens)
        return Generation(version.generator.route.round, session, _after(first, tokens))


async def _tokens(
    version: _Version, nonce: bytes, ids: Sequence[int], max_tokens: int, temperature: float, seed: int
) -> AsyncGenerator[int, None]:
    with version.used() as generator:
        answer = generator.generate(ids, max_tokens, temperature=temperature, seed=seed, nonce=nonce)
        async with aclosing(answer) as tokens:
            async for token in tokens:
                yield token


async def _after(first: int, rest: AsyncGenerator[int, None]) -> AsyncGenerator[int, None]:
    async with aclosing(rest):
        yield first
        async for token in rest:
            yield token
