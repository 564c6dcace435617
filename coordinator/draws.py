"""What a sealed round's beacon draws, and what its nodes are told so that they can draw it themselves."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from commonweight.rules.audits import Audit
from commonweight.rules.beacon import seal_salt
from commonweight.rules.epoch import audits_drawn_by, sealed_beacon, sealed_commitments
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
    def replicas(self) -> frozenset[tuple[int, int]]:
        """Of which something was drawn: stage, and number among its reports."""
        return frozenset((audit.stage, audit.replica) for audit in self.audits)

    def announcement(self, node: str, retained: Iterable[int]) -> pb.RoundSealed:
        """What a node is told. `retained`: the rounds whose audits aren't decided."""
        message = pb.RoundSealed(retained=retained)
        if (place := self._places.get(node)) is not None:
            message.replica, message.salt = place[1], seal_salt(self.seed, self.round, *place)
        message.MergeFrom(self.told)
        return message

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Of each node that has worked in the round: its stage then, and its number among that one's reports."""
        stages = enumerate(map(self.sealed.replicas, range(len(self.told.stages))))
        return {line.node: (stage, replica) for stage, of in stages for replica, line in enumerate(of)}


def draw(spec: ModelSpec, sealed: SealedRound, tip: bytes, seed: bytes) -> Draw:
    """All that the round's beacon draws: the same whenever it is asked. `tip` and `seed` are the epoch's."""
    beacon = sealed_beacon(spec, sealed, tip, seed)
    told = pb.RoundSealed(
        round=sealed.round,
        beacon=bytes.fromhex(sealed.beacon[2:]),
        stages=(
            pb.SealedStage(commitments=commitments, loads=(line.commitments.load for line in sealed.replicas(stage)))
            for stage, commitments in enumerate(sealed_commitments(spec, sealed, tip, seed))
        ),
        answers=(
            pb.SealedAnswer(
                session=bytes.fromhex(line.session[2:]),
                round=line.version,
                prompt_tokens=line.prompt_tokens,
                fed=line.fed,
                traces=(bytes.fromhex(part.trace[2:]) for part in line.parts),
                replicas=(part.replica for part in line.parts),
            )
            for line in sealed.answers
        ),
    )
    return Draw(sealed, seed, beacon, audits_drawn_by(spec, sealed, beacon), told)
