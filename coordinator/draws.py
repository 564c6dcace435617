"""What a sealed round's beacon draws, and what its nodes are told so that they can draw it themselves."""

from collections.abc import Iterable
from dataclasses import dataclass

from commonweight.rules.audits import Audit
from commonweight.rules.epoch import credited_receipt, drawn_audits
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import SealedRound
from commonweight.wire.generated import control_pb2 as pb


@dataclass(frozen=True)
class Draw:
    """A sealed round, and those of its audits that aren't decided, in order."""

    sealed: SealedRound
    tip: bytes
    audits: tuple[Audit, ...]

    @property
    def round(self) -> int:
        """Its number."""
        return self.sealed.round

    @property
    def stages(self) -> frozenset[int]:
        """Of which something was drawn."""
        return frozenset(audit.stage for audit in self.audits)

    def announcement(self, retained: Iterable[int]) -> pb.RoundSealed:
        """What nodes are told. `retained`: the rounds whose audits aren't decided."""
        receipts = (credited_receipt(bytes(32), self.round, line, self.tip) for line in self.sealed.reports)
        return pb.RoundSealed(
            round=self.round,
            beacon=bytes.fromhex(self.sealed.beacon[2:]),
            outputs=[receipt.output for receipt in receipts],
            retained=retained,
        )


def draw(spec: ModelSpec, sealed: SealedRound, tip: bytes) -> Draw:
    """All that the round's beacon draws: the same whenever it is asked."""
    return Draw(sealed, tip, drawn_audits(spec, sealed, tip))
