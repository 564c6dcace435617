"""Who owns a model, read from the chain: shares held, shares to claim, revenue owed."""

from collections.abc import Iterable
from dataclasses import dataclass

from commonweight.cli.place import Place
from commonweight.cli.statements import Published

SCALE = 2**96
"""ModelShares keeps accruals times this."""
NOBODY = "0x" + 40 * "0"


@dataclass(frozen=True)
class Holding:
    """What one account has of a model. Shares in base units, revenue in the token's smallest unit."""

    account: str
    roles: tuple[str, ...]
    """"designer", "data", "coordinator" by registration; "provider" if it earned shares by computing."""
    held: int
    owed: int
    """Revenue that it can withdraw now."""
    claimable: int | None
    """Shares that it earned and hasn't claimed, proved to the contract; None where there is no statement."""
    claimable_revenue: int | None
    """Revenue that comes with them."""


def known_accounts(place: Place, published: Published | None) -> list[str]:
    """Every account that ever got shares, and every account of the statement; the settlement is left out."""
    chain = place.chain
    transfers = chain.events(chain.contract("ModelShares", place.model.shares), "Transfer")
    found = {str(event["args"]["to"]) for event in transfers}
    if published is not None:
        ours = {account.lower() for account in found}
        lines = published.statement.accounts
        found |= {line.account for line in lines if line.account.lower() not in ours}
    left_out = {place.model.settlement.lower(), NOBODY}
    return sorted((account for account in found if account.lower() not in left_out), key=str.lower)


def holdings_of(place: Place, accounts: Iterable[str], published: Published | None) -> list[Holding]:
    """What each account has; those that have nothing are included."""
    return [_holding(place, account, published) for account in accounts]


def roles_of(place: Place, account: str, published: Published | None) -> tuple[str, ...]:
    """What the account is to this model."""
    terms = place.model.terms
    registered = {"designer": terms.designer, "data": terms.data_recipient, "coordinator": terms.coordinator}
    roles = tuple(role for role, holder in registered.items() if holder.lower() == account.lower())
    earned = published is not None and account.lower() in published.accounts
    return (*roles, "provider") if earned else roles


def _holding(place: Place, account: str, published: Published | None) -> Holding:
    claimable, revenue = (None, None) if published is None else claimable_by(place, account, published)
    return Holding(
        account=account,
        roles=roles_of(place, account, published),
        held=place.shares.balance_of(account),
        owed=place.shares.owed(account),
        claimable=claimable,
        claimable_revenue=revenue,
    )


def claimable_by(place: Place, account: str, published: Published) -> tuple[int, int]:
    """Shares and revenue that a claim would pay `account` now. The contract checks the proof."""
    claim = published.claim_of(account)
    settlement = place.settlement()
    if claim is None or settlement.claimed(account).shares >= claim.cumulative_shares:
        return 0, 0
    due = settlement.claimable(claim)
    return due.shares, due.revenue_scaled // SCALE
