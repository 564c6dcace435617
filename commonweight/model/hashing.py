"""What stages commit to, and what an audit compares: one hash for a set of named tensors."""

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor

from commonweight.rules.state import MOMENTS_HASH


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


def with_moments_hash(parameters: Mapping[str, Tensor], moments_hash: bytes) -> dict[str, Tensor]:
    """The parameters, and MOMENTS_HASH: all that it takes to check them against a state root."""
    return {**parameters, MOMENTS_HASH: torch.frombuffer(bytearray(moments_hash), dtype=torch.uint8)}
