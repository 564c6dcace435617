"""A data set by content: a manifest that names its chunks by hash, and the batches cut out of them."""

from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from commonweight.errors import DataError, MalformedMessage
from commonweight.rules.canonical import canonical_json, content_hash, parse_json
from commonweight.rules.sampling import sample_indices
from commonweight.rules.spec import ModelSpec

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 256 * 2**20

_READ_BYTES = 2**20
_TORCH_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "uint32": torch.int32}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Chunk(_Record):
    """One file of tokens, named by the SHA-256 of its bytes."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tokens: Annotated[int, Field(gt=0, le=2**31 - 1)]


class Manifest(_Record):
    """Which tokens a data set holds, in order. Its hash is what a spec names."""

    format: Literal["commonweight.data/1"]
    tokenizer: Annotated[str, Field(pattern=r"^(bytes|0x[0-9a-f]{64})$")]
    vocab_size: Annotated[int, Field(ge=2, le=2**20)]
    dtype: Literal["uint8", "uint16", "uint32"] = Field(description="of the chunks, little-endian")
    tokens: Annotated[int, Field(gt=0, le=2**53 - 1)]
    documents: Annotated[int, Field(gt=0, le=2**53 - 1)]
    chunks: list[Chunk]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        held = sum(chunk.tokens for chunk in self.chunks)
        if held != self.tokens:
            raise ValueError(f"tokens {self.tokens}, but the chunks hold {held}")
        expected = smallest_dtype(self.vocab_size).name
        if self.dtype != expected:
            raise ValueError(f"dtype {self.dtype}, but a vocabulary of {self.vocab_size} is packed as {expected}")
        return self

    @cached_property
    def hash(self) -> str:
        """keccak256 of the canonical JSON as "0x…": what a spec's `data.manifest` holds."""
        return "0x" + content_hash(self.model_dump()).hex()

    def to_json(self) -> bytes:
        """The canonical JSON: the bytes of `manifest.json`."""
        return canonical_json(self.model_dump())

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The manifest in `folder`. Raises DataError where it is missing or malformed."""
        path = Path(folder, MANIFEST_NAME)
        try:
            return cls.model_validate(parse_json(path.read_bytes(), str(path), MAX_MANIFEST_BYTES))
        except OSError as error:
            raise DataError(
                f"{path} can't be read: {error.strerror}. Pack the text first, or give the folder that holds it."
            ) from error
        except (MalformedMessage, ValidationError) as error:
            raise DataError(f"{path} isn't a data manifest: {error} Pack or download the data again.") from error


class Dataset:
    """The verified chunks of a spec's data, memory-mapped."""

    def __init__(self, spec: ModelSpec, manifest: Manifest, chunks: list[np.ndarray]) -> None:
        self.spec, self.manifest = spec, manifest
        self._chunks = chunks
        self._starts = np.cumsum([0] + [len(chunk) for chunk in chunks])

    @classmethod
    def open(cls, folder: str | Path, spec: ModelSpec) -> Self:
        """The data set in `folder`, all of it read once and checked to be the one that `spec` names.

        Raises DataError that names the file, what was expected and what was found.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        facts = {
            "hash": (spec.data.manifest, manifest.hash),
            "tokenizer": (spec.data.tokenizer, manifest.tokenizer),
            "tokens": (spec.data.tokens, manifest.tokens),
        }
        for what, (expected, found) in facts.items():
            if expected != found:
                raise DataError(
                    f"{folder / MANIFEST_NAME} has {what} {found}; model {spec.name} is trained "
                    f"on {expected}. Give the folder with that model's data, or pack the same text with the "
                    "same tokenizer."
                )
        if manifest.vocab_size > spec.architecture.vocab_size:
            raise DataError(
                f"{folder / MANIFEST_NAME} has token ids up to {manifest.vocab_size - 1}; model "
                f"{spec.name} has a vocabulary of {spec.architecture.vocab_size}. "
                f"It needs at least {manifest.vocab_size}."
            )
        return cls(spec, manifest, [_open_chunk(folder, chunk, manifest) for chunk in manifest.chunks])

    def microbatch(self, round_: int, microbatch: int) -> Tensor:
        """The tokens [b, t + 1] of one microbatch, by `rules.sampling`, in the smallest dtype that torch has
        for them.

        That is uint8, uint16 or int32. Raises ValueError for a microbatch that a round doesn't have.
        """
        length = self.spec.training.sequence_length
        windows = sample_indices(self.spec, round_, microbatch)
        batch = np.stack([self._tokens(w * length, length + 1) for w in windows])
        packed = torch.from_numpy(batch).view(_TORCH_DTYPES[self.manifest.dtype])
        return packed.to(token_id_dtype(self.spec))

    def _tokens(self, start: int, count: int) -> np.ndarray:
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        offset = start - int(self._starts[number])
        parts = [self._chunks[number][offset : offset + count]]
        while (missing := count - sum(map(len, parts))) > 0:
            number += 1
            parts.append(self._chunks[number][:missing])
        return np.concatenate(parts)


def token_id_dtype(spec: ModelSpec) -> torch.dtype:
    """What token ids are on the wire: the smallest of torch's types that holds the spec's vocabulary."""
    return _TORCH_DTYPES[smallest_dtype(spec.architecture.vocab_size).name]


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The little-endian unsigned integers that token ids below `vocab_size` are packed in."""
    return np.dtype("u1" if vocab_size <= 2**8 else "<u2" if vocab_size <= 2**16 else "<u4")


def _open_chunk(folder: Path, chunk: Chunk, manifest: Manifest) -> np.ndarray:
    path, dtype = folder / chunk.sha256, smallest_dtype(manifest.vocab_size)
    expected, remedy = chunk.tokens * dtype.itemsize, "Delete it and download or pack the data again."
    try:
        size = path.stat().st_size
        if size != expected:
            raise DataError(f"Chunk {path} has {size} bytes instead of {expected}. {remedy}")
        digest = sha256()
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        if digest.hexdigest() != chunk.sha256:
            raise DataError(
                f"Chunk {path} has SHA-256 {digest.hexdigest()} instead of {chunk.sha256}: "
                f"it was changed or damaged. {remedy}"
            )
        tokens = np.memmap(path, dtype, mode="r")
    except OSError as error:
        raise DataError(f"Chunk {path} can't be read: {error.strerror}. {remedy}") from error
    highest = int(tokens.max())
    if highest >= manifest.vocab_size:
        raise DataError(
            f"Chunk {path} holds token {highest}, outside the vocabulary of {manifest.vocab_size}. "
            "The data set was packed wrongly; its model can't be trained."
        )
    return tokens
