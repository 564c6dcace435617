"""Links against their arithmetic: nothing overtakes, nothing is early, no link is faster than its rate."""

import math
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from commonweight.errors import ConfigError
from commonweight.links.link import MAX_SEGMENT_BYTES, LinkShape, LinkState, parse_shape, transmit
from commonweight.links.names import ANY, ByPath, covers, crossing
from commonweight.links.path import PacketPath
from tests.unit.fake_clock import FakeClock

NAMES = st.sampled_from(["a", "b", "c"])
PATTERNS = st.sampled_from(["a", "b", "c", ANY])
SEGMENTS = st.lists(
    st.tuples(st.floats(0, 0.1), st.integers(0, MAX_SEGMENT_BYTES), st.floats(0, 1)), min_size=1, max_size=50
)


@st.composite
def shapes(draw: st.DrawFn) -> LinkShape:
    return LinkShape(
        draw(st.none() | st.integers(1_000, 10_000_000_000)),
        draw(st.floats(0, 2)),
        draw(st.floats(0, 2)),
        draw(st.just(0.0) | st.floats(0, 0.5)),
        draw(st.none() | st.integers(1 << 16, 1 << 22)),
    )


def send(shape: LinkShape, segments: Sequence[tuple[float, int, float]]) -> list[tuple[float, int, float]]:
    """Of each segment: when it was offered (the gaps add up), its size, when it arrived."""
    state, offered_s, sent = LinkState(), 0.0, []
    for gap_s, size, jitter in segments:
        offered_s += gap_s
        state, delivered_s = transmit(shape, state, offered_s, size, jitter)
        sent.append((offered_s, size, delivered_s))
    return sent


@given(shapes(), SEGMENTS)
def test_nothing_overtakes_and_nothing_is_early(shape: LinkShape, segments: list[tuple[float, int, float]]) -> None:
    sent = send(shape, segments)
    arrivals = [delivered_s for _, _, delivered_s in sent]
    assert arrivals == sorted(arrivals)
    for offered_s, size, delivered_s in sent:
        assert delivered_s >= offered_s + shape.sending_s(size) + shape.delay_s


@given(shapes(), SEGMENTS)
def test_no_stretch_is_faster_than_the_rate(shape: LinkShape, segments: list[tuple[float, int, float]]) -> None:
    """Whichever segments are looked at: they are sent one after the other, from the first one's offer on."""
    sent = send(shape, segments)
    for first in range(len(sent)):
        size = 0
        for _, each, delivered_s in sent[first:]:
            size += each
            least_s = sent[first][0] + shape.sending_s(size) + shape.delay_s
            assert delivered_s >= least_s or math.isclose(delivered_s, least_s)


@given(shapes(), SEGMENTS)
def test_a_link_that_is_kept_busy_has_exactly_its_rate(
    shape: LinkShape, segments: list[tuple[float, int, float]]
) -> None:
    at_once = [(0.0, size, 0.0) for _, size, _ in segments]
    total = sum(size for _, size, _ in at_once)
    *_, (_, _, last_s) = send(shape, at_once)
    assert math.isclose(last_s, shape.sending_s(total) + shape.delay_s, abs_tol=1e-12)


@given(shapes(), SEGMENTS)
def test_an_idle_link_delays_no_longer_than_it_says(shape: LinkShape, segments: list[tuple[float, int, float]]) -> None:
    (_, size, jitter), *_ = segments
    ((offered_s, _, delivered_s),) = send(shape, [(0.0, size, jitter)])
    assert delivered_s - offered_s <= shape.sending_s(size) + shape.delay_s + shape.jitter_s + 1e-9


@given(shapes(), SEGMENTS, st.integers(0, 9))
def test_a_path_delivers_packets_when_the_arithmetic_says(
    shape: LinkShape, segments: list[tuple[float, int, float]], seed: int
) -> None:
    """And its counts add up; what the queue can't take, and what is lost, never arrives."""
    clock, arrived = FakeClock(), []
    path = PacketPath(shape, clock, str(seed))
    offered = []
    for number, (gap_s, size, _) in enumerate(segments):
        clock.run_until(clock.time() + gap_s)
        offered.append((clock.time(), size))
        path.offer(size, lambda number=number: arrived.append((number, clock.time())))
        assert path.statistics().queued_bytes <= shape.max_queued_bytes
    clock.run()
    numbers = [number for number, _ in arrived]
    assert numbers == sorted(set(numbers))
    state = LinkState()
    for number, at_s in arrived:
        state, least_s = transmit(shape, state, *offered[number], 0.0)
        assert at_s >= least_s - 1e-9
        if not shape.jitter_s:
            assert at_s == pytest.approx(least_s, abs=1e-9)
    statistics = path.statistics()
    assert len(arrived) + statistics.lost + statistics.dropped == len(segments)
    assert statistics.offered_bytes == sum(size for _, size, _ in segments)
    assert statistics.delivered_bytes == sum(offered[number][1] for number, _ in arrived)
    assert statistics.queued_bytes == statistics.wire_bytes == 0


@given(shapes(), SEGMENTS)
def test_the_same_seed_loses_the_same_packets(shape: LinkShape, segments: list[tuple[float, int, float]]) -> None:
    assume(shape.loss)
    runs = []
    for _ in range(2):
        clock, arrived = FakeClock(), []
        path = PacketPath(shape, clock, "seed")
        for number, (gap_s, size, _) in enumerate(segments):
            clock.run_until(clock.time() + gap_s)
            path.offer(size, lambda number=number: arrived.append((number, clock.time())))  # noqa: B023 - run below
        clock.run()
        runs.append(arrived)
    assert runs[0] == runs[1]


@given(
    st.integers(1, 10_000),
    st.sampled_from([("bit", 1), ("kbit", 1_000), ("mbit", 10**6)]),
    st.integers(0, 59_999),
    st.integers(0, 999),
    st.integers(0, 99),
    st.integers(1, 64),
)
def test_what_is_written_is_read(
    rate: int, unit: tuple[str, int], delay_ms: int, jitter_ms: int, loss: int, mib: int
) -> None:
    assume(rate * unit[1] >= 1_000)
    shape = LinkShape(rate * unit[1], delay_ms / 1_000, jitter_ms / 1_000, loss / 100, mib << 20)
    start, named = f"{rate}{unit[0]}:{delay_ms}ms", f"jitter={jitter_ms}ms:queue={mib}MiB"
    assert parse_shape(f"{start}:{loss}%:{named}") == shape
    assert parse_shape(f"{start}:{named}:loss={loss}%") == shape


def test_shapes_are_read_as_the_pages_write_them() -> None:
    assert parse_shape("80mbit:50ms") == LinkShape(80_000_000, 0.05)
    assert parse_shape("8mbit:50ms:1%") == LinkShape(8_000_000, 0.05, 0.0, 0.01)
    assert parse_shape("1.5gbit:0.5s:jitter=5ms:loss=0.1%") == LinkShape(1_500_000_000, 0.5, 0.005, 0.001)
    assert parse_shape("unlimited:delay=20ms:queue=256KiB") == LinkShape(None, 0.02, queue_bytes=256 << 10)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a rate and a delay"),
        ("80mbit", "a rate and a delay"),
        ("80:50ms", "'80' is no rate in bit, kbit, mbit, gbit"),
        ("80mbps:50ms", "'80mbps' is no rate"),
        ("-1mbit:50ms", "'-1mbit' is no rate"),
        ("nanmbit:50ms", "is no rate"),
        ("80mbit:50", "'50' is no delay in ms, s"),
        ("80mbit:50ms:1", "'1' is no loss in %"),
        ("80mbit:50ms:1%:2%", "'2%' is one too many"),
        ("80mbit:50ms:1%:loss=2%", "'loss=2%' is one too many"),
        ("80mbit:50ms:=5ms", "'' is none of delay, jitter, loss, queue"),
        ("80mbit:50ms:20ms", "'20ms' is no loss in %"),
        ("80mbit:50ms:speed=5ms", "'speed' is none of delay, jitter, loss, queue"),
        ("80mbit:jitter=5ms", "the delay is missing"),
        ("80mbit:50ms:100%", "below 1"),
        ("10bit:50ms", "between 1 kbit and 100 gbit"),
        ("80mbit:61s", "between 0 and 60 s, not 61 s"),
        ("80mbit:50ms:queue=1KiB", "at least 65536 bytes, not 1024"),
    ],
)
def test_what_is_no_link_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_shape(text)
    assert why in str(refused.value)


@given(st.text(max_size=30))
def test_any_text_is_a_link_or_refused(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_shape(text), LinkShape)


@given(st.lists(st.tuples(PATTERNS, PATTERNS, st.integers()), max_size=20), NAMES, NAMES)
def test_the_last_rule_that_speaks_of_a_path_decides(
    said: list[tuple[str, str, int]], source: str, target: str
) -> None:
    rules: ByPath[int] = ByPath(-1)
    for rule in said:
        rules = rules.with_rule(*rule)
    spoken = [value for one, other, value in said if covers(one, source) and covers(other, target)]
    assert rules.of(source, target) == (spoken[-1] if spoken else -1)
    assert len(rules.rules) <= 16  # each pair of patterns once


@given(st.lists(st.sets(st.integers(0, 20).map(str), max_size=5), max_size=4))
def test_a_partition_cuts_both_ways_between_its_groups_and_nothing_inside(groups: list[set[str]]) -> None:
    cut = crossing(groups)
    assert {(target, source) for source, target in cut} == set(cut)
    for source, target in cut:
        assert any(source in one and target in other for one in groups for other in groups if one is not other)
    for at, one in enumerate(groups):
        for other in groups[at + 1 :]:
            assert {(a, b) for a in one for b in other} <= set(cut)
