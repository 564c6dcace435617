"""What became of every proposal of an epoch, assembled from the settlement's events."""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from commonweight.chain.events import EpochChallenged, EpochFinalized, EpochProposed, EpochRejected, EpochUpheld
from commonweight.chain.records import EpochRecord
from commonweight.chain.rpc import Chain
from commonweight.chain.settlement import EpochSettlement
from commonweight.cli.output import format_time

Status = Literal["pending", "challenged", "upheld", "final", "rejected"]

_Event = TypeVar("_Event", EpochChallenged, EpochUpheld, EpochRejected, EpochFinalized)


@dataclass(frozen=True)
class Proposal:
    """One proposal of an epoch; an epoch that was rejected has several."""

    proposed: EpochProposed
    challenged: EpochChallenged | None
    upheld: EpochUpheld | None
    rejected: EpochRejected | None
    final: EpochFinalized | None

    @property
    def status(self) -> Status:
        if self.final is not None:
            return "final"
        if self.rejected is not None:
            return "rejected"
        if self.upheld is not None:
            return "upheld"
        return "challenged" if self.challenged is not None else "pending"

    @property
    def record(self) -> EpochRecord:
        """The same as the chain client gives it for an epoch that wasn't rejected."""
        proposed = self.proposed
        return EpochRecord(
            epoch=proposed.epoch,
            root=proposed.root,
            minted=proposed.minted,
            statement_hash=proposed.statement_hash,
            accumulator=0 if self.final is None else self.final.accumulator,
            finalizable_at=proposed.finalizable_at,
            finalized=self.final is not None,
            proposer=proposed.proposer,
            uri=proposed.uri,
            block_number=proposed.block_number,
            finalized_block=None if self.final is None else self.final.block_number,
        )


def read_history(settlement: EpochSettlement, epoch: int | None = None) -> list[Proposal]:
    """Every proposal, oldest first; of one epoch, if given."""
    only = {} if epoch is None else {"epoch": epoch}
    challenged = _by_proposal(settlement.events(EpochChallenged, **only))
    upheld = _by_proposal(settlement.events(EpochUpheld, **only))
    rejected = _by_proposal(settlement.events(EpochRejected, **only))
    final = _by_proposal(settlement.events(EpochFinalized, **only))
    found = []
    for proposed in settlement.events(EpochProposed, **only):
        dispute, end = _take(challenged, proposed), _take(rejected, proposed)
        if end is not None:
            found.append(Proposal(proposed, dispute, None, end, None))
        else:
            found.append(Proposal(proposed, dispute, _take(upheld, proposed), None, _take(final, proposed)))
    return found


def _by_proposal(events: Iterable[_Event]) -> dict[tuple[int, bytes], deque[_Event]]:
    found: dict[tuple[int, bytes], deque[_Event]] = defaultdict(deque)
    for event in events:
        found[event.epoch, event.root].append(event)
    return found


def _take(events: dict[tuple[int, bytes], deque[_Event]], proposed: EpochProposed) -> _Event | None:
    """The event of this proposal. All proposals of one root but the last were challenged and rejected, so the oldest
    event that no older proposal has taken is the right one.
    """
    waiting = events.get((proposed.epoch, proposed.root))
    return waiting.popleft() if waiting else None


def status_text(each: Proposal, now: int) -> str:
    """What became of a proposal and what comes next, in a sentence. `now` is the chain's time."""
    match each.status:
        case "final":
            return "final: its shares are minted"
        case "upheld":
            return "upheld by the arbiter: anybody can finalise it"
        case "challenged":
            assert each.challenged is not None, "that is what its status says"
            until = format_time(each.challenged.resolvable_until, now)
            return (
                f"challenged by {each.challenged.challenger}; the arbiter has until {until}, then anybody can reject it"
            )
        case "rejected":
            assert each.rejected is not None, "that is what its status says"
            who = "by the arbiter" if each.rejected.by_arbiter else "because the arbiter was silent"
            return f"rejected {who}: the coordinator has to propose the epoch again"
        case "pending":
            at = each.proposed.finalizable_at
            if now >= at:
                return "pending: nobody has challenged it, anybody can finalise it"
            return f"pending: it can be challenged until {format_time(at, now)}"


def block_time(chain: Chain, number: int) -> int:
    """Unix time of a block."""
    return int(chain.request("eth_getBlockByNumber", hex(number), False)["timestamp"], 16)
