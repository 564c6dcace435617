"""What stages commit to, and what an audit compares: one hash for a set of named tensors, and one for a version."""

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor

MOMENTS_HASH = "moments_hash"
"""Beside a version's parameters, in a file or from a node: the `tensors_hash` of its moments, [32] of uint8."""


def tensors_hash(tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 over each tensor's name, dtype, shape and raw bytes, in the order of their names.

    Every part is preceded by its length, so that no two sets share an encoding. Bytes are in the machine's
    order, which is little-endian wherever torch runs.
    """
    digest = sha256()

    def update(part: bytes | memoryview) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    for name in sorted(tensors):
        tensor = tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        update(f"{name} {dtype} {'x'.join(map(str, tensor.shape))}".encode())
        flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        update(flat.numpy().data)
    return digest.digest()


def state_root(round_: int, frozen_hash: bytes, parameters_hash: bytes, moments_hash: bytes) -> bytes:
    """The hash of a stage's version that is ready to train `round_`, from the `tensors_hash`es of its parts.

    With the 32 bytes of the moments' hash parameters are checked without the moments, which are twice as large.
    """
    return sha256(round_.to_bytes(8, "little") + frozen_hash + parameters_hash + moments_hash).digest()


def with_moments_hash(parameters: Mapping[str, Tensor], moments_hash: bytes) -> dict[str, Tensor]:
    """The parameters, and MOMENTS_HASH: all that it takes to check them against a state root."""
    return {**parameters, MOMENTS_HASH: torch.frombuffer(bytearray(moments_hash), dtype=torch.uint8)}
