"""The StageState service of a node: versions and gradients of its stage, for other replicas of it.

It runs in the control process, on the server of the Evidence service, so the compute worker waits for nobody who
fetches: few reads at a time, in threads, and one manifest is computed at a time. Every call is held against what is
granted, because a connection outlives an admission.

What is being fetched stays: its files are open here, and an open file can be read after its name is gone (the trainer
removes old versions). Its place on the disk is given back IDLE_S after the last call for it.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from commonweight.errors import CommonweightError, MalformedMessage, PeerUnreachable, StateUnavailable, UnplannedMessage
from commonweight.events import emit
from commonweight.wire.generated import state_pb2 as pb
from commonweight.wire.generated import state_pb2_grpc
from commonweight.wire.state import CHUNK_BYTES, HASH_BYTES, MAX_CHUNKS, FileManifest, Manifest, chunks_of
from commonweight.wire.status import refuse
from commonweight.wire.tls import certificate_of, peer_id_of, peer_of
from node.dealing import MAX_IN_FLIGHT
from node.meta import read_meta
from node.published import META_FILE, MOMENTS_FILE, PARAMETERS_FILE, version_path
from node.traces import read_index, trace_path

MANIFEST_S = 300.0
"""For a manifest, with those before it in the queue."""
CHUNK_S = 60.0
"""For a chunk, likewise."""
MAX_READS = 2
"""At a time; the next ones wait."""
MAX_CALLS_PER_PEER = MAX_IN_FLIGHT
"""Chunks that are read or sent to one peer at a time, so that who doesn't take them fills no memory."""
MAX_HELD = 6
"""Versions and gradients that are open at a time. The one that was asked for least lately gives way."""
IDLE_S = 300.0


@dataclass(frozen=True)
class _Piece:
    """A file, or a part of one."""

    file: BinaryIO
    position: int
    size: int

    def read(self, index: int) -> bytes:
        """A chunk. Raises StateUnavailable where the file has been cut."""
        begin = index * CHUNK_BYTES
        due = min(CHUNK_BYTES, self.size - begin)
        data = os.pread(self.file.fileno(), due, self.position + begin)
        if len(data) != due:
            raise StateUnavailable(f"The file has been cut: chunk {index} has {len(data)} of {due} bytes.")
        return data

    def manifest(self) -> FileManifest:
        """Reads all of it."""
        return FileManifest(
            self.size, tuple(sha256(self.read(index)).digest() for index in range(chunks_of(self.size)))
        )


@dataclass
class _Held:
    """A version or a gradient that is open."""

    pieces: list[_Piece]
    used_s: float
    users: int = 0
    manifest: asyncio.Task[Manifest] | None = None

    async def hash(self, turn: asyncio.Lock) -> Manifest:
        """Its manifest, once it is its turn. Raises StateUnavailable where there are more chunks than travel."""
        self.users += 1
        try:
            async with turn:
                if (chunks := sum(chunks_of(piece.size) for piece in self.pieces)) > MAX_CHUNKS:
                    raise StateUnavailable(f"It has {chunks} chunks; at most {MAX_CHUNKS} travel.")
                files = [await asyncio.to_thread(piece.manifest) for piece in self.pieces]
                return Manifest(tuple(files))
        finally:
            self.users -= 1


class Offering(state_pb2_grpc.StageStateServicer):
    """Of one node. Methods run on the event loop, `admitted` on any thread."""

    def __init__(self, directory: Path) -> None:
        """`directory` is the node's, with its checkpoints and gradients."""
        self._directory = directory
        self._folder: Path | None = None
        self._granted: frozenset[bytes] = frozenset()
        self._held: dict[tuple[str, int, bytes], _Held] = {}
        """The one that was asked for last is the last."""
        self._calls: dict[bytes, asyncio.Semaphore] = {}
        """By the certificate of who calls."""
        self._reads = asyncio.Semaphore(MAX_READS)
        self._opening = asyncio.Lock()
        self._hashing = asyncio.Lock()
        self._sweep: asyncio.TimerHandle | None = None

    def begin(self, stage: int) -> None:
        """The node knows its stage now."""
        self._folder = self._directory / f"stage-{stage}"

    def grant(self, certificate: bytes) -> None:
        """Let another replica of the stage fetch. Raises IdentityMismatch for a certificate (DER) that is none."""
        peer_id_of(certificate)
        self._granted |= {certificate}

    def revoke(self, certificate: bytes) -> None:
        """From now on no call of its is answered, also over a connection that is open."""
        self._granted -= {certificate}
        self._calls.pop(certificate, None)
        if not self._granted:
            self._let_go(lambda held: True)

    def admitted(self) -> frozenset[bytes]:
        """The certificates (DER) of all that may fetch."""
        return self._granted

    def close(self) -> None:
        """Let go of all files."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for held in self._held.values():
            _close(held)
        self._held.clear()

    async def Manifest(self, request: pb.Kept, context: Any) -> pb.StateManifest:  # noqa: N802 - gRPC's name
        """See the proto."""
        async with self._answering(context, MANIFEST_S), self._using(request) as held:
            if held.manifest is None:
                held.manifest = asyncio.create_task(held.hash(self._hashing))
            # Who hangs up doesn't end it: calling again and again mustn't cost more than calling once.
            manifest = await asyncio.shield(held.manifest)
            self._check(context)
            return manifest.to_proto()

    async def Chunk(self, request: pb.ChunkRequest, context: Any) -> pb.StateChunk:  # noqa: N802 - gRPC's name
        """See the proto."""
        async with self._answering(context, CHUNK_S):
            calls = self._calls.setdefault(certificate_of(context), asyncio.Semaphore(MAX_CALLS_PER_PEER))
            await calls.acquire()
            context.add_done_callback(lambda _: calls.release())  # once the answer has been sent
            async with self._using(request.of) as held, self._reads:
                self._check(context)
                if request.file >= len(held.pieces) or request.index >= chunks_of(held.pieces[request.file].size):
                    raise MalformedMessage(f"There is no chunk {request.index} of file {request.file}.")
                return pb.StateChunk(data=await asyncio.to_thread(held.pieces[request.file].read, request.index))

    def _check(self, context: Any) -> None:
        peer_of(context, self.admitted)

    @asynccontextmanager
    async def _answering(self, context: Any, limit_s: float) -> AsyncIterator[None]:
        """Only to whom it is granted, in time, and with our errors."""
        try:
            async with asyncio.timeout(limit_s):
                self._check(context)
                yield
        except TimeoutError:
            await self._refuse(context, PeerUnreachable(f"The answer isn't ready after {limit_s:g} s."))
        except OSError as error:
            await self._refuse(context, StateUnavailable(f"It can't be read: {error.strerror}."))
        except CommonweightError as error:
            await self._refuse(context, error)

    async def _refuse(self, context: Any, error: CommonweightError) -> None:
        emit("state.refused", peer=context.peer(), code=error.code, message=error.args[0])
        await refuse(context, error)

    @asynccontextmanager
    async def _using(self, kept: pb.Kept) -> AsyncIterator[_Held]:
        """What is asked for, open until the end of the block at least. Raises StateUnavailable."""
        if self._folder is None:
            raise UnplannedMessage("This node doesn't hold a stage yet.")
        what, digest = kept.WhichOneof("what"), kept.state_root or kept.gradient
        if what is None or len(digest) != HASH_BYTES:
            raise MalformedMessage(
                f"A version is asked for by its state root, a gradient by its hash: {HASH_BYTES} bytes; these are "
                f"{len(digest)}."
            )
        name = (what, kept.round, digest)
        async with self._opening:
            held = self._held.pop(name, None)
            if held is None:
                held = _Held(await asyncio.to_thread(_open, self._folder, kept), 0.0)
            self._held[name] = held
        held.users += 1
        try:
            yield held
        finally:
            held.users -= 1
            held.used_s = asyncio.get_running_loop().time()
            self._make_room()

    def _make_room(self) -> None:
        """Close what is too much, and see to it that what isn't asked for any more is closed."""
        idle = [name for name, held in self._held.items() if not held.users]
        for name in idle[: max(0, len(self._held) - MAX_HELD)]:
            _close(self._held.pop(name))
        if self._sweep is None and self._held:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_S, self._sweep_idle)

    def _sweep_idle(self) -> None:
        self._sweep = None
        now_s = asyncio.get_running_loop().time()
        self._let_go(lambda held: now_s - held.used_s >= IDLE_S)
        self._make_room()

    def _let_go(self, over: Callable[[_Held], bool]) -> None:
        for name in [name for name, held in self._held.items() if not held.users and over(held)]:
            _close(self._held.pop(name))


def _open(folder: Path, kept: pb.Kept) -> list[_Piece]:
    """Raises StateUnavailable where it isn't kept."""
    pieces: list[_Piece] = []
    try:
        if kept.gradient:
            trace = trace_path(folder / "gradients", kept.round)
            position, size = read_index(trace)[kept.gradient]
            pieces.append(_Piece(trace.open("rb"), position, size))
        else:
            path = version_path(folder, kept.round)
            root = read_meta((path / META_FILE).read_bytes(), str(path)).state_root
            if root != "0x" + kept.state_root.hex():
                raise StateUnavailable(f"Version {kept.round} has the state root {root} here.")
            for name in (PARAMETERS_FILE, MOMENTS_FILE):
                file = (path / name).open("rb")
                pieces.append(_Piece(file, 0, os.fstat(file.fileno()).st_size))
    except (OSError, KeyError, MalformedMessage, ValidationError) as error:
        for piece in pieces:
            piece.file.close()
        what = f"the gradient {kept.gradient.hex()} of round" if kept.gradient else "version"
        raise StateUnavailable(f"This isn't kept here: {what} {kept.round}.") from error
    return pieces


def _close(held: _Held) -> None:
    if held.manifest is not None:
        held.manifest.cancel()
    for piece in held.pieces:
        piece.file.close()
