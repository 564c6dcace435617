"""Restoring a version of a stage that nobody has any more from its pieces. No torch here.

    await restore_version(certificate, version, checkpoints_folder, keepers, makers, domain)

All keepers are asked at once. Pieces count together where they have one manifest, which one of the stage's seat holders
has signed; what they come to is believed for its state root alone, which the coordinator has sealed.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path

from commonweight.disk import sync
from commonweight.errors import CheckpointError, CommitmentBroken, CommonweightError, MalformedMessage, PiecesMissing
from commonweight.events import emit
from commonweight.identity import recover_address
from commonweight.model.stored import stored_root
from commonweight.rules.keeping import MIN_KEEPERS, PiecesManifest, piece_bytes, read_manifest
from commonweight.rules.receipt import Domain
from commonweight.wire.evidence import Source
from commonweight.wire.generated import pieces_pb2 as pb
from commonweight.wire.pieces import KeeperConnection
from commonweight.wire.tls import Certificate
from node.cutting import join
from node.fetching import Version, place_version
from node.keeping import check_manifest, max_version_bytes
from node.published import MOMENTS_FILE, PARAMETERS_FILE


@dataclass(frozen=True)
class _Piece:
    """One that is what its manifest says."""

    keeper: Source
    manifest: PiecesManifest
    number: int
    path: Path
    key_share: bytes = field(repr=False)


async def restore_version(
    certificate: Certificate,
    version: Version,
    folder: Path,
    keepers: Sequence[Source],
    makers: Collection[str],
    domain: Domain,
) -> None:
    """Bring a version into the folder of the stage's checkpoints, where it appears whole or not at all.

    `makers`: the addresses whose signature makes pieces the stage's. Raises PiecesMissing where too few of the keepers
    have brought right ones, CheckpointError where the disk is full or fails. What came is removed then.
    """
    scratch = folder
    try:
        # A folder of its own: what an earlier try is still writing, though nobody waits for it, goes elsewhere.
        scratch = await asyncio.to_thread(_empty_folder, folder)
        await _Restoring(certificate, version, scratch, keepers, makers, domain).run(folder)
    except OSError as error:
        raise CheckpointError(
            f"Version {version.round} can't be written to {folder}: {error.strerror}. What came of it is removed; the "
            "checkpoints are as they were. Free disk space, then start the node again."
        ) from error
    finally:
        if scratch != folder:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


class _Restoring:
    """Of one version. It is run once."""

    def __init__(
        self,
        certificate: Certificate,
        version: Version,
        scratch: Path,
        keepers: Sequence[Source],
        makers: Collection[str],
        domain: Domain,
    ) -> None:
        self._certificate, self._version, self._scratch = certificate, version, scratch
        self._keepers, self._makers, self._domain = tuple(dict.fromkeys(keepers)), makers, domain
        self._pieces: dict[PiecesManifest, dict[int, _Piece]] = {}
        """Those that came, by their number."""
        self._dropped: list[str] = []

    async def run(self, folder: Path) -> None:
        started_s = time.monotonic()
        calls = {asyncio.create_task(self._get(keeper, number)) for number, keeper in enumerate(self._keepers)}
        try:
            for call in asyncio.as_completed(calls):
                piece = await call
                if piece is not None:
                    pieces = self._pieces.setdefault(piece.manifest, {})
                    pieces[piece.number] = piece
                    if len(pieces) == piece.manifest.threshold and await self._join(piece.manifest, pieces, folder):
                        break
            else:
                raise PiecesMissing(self._what_is_missing())
        finally:
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        size = sum(each.path.stat().st_size for each in pieces.values())
        what = f"version {self._version.round}, from pieces"
        emit("state.fetched", what=what, fetched_bytes=size, seconds=round(time.monotonic() - started_s, 3))

    async def _get(self, keeper: Source, number: int) -> _Piece | None:
        """What the keeper has, if it is right. Raises OSError."""
        version, path = self._version, self._scratch / f"from-{number}"
        limit_bytes = piece_bytes(max_version_bytes(version.spec, version.stage), MIN_KEEPERS)
        request = pb.PieceRequest(stage=version.stage, round=version.round, state_root=version.state_root)
        connection: KeeperConnection | None = None
        try:
            connection = KeeperConnection(keeper, self._certificate)
            head = await connection.get(request, limit_bytes, path)
            manifest = self._check(head)
            found = await asyncio.to_thread(_digest, path)
            size = piece_bytes(manifest.version_bytes, manifest.threshold)
            if path.stat().st_size != size or found != manifest.pieces[head.number]:
                raise CommitmentBroken(
                    f"{keeper.peer_id} sent {path.stat().st_size} bytes with SHA-256 {found} as piece {head.number}; "
                    f"by its manifest it has {size} with {manifest.pieces[head.number]}."
                )
        except CommonweightError as error:
            self._drop(keeper, error)
            return None
        finally:
            if connection is not None:
                await connection.close()
        return _Piece(keeper, manifest, head.number, path, head.key_share)

    def _check(self, head: pb.PieceHead) -> PiecesManifest:
        """Its manifest, if it is of what is wanted. Raises MalformedMessage and CommitmentBroken."""
        manifest, version = read_manifest(head.manifest), self._version
        check_manifest(manifest, head, version.spec)
        wanted = (version.stage, version.round, "0x" + version.state_root.hex())
        if (manifest.stage, manifest.round, manifest.state_root) != wanted:
            raise CommitmentBroken(f"The piece is of version {manifest.round} of stage {manifest.stage}, or another.")
        if (maker := recover_address(manifest.digest(self._domain), head.signature)) not in self._makers:
            raise CommitmentBroken(f"The piece was made by {maker}, who has no seat in stage {version.stage}.")
        return manifest

    async def _join(self, manifest: PiecesManifest, pieces: dict[int, _Piece], folder: Path) -> bool:
        """Whether these are the version; then it is in its place."""
        version, whole = self._version, self._scratch / "whole"
        files = (whole / PARAMETERS_FILE, whole / MOMENTS_FILE)

        def put_together() -> None:
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            paths = {number: piece.path for number, piece in pieces.items()}
            join(manifest, paths, {number: piece.key_share for number, piece in pieces.items()}, files)
            root = stored_root(*files, version.round, version.frozen_hash)
            if root != version.state_root:
                raise CommitmentBroken(
                    f"The pieces have state root {root.hex()} instead of {version.state_root.hex()}: who made them "
                    "made them of another state."
                )
            for path in files:
                sync(path)
            place_version(version, whole, folder)

        try:
            await asyncio.to_thread(put_together)
        except (CommitmentBroken, MalformedMessage) as error:
            for piece in pieces.values():
                self._drop(piece.keeper, error)
            return False
        return True

    def _what_is_missing(self) -> str:
        found = max((len(pieces) for pieces in self._pieces.values()), default=0)
        needed = next((str(manifest.threshold) for manifest in self._pieces), "more than half")
        return (
            f"Version {self._version.round} of stage {self._version.stage} can't be restored: of {len(self._keepers)} "
            f"keepers that are there {found} brought pieces that belong together; it takes {needed}. "
            f"{' '.join(self._dropped)} Start more of its keepers, or a node that held the stage and has its disk. It "
            "is tried again."
        )

    def _drop(self, keeper: Source, error: CommonweightError) -> None:
        emit("state.peer_dropped", peer=keeper.peer_id, code=error.code, message=error.args[0])
        self._dropped.append(f"{keeper.peer_id}: {error}")


def _empty_folder(folder: Path) -> Path:
    """A new one in the folder, without what earlier tries have left there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".restoring-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=".restoring-", dir=folder))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "0x" + file_digest(file, "sha256").hexdigest()
