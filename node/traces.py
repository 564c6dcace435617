"""What an auditor needs of each round beside the versions, on this machine's disk until its audits are decided.

    FOLDER/round-00000041.trace    for each entry: its hash (32 bytes), size (8 bytes, little-endian), its bytes
    FOLDER/.writing-00000042       of a round that is being trained

In one folder are the tensors that crossed the stage's sides, by SHA-256; in another is the round's gradient in
safetensors' format, by its `tensors_hash`.

The worker writes, the control process reads. A trace appears whole, before the round is reported, and is never changed;
that of a round which is trained again takes its place. Nothing is synced: it outlives the node, and after a power cut
an auditor finds another digest, and asks the neighbours. No torch here.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path

from commonweight.events import emit
from commonweight.wire.evidence import MAX_RETAINED_ROUNDS

_DIGEST_BYTES = 32
_HEAD_BYTES = _DIGEST_BYTES + 8

TraceIndex = dict[bytes, tuple[int, int]]
"""By hash: where an entry's bytes begin, and how many there are."""


class Traces:
    """Of one stage, in a folder that no other one uses."""

    def __init__(self, folder: Path, reserve_bytes: int) -> None:
        """`reserve_bytes` stay free on the disk for the next checkpoint: training goes first."""
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        for leftover in folder.glob(".writing-*"):
            with suppress(OSError):
                leftover.unlink()

    def begin(self, round_: int) -> "Trace":
        """A trace of this round to write."""
        return Trace(self._folder, round_, self._reserve_bytes)

    def retain(self, round_: int, retained: Collection[int], last: int = 0) -> None:
        """Of the rounds up to `round_` keep these only, and no more than auditors may ask for; and the `last` ones."""
        kept = sorted(retained)[-MAX_RETAINED_ROUNDS:]
        for old in self.rounds():
            if old <= round_ - last and old not in kept:
                with suppress(OSError):  # it is tried again after the next round
                    trace_path(self._folder, old).unlink()

    def rounds(self) -> list[int]:
        """The rounds that there are traces of, ascending."""
        names = (path.name.removeprefix("round-").removesuffix(".trace") for path in self._folder.glob("round-*.trace"))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())


class Trace:
    """What is written of one round. A disk that is full or fails costs the trace, and is told; it raises nothing."""

    def __init__(self, folder: Path, round_: int, reserve_bytes: int) -> None:
        self._folder = folder
        self._scratch = folder / f".writing-{round_:08d}"
        self._reserve_bytes = reserve_bytes
        self._round = round_
        self._file: BufferedWriter | None = None
        self._index: TraceIndex = {}
        """Of what is written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._scratch.open("wb")
        except OSError as error:
            self._drop(error)

    def add(self, digest: bytes, data: memoryview) -> None:
        """Write an entry, unless one with this hash is there."""
        if self._file is None or digest in self._index:
            return
        try:
            disk = os.statvfs(self._folder)
            if disk.f_bavail * disk.f_frsize < self._reserve_bytes + data.nbytes:
                raise OSError(f"less than {self._reserve_bytes} bytes are free, which the next checkpoint may take")
            self._file.write(digest + data.nbytes.to_bytes(8, "little"))
            self._index[digest] = self._file.tell(), data.nbytes
            self._file.write(data)
        except OSError as error:
            self._drop(error)

    def read(self, digest: bytes) -> bytearray | None:
        """An entry; None where it isn't there, or not any more."""
        try:
            begin, size = self._index[digest]
            if self._file is not None:
                self._file.flush()
            path = self._scratch if self._file is not None else trace_path(self._folder, self._round)
            with path.open("rb") as file:
                data = bytearray(os.pread(file.fileno(), size, begin))
        except (OSError, KeyError):
            return None
        return data if len(data) == size else None

    def finish(self) -> None:
        """The round is trained: its trace can be read from now on."""
        if self._file is None:
            return
        try:
            self._close()
            self._scratch.replace(trace_path(self._folder, self._round))
        except OSError as error:
            self._drop(error)

    def discard(self) -> None:
        """What was written is void, unless it is finished."""
        if self._file is not None:
            with suppress(OSError):
                self._close()
            with suppress(OSError):
                self._scratch.unlink()

    def _drop(self, error: OSError) -> None:
        self._index = {}
        with suppress(OSError):
            self._close()
        for path in (self._scratch, trace_path(self._folder, self._round)):  # the latter of an earlier training
            with suppress(OSError):
                path.unlink()
        emit("trace.dropped", round=self._round, message=f"{self._folder}: {error.strerror or error}")

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def trace_path(folder: Path, round_: int) -> Path:
    """Where the trace of a round lies."""
    return folder / f"round-{round_:08d}.trace"


def read_index(path: Path) -> TraceIndex:
    """What is in a trace. Raises OSError where there is none; one that was cut short ends where it was."""
    index: TraceIndex = {}
    with path.open("rb") as file:
        total, position = os.fstat(file.fileno()).st_size, 0
        while len(head := os.pread(file.fileno(), _HEAD_BYTES, position)) == _HEAD_BYTES:
            begin, size = position + _HEAD_BYTES, int.from_bytes(head[_DIGEST_BYTES:], "little")
            position = begin + size
            if position > total:
                break
            index[head[:_DIGEST_BYTES]] = (begin, size)
    return index
