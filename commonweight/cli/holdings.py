"""Who owns a model, read from the chain: shares held, shares to claim, revenue owed."""

from collections.abc import Iterable
from dataclasses import dataclass

from commonweight.chain.events import EpochFinalized
from commonweight.chain.records import NOBODY
from commonweight.cli.place import Place
from commonweight.cli.statements import Published
from commonweight.rules.emission import split_emission

SCALE = 2**96
"""ModelShares keeps accruals times this."""


@dataclass(frozen=True)
class Holding:
    """What one account has of a model. Shares in base units, revenue in the token's smallest unit."""

    account: str
    roles: tuple[str, ...]
    """"designer", "data", "coordinator", "treasury" by registration; "provider" if it earned shares by computing."""
    held: int
    owed: int
    """Revenue that it can withdraw now."""
    claimable: int | None
    """Shares that it earned and hasn't claimed, proved to the contract; None where there is no statement."""
    claimable_revenue: int | None
    """Revenue that comes with them."""


@dataclass(frozen=True)
class Due:
    """Shares that wait in the settlement, and the revenue that comes with them."""

    shares: int
    revenue_scaled: int
    """Times 2^96."""

    @property
    def revenue(self) -> int:
        """In the token's smallest unit, rounded down."""
        return self.revenue_scaled // SCALE


NOTHING_DUE = Due(0, 0)


def known_accounts(place: Place, published: Published | None) -> list[str]:
    """Every account that ever got shares, every account of the statement, and those of the registration; the settlement
    is left out.
    """
    terms = place.model.terms
    found = {*holders(place), terms.designer, terms.data_recipient}
    if published is not None:
        ours = {account.lower() for account in found}
        found |= {line.account for line in published.statement.accounts if line.account.lower() not in ours}
    found -= {place.model.settlement}
    return sorted(found, key=str.lower)


def holders(place: Place) -> set[str]:
    """Every account that ever got shares, the settlement included."""
    contract = place.chain.contract("ModelShares", place.model.shares)
    transfers = place.chain.events(contract, "Transfer", place.shares.first_block)
    return {str(event["args"]["to"]) for event in transfers} - {NOBODY}


def holdings_of(place: Place, accounts: Iterable[str], published: Published | None) -> list[Holding]:
    """What each account has; those that have nothing are included. `published` is None while no epoch is final, or
    where the statement can't be had.
    """
    accounts = list(accounts)
    return [_holding(place, account, published) for account in accounts]


def roles_of(place: Place, account: str, published: Published | None) -> tuple[str, ...]:
    """What the account is to this model."""
    terms = place.model.terms
    registered = {
        "designer": terms.designer,
        "data": terms.data_recipient,
        "coordinator": place.model.coordinator,
        "treasury": terms.treasury,
    }
    roles = tuple(role for role, holder in registered.items() if holder.lower() == account.lower())
    line = None if published is None else published.line_of(account)
    return (*roles, "provider") if line is not None and line.cumulative_shares != "0" else roles


def claim_due(place: Place, account: str, published: Published) -> Due:
    """What a claim would pay `account` now for its computing. The contract checks the proof."""
    claim = published.claim_of(account)
    if claim is None or place.settlement.claimed(account).shares >= claim.cumulative_shares:
        return NOTHING_DUE
    due = place.settlement.claimable(claim)
    return Due(due.shares, due.revenue_scaled)


def split_due(place: Place, account: str, limit: int | None = None) -> Due:
    """What waits for `account` as designer or data recipient; of the next `limit` epochs only, if given."""
    terms = place.model.terms
    wanted = account.lower()
    as_designer, as_data = wanted == terms.designer.lower(), wanted == terms.data_recipient.lower()
    if not as_designer and not as_data:
        return NOTHING_DUE
    first, end = place.settlement.split_claimed_until(), place.settlement.next_epoch()
    if limit is not None:
        end = min(end, first + limit)
    accumulator, shares, revenue = place.shares.accumulator(), 0, 0
    for final in place.settlement.events(EpochFinalized):
        if first <= final.epoch < end:
            split = split_emission(final.minted, terms.designer_bps, terms.data_bps)
            part = split.designer * as_designer + split.data * as_data
            shares += part
            revenue += part * (accumulator - final.accumulator)
    return Due(shares, revenue)


def _holding(place: Place, account: str, published: Published | None) -> Holding:
    split = split_due(place, account)
    due = None
    if published is not None:
        earned = claim_due(place, account, published)
        due = Due(earned.shares + split.shares, earned.revenue_scaled + split.revenue_scaled)
    return Holding(
        account=account,
        roles=roles_of(place, account, published),
        held=place.shares.balance_of(account),
        owed=place.shares.owed(account),
        claimable=None if due is None else due.shares,
        claimable_revenue=None if due is None else due.revenue,
    )
