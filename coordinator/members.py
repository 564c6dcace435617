"""What training and the parts around it say to each other: places, nodes, reports, and who is told what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from commonweight.errors import CommonweightError
from commonweight.rules.receipt import Domain
from commonweight.rules.report import Report
from commonweight.rules.statement import AuditorSeat
from commonweight.wire.generated import control_pb2 as pb
from coordinator.draws import Draw

Send = Callable[[pb.CoordinatorMessage | CommonweightError], None]
"""Puts a message, or the reason to hang up, on a node's control stream."""


@dataclass(frozen=True)
class Place:
    """Where on which chain a model's work is settled."""

    model_id: bytes
    domain: Domain


@dataclass(frozen=True)
class Member:
    """A node that is connected."""

    node: str
    peer_id: str
    data_address: str
    evidence_address: str
    certificate: bytes
    owner: str
    """Who answers for it on chain; itself where the model asks for no stake."""
    account: str
    """Who is paid for its work."""
    has_data: bool
    """Whether it can hold the first stage."""
    stages: frozenset[int] | None
    """Those that its owner's seats let it hold; None: any."""
    stays: bool
    """Whether it refuses to move to another one."""
    send: Send


@dataclass(frozen=True)
class AuditorMember:
    """An auditor that is connected."""

    node: str
    certificate: bytes
    """DER, with which it fetches evidence."""
    owner: str
    stages: frozenset[int]
    """In which its owner has seats."""
    account: str
    """Who is paid for its audits."""
    send: Send


@dataclass(frozen=True)
class Submission:
    """A report with what came beside it, and from whom."""

    node: str
    owner: str
    account: str
    """Who is paid for it."""
    generation: int
    report: Report
    signature: bytes
    message: pb.StageReport
    """The same report as it came, with what isn't signed."""


class Follower(Protocol):
    """Is told how training goes, in order, before any node is told what follows from it."""

    def joined(self, stage: int, member: Member) -> None:
        """A node has taken its seat."""

    def lost(self, member: Member) -> None:
        """Its connection is gone."""

    async def sealed(self, round_: int) -> None:
        """This round is sealed."""

    @property
    def kept(self) -> frozenset[int]:
        """The versions that nodes keep: answers by others can't be audited, and so aren't sealed."""


class Tips(Protocol):
    """The epochs' beacon chains."""

    def tip(self, round_: int) -> bytes | None:
        """Of the round's epoch, as it stands on chain; None while it doesn't: the round can't be planned."""

    def value(self, round_: int) -> bytes:
        """Of a round whose tip stands on chain; secret until it is sealed."""

    def seed(self, round_: int) -> bytes:
        """Of the round's epoch, whose tip stands on chain; secret until the epoch is over."""


class Panels(Protocol):
    """Who may audit what was done in an epoch."""

    async def commit(self, epoch: int) -> None:
        """Return when the epoch's tip is on chain, and with it is known who holds seats."""

    def auditors(self, epoch: int) -> frozenset[AuditorSeat]:
        """The seats when the tip was committed; right after `commit`."""


class Audits(Protocol):
    """The audits of the rounds that were sealed."""

    def joined(self, stage: int, member: Member) -> None:
        """As `Follower.joined`."""

    def lost(self, member: Member) -> None:
        """As `Follower.lost`."""

    def sealed(self, draw: Draw) -> None:
        """This round is sealed and in the ledger."""

    def announcement(self, draw: Draw, node: str) -> pb.RoundSealed:
        """What a node is told of a sealed round."""

    def obstacle(self, round_: int) -> str | None:
        """Why the round can't be planned before more audits are decided; None if it can."""

    def equivocated(self) -> None:
        """An equivocation was recorded."""
