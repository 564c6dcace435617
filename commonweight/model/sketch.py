"""A sketch of a stage's gradient: 32 bytes by which one microbatch's part in it can be audited alone.

A round's gradient is a sum over its microbatches, so by itself it shows only to who replays all of them. Its sketch is
linear in it (random projections; Alon, Matias, Szegedy, "The space complexity of approximating the frequency moments",
1996): eight sums of all its numbers, each times a factor that is drawn at random, once for the model. A report has the
sketch after each microbatch, and from one to the next it grows by that of the microbatch's own gradient, which follows
from a replay of it alone. The last is that of the gradient that was signed and stepped with. So a false gradient makes
the lines of the microbatches false that it is false by; and one line alone can't be false by much, for then it stands
out among the others. To compute its sketch without the gradient takes as many products; were the factors 1 and -1, or
few others, sums from a table would do for a third of that.

The factors are public, so who has computed the true sketches can step with another gradient that has the same. And sums
are rounded. So a sketch only says where to look: what convicts is the replay of the whole round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import inf

import numpy as np
import torch
from torch import Tensor

NUMBERS = 8
"""In a sketch: float32, little-endian. Row i of all parameters' rows, in the order of their names, is in sum i % 8."""
ROUNDING = 2.0**-20
"""Of the sizes that were added, in relative L2. Honest sums of float32 stay below a quarter of it."""
OUTLIER = 4.0
"""A microbatch whose sketch is over so many times another's gradient is looked at, too: then no large lie can be hidden
in one. Of honest audits of the devnet's model one in twenty finds one, which costs a replay of one microbatch.
"""


def sketch_factors(parameters: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """One for each number of each parameter, like it: a function of the spec's seed and the name. They are evenly
    distributed over 2^16 numbers, with mean square 1. As in `commonweight.model.initial`, each parameter has its own
    Philox stream.

    They are public, and kept for the next call: **never change them**.
    """
    likes = ((name, like.shape, like.dtype, like.device) for name, like in parameters.items())
    return _sketch_factors(tuple(likes), seed)


@lru_cache(maxsize=1)
def _sketch_factors(
    parameters: tuple[tuple[str, torch.Size, torch.dtype, torch.device], ...], seed: int
) -> dict[str, Tensor]:
    factors = {}
    for name, shape, dtype, device in parameters:
        key = int.from_bytes(sha256(f"commonweight.sketch/1/{seed}/{name}".encode()).digest()[:16], "big")
        drawn = np.random.Generator(np.random.Philox(key=key)).bytes(2 * shape.numel())
        numbers = np.frombuffer(drawn, "<i2").astype(np.float32) * np.float32(3**0.5 / 2**15)
        factors[name] = torch.from_numpy(numbers).view(shape).to(device, dtype)
    return factors


def sketch_sums(gradient: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> Tensor:
    """[8] of float64; for any gradient, by parameter, its length is on average that of the gradient."""
    pairs = [(gradient[name].detach(), factors[name]) for name in sorted(gradient)]
    rows = torch.cat([torch.linalg.vecdot(g, s) if g.ndim > 1 else g * s for g, s in pairs]).double()
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
        return f"The sketch grows with microbatch {number} by what is {error:.3g} from the replay's, over {allowed:.3g}"

    def doubt_whole(self, whole: Sketched) -> str:
        """Why the last isn't that of the round's gradient; empty where it is."""
        error = _norm(self._sums[-1] - whole.sums)
        if error <= (allowed := ROUNDING * (whole.norm + _norm(self._sums[-1]))) < inf:
            return ""
        return f"The last sketch is {error:.3g} from that of the signed gradient, over {allowed:.3g}"

    def outliers(self, own: Sketched) -> list[int]:
        """The microbatches by which it grows so much, beside one's `own` gradient, that they are to be looked at."""
        return [number for number, grown in enumerate(self._grown) if not _norm(grown) <= OUTLIER * own.norm]


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))
