"""Where a model's revenue is, to the last unit of its token: what buyers paid, and whose each part of it is."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from commonweight.errors import StateError

if TYPE_CHECKING:
    from commonweight.cli.place import Place


@dataclass(frozen=True)
class Revenue:
    """Integers in the revenue token's smallest unit; they add up: see `check`."""

    paid_in: int = 0
    """To the model's router, and to the shares directly."""
    owed: tuple[tuple[str, int], ...] = ()
    """What each holder of shares can withdraw now."""
    withdrawn: int = 0
    """By holders of shares."""
    operators: int = 0
    """Set aside for those who served, paid or not."""
    treasury: int = 0
    """Set aside for the treasury, paid or not."""
    remainder: int = 0
    """Not split yet, not credited to shares yet, earned by shares that nobody has claimed, and fractions of a unit."""

    def check(self) -> None:
        """Raises StateError unless every unit is accounted for."""
        found = sum(amount for _, amount in self.owed) + self.withdrawn + self.operators + self.treasury
        if self.paid_in != found + self.remainder:
            raise StateError(
                f"The model's revenue doesn't add up: {self.paid_in} was paid in; {found} is owed, withdrawn or set "
                f"aside, and {self.remainder} is left over. Keep the run's folder and report this."
            )

    def fields(self) -> dict[str, Any]:
        """As in the report."""
        return asdict(self) | {"owed": dict(self.owed)}


NO_REVENUE = Revenue()


def glance_at_revenue(rpc_url: str, shares: str) -> tuple[int, int]:
    """What holders of shares could take now, claimed or not, and what they have withdrawn. Blocking.

    Two numbers of one second, for the view; raises ChainError.
    """
    from commonweight.chain.rpc import Chain
    from commonweight.chain.shares import ModelShares
    from commonweight.cli.holdings import SCALE

    contract = ModelShares(Chain.connect(rpc_url), shares)
    withdrawn = sum(withdrawal.amount for withdrawal in contract.withdrawals())
    return contract.deposited() - withdrawn - -(-contract.undistributed_scaled() // SCALE), withdrawn


def read_revenue(place: "Place") -> Revenue:
    """The revenue of the model at `place`, as of one block: what `revenue show` finds, as whole units.

    Each number is read for itself, none is computed as what is missing. Blocking. Raises ChainError.
    """
    from commonweight.cli import revenue_facts
    from commonweight.cli.holdings import SCALE

    found = revenue_facts.read_revenue(place.at(place.chain.block_number()))
    owed = {
        holder: scaled // SCALE
        for holder, scaled in found.owed_scaled.items()
        if scaled >= SCALE and holder != place.model.settlement
    }
    in_shares = (sum(found.owed_scaled.values()) + found.undistributed_scaled) // SCALE
    return Revenue(
        paid_in=found.paid_in + found.direct,
        owed=tuple(owed.items()),
        withdrawn=found.withdrawn,
        operators=found.operators_paid + found.operators_pool,
        treasury=found.treasury_paid + found.treasury_pool,
        remainder=found.unswept + in_shares - sum(owed.values()),
    )
