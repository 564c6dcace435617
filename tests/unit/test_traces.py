"""A trace is whole, of the last attempt, gone once nobody wants it, and never in training's way."""

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from commonweight.wire.evidence import MAX_RETAINED_ROUNDS
from node import traces as traces_module
from node.traces import Traces, read_index, trace_path


def write(traces: Traces, round_: int, *tensors: bytes) -> None:
    trace = traces.begin(round_)
    for data in tensors:
        trace.add(sha256(data).digest(), memoryview(data))
    trace.finish()


def read(folder: Path, round_: int) -> set[bytes]:
    """All tensors of a trace, each held against its digest."""
    path = trace_path(folder, round_)
    content, found = path.read_bytes(), set()
    for digest, (begin, size) in read_index(path).items():
        data = content[begin : begin + size]
        assert sha256(data).digest() == digest
        found.add(data)
    return found


def test_every_tensor_is_there_once_and_by_its_hash(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    tensors = [bytes([number]) * size for number, size in enumerate((1, 40, 1 << 20, 3))]
    write(Traces(folder, 0), 7, *tensors, tensors[2])
    assert read(folder, 7) == set(tensors)
    assert trace_path(folder, 7).stat().st_size == sum(40 + len(data) for data in tensors)


def test_a_trace_appears_when_the_round_is_done_and_is_replaced_when_it_is_trained_again(tmp_path: Path) -> None:
    traces = Traces(tmp_path, 0)
    write(traces, 3, b"first")
    given_up = traces.begin(3)
    given_up.add(sha256(b"given up").digest(), memoryview(b"given up"))
    assert read(tmp_path, 3) == {b"first"}
    given_up.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000003.trace"]
    write(traces, 3, b"second")
    assert read(tmp_path, 3) == {b"second"}


def test_two_rounds_are_written_at_a_time_and_read_while_they_are(tmp_path: Path) -> None:
    traces = Traces(tmp_path, 0)
    both = [traces.begin(round_) for round_ in (3, 4)]
    for trace, data in zip(both, (b"earlier", b"later"), strict=True):
        trace.add(sha256(data).digest(), memoryview(data))
    both[0].finish()
    assert both[0].read(sha256(b"earlier").digest()) == b"earlier"
    assert both[1].read(sha256(b"later").digest()) == b"later"
    assert both[1].read(sha256(b"earlier").digest()) is None
    assert traces.rounds() == [3]
    both[1].finish()
    assert traces.rounds() == [3, 4]


def test_what_a_node_left_that_was_killed_is_removed(tmp_path: Path) -> None:
    trace = Traces(tmp_path, 0).begin(3)
    trace.add(sha256(b"x").digest(), memoryview(b"x"))
    Traces(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_what_is_decided_is_removed_and_what_isnt_sealed_stays(tmp_path: Path) -> None:
    traces = Traces(tmp_path, 0)
    for round_ in range(6):
        write(traces, round_, b"x")
    traces.retain(4, {1, 9}, last=2)
    assert traces.rounds() == [1, 3, 4, 5]
    traces.retain(4, {1, 4, 9})
    assert traces.rounds() == [1, 4, 5]


def test_a_coordinator_that_never_lets_go_costs_a_bounded_part_of_the_disk(tmp_path: Path) -> None:
    traces, rounds = Traces(tmp_path, 0), range(MAX_RETAINED_ROUNDS + 3)
    for round_ in rounds:
        write(traces, round_, b"x")
        traces.retain(round_, rounds)
    assert traces.rounds() == list(rounds[3:])


@pytest.mark.parametrize("left", [0, 39, 40, 41, 80])
def test_a_trace_that_was_cut_short_ends_before_the_cut(tmp_path: Path, left: int) -> None:
    write(Traces(tmp_path, 0), 0, b"a" * 40, b"b" * 40)
    os.truncate(trace_path(tmp_path, 0), left)
    assert read(tmp_path, 0) == ({b"a" * 40} if left == 80 else set())


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterable[list[tuple[str, dict]]]:
    told: list[tuple[str, dict]] = []
    monkeypatch.setattr(traces_module, "emit", lambda name, **fields: told.append((name, fields)))
    return told


def test_a_disk_without_room_costs_the_trace_and_nothing_else(
    tmp_path: Path, events: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = Traces(tmp_path, reserve_bytes=1000)
    free = SimpleNamespace(f_bavail=1100, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    write(traces, 0, b"x" * 100)
    write(traces, 1, b"x" * 100, b"y" * 101, b"z")
    ((name, fields),) = events
    assert (name, fields["round"]) == ("trace.dropped", 1)
    assert "less than 1000 bytes are free" in fields["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000000.trace"]
    write(traces, 2, b"x" * 100)
    assert traces.rounds() == [0, 2]


def test_a_folder_that_cant_be_written_costs_the_trace_and_nothing_else(tmp_path: Path, events: list) -> None:
    (tmp_path / "file").write_text("")
    write(Traces(tmp_path / "file" / "traces", 0), 5, b"x")
    assert [(name, fields["round"]) for name, fields in events] == [("trace.dropped", 5)]


def test_a_write_that_fails_costs_the_trace_and_nothing_else(tmp_path: Path, events: list) -> None:
    """/dev/full takes no byte; the buffer is only written when the round ends."""
    traces = Traces(tmp_path, 0)
    (tmp_path / ".writing-00000000").symlink_to("/dev/full")
    write(traces, 0, b"x")
    assert [(name, fields["round"]) for name, fields in events] == [("trace.dropped", 0)]
    write(traces, 1, b"x")
    assert traces.rounds() == [1]
    (tmp_path / ".writing-00000002").symlink_to("/dev/full")
    void = traces.begin(2)
    void.add(sha256(b"x").digest(), memoryview(b"x"))
    void.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000001.trace"]
