"""Checkpoints of one stage on this machine's disk: the last three, and those that audits may ask for.

    FOLDER/round-00000041/parameters.safetensors    Stage.parameters(), and the moments' hash
    FOLDER/round-00000041/moments.safetensors       Stage.moments()
    FOLDER/round-00000041/meta.json                 what it is of, and its state root
    FOLDER/.writing-…                               one that was never finished; removed
    FOLDER/.fetching-…                              one that is being fetched from other replicas: see fetching.py

A checkpoint appears whole or not at all: it is written beside its place, synced to the disk and renamed.
Whatever goes wrong while writing, the ones before stay.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from commonweight.disk import sync
from commonweight.errors import CheckpointError, MalformedMessage
from commonweight.events import emit
from commonweight.model.hashing import tensors_hash, with_moments_hash
from commonweight.model.initial import draw_frozen
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec
from commonweight.rules.state import MOMENTS_HASH, state_root
from commonweight.wire.evidence import MAX_RETAINED_ROUNDS
from commonweight.wire.tensors import to_bytes
from node.meta import meta_bytes, read_meta
from node.published import META_FILE, MOMENTS_FILE, PARAMETERS_FILE, version_path

KEPT = 3
"""How many checkpoints stay in any case: the last, and the one before in case it is found damaged; and that of the last
sealed round, for a node may have trained the one after, and find that others haven't.
"""


class Checkpoints:
    """The checkpoints of stage `index` of one model in `folder`, which no other stage or process uses.

    Opening removes what an interrupted `save` left behind. What is there then stays until `retain` says otherwise.
    Raises CheckpointError where the folder can't be used.
    """

    def __init__(self, folder: str | Path, spec: ModelSpec, index: int) -> None:
        self.folder, self.index = Path(folder), index
        self._model = "0x" + spec.spec_hash.hex()
        self._spec = spec
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".writing-*"):
                shutil.rmtree(leftover)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint folder {self.folder} can't be used: {error.strerror}. "
                "Give a folder that this user may write to."
            ) from error
        self._retained = frozenset(self.rounds())

    def retain(self, rounds: Iterable[int]) -> None:
        """From the next `save` on, besides the last three, keep the versions before and after these rounds only."""
        last = sorted(rounds)[-MAX_RETAINED_ROUNDS:]
        self._retained = frozenset(last) | frozenset(round_ + 1 for round_ in last)

    def rounds(self) -> tuple[int, ...]:
        """The rounds that the checkpoints here are ready to train, oldest first."""
        names = (path.name.removeprefix("round-") for path in self.folder.glob("round-*"))
        return tuple(sorted(int(name) for name in names if name.isascii() and name.isdigit()))

    def save(self, stage: Stage) -> bytes:
        """Write the version that `stage` is at, then remove what isn't to be kept. Returns its state root.

        Hashing takes as long as writing, so the two run side by side. A checkpoint of the same round is replaced.
        Where the disk is full, what is kept for audits gives way. Raises CheckpointError where it still is, or fails;
        the last checkpoints are kept then.
        """
        assert stage.index == self.index, "a stage's checkpoints have a folder of their own"
        try:
            root = self._save(stage)
        except CheckpointError:
            given_up = self._remove_old(frozenset())
            if not given_up:
                raise
            emit("checkpoints.dropped", rounds=given_up)
            root = self._save(stage)
        self._remove_old(self._retained)
        return root

    def _remove_old(self, retained: frozenset[int]) -> list[int]:
        """Remove all but the last three and those; returns the versions that are gone."""
        removed = []
        for round_ in self.rounds()[:-KEPT]:
            if round_ not in retained:
                with contextlib.suppress(OSError):  # what stays too long is removed after the next save
                    shutil.rmtree(self.path_of(round_))
                    removed.append(round_)
        return removed

    def _save(self, stage: Stage) -> bytes:
        final = self.path_of(stage.round)
        temporary = self.folder / f".writing-{final.name}"
        parameters, moments = _contiguous(stage.parameters()), _contiguous(stage.moments())
        try:
            temporary.mkdir()
            with ThreadPoolExecutor(1) as hasher:
                hashing_moments = hasher.submit(tensors_hash, moments)
                hashing_parameters = hasher.submit(tensors_hash, parameters)
                _save_file(moments, temporary / MOMENTS_FILE)
                moments_hash = hashing_moments.result()
                _save_file(with_moments_hash(parameters, moments_hash), temporary / PARAMETERS_FILE)
                root = stage.root_of(stage.round, hashing_parameters.result(), moments_hash)
            (temporary / META_FILE).write_bytes(meta_bytes(self._spec, self.index, stage.round, root))
            sync(temporary / META_FILE)
            sync(temporary)
            if final.exists():
                # A folder can't be renamed over a full one. If we die between the two, the round before
                # remains.
                shutil.rmtree(final)
            temporary.rename(final)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
            raise CheckpointError(
                f"The checkpoint of round {stage.round} can't be written to {self.folder}: {error}. "
                f"The earlier ones are kept ({self._kept()}). Free disk space, then start the node again."
            ) from error
        return root

    def load(self, stage: Stage, round_: int) -> None:
        """Bring `stage` to the version that is ready to train `round_`.

        Raises CheckpointError, and leaves `stage` as it is, where there is no such checkpoint, it is of
        another model, stage or round, or it isn't what its state root says.
        """
        assert stage.index == self.index, "a stage's checkpoints have a folder of their own"
        stage.load(self._read(round_, stage.root_of, str(stage.device), whole=True), round_)

    def parameters(self, round_: int) -> dict[str, Tensor]:
        """The parameters, by name, of the version that is ready to train `round_`; raises as `load` does. The moments
        needn't be there.
        """
        frozen_hash = tensors_hash(draw_frozen(self._spec.architecture, self._spec.seed))

        def root_of(round_: int, parameters_hash: bytes, moments_hash: bytes) -> bytes:
            return state_root(round_, frozen_hash, parameters_hash, moments_hash)

        parameters = self._read(round_, root_of, "cpu", whole=False)
        return {name.removeprefix("parameter."): tensor for name, tensor in parameters.items()}

    def _read(
        self, round_: int, root_of: Callable[[int, bytes, bytes], bytes], device: str, *, whole: bool
    ) -> dict[str, Tensor]:
        path = self.path_of(round_)
        try:
            data = (path / META_FILE).read_bytes()
            meta = read_meta(data, str(path / META_FILE))
            parameters = safetensors.torch.load_file(path / PARAMETERS_FILE, device=device)
            moments = safetensors.torch.load_file(path / MOMENTS_FILE, device=device) if whole else {}
        except FileNotFoundError as error:
            raise CheckpointError(
                f"There is no whole checkpoint of round {round_} in {self.folder}; there is {self._kept()}."
            ) from error
        except (OSError, SafetensorError, MalformedMessage, ValidationError) as error:
            raise CheckpointError(f"{path} can't be read: {error} {self._remedy(round_)}") from error
        facts = {
            "model": (self._model, meta.model),
            "stage": (self.index, meta.stage),
            "round": (round_, meta.round),
        }
        for what, (expected, found) in facts.items():
            if expected != found:
                raise CheckpointError(
                    f"{path} is of {what} {found}, not {expected} ({self._spec.name}). "
                    "Give the folder that belongs to this model and stage."
                )
        moments_hash = bytes(to_bytes(parameters.pop(MOMENTS_HASH, torch.empty(0))))
        root = "0x" + root_of(round_, tensors_hash(parameters), moments_hash).hex()
        fault = ""
        if root != meta.state_root:
            fault = f"state root {root} instead of {meta.state_root}"
        elif whole and tensors_hash(moments) != moments_hash:
            fault = f"other moments than those of its state root {root}"
        if fault:
            raise CheckpointError(f"{path} has {fault}: it was changed or damaged. {self._remedy(round_)}")
        return parameters | moments

    def path_of(self, round_: int) -> Path:
        """The folder of one checkpoint."""
        return version_path(self.folder, round_)

    def _kept(self) -> str:
        return ", ".join(f"round {r}" for r in self.rounds()) or "none"

    def _remedy(self, round_: int) -> str:
        others = [r for r in self.rounds() if r != round_]
        if others:
            return f"Delete it and go on from round {others[-1]}."
        return "Delete it and fetch the state from another provider of this stage."


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file(tensors, path)
    sync(path)
