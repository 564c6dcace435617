"""Who owns a devnet's model, read from the chain and the published statements after claiming for everybody."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from commonweight.chain.keys import Key
from commonweight.errors import StatementMismatch

if TYPE_CHECKING:
    from commonweight.cli.place import Place
    from commonweight.cli.statements import Published

RECEIPT_S = 20.0
"""For one claim on a local chain, which mines at once."""


@dataclass(frozen=True)
class Holding:
    """What one account has of the model, and did for it."""

    address: str
    shares: int
    """Held, base units."""
    work_units: int
    """Verified FLOPs over all final epochs."""


@dataclass(frozen=True)
class Ownership:
    """Everybody's part."""

    holdings: tuple[Holding, ...] = ()
    """The largest first."""
    supply: int = 0
    """All shares, base units."""


def settle_ownership(folder: Path, sender_key: Key) -> Ownership:
    """Claims for every account of the last final epoch, at the sender's cost, and returns what each then holds.

    Anyone may claim for an account; only the account is paid. `folder` holds deployments.json. Blocking, and imports
    web3: call from a thread. Raises ChainError, and StatementMismatch where a statement is missing.
    """
    from commonweight.chain.sender import Sender
    from commonweight.cli.holdings import known_accounts
    from commonweight.cli.place import find_place

    place = find_place(None, None, None, folder)
    settlement = place.settlement(Sender(place.chain, sender_key, receipt_timeout_s=RECEIPT_S))
    published = [_published(place, epoch) for epoch in range(settlement.next_epoch())]
    last = published[-1] if published else None
    if last is not None:
        for line in last.statement.accounts:
            claim = last.claim_of(line.account)
            if claim is not None and settlement.claimed(line.account).shares < claim.cumulative_shares:
                settlement.claim(claim)
    units: dict[str, int] = {}
    for each in published:
        for line in each.statement.accounts:
            units[line.account] = units.get(line.account, 0) + int(line.units)
    holdings = [
        Holding(account, place.shares.balance_of(account), units.get(account, 0))
        for account in known_accounts(place, last)
    ]
    by_size = sorted(holdings, key=lambda holding: (-holding.shares, holding.address))
    return Ownership(tuple(by_size), place.shares.total_supply())


def _published(place: "Place", epoch: int) -> "Published":
    from commonweight.cli.statements import Missing, find_statement

    record = place.settlement().epoch(epoch)
    assert record is not None, "every epoch before the next one is on the chain"
    found = find_statement(place, record)
    if isinstance(found, Missing):
        raise StatementMismatch(str(found))
    return found
