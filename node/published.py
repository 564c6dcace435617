"""The published versions of a stage, kept on this machine's disk for as long as they are generated with.

    FOLDER/round-00000030/…       meta.json and parameters of the checkpoint of that round, as the trainer wrote them

A version appears whole or not at all. No torch here: the control process keeps them.
"""

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from commonweight.errors import CheckpointError
from commonweight.rules.answer import KEPT_VERSIONS

META_FILE, PARAMETERS_FILE, MOMENTS_FILE = "meta.json", "parameters.safetensors", "moments.safetensors"
"""Of a version. Nothing is generated with moments."""
MAX_LOADED = 2
"""The version that is generated with, and the next one while it is being loaded."""


def version_path(folder: Path, round_: int) -> Path:
    """Where the version that is ready to train `round_` lies."""
    return folder / f"round-{round_:08d}"


def keep_published(
    checkpoints: Path, folder: Path, round_: int, beside: int | None = None, needed: Collection[int] = ()
) -> frozenset[int]:
    """Keep this version of `checkpoints` in `folder`, too, and of the others only `needed`, `beside` and the last ones.

    Returns the versions that are kept: besides `needed` at most KEPT_VERSIONS. Nothing is copied where the file system
    has hard links: a checkpoint's files are never changed. Raises CheckpointError where the version is in neither
    folder, or can't be kept.
    """
    target, source = version_path(folder, round_), version_path(checkpoints, round_)
    scratch = folder / f".keeping-{target.name}"
    try:
        if not target.exists():
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            for name in (META_FILE, PARAMETERS_FILE):
                try:
                    os.link(source / name, scratch / name)
                except OSError:
                    shutil.copyfile(source / name, scratch / name)
            scratch.rename(target)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There is no checkpoint of round {round_} in {checkpoints}: it can't be generated with. The next version "
            "that is published can."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"The version of round {round_} can't be kept in {folder}: {error.strerror}. Free disk space."
        ) from error
    with suppress(OSError):  # what stays too long is removed next time
        others = [path for path in folder.glob("round-*") if path != target]
        others.sort(key=lambda path: (beside is not None and path == version_path(folder, beside), path))
        for older in others[: 1 - KEPT_VERSIONS]:
            if older not in {version_path(folder, version) for version in needed}:
                shutil.rmtree(older)
    names = (path.name.removeprefix("round-") for path in folder.glob("round-*"))
    return frozenset(int(name) for name in names if name.isascii() and name.isdigit())
