"""One hash for a set of named tensors: what stages commit to, and what an audit compares."""

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor


def tensors_hash(tensors: Mapping[str, Tensor], *, prefix: bytes = b"") -> bytes:
    """SHA-256 over `prefix` and, in the order of their names, each tensor's name, dtype, shape and raw bytes.

    Every part is preceded by its length, so that no two sets share an encoding. Bytes are in the machine's
    order, which is little-endian wherever torch runs.
    """
    digest = sha256()

    def update(part: bytes | memoryview) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    update(prefix)
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        update(f"{name} {dtype} {'x'.join(map(str, tensor.shape))}".encode())
        flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        update(flat.numpy().data)
    return digest.digest()
