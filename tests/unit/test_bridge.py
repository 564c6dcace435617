"""Calls between asyncio and the trio thread: results, errors, cancellation, and the end of either side."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from commonweight.errors import ConfigError, PeerUnreachable
from commonweight.peers.bridge import TrioThread

WAIT_S = 10.0

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def opened() -> AsyncIterator[str]:
    yield "value"


async def double(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * number


async def test_calls_bring_results_and_errors_back() -> None:
    async def fail() -> None:
        raise ConfigError("no")

    thread = TrioThread(opened)
    assert await thread.start() == "value"
    assert await asyncio.gather(*(thread.acall(double, n) for n in range(100))) == [2 * n for n in range(100)]
    with pytest.raises(ConfigError):
        await thread.acall(fail)
    await thread.stop()
    assert not thread.died.done()


async def test_cancelling_the_call_cancels_it_in_trio() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()
    thread = TrioThread(opened)
    await thread.start()

    async def sleep() -> None:
        thread.tell(began.set)
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            thread.tell(cancelled.set)
            raise

    call = asyncio.create_task(thread.acall(sleep))
    await asyncio.wait_for(began.wait(), WAIT_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(cancelled.wait(), WAIT_S)
    assert await thread.acall(double, 1) == 2
    await thread.stop()


async def test_what_cannot_be_opened_is_raised_by_start() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ConfigError("taken")
        yield

    thread = TrioThread(broken)
    with pytest.raises(ConfigError):
        await thread.start()
    await thread.stop()
    assert not thread.died.done()


async def test_a_crash_in_trio_is_told_and_ends_the_calls() -> None:
    crash = trio.Event()

    @asynccontextmanager
    async def crashing() -> AsyncIterator[None]:
        async def part() -> None:
            await crash.wait()
            raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(part)
            yield

    thread = TrioThread(crashing)
    await thread.start()
    call = asyncio.create_task(thread.acall(trio.sleep_forever))

    async def trigger() -> None:
        crash.set()

    await thread.acall(trigger)
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(thread.died, WAIT_S)
    assert raised.group_contains(ZeroDivisionError, depth=1)
    with pytest.raises(PeerUnreachable):
        await call
    with pytest.raises(PeerUnreachable):
        await thread.acall(double, 1)
    await thread.stop()


async def test_stop_ends_calls_in_flight_and_leaves_the_context() -> None:
    left = asyncio.Event()

    @asynccontextmanager
    async def watched() -> AsyncIterator[None]:
        try:
            yield
        finally:
            thread.tell(left.set)

    thread = TrioThread(watched)
    await thread.start()
    calls = [asyncio.create_task(thread.acall(trio.sleep_forever)) for _ in range(8)]
    await asyncio.sleep(0)
    await thread.stop()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, PeerUnreachable)
    assert left.is_set()
    assert not thread.died.done()
    await thread.stop()


async def test_a_call_while_the_context_is_left_is_refused_and_disturbs_nothing() -> None:
    leaving, left = asyncio.Event(), asyncio.Event()
    go_on = trio.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[trio.lowlevel.TrioToken]:
        yield trio.lowlevel.current_trio_token()
        thread.tell(leaving.set)
        await go_on.wait()
        thread.tell(left.set)

    thread = TrioThread(slow)
    token = await thread.start()
    stopping = asyncio.create_task(thread.stop())
    await asyncio.wait_for(leaving.wait(), WAIT_S)
    with pytest.raises(PeerUnreachable):
        await asyncio.wait_for(thread.acall(double, 1), WAIT_S)
    token.run_sync_soon(go_on.set)
    await stopping
    assert left.is_set()
