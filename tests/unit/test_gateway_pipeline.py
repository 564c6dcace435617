"""Following the coordinator's route: another version, a lost stage, a coordinator that is away or says no."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from commonweight.errors import ConfigError, NotServed, PeerUnreachable, Refused, StageLost, WireError
from commonweight.wire.serving import Route, Served
from gateway import pipeline as module
from gateway.pipeline import ATTEMPTS, Pipeline
from tests.unit.gateway_world import SPEC
from tests.unit.tiny import open_session

pytestmark = pytest.mark.asyncio
ROUTE = Route(b"\x01", SPEC, bytes(32), 30, ())


@dataclass
class World:
    """A coordinator that answers with `route`, and generators over it."""

    route: Route | WireError = ROUTE
    lost: list[int] = field(default_factory=list)
    """Of each answer to come: after how many tokens its stage is lost."""
    opened: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    checked: list[int] = field(default_factory=list)
    sessions: list[bytes] = field(default_factory=list)
    """That the stages were asked for."""
    reports: list[tuple[Served, bytes]] = field(default_factory=list)

    def pipeline(self, check: Callable[[Route], None] | None = None) -> Pipeline:
        check = check or (lambda route: self.checked.append(route.round))
        return Pipeline(Coordinator(self), None, check, lambda served: b"signed " + served.session)  # type: ignore[arg-type]

    @asynccontextmanager
    async def open_generator(self, route: Route, _certificate: object) -> AsyncIterator["Generator"]:
        self.opened.append(route.round)
        yield Generator(self, route)
        self.closed.append(route.round)


@dataclass
class Coordinator:
    world: World

    async def route(self) -> Route:
        if isinstance(self.world.route, WireError):
            raise self.world.route
        return self.world.route

    async def report(self, served: Served, signature: bytes) -> None:
        self.world.reports.append((served, signature))

    async def close(self) -> None:
        pass


@dataclass
class Generator:
    world: World
    route: Route
    failure: WireError | None = None

    async def generate(
        self, ids: Sequence[int], max_tokens: int, *, temperature: float, seed: int, nonce: bytes
    ) -> AsyncGenerator[int, None]:
        self.world.sessions.append(open_session(ids, nonce=nonce, temperature=temperature + 0.0, seed=seed).session)
        lost_after = self.world.lost.pop(0) if self.world.lost else max_tokens
        for token in range(max_tokens):
            if token == lost_after:
                self.failure = StageLost("Stage 1 is gone.")
                raise self.failure
            yield token


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(module, "open_generator", world.open_generator)
    monkeypatch.setattr(module, "REFRESH_S", 0)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0)
    return world


async def answer(pipeline: Pipeline, max_tokens: int = 3) -> tuple[int, list[int]]:
    generation = await pipeline.generate([1], max_tokens, 0.0, 0)
    return generation.round, [token async for token in generation.tokens]


async def test_a_route_is_opened_once(world: World) -> None:
    pipeline = world.pipeline()
    assert (pipeline.spec, await pipeline.served_round()) == (None, None)
    await pipeline.refresh()
    await pipeline.refresh()
    assert (pipeline.spec, await pipeline.served_round(), world.opened, world.checked) == (SPEC, 30, [30], [30])
    assert await answer(pipeline) == (30, [0, 1, 2])
    await pipeline.close()
    assert world.closed == [30]


async def test_what_is_reported_is_signed(world: World) -> None:
    pipeline, served = world.pipeline(), Served(bytes(16), 30, b"\x05" * 16, 1, 3)
    await pipeline.report(served)
    assert world.reports == [(served, b"signed " + served.session)]
    await pipeline.close()


async def test_before_the_first_token_a_lost_stage_is_tried_again(world: World) -> None:
    world.lost = [0, 3]
    pipeline = world.pipeline()
    await pipeline.refresh()
    assert await answer(pipeline) == (30, [0, 1, 2])
    assert world.opened == [30, 30]
    world.lost = [0, 3]
    generation = await pipeline.generate([1], 3, -0.0, 0)
    assert len(set(world.sessions)) == len(world.sessions) == 4
    assert generation.session == world.sessions[-1], "the one that answered"
    await generation.tokens.aclose()
    world.lost = [0] * ATTEMPTS
    with pytest.raises(StageLost):
        await answer(pipeline)
    assert world.lost == []
    await pipeline.close()


async def test_a_silent_stage_is_not_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt takes a minute then, and the stage has another prompt to work on."""
    monkeypatch.setattr(module, "BEGIN_S", -1)  # as if the first attempt had taken so long
    world.lost = [0, 3]
    pipeline = world.pipeline()
    await pipeline.refresh()
    with pytest.raises(StageLost):
        await answer(pipeline)
    assert world.lost == [3]
    await pipeline.close()


async def test_a_version_that_has_lost_a_stage_is_not_served(world: World) -> None:
    world.lost = [2]
    pipeline = world.pipeline()
    await pipeline.refresh()
    with pytest.raises(StageLost):
        await answer(pipeline)
    assert await pipeline.served_round() is None
    await pipeline.refresh()
    assert await pipeline.served_round() == 30
    await pipeline.close()


async def test_after_it_the_answer_is_over(world: World) -> None:
    world.lost = [2]
    pipeline = world.pipeline()
    await pipeline.refresh()
    generation = await pipeline.generate([1], 3, 0.0, 0)
    assert [await anext(generation.tokens), await anext(generation.tokens)] == [0, 1]
    with pytest.raises(StageLost):
        await anext(generation.tokens)
    await pipeline.close()
    assert world.closed == [30]


async def test_an_answer_outlives_its_version(world: World) -> None:
    pipeline = world.pipeline()
    await pipeline.refresh()
    generation = await pipeline.generate([1], 3, 0.0, 0)
    assert await anext(generation.tokens) == 0
    world.route = replace(ROUTE, id=b"\x02", round=60)
    await pipeline.refresh()
    assert (await pipeline.served_round(), await answer(pipeline, 1)) == (60, (60, [0]))
    assert world.closed == []
    assert [token async for token in generation.tokens] == [1, 2]
    await pipeline.close()
    assert sorted(world.closed) == [30, 60]


async def test_no_version_no_answer(world: World) -> None:
    world.route = NotServed("Stage 1 can't generate.")
    pipeline = world.pipeline()
    for _ in range(2):
        with pytest.raises(NotServed):
            await answer(pipeline)
    world.route = ROUTE
    assert await answer(pipeline) == (30, [0, 1, 2]), "the route is asked for at once"
    world.route = NotServed("Stage 1 can't generate.")
    with pytest.raises(NotServed):
        await pipeline.refresh()
    assert await pipeline.served_round() is None
    await pipeline.close()


async def test_it_answers_on_while_the_coordinator_is_away(world: World) -> None:
    pipeline = world.pipeline()
    await pipeline.refresh()
    world.route = PeerUnreachable("Nobody is there.")
    following = asyncio.create_task(pipeline.keep_current())
    assert await answer(pipeline) == (30, [0, 1, 2])
    following.cancel()
    await pipeline.close()


async def test_who_isn_t_wanted_ends(world: World) -> None:
    world.route = Refused("Not on the list.")
    with pytest.raises(Refused):
        await world.pipeline().keep_current()


async def test_another_model_s_route_is_not_taken(world: World) -> None:
    def check(_route: Route) -> None:
        raise ConfigError("Another model.")

    pipeline = world.pipeline(check)
    with pytest.raises(ConfigError):
        await pipeline.keep_current()
    assert world.opened == []


async def test_a_buyer_that_leaves_frees_the_version(world: World) -> None:
    pipeline = world.pipeline()
    await pipeline.refresh()
    generation = await pipeline.generate([1], 3, 0.0, 0)
    async with aclosing(generation.tokens) as tokens:
        assert await anext(tokens) == 0
    async with asyncio.timeout(5):
        await pipeline.close()
    assert world.closed == [30]
