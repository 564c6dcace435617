"""Fetching a version, or a round's gradient, of this node's stage from other replicas of it. No torch here.

    await fetch_version(certificate, version, checkpoints_folder, sources)
    await fetch_gradient(certificate, gradient, path, sources)

What comes is believed for its hash alone, which the coordinator has sealed: the state root of a version, the hash of a
gradient. How it comes is in download.py.
"""

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from commonweight.disk import sync
from commonweight.model.stored import MAX_HEADER_BYTES, stored_hash, stored_root
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import stage_parameters, state_bytes
from commonweight.wire.evidence import Source
from commonweight.wire.generated import state_pb2 as pb
from commonweight.wire.tls import Certificate
from node.download import Download, Goal
from node.meta import meta_bytes
from node.partial import Partial
from node.published import META_FILE, MOMENTS_FILE, PARAMETERS_FILE, version_path

_NUMBER_BYTES = 4
"""Of a parameter's gradient."""


@dataclass(frozen=True)
class Version:
    """A version of a stage, and what it is recognised by."""

    spec: ModelSpec
    stage: int
    round: int
    """Which it is ready to train; not 0, which follows from the spec."""
    state_root: bytes
    """As the coordinator has sealed it."""
    frozen_hash: bytes
    """Of the stage's frozen tensors, which aren't fetched, as this node's worker has derived them."""


@dataclass(frozen=True)
class RoundGradient:
    """What a stage was stepped with in a round, before clipping, and what it is recognised by."""

    spec: ModelSpec
    stage: int
    round: int
    gradient_hash: bytes
    """As the coordinator has sealed it."""


async def fetch_version(certificate: Certificate, version: Version, folder: Path, sources: Sequence[Source]) -> None:
    """Bring a version into the folder of the stage's checkpoints, where it appears whole or not at all.

    A checkpoint of the same round is replaced. What an earlier try has fetched of this version is used, of other
    versions removed. Raises StateUnavailable where every source was dropped; what came is kept for the next try.
    Raises CheckpointError where the disk is full or fails; what came is removed then, and the other checkpoints stay.
    """
    final = version_path(folder, version.round)
    partial = Partial(folder / f".fetching-{final.name}", (PARAMETERS_FILE, MOMENTS_FILE))
    parameters, moments = partial.paths

    def differs() -> str:
        root = stored_root(parameters, moments, version.round, version.frozen_hash)
        return "" if root == version.state_root else f"state root {root.hex()} instead of {version.state_root.hex()}"

    def finish() -> None:
        for path in (parameters, moments):
            sync(path)
        place_version(version, partial.folder, folder)

    await asyncio.to_thread(_remove_others, partial.folder)
    kept = pb.Kept(round=version.round, state_root=version.state_root)
    limit = state_bytes(version.spec, version.stage) + 2 * MAX_HEADER_BYTES
    goal = Goal(f"version {version.round}", kept, limit, differs, finish)
    await Download(certificate, goal, partial, sources).run()


def place_version(version: Version, whole: Path, folder: Path) -> None:
    """Give the folder with a version's files, which are on the disk, its place among the checkpoints. Blocks."""
    final, meta = version_path(folder, version.round), whole / META_FILE
    meta.write_bytes(meta_bytes(version.spec, version.stage, version.round, version.state_root))
    sync(meta)
    sync(whole)
    if final.exists():
        shutil.rmtree(final)  # a folder can't be renamed over a full one
    whole.rename(final)
    sync(folder)


async def fetch_gradient(
    certificate: Certificate, gradient: RoundGradient, path: Path, sources: Sequence[Source]
) -> None:
    """Bring a round's gradient into this file, in safetensors' format, whole or not at all.

    Nothing is synced: it can be fetched again. Raises as `fetch_version`.
    """
    partial = Partial(path.with_name(f".fetching-{path.name}"), ("gradient",))
    (file,) = partial.paths

    def differs() -> str:
        found = stored_hash(file)
        return (
            "" if found == gradient.gradient_hash else f"hash {found.hex()} instead of {gradient.gradient_hash.hex()}"
        )

    def finish() -> None:
        file.replace(path)
        partial.folder.rmdir()

    kept = pb.Kept(round=gradient.round, gradient=gradient.gradient_hash)
    limit = _NUMBER_BYTES * stage_parameters(gradient.spec, gradient.stage) + MAX_HEADER_BYTES
    goal = Goal(f"gradient of round {gradient.round}", kept, limit, differs, finish)
    await Download(certificate, goal, partial, sources).run()


def _remove_others(partial: Path) -> None:
    """What is left of downloads of other versions than this one."""
    for other in partial.parent.glob(".fetching-round-*"):
        if other != partial:
            with suppress(OSError):
                shutil.rmtree(other)
