"""The weights of version 0: a function of the spec alone, the same whatever the cut.

Each tensor has its own stream: numpy's Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011), keyed by SHA-256 of the seed and the tensor's name, drawn in float64 and cast.

What is reproducible across machines: the Philox stream exactly. A normal draw is, for 99.97 % of draws, a
product of two table numbers and so exact; the tail goes through the machine's logarithm, whose last bit in
float64 may differ. The QR factors of U go through LAPACK, whose last bits do differ. Casting to float32 hides
such a difference unless it straddles the midpoint of two floats: by estimate one number in 10^7 of U and one
in 10^12 of the rest. `Stage.state_root` covers U and F, so two stages that differ
find out before they train. numpy may change its normal stream in a new minor version; a test holds the first
numbers fixed.
"""

import math
from functools import lru_cache
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from commonweight.model.decoder import Decoder
from commonweight.model.hashing import tensors_hash
from commonweight.rules.spec import Architecture

F_SCALE = 0.5
"""Standard deviation of the entries of F. What each norm reads is mostly F at first, so every token starts with a
direction of its own in d. After 40 rounds of the devnet's model (8,192 bytes of source each, one seed, learning rate
0.003) the loss was 2.53 nats with 0.02, 2.35 with 0.5 and 2.42 with 1; at 0.006, 2.28 with 0.25 and 2.27 with 0.5.
"""

E_SCALE = 0.02
"""Standard deviation of the trained embedding: Llama's, for the factored form too. 0.5 wasn't better there."""


def draw(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 numbers of the stream that belongs to `seed` and `name`."""
    key = int.from_bytes(sha256(f"commonweight.initial/1/{seed}/{name}".encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)


def initial_tensor(arch: Architecture, seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The initial value (float64) of the parameter or frozen tensor of that name."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "scale":
        return np.ones(shape)
    if kind == "U":
        q, r = np.linalg.qr(draw(seed, name, shape))
        return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return draw(seed, name, shape) * _deviation(arch, name)


def _deviation(arch: Architecture, name: str) -> float:
    kind = name.rsplit(".", 1)[-1]
    if kind == "F":
        return F_SCALE
    if kind == "E":
        return E_SCALE
    if kind in ("zo", "zd"):
        # What 2 n_layers sublayers add to each of the k numbers has together about the variance of one input.
        fan_in = arch.d_model if kind == "zo" else arch.d_ff
        return math.sqrt(1 / (2 * arch.n_layers * fan_in))
    # Everything else reads a norm: outputs of unit variance, the logits included.
    return math.sqrt(1 / arch.d_model)


def initialize(decoder: Decoder, arch: Architecture, seed: int) -> None:
    """Fill every parameter and frozen tensor of `decoder` with its value at version 0."""
    tensors: dict[str, Tensor] = dict(decoder.named_parameters())
    if decoder.subspace is not None:
        tensors |= {f"subspace.{name}": buffer for name, buffer in decoder.subspace.named_buffers()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(initial_tensor(arch, seed, name, tuple(tensor.shape))))


def draw_frozen(arch: Architecture, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """U [d, k] and F [v, d] as `initialize` fills them; nothing where dense."""
    shapes = {} if arch.is_dense else {"U": (arch.d_model, arch.boundary_dim), "F": (arch.vocab_size, arch.d_model)}
    return {
        name: torch.from_numpy(initial_tensor(arch, seed, f"subspace.{name}", shape)).to(dtype)
        for name, shape in shapes.items()
    }


@lru_cache(maxsize=2)
def frozen_tensors(
    arch: Architecture, seed: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Tensor], bytes]:
    """What `draw_frozen` gives, on this device and in this dtype, and its `tensors_hash`.

    They are public, and kept for the next call: **never change them**.
    """
    tensors = {name: tensor.to(device) for name, tensor in draw_frozen(arch, seed, dtype).items()}
    return tensors, tensors_hash(tensors)
