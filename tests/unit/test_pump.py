"""The pump on streams in memory, with a clock that jumps."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
import trio.testing

from commonweight.peers.pump import Broken, Carried, PumpLimits, Why, pump


class Memory:
    """One end of a pipe in memory; what libp2p's streams and sockets are in the real thing."""

    def __init__(self, stream: trio.testing.MemorySendStream, receiver: trio.testing.MemoryReceiveStream) -> None:
        self._send, self._receive = stream, receiver
        self.state = "open"

    async def receive(self) -> bytes:
        try:
            return bytes(await self._receive.receive_some(7))
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise Broken from error

    async def send(self, data: bytes) -> None:
        try:
            await self._send.send_all(data)
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise Broken from error

    async def send_eof(self) -> None:
        await self._send.aclose()

    async def close(self) -> None:
        self.state = "closed"

    async def reset(self) -> None:
        self.state = "reset"
        self._send.close()
        self._receive.close()


def pair() -> tuple[Memory, Memory]:
    (one_out, two_in), (two_out, one_in) = (
        trio.testing.memory_stream_one_way_pair(),
        trio.testing.memory_stream_one_way_pair(),
    )
    return Memory(one_out, one_in), Memory(two_out, two_in)


def run(limits: PumpLimits, talk: Callable[[Memory, Memory], Awaitable[None]]) -> tuple[Carried, float, set[str]]:
    """What came of a pump between two pipes, at whose outer ends `talk` talks; after how long, and what it did with its
    own ends.
    """

    async def main() -> tuple[Carried, float, set[str]]:
        (left, left_inner), (right, right_inner) = pair(), pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk, left, right)
            began = trio.current_time()
            carried = await pump(left_inner, right_inner, limits)
            seconds = trio.current_time() - began
        return carried, seconds, {left_inner.state, right_inner.state}

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def read_all(end: Memory) -> bytes:
    data = b""
    while some := await end.receive():
        data += some
    return data


def test_each_direction_ends_by_itself() -> None:
    async def talk(left: Memory, right: Memory) -> None:
        await left.send(b"a question of some length")
        await left.send_eof()
        assert await read_all(right) == b"a question of some length"
        await trio.sleep(5)
        await right.send(b"an answer")
        await right.send_eof()
        assert await read_all(left) == b"an answer"

    assert run(PumpLimits(idle_s=10), talk) == (Carried(34, "ended"), 5, {"closed"})


@pytest.mark.parametrize(
    ("limits", "why", "after_s"),
    [
        (PumpLimits(idle_s=3), "idle", 4 + 3),
        (PumpLimits(idle_s=30, duration_s=4.5), "duration", 4.5),
        (PumpLimits(idle_s=30, bytes=3), "bytes", 3),
    ],
)
def test_a_limit_ends_both(limits: PumpLimits, why: Why, after_s: float) -> None:
    async def talk(left: Memory, right: Memory) -> None:
        start = trio.current_time()
        with suppress(Broken):
            for second in range(5):  # a byte at each, the last at 4
                await trio.sleep_until(start + second)
                await (left, right)[second % 2].send(b"x")
        for end in (left, right):
            with suppress(Broken):
                await read_all(end)
            with pytest.raises(Broken):
                await end.send(b"y")

    carried, seconds, states = run(limits, talk)
    assert (carried.why, seconds, states) == (why, after_s, {"reset"})


def test_one_that_breaks_takes_the_other_along() -> None:
    async def talk(left: Memory, right: Memory) -> None:
        await trio.sleep(2)
        await left.reset()
        await right.send(b"to nobody")
        assert await read_all(right) == b""

    carried, seconds, states = run(PumpLimits(idle_s=10), talk)
    assert (carried.why, seconds, states) == ("broken", 2, {"reset"})
