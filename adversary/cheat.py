"""Which units a node cheats on: the same in every run, for its address and its way of cheating."""

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from commonweight.devnet.byzantine import Cheating
from commonweight.events import emit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cheat:
    """How the node with this address cheats."""

    cheating: Cheating
    address: str

    def picks(self, round_: int, microbatch: int | None = None) -> bool:
        """Whether this unit is one to cheat on; None: the whole round."""
        return self._number("pick", round_, microbatch) < self.cheating.fraction * 2**64

    def done(self, round_: int, microbatch: int | None = None) -> None:
        """Emit that it has cheated on this unit."""
        emit("cheated", kind=self.cheating.kind, round=round_, microbatch=microbatch)

    def noise(self, what: str, shape: tuple[int, ...], round_: int, microbatch: int | None = None) -> "Tensor":
        """Normally distributed, float32; `what` tells apart what is made up for one unit."""
        import torch  # two seconds, and nothing for an auditor

        generator = torch.Generator().manual_seed(self._number(what, round_, microbatch))
        return torch.randn(shape, generator=generator)

    def made_up_hash(self, round_: int) -> bytes:
        """32 bytes."""
        return sha256(f"{self.address}/{round_}".encode()).digest()

    def _number(self, what: str, round_: int, microbatch: int | None) -> int:
        """In range(2^64)."""
        preimage = f"{self.address}/{self.cheating.kind}/{what}/{round_}/{microbatch}"
        return int.from_bytes(sha256(preimage.encode()).digest()[:8], "big")
