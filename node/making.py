"""A stage's maker: makes pieces of its newest version, and puts them with keepers. No torch here.

It works from the checkpoint on the disk, in the control process, so that training doesn't wait for it; one version at a
time, and then the newest, whatever lies between. Where the coordinator wants it so, a report is held back until there
are pieces of the state that the round led to: then no sealed version is without.
"""

import asyncio
import shutil
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from commonweight.errors import CheckpointError, CommonweightError, PiecesMissing
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.rules.keeping import MAX_KEEPERS, MIN_KEEPERS, piece_bytes
from commonweight.rules.receipt import Domain
from commonweight.rules.spec import ModelSpec
from commonweight.wire.evidence import Source
from commonweight.wire.generated import pieces_pb2 as pb
from commonweight.wire.pieces import KeeperConnection
from commonweight.wire.tls import Certificate
from node.cutting import Cut, cut
from node.meta import read_meta
from node.published import META_FILE, MOMENTS_FILE, PARAMETERS_FILE, version_path

HOLD_S = 20.0
"""For so long a report waits for its pieces; then it is sent without."""
REST = 49.0
"""After pieces were made the maker rests for so many times as long as that took, unless reports wait for it: it is at
work for a fiftieth of the time at most.
"""
SCRATCH = ".making"


class Making:
    """Of one node. Methods run on the event loop."""

    def __init__(self, certificate: Certificate, identity: NodeIdentity) -> None:
        """`identity` signs the manifests."""
        self._certificate, self._identity = certificate, identity
        self._spec: ModelSpec | None = None
        self._stage = -1
        self._domain = Domain(0, "")
        self._folder = Path()
        self._keepers: tuple[Source, ...] = ()
        self._holds = False
        self._connections: dict[Source, KeeperConnection] = {}
        self._target = (0, b"")
        """The version that the node has, and its state root; 0 follows from the spec, and has no pieces."""
        self._made = (0, b"")
        """The one that was tried last, with these keepers."""
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(1, "making")
        """Pieces are removed after they were cut, also where nobody waits for either any more."""

    def begin(self, spec: ModelSpec, stage: int, domain: Domain, folder: Path) -> None:
        """The node knows its stage, whose checkpoints are in `folder`."""
        if stage != self._stage:
            self._target = (0, b"")
        self._spec, self._stage, self._domain, self._folder = spec, stage, domain, folder

    async def order(self, keepers: Sequence[Source], *, before_report: bool) -> None:
        """From now on pieces are made for these, or none where there are too few."""
        async with self._changed:
            wanted = tuple(keepers) if MIN_KEEPERS <= len(keepers) <= MAX_KEEPERS else ()
            if wanted != self._keepers:
                self._keepers, self._made = wanted, (0, b"")
            self._holds = before_report
            self._changed.notify_all()
        if self._task is None and wanted:
            self._task = asyncio.create_task(self._run())

    async def has(self, round_: int, state_root: bytes) -> None:
        """The version that is ready to train `round_` is on the disk."""
        async with self._changed:
            self._target = (round_, state_root)
            self._changed.notify_all()

    async def kept(self, round_: int, state_root: bytes) -> None:
        """Return when a report that led to this version, which is on the disk, may be sent."""
        version = (round_, state_root)
        with suppress(TimeoutError):
            async with asyncio.timeout(HOLD_S), self._changed:
                await self._changed.wait_for(
                    lambda: not self._holds or not self._keepers or self._made == version or self._target != version
                )

    async def close(self) -> None:
        """Make nothing any more. Once, at the end."""
        task, self._task = self._task, None
        self._keepers, self._made = (), (0, b"")
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.close()
        await asyncio.to_thread(self._disk.shutdown)

    async def _run(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._keepers) and self._target not in (self._made, (0, b"")))
                keepers, version = self._keepers, self._target
            for keeper in self._connections.keys() - set(keepers):
                await self._connections.pop(keeper).close()
            started_s = time.monotonic()
            making = asyncio.create_task(self._make(*version, keepers))
            other = asyncio.create_task(self._others_than(keepers))
            try:
                await asyncio.wait((making, other), return_when=asyncio.FIRST_COMPLETED)
            finally:
                making.cancel()
                other.cancel()
                await asyncio.gather(making, other, return_exceptions=True)
            if not self._holds:
                await asyncio.sleep(REST * (time.monotonic() - started_s))

    async def _others_than(self, keepers: Sequence[Source]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._keepers != keepers)

    async def _make(self, round_: int, state_root: bytes, keepers: Sequence[Source]) -> None:
        """Make pieces of this version, and put them with these keepers; tells what came of it."""
        started_s = time.monotonic()
        scratch = self._folder / SCRATCH
        failed: list[str] = []
        try:
            cutting = self._disk.submit(self._cut, round_, state_root, len(keepers), scratch)
            made = await asyncio.wrap_future(cutting)
            signature = self._identity.sign_digest(made.manifest.digest(self._domain))
            needed = made.manifest.threshold
            kept = 0
            async with asyncio.TaskGroup() as group:
                puts = [
                    group.create_task(self._put(keeper, number, made, signature))
                    for number, keeper in enumerate(keepers)
                ]
                for put in asyncio.as_completed(puts):
                    if error := await put:
                        failed.append(error)
                        continue
                    kept += 1
                    if kept == needed:  # who waits for it waits for no slow keeper
                        await self._tell_made(round_, state_root, keepers)
            if kept < needed:
                raise PiecesMissing(
                    f"Of the pieces of version {round_} {kept} are with keepers, of {len(keepers)}; {needed} restore "
                    f"it. {' '.join(failed)} Until there are pieces of a later version the stage's newest state is on "
                    "its holders' disks alone."
                )
        except CommonweightError as error:
            emit("pieces.failed", round=round_, code=error.code, message=error.args[0])
        except (OSError, ValidationError) as error:
            message = f"The pieces of version {round_} can't be made: {error}"
            emit("pieces.failed", round=round_, code=CheckpointError.code, message=message)
        except Exception as error:  # noqa: BLE001 - our bug, at the outermost edge: training goes on without pieces
            traceback.print_exc()
            emit("pieces.failed", round=round_, code="INTERNAL", message=f"{type(error).__name__}: {error}")
        else:
            emit(
                "pieces.made",
                round=round_,
                kept=kept,
                keepers=len(keepers),
                threshold=needed,
                bytes=kept * piece_bytes(made.manifest.version_bytes, needed),
                seconds=round(time.monotonic() - started_s, 3),
            )
        finally:
            self._disk.submit(shutil.rmtree, scratch, ignore_errors=True)
        await self._tell_made(round_, state_root, keepers)

    async def _tell_made(self, round_: int, state_root: bytes, keepers: Sequence[Source]) -> None:
        async with self._changed:
            if keepers == self._keepers:
                self._made = (round_, state_root)
            self._changed.notify_all()

    def _cut(self, round_: int, state_root: bytes, count: int, scratch: Path) -> Cut:
        assert self._spec is not None, "keepers are named after the assignment"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        path = version_path(self._folder, round_)
        root = read_meta((path / META_FILE).read_bytes(), str(path)).state_root
        if root != "0x" + state_root.hex():
            raise CheckpointError(f"{path} has state root {root}; pieces are wanted of 0x{state_root.hex()}.")
        files = (path / PARAMETERS_FILE, path / MOMENTS_FILE)
        return cut(files, self._spec.spec_hash, self._stage, round_, state_root, count, scratch)

    async def _put(self, keeper: Source, number: int, made: Cut, signature: bytes) -> str:
        """What is wrong, or nothing."""
        head = pb.PieceHead(
            manifest=made.manifest.encode(), signature=signature, number=number, key_share=made.key_shares[number]
        )
        try:
            if keeper not in self._connections:
                self._connections[keeper] = KeeperConnection(keeper, self._certificate)
            path = made.paths[number]
            await self._connections[keeper].put(head, path, path.stat().st_size)
        except CommonweightError as error:
            emit("piece.unkept", peer=keeper.peer_id, round=made.manifest.round, code=error.code, message=error.args[0])
            return f"{keeper.peer_id}: {error}"
        return ""
