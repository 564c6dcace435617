"""Chunks are dealt so that each comes once, from whoever is fastest, and from anyone who is honest in the end."""

import heapq
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from node.dealing import IN_FLIGHT_S, MAX_FAILURES, MAX_IN_FLIGHT, Dealing

DEADLINE_S = 30.0
LOOK_S = 0.2


@dataclass
class World:
    """Sources that bring one chunk after another, in virtual time. A lazy one lets every call run into its deadline;
    a liar is dropped with its first chunk.
    """

    chunk_s: dict[int, float]
    """Of each source."""
    lazy: frozenset[int] = frozenset()
    liars: frozenset[int] = frozenset()
    has: dict[int, frozenset[int]] = field(default_factory=dict)
    """Chunks of those that don't have all."""
    now_s: float = 0.0
    brought: Counter[int] = field(default_factory=Counter)
    """By source."""
    came: Counter[int] = field(default_factory=Counter)
    """By chunk."""
    orders: list[tuple[int, int]] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    most_under_way: int = 0

    def run(self, chunks: int) -> bool:
        """Whether all chunks came; each step is held against what the dealing says of itself."""
        dealing: Dealing[int] = Dealing(range(chunks))
        for source in self.chunk_s:
            dealing.join(source, self.has.get(source, range(chunks)))
        free_s = dict.fromkeys(self.chunk_s, 0.0)
        calls: list[tuple[float, int, int]] = []
        under_way: set[tuple[int, int]] = set()
        while dealing.missing:
            for source, chunk in dealing.deal(self.now_s):
                assert (source, chunk) not in under_way
                assert source not in self.dropped
                assert not self.came[chunk], "what is here isn't asked for"
                assert chunk in self.has.get(source, range(chunks))
                self.orders.append((source, chunk))
                under_way.add((source, chunk))
                if source in self.lazy:
                    ends_s = self.now_s + DEADLINE_S
                else:
                    ends_s = free_s[source] = max(free_s[source], self.now_s) + self.chunk_s[source]
                heapq.heappush(calls, (ends_s, source, chunk))
            self.most_under_way = max(self.most_under_way, *Counter(source for source, _ in under_way).values(), 0)
            if not under_way:
                return False
            if calls[0][0] > self.now_s + LOOK_S:
                self.now_s += LOOK_S
                continue
            self.now_s, source, chunk = heapq.heappop(calls)
            if (source, chunk) not in under_way:
                continue  # hung up on
            under_way.remove((source, chunk))
            if source in self.lazy:
                if dealing.failed(source, chunk, self.now_s):
                    self._drop(dealing, source, under_way)
            elif source in self.liars:
                self._drop(dealing, source, under_way)
            else:
                self.came[chunk] += 1
                self.brought[source] += 1
                under_way -= {(other, chunk) for other in dealing.received(source, chunk, self.now_s)}
        return True

    def _drop(self, dealing: Dealing[int], source: int, under_way: set[tuple[int, int]]) -> None:
        dealing.drop(source)
        self.dropped.add(source)
        under_way -= {order for order in under_way if order[0] == source}


speeds = st.lists(st.sampled_from([0.01, 0.1, 0.4, 1.0, 3.0, 9.0]), min_size=1, max_size=5)


@given(speeds, st.integers(0, 60))
def test_each_chunk_comes_once_from_honest_sources(chunk_s: list[float], chunks: int) -> None:
    world = World(dict(enumerate(chunk_s)))
    assert world.run(chunks)
    assert world.came == Counter(range(chunks))
    assert not world.dropped
    assert world.most_under_way <= MAX_IN_FLIGHT


@given(st.integers(1, 4), st.integers(1, 60), st.sampled_from([0.01, 0.3, 0.9]))
def test_nothing_is_asked_for_twice_of_sources_that_are_alike_and_quick(
    count: int, chunks: int, chunk_s: float
) -> None:
    world = World(dict.fromkeys(range(count), chunk_s))
    assert world.run(chunks)
    assert Counter(chunk for _, chunk in world.orders) == Counter(range(chunks))


@given(st.lists(st.sampled_from([0.05, 0.1, 0.2, 0.4, 0.8]), min_size=2, max_size=4))
def test_each_source_brings_chunks_in_proportion_to_its_speed(chunk_s: list[float]) -> None:
    chunks = 400
    world = World(dict(enumerate(chunk_s)))
    assert world.run(chunks)
    per_s = sum(1 / each for each in chunk_s)
    for source, each in enumerate(chunk_s):
        due = chunks / per_s / each
        # Nobody waits but for the next look, and at the end for nobody's last chunks.
        assert abs(world.brought[source] - due) <= 0.1 * due + 2 * MAX_IN_FLIGHT
    assert world.now_s <= 1.1 * chunks / per_s + IN_FLIGHT_S + 3 * max(chunk_s)


@given(
    speeds,
    st.sets(st.integers(0, 4)),
    st.sets(st.integers(0, 4)),
    st.integers(1, 40),
)
def test_all_chunks_come_while_an_honest_source_remains(
    chunk_s: list[float], lazy: set[int], liars: set[int], chunks: int
) -> None:
    world = World(dict(enumerate(chunk_s)), frozenset(lazy), frozenset(liars))
    honest = world.chunk_s.keys() - lazy - liars
    assert world.run(chunks) == bool(honest)
    if honest:
        assert world.came == Counter(range(chunks))
        assert not world.dropped & honest
    else:
        assert world.dropped == world.chunk_s.keys(), "the others were asked until they were given up"


@given(st.floats(0.01, 1.0), st.integers(1, 40))
def test_a_silent_source_holds_up_no_longer_than_its_chunks_are_waited_for(chunk_s: float, chunks: int) -> None:
    world = World({0: chunk_s, 1: chunk_s}, lazy=frozenset({1}))
    assert world.run(chunks)
    assert world.now_s <= chunks * chunk_s + IN_FLIGHT_S + 3 * chunk_s + 2 * LOOK_S
    assert world.came == Counter(range(chunks))


def test_a_silent_source_alone_is_given_up() -> None:
    world = World({0: 1.0}, lazy=frozenset({0}))
    assert not world.run(3)
    assert world.dropped == {0}
    assert world.now_s <= MAX_FAILURES * DEADLINE_S + LOOK_S


@given(st.lists(st.frozensets(st.integers(0, 9)), min_size=1, max_size=4))
def test_a_source_is_asked_for_what_it_has(has: list[frozenset[int]]) -> None:
    world = World(dict.fromkeys(range(len(has)), 0.1), has=dict(enumerate(has)))
    everything = frozenset(range(10))
    assert world.run(10) == (frozenset().union(*has) == everything)
    assert world.came.keys() == frozenset().union(*has)


def test_calls_that_end_together_are_one_failure() -> None:
    dealing: Dealing[str] = Dealing(range(20))
    dealing.join("a", range(20))
    ((_, first),) = dealing.deal(0.0)
    dealing.received("a", first, 0.01)
    for attempt in range(MAX_FAILURES):
        begun_s = 1.0 + attempt * DEADLINE_S
        orders = dealing.deal(begun_s)
        assert len(orders) == MAX_IN_FLIGHT
        given_up = [dealing.failed("a", chunk, begun_s + IN_FLIGHT_S) for _, chunk in orders]
        assert given_up == [attempt == MAX_FAILURES - 1] * MAX_IN_FLIGHT
