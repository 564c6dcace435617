"""Connections over shaped links: as slow, as late and as cut as said, and in no other way different."""

import asyncio
import hashlib
import os
import random
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from commonweight.links.link import MAX_SEGMENT_BYTES, LinkShape
from commonweight.links.names import ANY, UNKNOWN
from commonweight.links.path import StreamPath
from commonweight.links.paths import Paths
from commonweight.links.proxy import READ_BYTES, Front
from commonweight.links.sources import Sources

DEADLINE_S = 30
A_WHILE_S = 0.2
"""How long something that must never happen is waited for: longer only finds more."""
pytestmark = pytest.mark.asyncio

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class World:
    """A front with the name "b", a server behind it, and clients that are known as "a"."""

    def __init__(self) -> None:
        self.paths = Paths(StreamPath, asyncio.get_running_loop(), seed=1)
        self.sources = Sources()
        self.sources.know("a", os.getsid(0))
        self.front = Front("b", self.paths, self.sources)
        self.address = ("", 0)
        self.accepted: asyncio.Queue[Streams] = asyncio.Queue()
        self._kept: list[Streams] = []
        """A writer that nobody holds is closed."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._kept.append((reader, writer))
        self.accepted.put_nowait((reader, writer))

    async def connect(self) -> Streams:
        self._kept.append(await asyncio.open_connection(*self.address))
        return self._kept[-1]

    async def pair(self) -> tuple[Streams, Streams]:
        return await self.connect(), await self.accepted.get()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    made.address = await made.front.listen()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.front.back = server.sockets[0].getsockname()
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield made
    finally:
        server.close()
        made.front.reset(ANY)


async def elapsed(wait: Awaitable[object]) -> float:
    started_s = asyncio.get_running_loop().time()
    await wait
    return asyncio.get_running_loop().time() - started_s


async def never(wait: Awaitable[object]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait, A_WHILE_S)


async def eventually(holds: Callable[[], bool]) -> None:
    """Polls what nobody tells."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def test_bytes_pass_unchanged_both_ways_through_any_shape_and_change() -> None:
    data = random.Random(1).randbytes(1_500_001)
    async with world() as made:
        made.paths.change("a", "b", LinkShape(200_000_000, 0.01, 0.005))
        (near_reader, near), (far_reader, far) = await made.pair()

        async def send(writer: asyncio.StreamWriter) -> None:
            for start in range(0, len(data), 100_000):
                writer.write(data[start : start + 100_000])
                await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send(near))
            tasks.create_task(send(far))
            there = tasks.create_task(far_reader.read(-1))
            home = tasks.create_task(near_reader.read(-1))
            for rate in (50_000_000, None, 400_000_000):
                made.paths.change(ANY, ANY, LinkShape(rate, 0.002, 0.01))
                await asyncio.sleep(0.01)  # not for anything: so that it changes on the way
        assert hashlib.sha256(there.result()).digest() == hashlib.sha256(data).digest()
        assert home.result() == data
        await eventually(lambda: made.front.connections() == 0)


async def test_a_link_delays_each_way_by_itself() -> None:
    async with world() as made:
        (near_reader, near), (far_reader, far) = await made.pair()
        made.paths.change("a", "b", LinkShape(None, 0.15))
        near.write(b"x")
        assert 0.15 <= await elapsed(far_reader.readexactly(1)) < 5
        far.write(b"y")
        assert await elapsed(near_reader.readexactly(1)) < 0.15
        made.paths.change("b", "a", LinkShape(None, 0.15))
        far.write(b"z")
        assert await elapsed(near_reader.readexactly(1)) >= 0.15


async def test_a_connection_takes_a_round_trip_before_anything_is_sent() -> None:
    async with world() as made:
        made.paths.change(ANY, ANY, LinkShape(None, 0.05))
        started_s = asyncio.get_running_loop().time()
        _, near = await made.connect()
        near.write(b"x")
        far_reader, _ = await made.accepted.get()
        assert asyncio.get_running_loop().time() - started_s >= 0.05
        await far_reader.readexactly(1)
        assert asyncio.get_running_loop().time() - started_s >= 0.15


async def test_a_transfer_takes_what_the_rate_says() -> None:
    """20 MB at 80 Mbit/s: never faster; within 5 % of the rate unless others take the processor, so best of three."""
    size, least_s = 20_000_000, 2.05
    async with world() as made:
        made.paths.change(ANY, ANY, LinkShape(80_000_000, 0.05))
        (_, near), (far_reader, _) = await made.pair()
        for _ in range(3):
            near.write(bytes(size))
            took_s = await elapsed(far_reader.readexactly(size))
            assert took_s >= least_s
            if took_s <= least_s * 1.05:
                return
        pytest.fail(f"{took_s:.3f} s for what should take {least_s} s")


async def test_two_connections_share_one_link() -> None:
    size = 1_000_000
    async with world() as made:
        made.paths.change("a", "b", LinkShape(40_000_000))
        pairs = [await made.pair() for _ in range(2)]
        started_s = asyncio.get_running_loop().time()
        for (_, near), _ in pairs:
            near.write(bytes(size))
        await asyncio.gather(*(far_reader.readexactly(size) for _, (far_reader, _) in pairs))
        assert asyncio.get_running_loop().time() - started_s >= 0.4


async def test_a_cut_stops_one_direction_only_and_loses_nothing() -> None:
    async with world() as made:
        (near_reader, near), (far_reader, far) = await made.pair()
        made.paths.set_cut("a", "b", True)
        near.write(b"there")
        far.write(b"home")
        assert await near_reader.readexactly(4) == b"home"
        await never(far_reader.readexactly(5))
        assert made.paths.path("a", "b").statistics().queued_bytes == 5
        made.paths.set_cut("a", "b", False)
        assert await far_reader.readexactly(5) == b"there"


async def test_what_is_under_way_when_a_link_is_cut_doesnt_arrive() -> None:
    async with world() as made:
        made.paths.change("a", "b", LinkShape(None, 0.05))
        (_, near), (far_reader, _) = await made.pair()
        near.write(b"x")
        await eventually(lambda: made.paths.path("a", "b").statistics().wire_bytes == 1)
        made.paths.set_cut("a", "b", True)
        await never(far_reader.readexactly(1))
        made.paths.set_cut("a", "b", False)
        await far_reader.readexactly(1)


async def test_during_a_cut_connections_neither_open_nor_end() -> None:
    async with world() as made:
        (_, near), (far_reader, _) = await made.pair()
        made.paths.set_cut("a", "b", True)
        near.transport.abort()
        await never(far_reader.read(1))
        _, second = await made.connect()
        second.write(b"hello")
        await never(made.accepted.get())
        made.paths.set_cut("a", "b", False)
        assert await far_reader.read(1) == b""
        far_reader, _ = await made.accepted.get()
        assert await far_reader.readexactly(5) == b"hello"


async def test_an_answer_that_is_cut_off_keeps_a_connection_from_sending() -> None:
    """The request arrives; without its answer the one who asked can't send."""
    async with world() as made:
        made.paths.set_cut("b", "a", True)
        _, near = await made.connect()
        near.write(b"hello")
        far_reader, _ = await made.accepted.get()
        await never(far_reader.readexactly(5))
        made.paths.set_cut("b", "a", False)
        await far_reader.readexactly(5)


@pytest.mark.parametrize("stalled", ["link", "reader"])
async def test_a_slow_link_or_reader_holds_up_the_sender_and_takes_no_memory(stalled: str) -> None:
    async with world() as made:
        (_, near), _ = await made.pair()
        shape = LinkShape(8_000) if stalled == "link" else LinkShape()
        made.paths.change("a", "b", shape)
        sent = 0
        near.transport.set_write_buffer_limits(0)
        with suppress(TimeoutError):
            while sent < 64 << 20:
                near.write(bytes(1 << 20))
                await asyncio.wait_for(near.drain(), 1)
                sent += 1 << 20
        assert sent < 64 << 20, "the sockets' buffers are full by now, too"
        held = made.paths.path("a", "b").statistics()
        assert held.queued_bytes <= shape.max_queued_bytes + READ_BYTES
        assert held.wire_bytes <= MAX_SEGMENT_BYTES


async def test_a_reset_reaches_both_ends_at_once() -> None:
    async with world() as made:
        (near_reader, _), (far_reader, _) = await made.pair()
        made.paths.set_cut(ANY, ANY, True)
        assert made.front.reset("c") == 0
        assert made.front.reset("a") == 1
        for reader in (near_reader, far_reader):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        await eventually(lambda: made.front.connections() == 0)


async def test_ends_and_resets_pass() -> None:
    async with world() as made:
        (near_reader, near), (far_reader, far) = await made.pair()
        near.write_eof()
        assert await far_reader.read() == b""
        far.write(b"still")
        far.write_eof()
        assert await near_reader.read() == b"still"

        (near_reader, _), (far_reader, far) = await made.pair()
        far.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.transport.abort()
        with pytest.raises(ConnectionResetError):
            await near_reader.readexactly(1)


async def test_nobody_behind_a_front_is_a_reset_and_another_back_is_for_new_connections() -> None:
    async with world() as made:
        (_, near), (far_reader, _) = await made.pair()
        back, made.front.back = made.front.back, None
        reader, _ = await made.connect()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        near.write(b"x")  # what is open stays so
        await far_reader.readexactly(1)
        made.front.back = back
        await made.pair()


async def test_who_isnt_known_has_a_path_of_its_own() -> None:
    async with world() as made:
        script = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(1)"
        command = (sys.executable, "-c", script, str(made.address[1]))
        stranger = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        await made.accepted.get()
        paths = {(each["source"], each["target"]) for each in made.paths.statistics()}
        assert paths == {(UNKNOWN, "b"), ("b", UNKNOWN)}
        assert made.front.reset(UNKNOWN) == 1
        await stranger.wait()


async def test_a_name_is_its_last_session_s() -> None:
    """The one before has ended, and its number may be another's by now."""
    async with world() as made:
        made.sources.know("a", 1)
        await made.pair()
        assert made.front.reset("a") == 0
        assert made.front.reset(UNKNOWN) == 1


async def test_a_slow_reader_gets_the_last_bytes_of_a_connection_that_has_ended() -> None:
    async with world() as made:
        (near_reader, near), (_, far) = await made.pair()
        near.write_eof()
        near.transport.pause_reading()
        (connection,) = made.front._open
        waiting, sent = connection.writers[0].transport.get_write_buffer_size, 0
        while waiting() == 0:  # until the sockets' buffers are full
            far.write(bytes(16 << 10))
            sent += 16 << 10
            await eventually(lambda: made.paths.path("b", "a").statistics().delivered_bytes == sent)  # noqa: B023
        far.write_eof()
        await eventually(lambda: made.front.connections() == 0)
        near.transport.resume_reading()
        assert len(await near_reader.read()) == sent
