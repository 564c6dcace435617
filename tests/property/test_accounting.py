"""Shares are divided to the last unit, and a late claim is owed exactly what an early one is."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from commonweight.rules.accounting import MAX_ACCUMULATOR, Balance, divide_shares, next_balances

PREC = 2**96
ACCOUNTS = ("early", "late", "sometimes", "other")

names = st.text(max_size=4)
all_weights = st.dictionaries(names, st.integers(0, 5) | st.integers(0, 10**30), min_size=1, max_size=12)
totals = st.integers(0, 100) | st.integers(0, 2**96)


@given(totals, all_weights)
def test_parts_sum_to_the_total_each_within_one_unit(total: int, weights: dict[str, int]) -> None:
    assume(any(weights.values()))
    parts = divide_shares(total, weights)
    assert sum(parts.values()) == total
    assert parts.keys() == weights.keys()
    for account, weight in weights.items():
        exact = Fraction(total * weight, sum(weights.values()))
        assert abs(parts[account] - exact) < 1
        assert parts[account] >= 0


@given(totals, all_weights, st.randoms(use_true_random=False))
def test_the_order_of_the_mapping_doesnt_matter(total: int, weights: dict[str, int], rng: Any) -> None:
    assume(any(weights.values()))
    items = list(weights.items())
    rng.shuffle(items)
    assert divide_shares(total, dict(items)) == divide_shares(total, weights)


@given(totals, all_weights)
def test_more_weight_never_earns_less(total: int, weights: dict[str, int]) -> None:
    assume(any(weights.values()))
    parts = divide_shares(total, weights)
    by_weight = sorted(weights, key=lambda account: (weights[account], parts[account]))
    assert [parts[account] for account in by_weight] == sorted(parts.values())


@given(totals, all_weights, st.integers(1, 10**9))
def test_only_the_ratio_of_the_weights_matters(total: int, weights: dict[str, int], factor: int) -> None:
    assume(any(weights.values()))
    scaled = {account: weight * factor for account, weight in weights.items()}
    assert divide_shares(total, scaled) == divide_shares(total, weights)


@pytest.mark.parametrize(("total", "weights"), [(1, {}), (1, {"a": 0}), (-1, {"a": 1}), (1, {"a": 2, "b": -1})])
def test_what_cant_be_divided_is_refused(total: int, weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="can't divide"):
        divide_shares(total, weights)


@dataclass
class Holder:
    """What ModelShares keeps of an account: shares, and revenue accrued and not withdrawn, scaled by PREC."""

    shares: int = 0
    seen: int = 0
    accrued: int = 0
    claimed_shares: int = 0
    claimed_debt: int = 0


class Chain:
    """ModelShares and EpochSettlement, as far as contracts.md gives their arithmetic."""

    def __init__(self) -> None:
        self.accumulator = self.remainder = self.supply = self.deposited = 0
        self.accumulator_at: list[int] = []
        self.balances: list[dict[str, Balance]] = []
        """Of each epoch's statement."""
        self.holders = {account: Holder() for account in ACCOUNTS}
        self.unclaimed = Holder()
        """The settlement contract, to which an epoch's shares are minted."""

    def deposit(self, amount: int) -> None:
        if self.supply:
            step, self.remainder = divmod(amount * PREC + self.remainder, self.supply)
            self.accumulator += step
            self.deposited += amount

    def end_epoch(self, shares: dict[str, int]) -> None:
        """Propose and finalise; what is deposited in between belongs to the shares that exist already."""
        previous = self.balances[-1] if self.balances else {}
        at = self.accumulator_at[-1] if self.accumulator_at else 0
        self.balances.append(next_balances(previous, shares, {}, at))
        self._settle(self.unclaimed)
        self.unclaimed.shares += sum(shares.values())
        self.supply += sum(shares.values())
        self.accumulator_at.append(self.accumulator)

    def claim(self, account: str, epoch: int, forget_debt: bool = False) -> None:
        """As EpochSettlement.claim. That takes the last epoch's leaf alone; the arithmetic holds for any."""
        balance, holder = self.balances[epoch].get(account), self.holders[account]
        if balance is None or balance.cumulative_shares <= holder.claimed_shares:
            return
        debt = balance.debt_before + balance.epoch_shares * self.accumulator_at[epoch]
        if forget_debt:
            debt = 0
        shares = balance.cumulative_shares - holder.claimed_shares
        owed = shares * self.accumulator - (debt - holder.claimed_debt)
        assert owed >= 0
        for side, sign in ((self.unclaimed, -1), (holder, 1)):
            self._settle(side)
            side.shares += sign * shares
            side.accrued += sign * owed
        holder.claimed_shares, holder.claimed_debt = balance.cumulative_shares, debt
        assert self.unclaimed.shares >= 0

    def owed(self, account: str) -> int:
        self._settle(self.holders[account])
        return self.holders[account].accrued

    def _settle(self, holder: Holder) -> None:
        holder.accrued += holder.shares * (self.accumulator - holder.seen)
        holder.seen = self.accumulator


epochs = st.fixed_dictionaries(
    {
        "twins": st.integers(0, 10**20) | st.just(0),
        "sometimes": st.integers(0, 10**20),
        "other": st.integers(1, 10**20),
        "before": st.integers(0, 10**15),
        "after": st.integers(0, 10**15),
        "claims": st.lists(st.tuples(st.sampled_from(ACCOUNTS[2:]), st.integers(0, 20)), max_size=3),
    }
)


def play(history: list[dict[str, Any]], forget_debt: bool = False) -> Chain:
    """`early` and `late` earn the same; one claims after every epoch, the other once at the end."""
    chain = Chain()
    for step in history:
        chain.deposit(step["before"])
        shares = {"other": step["other"]}
        if step["twins"]:
            shares |= {"early": step["twins"], "late": step["twins"]}
        if step["sometimes"]:
            shares["sometimes"] = step["sometimes"]
        chain.end_epoch(shares)
        chain.claim("early", len(chain.balances) - 1, forget_debt)
        chain.deposit(step["after"])
        for account, epoch in step["claims"]:
            chain.claim(account, epoch % len(chain.balances), forget_debt)
    for account in ACCOUNTS:
        chain.claim(account, len(chain.balances) - 1, forget_debt)
    return chain


@given(st.lists(epochs, min_size=1, max_size=8))
def test_early_and_late_claims_are_owed_exactly_the_same(history: list[dict[str, Any]]) -> None:
    chain = play(history)
    assert chain.owed("early") == chain.owed("late")
    for account in ACCOUNTS:  # whoever claimed when: each share earned from the end of its epoch on, once
        assert chain.owed(account) == sum(
            balances[account].epoch_shares * (chain.accumulator - at)
            for balances, at in zip(chain.balances, chain.accumulator_at, strict=True)
            if account in balances
        )


@given(st.lists(epochs, min_size=1, max_size=8))
def test_nothing_is_made_or_lost(history: list[dict[str, Any]]) -> None:
    chain = play(history)
    chain._settle(chain.unclaimed)
    assert chain.unclaimed.shares == 0 == chain.unclaimed.accrued
    assert sum(map(chain.owed, ACCOUNTS)) + chain.remainder == chain.deposited * PREC
    for holder in chain.holders.values():
        assert holder.claimed_debt <= 2**96 * MAX_ACCUMULATOR < 2**256


def test_the_property_would_notice_a_forgotten_debt() -> None:
    empty = {"twins": 0, "sometimes": 0, "before": 0, "after": 0, "claims": []}
    history = [{**empty, "twins": 50, "other": 50, "after": 1000}, {**empty, "twins": 50, "other": 50, "after": 7}]
    right, wrong = play(history), play(history, forget_debt=True)
    assert right.owed("early") == right.owed("late")
    assert wrong.owed("late") > right.owed("late")


amounts = st.dictionaries(names, st.integers(0, 10**9))


@given(st.lists(st.tuples(amounts, amounts, st.integers(0, MAX_ACCUMULATOR)), max_size=6))
def test_balances_are_the_sums_that_the_leaf_defines(history: list[tuple[dict[str, int], dict[str, int], int]]) -> None:
    """`at` of an entry is accAt of the epoch before it."""
    balances: dict[str, Balance] = {}
    for shares, revenue, at in history:
        balances = next_balances(balances, shares, revenue, at)
    assert list(balances) == sorted({account for shares, revenue, _ in history for account in (*shares, *revenue)})
    for account, balance in balances.items():
        earned = [shares.get(account, 0) for shares, _, _ in history]
        assert balance.cumulative_shares == sum(earned)
        assert balance.epoch_shares == earned[-1]
        assert balance.debt_before == sum(e * at for e, (_, _, at) in zip(earned[:-1], history[1:], strict=True))
        assert balance.operator_revenue == sum(revenue.get(account, 0) for _, revenue, _ in history)
