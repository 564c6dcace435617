"""The Keeping service of a node: encrypted pieces of other stages' versions, on its disk. No torch here.

    DIR/pieces/stage-0/round-00000041/piece     as it was put here
    DIR/pieces/stage-0/round-00000041/head      its manifest, signature, number and key share (PieceHead)

It runs in the control process, on the server of the Evidence service. Of each stage the pieces of the last two versions
are kept: those of the newest may still be on their way to the other keepers. What is here says nothing of the stage
without the pieces and key shares of others.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from commonweight.disk import sync
from commonweight.errors import (
    CheckpointError,
    CommitmentBroken,
    CommonweightError,
    MalformedMessage,
    PeerUnreachable,
    Refused,
    StateUnavailable,
    UnplannedMessage,
)
from commonweight.events import emit
from commonweight.identity import address_of, recover_address
from commonweight.model.stored import MAX_HEADER_BYTES
from commonweight.rules.keeping import PiecesManifest, piece_bytes, read_manifest
from commonweight.rules.receipt import Domain
from commonweight.rules.spec import ModelSpec, parse_spec
from commonweight.rules.stages import state_bytes
from commonweight.wire.generated import control_pb2, pieces_pb2_grpc
from commonweight.wire.generated import pieces_pb2 as pb
from commonweight.wire.pieces import check_head, parts_of, transfer_s
from commonweight.wire.status import refuse
from commonweight.wire.tls import certificate_of, peer_id_of, peer_of
from node.published import version_path

KEPT = 2
"""Versions of each stage."""
MAX_TRANSFERS = 4
"""At a time; the next ones wait."""
HEAD_S = 10.0
"""From a call to its first part."""
PIECE_FILE, HEAD_FILE = "piece", "head"


def max_version_bytes(spec: ModelSpec, stage: int) -> int:
    """What the files of a version of this stage have at most."""
    return state_bytes(spec, stage) + 2 * MAX_HEADER_BYTES


def check_manifest(manifest: PiecesManifest, head: pb.PieceHead, spec: ModelSpec) -> None:
    """Raises MalformedMessage where it is of another model, or of more than a version has, or where the head isn't of
    one of its pieces.
    """
    if manifest.spec_hash != "0x" + spec.spec_hash.hex() or manifest.stage >= spec.stages:
        raise MalformedMessage(f"The pieces are of stage {manifest.stage} of model spec {manifest.spec_hash}.")
    if manifest.version_bytes > max_version_bytes(spec, manifest.stage):
        raise MalformedMessage(f"The pieces are of {manifest.version_bytes} bytes, more than the stage has.")
    if head.number >= len(manifest.pieces):
        raise MalformedMessage(f"There is no piece {head.number} among {len(manifest.pieces)}.")
    if "0x" + sha256(head.key_share).hexdigest() != manifest.key_shares[head.number]:
        raise CommitmentBroken(f"Key share {head.number} isn't the one that the manifest names.")


class Keeping(pieces_pb2_grpc.KeepingServicer):
    """Of one node. Methods run on the event loop, `admitted` on any thread."""

    def __init__(self, directory: Path) -> None:
        """`directory` is the node's."""
        self._folder = directory / "pieces"
        self._spec: ModelSpec | None = None
        self._stage = -1
        self._domain = Domain(0, "")
        self._send: Callable[[control_pb2.NodeMessage], None] = lambda _: None
        self._makers: frozenset[tuple[int, bytes]] = frozenset()
        """Stage and certificate (DER)."""
        self._seekers: frozenset[tuple[int, bytes]] = frozenset()
        self._room = asyncio.Semaphore(MAX_TRANSFERS)
        self._placing = asyncio.Lock()
        for leftover in self._folder.glob(".putting-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    async def begin(self, assignment: control_pb2.Assignment, send: Callable[[control_pb2.NodeMessage], None]) -> None:
        """The node knows its stage; `send` reaches its coordinator, who is told what is kept here."""
        self._spec, self._stage, self._send = parse_spec(assignment.spec), assignment.stage, send
        self._domain = Domain(assignment.chain_id, assignment.settlement)
        self._makers = self._seekers = frozenset()
        held = await asyncio.to_thread(self._held)
        if held.pieces:
            send(control_pb2.NodeMessage(pieces=held))

    def grant(self, grants: control_pb2.KeepPieces) -> None:
        """These may put and get, and no others. Raises IdentityMismatch for a certificate that is none."""
        for each in (*grants.makers, *grants.seekers):
            peer_id_of(each.certificate)
        self._makers = frozenset((each.stage, each.certificate) for each in grants.makers)
        self._seekers = frozenset((each.stage, each.certificate) for each in grants.seekers)

    def admitted(self) -> frozenset[bytes]:
        """The certificates (DER) of all that may put or get."""
        return frozenset(certificate for _, certificate in self._makers | self._seekers)

    async def Put(self, request_iterator: AsyncIterator[pb.PiecePart], context: Any) -> pb.PieceKept:  # noqa: N802
        """See the proto."""
        async with self._answering(context):
            async with asyncio.timeout(HEAD_S):
                head = (await anext(aiter(request_iterator), pb.PiecePart())).head
            manifest = await self._check(head, context)
            size = piece_bytes(manifest.version_bytes, manifest.threshold)
            async with asyncio.timeout(transfer_s(size)), self._room:
                await self._take(head, manifest, size, request_iterator)
            held = await asyncio.to_thread(self._held)
            self._send(control_pb2.NodeMessage(pieces=held))
        return pb.PieceKept()

    async def Get(self, request: pb.PieceRequest, context: Any) -> None:  # noqa: N802 - gRPC's name
        """See the proto."""
        async with self._answering(context):
            peer_of(context, self.admitted)
            if (request.stage, certificate_of(context)) not in self._seekers:
                raise Refused(f"Pieces of stage {request.stage} aren't granted to the caller.")
            folder = self._path(request.stage, request.round)
            try:
                head = await asyncio.to_thread(_read_head, folder)
                size = (folder / PIECE_FILE).stat().st_size
            except (OSError, MalformedMessage) as error:
                raise StateUnavailable(
                    f"This isn't kept here: a piece of version {request.round} of stage {request.stage}."
                ) from error
            root = read_manifest(head.manifest).state_root
            if root != "0x" + request.state_root.hex():
                raise StateUnavailable(f"The piece of version {request.round} that is here is of state root {root}.")
            async with asyncio.timeout(transfer_s(size)), self._room:
                async for part in parts_of(head, folder / PIECE_FILE):
                    await context.write(part)

    async def _check(self, head: pb.PieceHead, context: Any) -> PiecesManifest:
        """What the caller would put here, and may."""
        peer_id = peer_of(context, self.admitted)
        if self._spec is None:
            raise UnplannedMessage("This node doesn't hold a stage yet.")
        check_head(head)
        manifest = read_manifest(head.manifest)
        if (manifest.stage, certificate_of(context)) not in self._makers or manifest.stage == self._stage:
            raise Refused(f"The caller isn't to put pieces of stage {manifest.stage} here.")
        check_manifest(manifest, head, self._spec)
        if (signer := recover_address(manifest.digest(self._domain), head.signature)) != address_of(peer_id):
            raise CommitmentBroken(f"The manifest is signed by {signer}, not by who brings it.")
        kept = self._rounds(manifest.stage)[-KEPT:]
        if len(kept) == KEPT and manifest.round < kept[0]:
            raise UnplannedMessage(f"Pieces of versions {kept} are kept here; this one is of {manifest.round}.")
        return manifest

    async def _take(
        self, head: pb.PieceHead, manifest: PiecesManifest, size: int, parts: AsyncIterator[pb.PiecePart]
    ) -> None:
        """Write what comes, and place it once it is whole and right."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=".putting-", dir=self._folder))
        try:
            known, received = sha256(), 0
            with await asyncio.to_thread((scratch / PIECE_FILE).open, "wb") as file:
                async for part in parts:
                    received += len(part.data)
                    if received > size or part.HasField("head"):
                        break
                    known.update(part.data)
                    await asyncio.to_thread(file.write, part.data)
            if received != size or "0x" + known.hexdigest() != manifest.pieces[head.number]:
                raise CommitmentBroken(
                    f"{received} bytes came as piece {head.number} of version {manifest.round}, of {size}; or they "
                    "aren't those that the manifest names."
                )
            async with self._placing:
                await asyncio.to_thread(self._place, scratch, head, manifest)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _place(self, scratch: Path, head: pb.PieceHead, manifest: PiecesManifest) -> None:
        (scratch / HEAD_FILE).write_bytes(head.SerializeToString())
        for path in (scratch / PIECE_FILE, scratch / HEAD_FILE, scratch):
            sync(path)
        final = self._path(manifest.stage, manifest.round)
        final.parent.mkdir(exist_ok=True)
        if final.exists():
            shutil.rmtree(final)  # a folder can't be renamed over a full one
        scratch.rename(final)
        sync(final.parent)
        for round_ in self._rounds(manifest.stage)[:-KEPT]:
            with suppress(OSError):  # what stays too long is removed next time
                shutil.rmtree(self._path(manifest.stage, round_))

    def _path(self, stage: int, round_: int) -> Path:
        return version_path(self._folder / f"stage-{stage}", round_)

    def _rounds(self, stage: int) -> list[int]:
        names = (path.name.removeprefix("round-") for path in (self._folder / f"stage-{stage}").glob("round-*"))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _held(self) -> control_pb2.PiecesHeld:
        """All that is here."""
        held = control_pb2.PiecesHeld()
        assert self._spec is not None, "it is asked for after the assignment"
        for stage in range(self._spec.stages):
            for round_ in self._rounds(stage):
                with suppress(OSError, MalformedMessage):
                    head = _read_head(self._path(stage, round_))
                    manifest = read_manifest(head.manifest)
                    held.pieces.add(
                        stage=stage,
                        round=round_,
                        state_root=bytes.fromhex(manifest.state_root[2:]),
                        manifest=sha256(head.manifest).digest(),
                        threshold=manifest.threshold,
                    )
        return held

    @asynccontextmanager
    async def _answering(self, context: Any) -> AsyncIterator[None]:
        """In time, and with our errors."""
        try:
            yield
        except TimeoutError:
            await self._refuse(context, PeerUnreachable("The piece didn't come, or wasn't taken, in time."))
        except OSError as error:
            message = f"The piece can't be kept or read: {os.strerror(error.errno or 0)}. Free disk space."
            await self._refuse(context, CheckpointError(message))
        except CommonweightError as error:
            await self._refuse(context, error)

    async def _refuse(self, context: Any, error: CommonweightError) -> None:
        emit("piece.refused", peer=context.peer(), code=error.code, message=error.args[0])
        await refuse(context, error)


def _read_head(folder: Path) -> pb.PieceHead:
    """Raises OSError and MalformedMessage."""
    try:
        head: pb.PieceHead = pb.PieceHead.FromString((folder / HEAD_FILE).read_bytes())
    except DecodeError as error:
        raise MalformedMessage(f"{folder / HEAD_FILE} can't be read: {error}.") from error
    return head
