"""Who owns a devnet's model and its revenue, read from the chain and the statements after claiming for everybody."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from commonweight.chain.keys import Key
from commonweight.devnet.revenue import NO_REVENUE, Revenue, read_revenue

if TYPE_CHECKING:
    from commonweight.chain.sender import Sender
    from commonweight.cli.place import Place
    from commonweight.cli.statements import Published

RECEIPT_S = 20.0
"""For one transaction on a local chain, which mines at once."""


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
    revenue: Revenue = NO_REVENUE


def settle_ownership(folder: Path, sender_key: Key) -> Ownership:
    """Splits the last payments, pays every account all that it has earned, and returns what each then holds.

    Anyone may claim for an account; only the account is paid. The designer's revenue is withdrawn, too. The chain's
    clock is set forward to where all revenue has been credited. `folder` holds deployments.json. Blocking, and imports
    web3: call from a thread. Raises ChainError, also where a statement is missing, and StateError where revenue is.
    """
    from commonweight.chain.sender import Sender
    from commonweight.chain.shares import ModelShares
    from commonweight.cli.holdings import known_accounts
    from commonweight.cli.place import find_place

    place = find_place(None, None, None, folder)
    sender = Sender(place.chain, sender_key, receipt_timeout_s=RECEIPT_S)
    published = claim_for_all(place, sender)
    holders = known_accounts(place, published[-1] if published else None)
    place.chain.request("evm_increaseTime", place.model.terms.stream_period_s + 1)
    place.chain.request("evm_mine")
    if place.shares.owed(designer := place.model.terms.designer):
        ModelShares(place.chain, place.model.shares, sender).withdraw_revenue_for(designer)
    revenue = read_revenue(place)
    revenue.check()
    units: dict[str, int] = {}
    for each in published:
        for line in each.statement.accounts:
            units[line.account] = units.get(line.account, 0) + int(line.units)
    holdings = [Holding(account, place.shares.balance_of(account), units.get(account, 0)) for account in holders]
    by_size = sorted(holdings, key=lambda holding: (-holding.shares, holding.address))
    return Ownership(tuple(by_size), place.shares.total_supply(), revenue)


def claim_for_all(place: "Place", sender: "Sender") -> "list[Published]":
    """Splits what was paid in, then claims shares and operators' revenue for every account of the last final epoch.

    Returns all final epochs. Raises ChainError, such as StatementUnavailable where a statement is missing.
    """
    from commonweight.chain.router import RevenueRouter
    from commonweight.chain.settlement import EpochSettlement

    first = place.settlement.first_block
    settlement = EpochSettlement(place.chain, place.model.settlement, sender, first_block=first)
    router = RevenueRouter(place.chain, place.model.router, sender, first_block=first)
    published = [_published(place, epoch) for epoch in range(settlement.next_epoch())]
    if published and router.unswept():
        router.sweep()
    if not published:
        return []
    settlement.claim_split()
    last = published[-1]
    for line in last.statement.accounts:
        claim = last.claim_of(line.account)
        if claim is None:
            continue
        if settlement.claimed(line.account).shares < claim.cumulative_shares:
            settlement.claim(claim)
        if router.operator_paid(line.account) < claim.operator_revenue:
            router.pay_operator(claim)
    return published


def _published(place: "Place", epoch: int) -> "Published":
    from commonweight.cli.statements import find_statement

    record = place.settlement.epoch(epoch)
    assert record is not None, "every epoch before the next one is on the chain"
    return find_statement(place, record)
