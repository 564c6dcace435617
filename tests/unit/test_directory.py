"""The directory of announcements: what replaces what, what is turned away, and what a flood can't do."""

import time
from dataclasses import replace
from functools import cache

import pytest

from commonweight.errors import IdentityMismatch, MalformedMessage, PeerUnreachable
from commonweight.events import Event
from commonweight.identity import NodeIdentity
from commonweight.peers.announced import Announced, next_sequence, read_announced, sign_announcement
from commonweight.peers.directory import MAX_BURST, REFILL_S, Directory, Reach
from commonweight.rules.announcement import MAX_SKEW_S, Announcement, Role
from commonweight.rules.canonical import canonical_json, parse_json
from commonweight.wire.tls import make_certificate

MODEL = b"\x07" * 32
NOW_S = 1_800_000_000
TTL_S = 60


@cache
def identity(number: int) -> NodeIdentity:
    return NodeIdentity((number + 1).to_bytes(32, "big"))


@cache
def certificate(number: int, process: int = 0) -> bytes:
    return make_certificate(identity(number)).der


def announced(number: int, sequence: int = 1, process: int = 0, **changed: object) -> Announced:
    announcement = Announcement(
        role=Role.NODE,
        chain_id=1337,
        registry="0x" + 40 * "a",
        model_id=MODEL,
        stage=None,
        address=f"10.0.0.{number % 250 + 1}:4000",
        certificate=certificate(number, process),
        capacity=None,
        peer_addresses=(),
        sequence=sequence,
        issued_at_s=NOW_S,
        ttl_s=TTL_S,
    )
    return sign_announcement(replace(announcement, **changed), identity(number))  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    heard: list[Event] = []
    monkeypatch.setattr("commonweight.events._sinks", [heard.append])
    return heard


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def test_the_newest_counts_until_it_ends(clock: Clock) -> None:
    directory = Directory(clock)
    assert directory.offer(announced(1, 1, stage=0))
    assert not directory.offer(announced(1, 1, stage=0))
    assert directory.offer(announced(1, 2, stage=3))
    assert not directory.offer(announced(1, 1, stage=0))
    assert [entry.announced.announcement.stage for entry in directory.live(MODEL, Role.NODE)] == [3]
    clock.now_s += TTL_S
    assert not directory.live()


def test_models_and_roles_are_apart_and_coordinators_come_first(clock: Clock) -> None:
    directory = Directory(clock)
    directory.offer(announced(1))
    directory.offer(announced(1, role=Role.COORDINATOR))
    directory.offer(announced(1, model_id=b"\x08" * 32))
    assert [entry.announced.announcement.role for entry in directory.live(MODEL)] == [Role.COORDINATOR, Role.NODE]
    assert len(directory.live()) == 3


@pytest.mark.parametrize("ahead_s", [MAX_SKEW_S + 1, -TTL_S])
def test_a_clock_that_is_too_far_off_is_told(clock: Clock, events: list[Event], ahead_s: int) -> None:
    directory = Directory(clock)
    assert not directory.offer(announced(1, issued_at_s=NOW_S + ahead_s))
    assert not directory.live()
    assert "clock" in events[0].fields["message"]


def test_a_clock_ahead_doesnt_make_it_last_longer(clock: Clock) -> None:
    directory = Directory(clock)
    assert directory.offer(announced(1, issued_at_s=NOW_S + MAX_SKEW_S))
    clock.now_s += TTL_S
    assert not directory.live()


def test_one_key_in_two_processes_is_told_and_a_restart_is_not(clock: Clock, events: list[Event]) -> None:
    directory = Directory(clock)
    directory.offer(announced(1, 1, process=0))
    directory.offer(announced(1, 2, process=1))
    directory.offer(announced(1, 3, process=2))
    assert not events
    assert directory.offer(announced(1, 4, process=1))
    assert names(events) == ["announcement.conflict"]
    assert identity(1).peer_id in events[0].fields["message"]
    assert directory.statistics().conflicts == 1
    assert len(directory.live()) == 1


def test_one_key_that_says_too_much_is_turned_away_for_a_while(clock: Clock, events: list[Event]) -> None:
    directory = Directory(clock)
    taken = [directory.offer(announced(1, sequence)) for sequence in range(1, 2 * MAX_BURST)]
    assert taken == [True] * MAX_BURST + [False] * (MAX_BURST - 1)
    assert names(events) == ["announcement.refused"]
    assert directory.statistics().refused == MAX_BURST - 1
    clock.now_s += REFILL_S
    assert directory.offer(announced(1, 100))
    assert not directory.offer(announced(1, 101))


def test_a_flood_of_keys_neither_grows_it_nor_displaces_anybody(clock: Clock) -> None:
    directory = Directory(clock, max_entries=10)
    honest = announced(0)
    directory.offer(honest)
    directory.tried(honest, None)
    for number in range(1, 40):
        directory.offer(announced(number))
    assert len(directory.live()) == 10
    assert any(entry.announced == honest for entry in directory.live())
    assert directory.offer(announced(0, 2))
    assert directory.statistics().refused == 30


def test_what_was_found_false_makes_room_and_the_coordinator_of_the_chain_always_has_it(clock: Clock) -> None:
    account = identity(50).address
    directory = Directory(clock, max_entries=3)
    directory.favour(MODEL, account)
    flood = [announced(number) for number in range(3)]
    for each in flood:
        directory.offer(each)
    assert not directory.offer(announced(10))
    directory.tried(flood[1], PeerUnreachable("nobody there"))
    assert directory.offer(announced(10))
    assert flood[1] not in [entry.announced for entry in directory.live()]
    assert directory.offer(announced(50, role=Role.COORDINATOR))
    assert len(directory.live()) == 4


def test_nobody_else_is_coordinator_of_a_model_whose_coordinator_is_known(clock: Clock, events: list[Event]) -> None:
    directory = Directory(clock)
    assert directory.offer(announced(1, role=Role.COORDINATOR))
    directory.favour(MODEL, identity(50).address)
    assert not directory.live()
    assert not directory.offer(announced(1, role=Role.COORDINATOR))
    assert identity(50).address in events[0].fields["message"]
    assert directory.offer(announced(1, role=Role.COORDINATOR, model_id=b"\x08" * 32))


def test_what_came_of_dialling_stays_with_the_address_and_goes_with_it(clock: Clock, events: list[Event]) -> None:
    directory = Directory(clock)
    first = announced(1, 1)
    directory.offer(first)
    directory.tried(first, PeerUnreachable("nobody there"))
    directory.tried(first, PeerUnreachable("nobody there"))
    assert names(events) == ["address.refuted"]
    directory.offer(announced(1, 2))
    assert directory.live()[0].reach is Reach.FAILED
    directory.offer(announced(1, 3, address="10.9.9.9:1"))
    assert directory.live()[0].reach is Reach.UNTRIED
    directory.tried(first, None)  # of an older one: says nothing about the newer
    assert directory.live()[0].reach is Reach.UNTRIED


def test_sequences_grow_also_where_the_clock_stands_still() -> None:
    now = time.time_ns() // 1_000_000
    assert next_sequence(now + 10**6) == now + 10**6 + 1
    assert next_sequence(0) >= now


def test_anothers_certificate_is_refused() -> None:
    with pytest.raises(IdentityMismatch, match=identity(2).peer_id):
        announced(1, certificate=certificate(2))


def test_whatever_is_changed_on_the_way_is_refused() -> None:
    data = announced(1).data
    value = parse_json(data, "it", 4096)
    for name, other in {"address": "10.6.6.6:1", "sequence": 9, "ttl_s": 600, "stage": 5, "chain_id": 1}.items():
        with pytest.raises(IdentityMismatch, match="signed"):
            read_announced(canonical_json(value | {name: other}))
    for broken in (data[:-1], data + b" ", b"[]", b"{}", b"", data.replace(b'"stage"', b' "stage"'), b"\xff" * 50):
        with pytest.raises(MalformedMessage):
            read_announced(broken)
    with pytest.raises(MalformedMessage, match="4096"):
        read_announced(b" " * 5000)


@pytest.mark.parametrize(
    "changed",
    [
        {"address": "nowhere"},
        {"address": "10.0.0.1:70000"},
        {"peer_addresses": ("/ip4/10.0.0.1/tcp/1/p2p/" + identity(2).peer_id,)},
        {"peer_addresses": ("10.0.0.1",)},
    ],
)
def test_addresses_that_are_none_or_of_somebody_else_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage):
        announced(1, **changed)
