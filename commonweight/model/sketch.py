"""A sketch of a stage's gradient: 32 bytes by which one microbatch's part in it can be audited alone.

A round's gradient is a sum over its microbatches, so by itself it shows only to who replays all of them. Its sketch is
linear in it (Alon, Matias, Szegedy, "The space complexity of approximating the frequency moments", 1996: signs drawn at
random, here eight sums): a report has the sketch after each microbatch, and from one to the next it grows by that of
the microbatch's own gradient, which follows from a replay of it alone. The last is that of the gradient that was signed
and stepped with. So a false gradient makes the lines of the microbatches false that it is false by; and one line alone
can't be false by much, for then it stands out among the others. Without computing the gradient its sketch costs as
much.

The signs are public, so who has computed the true sketches can step with another gradient that has the same. And sums
are rounded. So a sketch only says where to look: what convicts is the replay of the whole round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import inf, isnan

import numpy as np
import torch
from torch import Tensor

NUMBERS = 8
"""In a sketch: float32, little-endian. Row i of all parameters' rows, in the order of their names, is in sum i % 8."""
ROUNDING = 2.0**-20
"""Of the sizes that were added, in relative L2. Honest sums of float32 stay below a quarter of it."""
OUTLIER = 4.0
"""A microbatch whose sketch is over so many times another's gradient is looked at, too: then a lie can't be hidden in
one. Of honest rounds of the devnet's model a tenth have one, and it costs a replay of one microbatch.
"""


def sketch_signs(parameters: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """1 or -1 for each number of each parameter, like it: a function of the spec's seed and the name. As in
    `commonweight.model.initial`, each has its own Philox stream.

    They are public, and kept for the next call: **never change them**.
    """
    likes = ((name, like.shape, like.dtype, like.device) for name, like in parameters.items())
    return _sketch_signs(tuple(likes), seed)


@lru_cache(maxsize=2)
def _sketch_signs(
    parameters: tuple[tuple[str, torch.Size, torch.dtype, torch.device], ...], seed: int
) -> dict[str, Tensor]:
    signs = {}
    for name, shape, dtype, device in parameters:
        key = int.from_bytes(sha256(f"commonweight.sketch/1/{seed}/{name}".encode()).digest()[:16], "big")
        drawn = np.random.Generator(np.random.Philox(key=key)).bytes(-(-shape.numel() // 8))
        bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=shape.numel())
        signs[name] = torch.from_numpy(bits).view(shape).to(device, dtype).mul_(-2).add_(1)
    return signs


def sketch_sums(gradient: Mapping[str, Tensor], signs: Mapping[str, Tensor]) -> Tensor:
    """[8] of float64; for any gradient, by parameter, its length is on average that of the gradient."""
    products = [(gradient[name].detach(), signs[name]) for name in sorted(gradient)]
    rows = torch.cat([torch.linalg.vecdot(g, s) if g.ndim > 1 else g * s for g, s in products]).double()
    return torch.nn.functional.pad(rows, (0, -len(rows) % NUMBERS)).view(-1, NUMBERS).sum(0).cpu()


def pack_sketch(sums: Tensor) -> bytes:
    """As it is in a report: 32 bytes."""
    return sums.float().numpy().astype("<f4").tobytes()


def read_sketch(packed: bytes) -> Tensor:
    """The sums [8] in 32 bytes, float64; they may be anything."""
    return torch.from_numpy(np.frombuffer(packed, "<f4").astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Sketched:
    """A gradient: its sketch, and its length."""

    sums: Tensor
    """As `sketch_sums`."""
    norm: float


class SignedSketches:
    """Those of a round's microbatches, in order, as a provider has signed them."""

    def __init__(self, signed: Sequence[bytes]) -> None:
        """32 bytes each; their numbers may be anything."""
        self._sums = torch.stack([read_sketch(packed) for packed in signed])
        self._grown = torch.diff(self._sums, dim=0, prepend=torch.zeros(1, NUMBERS, dtype=torch.float64))

    def doubt_microbatch(self, number: int, own: Sketched, tolerance: float) -> str:
        """Why the sketch doesn't seem to grow by that of a microbatch's `own` gradient; empty where it does.

        `tolerance` is that of gradients, in relative L2; 0 within one numerics class. The round's gradient doesn't
        count: beside one that is large enough any line would be true.
        """
        sizes = own.norm + _norm(self._sums[number]) + _norm(self._grown[number])
        allowed = 2 * tolerance * own.norm + ROUNDING * sizes
        error = _norm(self._grown[number] - own.sums)
        if error <= allowed < inf:
            return ""
        return f"the sketch grows with microbatch {number} by what is {error:.3g} from the replay's, over {allowed:.3g}"

    def doubt_whole(self, whole: Sketched) -> str:
        """Why the last isn't that of the round's gradient; empty where it is."""
        error = _norm(self._sums[-1] - whole.sums)
        if error <= (allowed := ROUNDING * (whole.norm + _norm(self._sums[-1]))) < inf:
            return ""
        return f"the last sketch is {error:.3g} from that of the signed gradient, over {allowed:.3g}"

    def outlier(self, own: Sketched) -> int | None:
        """The microbatch with the largest growth, where it is so large, beside a microbatch's `own` gradient, that it
        is to be looked at.
        """
        sizes = [inf if isnan(size := _norm(grown)) else size for grown in self._grown]
        number = max(range(len(sizes)), key=sizes.__getitem__)
        return number if sizes[number] > OUTLIER * own.norm else None


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))
