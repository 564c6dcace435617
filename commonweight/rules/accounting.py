"""From verified units to shares: who is owed what for an epoch, recomputable by anyone from its statement."""

from collections.abc import Mapping
from dataclasses import dataclass


def divide_shares(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`total` divided in proportion to `weights`, in integers that sum to it exactly.

    Largest remainder (Hamilton): everyone gets the quotient rounded down, then the largest remainders get one
    more; equal remainders are decided by the account's name, so that the result depends on nothing else. Each
    part is within one unit of the exact one. Raises ValueError where nobody has a weight.
    """
    sum_of_weights = sum(weights.values())
    if total < 0 or any(weight < 0 for weight in weights.values()) or not sum_of_weights:
        raise ValueError(f"can't divide {total} by the weights {dict(weights)!r}: they must be positive in sum")
    quotients = {account: divmod(total * weight, sum_of_weights) for account, weight in weights.items()}
    left = total - sum(quotient for quotient, _ in quotients.values())
    by_remainder = sorted(quotients, key=lambda account: (-quotients[account][1], account))
    lucky = set(by_remainder[:left])
    return {account: quotient + (account in lucky) for account, (quotient, _) in quotients.items()}


MAX_ACCUMULATOR = 2**152 - 1
"""The contract keeps the accumulator, a uint160, below 2^152: so with at most 2^96 shares no debt reaches 2^256."""


@dataclass(frozen=True)
class Balance:
    """What an account has earned from a model up to and with one epoch."""

    cumulative_shares: int
    """Shares, base units."""
    epoch_shares: int
    """Of them, in the last epoch; 0 where the account earned nothing in it."""
    debt_before: int
    """Σ over the epochs before the last of shares · accAt, in the accumulator's scale."""
    operator_revenue: int
    """Earned by serving, in the revenue token's smallest unit."""


NOTHING = Balance(0, 0, 0, 0)


def next_balances(
    balances: Mapping[str, Balance],
    shares: Mapping[str, int],
    operator_revenue: Mapping[str, int],
    accumulator_at: int,
) -> dict[str, Balance]:
    """The balances after one more epoch, in which each account earned `shares`, and `operator_revenue` by serving.

    `accumulator_at` is the accumulator per share at which the epoch before was finalised (0 for the first
    epoch): what was earned in it now belongs to the debt.
    """
    return {
        account: Balance(
            old.cumulative_shares + shares.get(account, 0),
            shares.get(account, 0),
            old.debt_before + old.epoch_shares * accumulator_at,
            old.operator_revenue + operator_revenue.get(account, 0),
        )
        for account in sorted({*balances, *shares, *operator_revenue})
        for old in (balances.get(account, NOTHING),)
    }
