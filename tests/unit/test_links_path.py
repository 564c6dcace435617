"""Paths whose shape changes and that are cut while they run, by a clock that stands until it is told to go on."""

import asyncio
from contextlib import suppress

import pytest

from commonweight.links.link import LinkShape
from commonweight.links.names import ANY
from commonweight.links.path import MAX_WIRE_BYTES, PacketPath, StreamPath
from commonweight.links.paths import Paths
from tests.unit.fake_clock import FakeClock

MBIT = 1_000_000
PACKET = 1_250
"""10,000 bits: 10 ms at 1 Mbit/s."""


class Arrivals:
    """Packets by number, and when they came."""

    def __init__(self, path: PacketPath, clock: FakeClock) -> None:
        self.seen: list[tuple[int, float]] = []
        self._path, self._clock = path, clock

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self._path.offer(PACKET, lambda number=number: self.seen.append((number, round(self._clock.time(), 6))))


def packet_path(shape: LinkShape) -> tuple[PacketPath, FakeClock, Arrivals]:
    clock = FakeClock()
    path = PacketPath(shape, clock, "seed")
    return path, clock, Arrivals(path, clock)


def test_what_waits_leaves_by_the_new_shape_and_what_is_under_way_by_the_old() -> None:
    path, clock, arrivals = packet_path(LinkShape(MBIT, 0.05))
    arrivals.send(1, 2, 3, 4)
    clock.run_until(0.015)  # 1 is under way, 2 is being sent
    path.change(LinkShape(2 * MBIT, 0.1))
    clock.run()
    assert arrivals.seen == [(1, 0.06), (2, 0.07), (3, 0.125), (4, 0.13)]


def test_a_shorter_delay_lets_nothing_overtake() -> None:
    path, clock, arrivals = packet_path(LinkShape(None, 0.05))
    arrivals.send(1)
    path.change(LinkShape())
    arrivals.send(2)
    clock.run()
    assert arrivals.seen == [(1, 0.05), (2, 0.05)]


def test_a_slow_link_that_is_made_fast_is_fast_at_once() -> None:
    path, clock, arrivals = packet_path(LinkShape(MBIT // 10))
    arrivals.send(*range(50))
    clock.run_until(0.05)
    path.change(LinkShape(100 * MBIT))
    clock.run()
    assert arrivals.seen[-1] == (49, pytest.approx(0.1 + 49 * 0.0001))


def test_a_cut_drops_what_is_queued_and_under_way_and_what_comes() -> None:
    path, clock, arrivals = packet_path(LinkShape(MBIT, 0.05))
    arrivals.send(1, 2, 3)
    clock.run_until(0.015)
    path.set_cut(True)
    arrivals.send(4)
    clock.run_until(1.0)
    statistics = path.statistics()
    assert (statistics.dropped, statistics.queued_bytes, statistics.wire_bytes) == (4, 0, 0)
    path.set_cut(False)
    arrivals.send(5)
    clock.run()
    assert arrivals.seen == [(5, 1.06)]


@pytest.mark.asyncio
async def test_a_stream_doesnt_make_up_for_the_time_of_a_cut() -> None:
    clock, arrived = FakeClock(), []
    path = StreamPath(LinkShape(MBIT, 0.05), clock, "seed")
    path.set_cut(True)
    await path.send(bytes(12_500), lambda segment: arrived.append((clock.time(), len(segment))))
    clock.run_until(10.0)
    assert arrived == []
    path.set_cut(False)
    clock.run()
    assert sum(size for _, size in arrived) == 12_500
    assert arrived[0][0] >= 10.05
    assert arrived[-1][0] == pytest.approx(10.15)


@pytest.mark.asyncio
async def test_a_stream_is_held_up_by_a_full_queue_and_by_a_full_wire() -> None:
    for shape, held in (
        (LinkShape(MBIT, 0.05, queue_bytes=64 << 10), 64 << 10),
        (LinkShape(None, 60.0), MAX_WIRE_BYTES),
    ):
        clock = FakeClock()
        path = StreamPath(shape, clock, "seed")
        chunk, taken = bytes(16 << 10), 0
        with suppress(TimeoutError):
            while True:
                await asyncio.wait_for(path.send(chunk, len), 0.5)  # nothing happens while the clock stands
                taken += len(chunk)
        assert held <= taken <= held + 2 * len(chunk)
        clock.run_until(60.0)
        await path.send(chunk, len)


def test_losses_depend_on_seed_and_names_not_on_who_was_first() -> None:
    shape, lost = LinkShape(loss=0.5), []
    for order in (["a", "b"], ["b", "a"]):
        paths = Paths(PacketPath, FakeClock(), seed=3)
        paths.change(ANY, ANY, shape)
        for source in order:
            for _ in range(100):
                paths.path(source, "c").offer(10, lambda: None)
        lost.append({source: paths.path(source, "c").statistics().lost for source in order})
    assert lost[0] == lost[1]
    assert lost[0]["a"] != lost[0]["b"]
