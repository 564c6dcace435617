"""The weights of version 0: a function of the spec alone, the same whatever the cut.

Each tensor has its own stream: numpy's Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011), keyed by SHA-256 of the seed and the tensor's name, drawn in float64 and cast.

What is reproducible across machines: the Philox stream exactly. A normal draw is, for 99.97 % of draws, a
product of two table numbers and so exact; the tail goes through the machine's logarithm, whose last bit in
float64 may differ. The QR factors of U go through LAPACK, whose last bits do differ. Casting to float32 hides
such a difference unless it straddles the midpoint of two floats, which happens to about one number in 10^7 of
U and to fewer than one in 10^12 of the rest. `Stage.state_root` covers U and F, so two stages that differ
find out before they train. numpy may change its normal stream in a new minor version; a test holds the first
numbers fixed.
"""

from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from commonweight.model.decoder import Decoder
from commonweight.rules.spec import Architecture

F_SCALE = 1.0
"""Standard deviation of the entries of F: the norm's input is mostly F at first."""


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


import os

ES = float(os.environ.get("ES", 0.02))
OUT = float(os.environ.get("OUT", 1))
IN = float(os.environ.get("IN", 1))
HS = float(os.environ.get("HS", 1))
F_SCALE = float(os.environ.get("FS", 1))


def _deviation(arch: Architecture, name: str) -> float:
    kind = name.rsplit(".", 1)[-1]
    if kind == "F":
        return F_SCALE
    if kind == "E":
        return ES
    if kind in ("zo", "zd"):
        fan_in = arch.d_model if kind == "zo" else arch.d_ff
        return OUT * (2 * arch.n_layers * fan_in) ** -0.5
    if name == "head.weight":
        return HS * arch.d_model**-0.5
    return IN * arch.d_model**-0.5


def initialize(decoder: Decoder, arch: Architecture, seed: int) -> None:
    """Fill every parameter and frozen tensor of `decoder` with its value at version 0."""
    tensors: dict[str, Tensor] = dict(decoder.named_parameters())
    if decoder.subspace is not None:
        tensors |= {f"subspace.{name}": buffer for name, buffer in decoder.subspace.named_buffers()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(initial_tensor(arch, seed, name, tuple(tensor.shape))))
