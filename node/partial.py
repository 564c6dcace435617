"""Files that are being fetched, in a folder of their own until they are whole.

Which chunks are there is found by their hashes, so it is right after a kill, a power cut, or a change of manifest;
nothing else is noted. All methods wait for the disk, and raise OSError.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import groupby
from pathlib import Path

from commonweight.failpoints import failpoint
from commonweight.wire.state import Chunk, Manifest


class Partial:
    """Some files in `folder`, which nobody else uses."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """`names`: of the files, in the order of their manifest. Nothing is touched yet."""
        self.folder = folder
        self.paths = tuple(folder / name for name in names)

    def prepare(self, manifest: Manifest) -> list[int]:
        """Give each file its size and its place on the disk; of the manifest's chunks those that aren't there yet, in
        order.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = any(path.exists() for path in self.paths)
        for path, file in zip(self.paths, manifest.files, strict=True):
            with path.open("ab") as opened:
                os.ftruncate(opened.fileno(), file.size)
                os.posix_fallocate(opened.fileno(), 0, file.size)  # a full disk is noticed now
        return self.missing(manifest) if resumed else list(range(len(manifest.chunks)))

    def missing(self, manifest: Manifest) -> list[int]:
        """Of the manifest's chunks those that aren't there, in order."""
        missing = []
        chunks = enumerate(manifest.chunks)
        for file, group in groupby(chunks, lambda item: item[1].file):
            with self.paths[file].open("rb") as opened:
                for number, chunk in group:
                    data = os.pread(opened.fileno(), chunk.size, chunk.position)
                    if sha256(data).digest() != chunk.digest:
                        missing.append(number)
        return missing

    def write(self, chunk: Chunk, data: bytes) -> None:
        """Put a chunk where it belongs."""
        with self.paths[chunk.file].open("r+b") as file:
            file.seek(chunk.position)
            file.write(data)
        failpoint("state.chunk")

    def discard(self) -> None:
        """Give the disk back what they take; what can't be removed stays."""
        with suppress(OSError):
            shutil.rmtree(self.folder)
