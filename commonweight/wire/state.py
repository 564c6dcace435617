"""What a replica fetches from another: versions and gradients of their stage, in chunks that are each checked.

    connection = StateConnection(source, certificate)
    manifest = await connection.manifest(kept, max_bytes)
    data = await connection.chunk(kept, manifest.chunks[7])

A source is believed nothing. A chunk is what the manifest says, or an error; what the whole must be is for who fetches
it to check.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import grpc

from commonweight.errors import CommitmentBroken, MalformedMessage, MessageTooLarge
from commonweight.wire.channel import PIPE_PART_BYTES
from commonweight.wire.evidence import Source, open_source
from commonweight.wire.generated import state_pb2 as pb
from commonweight.wire.generated import state_pb2_grpc
from commonweight.wire.status import wire_error
from commonweight.wire.tls import Certificate

CHUNK_BYTES = PIPE_PART_BYTES
HASH_BYTES = 32
MAX_CHUNKS = PIPE_PART_BYTES // HASH_BYTES
"""Of all files together, so that a manifest fits a message: 32 GiB."""
MANIFEST_S = 120.0
"""For a manifest: the source may have to read and hash all of it, 32 GiB at 300 MB/s."""
CHUNK_S = 30.0
"""For a chunk, the connection included."""


@dataclass(frozen=True)
class Chunk:
    """One piece of a file."""

    file: int
    """Its place in the manifest."""
    index: int
    size: int
    digest: bytes

    @property
    def position(self) -> int:
        """Where in the file it begins."""
        return self.index * CHUNK_BYTES


@dataclass(frozen=True)
class FileManifest:
    """What a source says that one file is."""

    size: int
    hashes: tuple[bytes, ...]
    """SHA-256 of each chunk, in order."""


@dataclass(frozen=True)
class Manifest:
    """What a source says that a version or a gradient is: its files, in the order that the proto gives."""

    files: tuple[FileManifest, ...]

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """All chunks of all files, in order."""
        return tuple(
            Chunk(number, index, min(CHUNK_BYTES, file.size - index * CHUNK_BYTES), digest)
            for number, file in enumerate(self.files)
            for index, digest in enumerate(file.hashes)
        )

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def shared_with(self, other: "Manifest") -> Collection[int]:
        """The numbers of the chunks that the other has, too, in the same place."""
        if other == self:
            return range(len(self.chunks))
        theirs = set(other.chunks)
        return frozenset(number for number, chunk in enumerate(self.chunks) if chunk in theirs)

    def to_proto(self) -> pb.StateManifest:
        """The message that says so."""
        files = [pb.FileManifest(size=file.size, chunk_hashes=b"".join(file.hashes)) for file in self.files]
        return pb.StateManifest(files=files)


def manifest_from_proto(message: pb.StateManifest, files: int, max_bytes: int) -> Manifest:
    """What it says. Raises MessageTooLarge for more than `max_bytes`, MalformedMessage unless it has this many files,
    none of them empty, and a hash for each chunk.
    """
    sizes = [file.size for file in message.files]
    if len(sizes) != files or not all(sizes):
        raise MalformedMessage(f"A manifest has files of {sizes[:4]} bytes; due are {files} that aren't empty.")
    if (size := sum(sizes)) > min(max_bytes, MAX_CHUNKS * CHUNK_BYTES):
        raise MessageTooLarge(f"A manifest has {size} bytes; at most {max_bytes} can be due.")
    found = []
    for file in message.files:
        hashes, due = file.chunk_hashes, HASH_BYTES * chunks_of(file.size)
        if len(hashes) != due:
            raise MalformedMessage(
                f"A manifest has {len(hashes)} bytes of hashes for a file of {file.size}; due are {due}."
            )
        digests = (hashes[begin : begin + HASH_BYTES] for begin in range(0, due, HASH_BYTES))
        found.append(FileManifest(file.size, tuple(digests)))
    return Manifest(tuple(found))


def chunks_of(size: int) -> int:
    """How many chunks a file of `size` bytes has."""
    return -(-size // CHUNK_BYTES)


class StateConnection:
    """To one source; connects with the first call.

    Calls raise StateUnavailable where the source doesn't keep what is asked for, Refused where it doesn't admit the
    caller, PeerUnreachable where it hasn't answered within the deadline, and what their docstrings say.
    """

    def __init__(self, source: Source, certificate: Certificate) -> None:
        """`certificate` is what was granted to fetch. Raises as `open_source`."""
        self._who = f"{source.peer_id} at {source.address}"
        self._channel = open_source(source, certificate)
        self._stub = state_pb2_grpc.StageStateStub(self._channel)

    async def manifest(self, kept: pb.Kept, files: int, max_bytes: int) -> Manifest:
        """What the source says that this is. Raises as `manifest_from_proto`, too."""
        try:
            message = await self._stub.Manifest(kept, timeout=MANIFEST_S, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise wire_error(error, self._who) from error
        return manifest_from_proto(message, files, max_bytes)

    async def chunk(self, kept: pb.Kept, chunk: Chunk) -> bytes:
        """The chunk's bytes. Raises CommitmentBroken where they aren't those of its hash."""
        request = pb.ChunkRequest(of=kept, file=chunk.file, index=chunk.index)
        try:
            message = await self._stub.Chunk(request, timeout=CHUNK_S, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise wire_error(error, self._who) from error
        data: bytes = message.data
        found = await asyncio.to_thread(lambda: sha256(data).digest())
        if found != chunk.digest:
            raise CommitmentBroken(
                f"{self._who} sent {len(data)} bytes with SHA-256 {found.hex()} as chunk {chunk.index} of file "
                f"{chunk.file}; by its manifest it has {chunk.size} with {chunk.digest.hex()}."
            )
        return data

    async def close(self) -> None:
        """End it, and every call."""
        await self._channel.close()
