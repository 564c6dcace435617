"""What is still there after a power cut, as far as it can be seen without one: what was synced, in which order."""

import os
import stat
from pathlib import Path

import pytest

from commonweight.disk import replace_file
from node.receipts import Receipts


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed."""
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("rename"), rename(self, target))[1])
    return done


def test_a_file_has_its_name_on_the_disk(tmp_path: Path, order: list[str]) -> None:
    replace_file(tmp_path / "new" / "file", b"old")
    replace_file(tmp_path / "new" / "file", b"new")
    assert order == ["file", "rename", "folder"] * 2
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "new").iterdir()] == [("file", b"new")]


def test_a_promise_is_on_the_disk_before_a_signature_leaves(tmp_path: Path, order: list[str]) -> None:
    """With the old name after a power cut, the node would sign twice for a unit, which costs the seat's stake."""
    Receipts(tmp_path, 3).promise(1, 0, 0, bytes(32), is_loaded=True)
    assert order == ["file", "rename", "folder"]


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]
