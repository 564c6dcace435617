"""What a sealed round's beacon draws, and what its nodes are told so that they can draw it themselves."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from commonweight.rules.audits import Audit, draw_audits
from commonweight.rules.beacon import seal_salt
from commonweight.rules.epoch import sealed_beacon, sealed_commitments
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import SealedRound
from commonweight.wire.generated import control_pb2 as pb


@dataclass(frozen=True)
class Draw:
    """A sealed round, and those of its audits that aren't decided, in order."""

    sealed: SealedRound
    seed: bytes = field(repr=False)
    """The epoch's: secret until that is over."""
    beacon: bytes
    """What has drawn them."""
    audits: tuple[Audit, ...]
    told: pb.RoundSealed = field(repr=False)
    """To all nodes alike."""

    @property
    def round(self) -> int:
        """Its number."""
        return self.sealed.round

    @property
    def stages(self) -> frozenset[int]:
        """Of which something was drawn."""
        return frozenset(audit.stage for audit in self.audits)

    def announcement(self, stage: int, retained: Iterable[int]) -> pb.RoundSealed:
        """What the stage's node is told. `retained`: the rounds whose audits aren't decided."""
        message = pb.RoundSealed(salt=seal_salt(self.seed, self.round, stage), retained=retained)
        message.MergeFrom(self.told)
        return message


def draw(spec: ModelSpec, sealed: SealedRound, tip: bytes, seed: bytes) -> Draw:
    """All that the round's beacon draws: the same whenever it is asked. `tip` and `seed` are the epoch's."""
    beacon = sealed_beacon(sealed, tip, seed)
    told = pb.RoundSealed(
        round=sealed.round,
        beacon=bytes.fromhex(sealed.beacon[2:]),
        commitments=sealed_commitments(sealed, tip, seed),
        answers=(
            pb.SealedAnswer(
                session=bytes.fromhex(line.session[2:]),
                round=line.version,
                prompt_tokens=line.prompt_tokens,
                fed=line.fed,
                traces=(bytes.fromhex(part.trace[2:]) for part in line.parts),
            )
            for line in sealed.answers
        ),
    )
    audits = draw_audits(spec, sealed.round, beacon, len(sealed.answers), sealed.answers_root)
    return Draw(sealed, seed, beacon, audits, told)
