"""Who cheats as often as pays best, and so hardly ever.

It reckons with what fraud costs that is proven. Where a round that it has cheated in is drawn after all it gives the
auditor nothing: that costs pay, but not the stake. It is honest in round 0, which begins with a state that everybody
knows, so that its neighbours' evidence is enough to prove fraud there.
"""

from dataclasses import dataclass

from adversary.cheat import Cheat
from commonweight.devnet.byzantine import Cheating
from commonweight.events import emit
from commonweight.rules import economics
from commonweight.rules.economics import chance_caught, cheating_profit, round_risk, share_paid
from commonweight.rules.spec import ModelSpec

STAKE = 1.0
"""What a seat's stake is worth, in rewards of an epoch: no chain says that."""
COST = 1.0
"""What an honest epoch costs, of its reward: all, so that nobody could have more reason to cheat."""
SHARES = tuple(n / 100 for n in range(101))
"""Of the rounds: what it chooses from."""


@dataclass(frozen=True)
class Plan:
    """How often to cheat, and what that brings over honesty on average, in rewards of an epoch."""

    share: float
    """Of the rounds; 0: never."""
    profit: float
    """If fraud that is drawn is proven."""
    withheld_profit: float
    """If it is withheld, in the long run."""


def best_plan(spec: ModelSpec, stake: float) -> Plan:
    """The most profitable share of rounds in which to compute nothing; `stake` is in rewards of an epoch."""
    rounds = spec.economics.rounds_per_epoch
    risk = round_risk(spec, economics.Cheat.WORK, spec.training.microbatches_per_round)

    def profit(share: float) -> float:
        return cheating_profit(chance_caught(share * risk, rounds), reward=1, stake=stake, saved=share * COST)

    share = max(SHARES, key=profit)
    return Plan(share, profit(share), share * COST - (1 - share_paid(spec, share)))


class Adapted(Cheat):
    """Cheats in whole rounds."""

    def picks(self, round_: int, microbatch: int | None = None) -> bool:
        """As `Cheat.picks`."""
        return round_ > 0 and super().picks(round_)


def adapt(cheat: Cheat, spec: ModelSpec, *, tell: bool = False) -> Adapted:
    """What an adaptive one does with a model's rates. Its fraction is that of its stake which it thinks it can lose."""
    stake = cheat.cheating.fraction * STAKE
    plan = best_plan(spec, stake)
    if tell:
        emit(
            "adapted",
            stake=stake,
            share=plan.share,
            profit=round(plan.profit, 6),
            withheld_profit=round(plan.withheld_profit, 6),
        )
    return Adapted(Cheating(cheat.cheating.kind, plan.share), cheat.address)
