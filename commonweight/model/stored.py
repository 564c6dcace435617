"""The hashes of tensors in files, without torch: for the control process, which moves states and computes with none.

A file in safetensors' format is u64le(length of the header), the header (JSON: of each tensor its dtype, shape and
where its bytes begin and end), and the tensors' bytes, one after the other.
"""

import math
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from commonweight.errors import MalformedMessage
from commonweight.rules.canonical import parse_json
from commonweight.rules.state import MOMENTS_HASH, state_root

MAX_HEADER_BYTES = 1 << 20
"""Some ten thousand tensors."""

_LENGTH_BYTES = 8
_READ_BYTES = 1 << 20
_HASH_BYTES = 32
_MAX_DIMENSIONS = 8
_DTYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}
_DTYPES |= {"U8": ("uint8", 1)}
"""safetensors' names of what a state is made of: torch's, and bytes of an element."""

_Size = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dtype: Annotated[str, Field(pattern=f"^({'|'.join(_DTYPES)})$")]
    shape: Annotated[tuple[_Size, ...], Field(max_length=_MAX_DIMENSIONS)]
    data_offsets: tuple[_Size, _Size]


_HEADER = TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True)
class _Stored:
    """One tensor in a file."""

    head: bytes
    """Its name, dtype and shape, as `tensors_hash` takes them."""
    begin: int
    size: int


def stored_hash(path: Path) -> bytes:
    """The `tensors_hash` of the tensors in a file. Raises OSError, and MalformedMessage where it is no safetensors."""
    with path.open("rb") as file:
        return _hash(file, _read_header(file, path.name))


def stored_root(parameters: Path, moments: Path, round_: int, frozen_hash: bytes) -> bytes:
    """The `state_root` of the version that is ready to train `round_`, from its two files.

    `frozen_hash` is the `tensors_hash` of the stage's frozen tensors, which are in neither. Raises OSError, and
    MalformedMessage where one is no safetensors, or the hash that lies beside the parameters isn't the moments'.
    """
    with parameters.open("rb") as file:
        found = _read_header(file, parameters.name)
        beside = found.pop(MOMENTS_HASH, None)
        moments_hash = b"" if beside is None else os.pread(file.fileno(), min(beside.size, _HASH_BYTES), beside.begin)
        parameters_hash = _hash(file, found)
    if beside is None or (beside.size, stored_hash(moments)) != (_HASH_BYTES, moments_hash):
        raise MalformedMessage(f"{parameters.name} and {moments.name} aren't of one version.")
    return state_root(round_, frozen_hash, parameters_hash, moments_hash)


def _read_header(file: BinaryIO, what: str) -> dict[str, _Stored]:
    total = os.fstat(file.fileno()).st_size
    length = int.from_bytes(os.pread(file.fileno(), _LENGTH_BYTES, 0), "little")
    start = _LENGTH_BYTES + length
    if total < start or length > MAX_HEADER_BYTES:
        raise MalformedMessage(
            f"{what} has {total} bytes, {length} of them for a header: at most {MAX_HEADER_BYTES}, and no more than "
            "there are, can be."
        )
    header = os.pread(file.fileno(), length, _LENGTH_BYTES)
    parse_json(header, f"the header of {what}", MAX_HEADER_BYTES)  # refuses a name that is there twice
    try:
        entries = _HEADER.validate_json(header)
    except ValidationError as error:
        raise MalformedMessage(f"The header of {what} has {error.error_count()} faults: {error!s:.300}") from error
    found, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype, itemsize = _DTYPES[entry.dtype]
        size = itemsize * math.prod(entry.shape)
        if entry.data_offsets != (end, end + size):
            raise MalformedMessage(f"{what} has {name} at {entry.data_offsets}; due is {(end, end + size)}.")
        head = f"{name} {dtype} {'x'.join(map(str, entry.shape))}".encode()
        found[name] = _Stored(head, start + end, size)
        end += size
    if total != start + end:
        raise MalformedMessage(f"{what} has {total} bytes; its tensors end at {start + end}.")
    return found


def _hash(file: BinaryIO, tensors: dict[str, _Stored]) -> bytes:
    """As `tensors_hash`, a piece at a time."""
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(len(tensor.head).to_bytes(8, "little") + tensor.head + tensor.size.to_bytes(8, "little"))
        position, left = tensor.begin, tensor.size
        while left:
            piece = os.pread(file.fileno(), min(left, _READ_BYTES), position)
            if not piece:
                raise MalformedMessage(f"The file ended {left} bytes before the end of {name}.")
            digest.update(piece)
            position, left = position + len(piece), left - len(piece)
    return digest.digest()
