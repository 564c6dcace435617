"""Where a model's revenue is, to the last unit: from the chain alone, all of it as of one block."""

from collections.abc import Mapping
from dataclasses import dataclass

from commonweight.chain.events import OperatorPaid, PaymentCollected, Swept, TreasuryPaid
from commonweight.cli.holdings import SCALE, claim_due, holders, split_due
from commonweight.cli.place import Place
from commonweight.cli.statements import Published


@dataclass(frozen=True)
class Revenue:
    """All that came and where it is. Amounts in the revenue token's smallest unit; `…_scaled` times 2^96."""

    collected: int
    """Of what came to the router, by buyers' authorisations; the rest came by plain transfers."""
    unswept: int
    """Lies in the router and isn't split yet."""
    to_shares: int
    to_operators: int
    to_treasury: int
    """What all sweeps together gave to each."""
    direct: int
    """Deposited for the shares by others than the router."""
    withdrawn: int
    """Paid out to holders."""
    owed_scaled: Mapping[str, int]
    """Earned by shares and not withdrawn, by holder; what the settlement holds is of the unclaimed shares."""
    undistributed_scaled: int
    """Deposited and not yet earned by any share: the rest of the stream, and what doesn't divide."""
    stream_end: int
    operators_paid: int
    operators_pool: int
    treasury_paid: int
    treasury_pool: int

    @property
    def paid_in(self) -> int:
        """All that ever came to the router."""
        return self.unswept + self.to_shares + self.to_operators + self.to_treasury

    @property
    def owed(self) -> int:
        return sum(self.owed_scaled.values()) // SCALE

    @property
    def undistributed(self) -> int:
        """With the fraction of a unit that `owed` leaves out."""
        return self.to_shares + self.direct - self.withdrawn - self.owed

    @property
    def missing_scaled(self) -> int:
        """What came in and is nowhere, times 2^96: 0, or the contracts are wrong. Negative: more is there than came."""
        came = self.paid_in + self.direct
        whole = (
            self.unswept
            + self.withdrawn
            + self.operators_paid
            + self.operators_pool
            + self.treasury_paid
            + self.treasury_pool
        )
        return (came - whole) * SCALE - sum(self.owed_scaled.values()) - self.undistributed_scaled


def read_revenue(place: Place) -> Revenue:
    """The revenue of a model as it stood after some block; see Place.at."""
    router, shares = place.router, place.shares
    sweeps = router.events(Swept)
    deposits = shares.deposits()
    return Revenue(
        collected=sum(payment.charged for payment in router.events(PaymentCollected)),
        unswept=router.unswept(),
        to_shares=sum(sweep.to_shares for sweep in sweeps),
        to_operators=sum(sweep.to_operators for sweep in sweeps),
        to_treasury=sum(sweep.to_treasury for sweep in sweeps),
        direct=sum(each.amount for each in deposits if each.from_ != router.address),
        withdrawn=sum(each.amount for each in shares.withdrawals()),
        owed_scaled={holder: shares.owed_scaled(holder) for holder in sorted(holders(place))},
        undistributed_scaled=shares.undistributed_scaled(),
        stream_end=shares.stream_end(),
        operators_paid=sum(each.amount for each in router.events(OperatorPaid)),
        operators_pool=router.operator_pool(),
        treasury_paid=sum(each.amount for each in router.events(TreasuryPaid)),
        treasury_pool=router.treasury_pool(),
    )


@dataclass(frozen=True)
class Income:
    """One account's revenue, in the token's smallest unit."""

    account: str
    owed: int
    """By the shares that it holds: it can withdraw that now."""
    unclaimed: int | None
    """By shares that it earned and hasn't claimed; None without the statement."""
    serving_earned: int | None
    """By serving, up to the last final epoch; None without the statement."""
    serving_paid: int

    @property
    def payable(self) -> int:
        """What `revenue withdraw` pays now."""
        return self.owed + max(0, (self.serving_earned or 0) - self.serving_paid)


def income_of(place: Place, account: str, published: Published | None) -> Income:
    """What `account` has earned and not been paid. `published` is the last final epoch's statement; None where there is
    none yet, or it can't be had.
    """
    unclaimed = serving = None
    if published is not None:
        due = claim_due(place, account, published).revenue_scaled + split_due(place, account).revenue_scaled
        line = published.line_of(account)
        unclaimed, serving = due // SCALE, int(line.operator_revenue) if line else 0
    elif place.settlement.next_epoch() == 0:
        unclaimed = serving = 0
    return Income(account, place.shares.owed(account), unclaimed, serving, place.router.operator_paid(account))
