"""What a node keeps of answers: traces by version, and the parts that the coordinator hasn't recorded."""

import os
import stat
import struct
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from commonweight.identity import NodeIdentity
from commonweight.rules.answer import Answer
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto, answer_to_proto
from node import answers as answers_module
from node.answers import (
    OpenTrace,
    Unrecorded,
    answer_path,
    answers_folder,
    keep_traces,
    kept_parts,
    read_part,
    remove_trace,
    write_trace,
)
from node.decoding import DecodeConfig, Decoding
from node.published import META_FILE, PARAMETERS_FILE, version_path

A, B, NONCE = b"a" * 16, b"b" * 16, b"n" * 16
IDENTITY = NodeIdentity(b"\1" * 32)
ASSIGNMENT = pb.Assignment(stage=1, model_id=b"m" * 32, chain_id=1, settlement="0x" + "5b" * 20)


def trace(version: int, session: bytes, taken: bytes = b"codes") -> OpenTrace:
    trace = OpenTrace(version, session, NONCE, 2, 0.5, 7)
    trace.take([1, 2], taken)
    trace.passed += b"passed"
    return trace


def paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def test_a_trace_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = answers_folder(tmp_path, 1)
    with pytest.raises(OSError, match="may take"):
        write_trace(folder, trace(30, A), reserve_bytes=1 << 62)
    assert paths(folder) == []

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="full"):
            write_trace(folder, trace(30, A))
    assert paths(folder) == []
    assert read_part(folder, 30, A) is None
    said = write_trace(folder, trace(30, A))
    assert said == trace(30, A).answer() == read_part(folder, 30, A)
    assert answer_path(folder, 30, A).read_bytes() == struct.pack("<II", 1, 2) + b"codespassed"


def test_nobody_else_may_look_into_the_folders_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_trace(folder := answers_folder(tmp_path, 1), trace(30, A))
    finally:
        os.umask(before)
    for place in (folder.parent, folder, version_path(folder, 30)):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("files", "left", "fits"), [(9000, 0, False), (9000, 1023, False), (9000, 1024, True), (0, 0, True)]
)
def test_the_files_that_training_makes_can_still_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, left: int, fits: bool
) -> None:
    disk = SimpleNamespace(f_bavail=1 << 20, f_frsize=4096, f_files=files, f_favail=left)
    monkeypatch.setattr(answers_module.os, "statvfs", lambda _: disk)
    with nullcontext() if fits else pytest.raises(OSError, match="1024 are left to training"):
        write_trace(tmp_path, trace(30, A))
    assert bool(paths(tmp_path)) == fits


def test_a_second_session_of_an_id_changes_nothing(tmp_path: Path) -> None:
    write_trace(tmp_path, trace(30, A))
    before = answer_path(tmp_path, 30, A).read_bytes()
    with pytest.raises(FileExistsError):
        write_trace(tmp_path, trace(30, A, taken=b"other"))
    assert answer_path(tmp_path, 30, A).read_bytes() == before
    write_trace(tmp_path, trace(60, A, taken=b"other"))


def test_traces_go_one_by_one_or_with_their_version(tmp_path: Path) -> None:
    for version, session in ((30, A), (60, A), (60, B), (90, A)):
        write_trace(tmp_path, trace(version, session))
    remove_trace(tmp_path, 60, A)
    remove_trace(tmp_path, 60, A)
    keep_traces(tmp_path, {60, 90})
    left = (answer_path(tmp_path, 60, B), answer_path(tmp_path, 90, A))
    assert paths(tmp_path) == [path.with_suffix(suffix) for path in left for suffix in (".answer", ".part")]
    keep_traces(tmp_path / "nowhere", ())


def part(version: int, session: bytes) -> pb.AnswerPart:
    return answer_to_proto(Answer(version, session, NONCE, 2, 3, A * 2, A * 2, A * 2, 0.5, 7))


def test_parts_wait_no_longer_than_their_version_and_no_more_than_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, lost = Unrecorded(IDENTITY), []
    monkeypatch.setattr(answers_module, "MAX_UNRECORDED", 2)
    monkeypatch.setattr(answers_module, "emit", lambda name, **fields: lost.append((name, fields["session"])))
    for number in range(3):
        parts.sign(ASSIGNMENT, part(30 * number, bytes([number]) * 16))
    assert lost == [("answer.lost", "00" * 16)]
    assert [signed.part.round for signed in parts.parts.values()] == [30, 60]
    parts.keep({60, 90})
    assert [signed.part.round for signed in parts.parts.values()] == [60]
    parts.recorded(b"\2" * 16)
    parts.recorded(b"\2" * 16)
    assert not parts.parts


def test_parts_of_the_newest_versions_are_found_again_where_their_traces_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, session in ((30, A), (60, A), (60, B), (90, A), (90, B), (120, A)):
        write_trace(tmp_path, trace(version, session))
    answer_path(tmp_path, 60, A).unlink()  # killed before the trace was whole
    answer_path(tmp_path, 90, B).with_suffix(".part").write_bytes(b"no part")

    def found(*versions: int) -> list[tuple[int, bytes]]:
        return [(part.version, part.session) for part in kept_parts(tmp_path, versions)]

    assert kept_parts(tmp_path, [90]) == [trace(90, A).answer()]
    assert found(30, 60, 90, 150) == [(30, A), (60, B), (90, A)]
    monkeypatch.setattr(answers_module, "MAX_UNRECORDED", 2)
    assert found(30, 60, 90) == [(60, B), (90, A)]


@pytest.mark.asyncio
async def test_a_control_process_that_restarts_says_once_what_an_earlier_one_may_not_have_said(tmp_path: Path) -> None:
    folder = answers_folder(tmp_path, ASSIGNMENT.stage)
    for version, session in ((10, A), (30, A), (60, B)):
        write_trace(folder, trace(version, session))
    for round_ in (30, 60):
        (checkpoint := version_path(tmp_path / "stage-1", round_)).mkdir(parents=True)
        for name in (META_FILE, PARAMETERS_FILE):
            (checkpoint / name).touch()
    said: list[pb.SignedAnswer] = []

    async def publish(decoding: Decoding, *rounds: int) -> list[Answer]:
        """What is said of answers when it is told of these versions."""
        said.clear()
        for round_ in rounds:
            await decoding.publish(ASSIGNMENT, pb.Publish(round=round_), ())
        return [answer_from_proto(signed.part) for signed in said]

    def restarted() -> Decoding:
        decoding = Decoding(DecodeConfig(tmp_path, "127.0.0.1:0", None, 1, "cpu"), IDENTITY, AsyncMock())
        decoding.begin(ASSIGNMENT, lambda message: said.append(message.answer))
        return decoding

    assert await publish(restarted(), 30) == [trace(30, A).answer()]  # of 10, nobody can audit it any more
    write_trace(folder, trace(60, B))
    decoding = restarted()
    assert await publish(decoding, 60) == [trace(30, A).answer(), trace(60, B).answer()]
    assert said == [
        Unrecorded(IDENTITY).sign(ASSIGNMENT, answer_to_proto(trace(v, s).answer())) for v, s in ((30, A), (60, B))
    ]
    decoding.recorded(pb.AnswerRecorded(session=A))
    assert await publish(decoding, 30, 60) == []
    decoding.begin(ASSIGNMENT, lambda message: said.append(message.answer))
    assert [signed.part.session for signed in said] == [B]  # what isn't recorded yet, in the next attachment
