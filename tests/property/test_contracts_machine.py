"""The contracts against the rules: any actions by anybody, in any order, and not one unit is lost or made.

The real bytecode runs in this process; `contracts_model.py` has the rules in plain Python.
"""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from commonweight.rules.emission import MIN_SUPPLY
from tests.property.contracts_world import ARBITRATION_S, STREAM_S, WINDOW_S, World, started

Pick = Callable[[int], int]
"""A number from 0 up to, not including, the given one."""
Action = Callable[[World, Pick], object]

WAITS_S = (1, 13, 600, WINDOW_S, ARBITRATION_S, STREAM_S // 3)


def someone(world: World, pick: Pick) -> str:
    return world.actors[pick(len(world.actors))]


def anyone(world: World, pick: Pick) -> str:
    """Now and then an official."""
    return world.everybody[pick(len(world.everybody))]


def amount(pick: Pick) -> int:
    """From nothing to more than anybody has, mostly little, seldom round."""
    return (pick(1_000) ** 2 * 7 + pick(10)) * (1, 1, 10**2, 10**4, 10**6)[pick(5)]


def some(world: World, pick: Pick, largest: int) -> dict[str, int]:
    """Whole numbers for a few actors, not all zero."""
    return {someone(world, pick): pick(largest) + 1 for _ in range(1 + pick(8))}


def propose(world: World, pick: Pick) -> bool:
    if world.settlement_model.bonds[world.coordinator] < world.terms.proposer_bond and pick(4):
        world.deposit_bond(world.coordinator, world.coordinator, world.terms.proposer_bond)
    limit = world.terms.initial_emission >> len(world.settlement_model.finals) // world.terms.halving_epochs
    minted = (limit, limit + 1, 0, pick(limit + 1), pick(limit + 1), pick(limit + 1))[pick(6)]
    sender = world.coordinator if pick(10) else anyone(world, pick)
    return world.propose(sender, minted, some(world, pick, 10**12), some(world, pick, 10**6))


def advance(world: World, pick: Pick) -> bool:
    """Takes the pending epoch on, waiting where it has to; proposes one where none is pending."""
    pending = world.settlement_model.pending
    if pending is None:
        return propose(world, pick)
    if not pending.challenger and pick(3) == 0:
        return world.challenge(someone(world, pick))
    if pending.challenger and not pending.upheld:
        if pick(3):
            return world.resolve(bool(pick(2)))
        world.wait(max(0, pending.resolvable_until - world.now))
        return world.expire()
    if not pending.upheld:
        world.wait(max(0, pending.final_at - world.now))
    return world.finalize()


def slash_id(world: World, pick: Pick) -> int:
    ids = world.open_slashes()
    return ids[pick(len(ids))] if ids and pick(8) else pick(len(world.stakes.slashes) + 2)


def seat(world: World, pick: Pick) -> tuple[str, int]:
    """An owner and a stage, mostly of a seat that there is."""
    taken = [(owner, stage) for owner, seats in world.stakes.seats.items() for stage in seats]
    return taken[pick(len(taken))] if taken and pick(6) else (someone(world, pick), pick(world.terms.stages + 1))


def equivocate(world: World, pick: Pick) -> bool:
    owner, stage = seat(world, pick)
    signers = world.signers_of(owner)
    return world.equivocate(someone(world, pick), signers[pick(len(signers))], stage, pick(6))


def register(world: World, pick: Pick) -> bool:
    """About as many shares as a model needs at least, or may have at most."""
    genesis = (pick(3) * MIN_SUPPLY // 4, pick(3) * MIN_SUPPLY // 4)
    emission = (pick(3) * MIN_SUPPLY // 8 + pick(2), pick(4))
    most = sum(genesis) + 2 * emission[0] * emission[1]
    limits = (2**96, 2**96 + 1, most, max(0, most - 1))
    return world.register(someone(world, pick), genesis, emission, limits[pick(4)])


EPOCHS: dict[str, Action] = {
    "advance": advance,
    "propose": propose,
    "challenge": lambda w, p: w.challenge(anyone(w, p)),
    "resolve": lambda w, p: w.resolve(bool(p(2))),
    "resolve another challenge": lambda w, p: w.resolve(bool(p(2)), (-WINDOW_S, -1, 1)[p(3)]),
    "resolve uncalled": lambda w, p: w.resolve_uncalled(anyone(w, p)),
    "expire": lambda w, p: w.expire(),
    "finalise": lambda w, p: w.finalize(),
    "deposit a bond": lambda w, p: w.deposit_bond(someone(w, p), anyone(w, p), amount(p)),
    "withdraw a bond": lambda w, p: w.withdraw_bond(anyone(w, p), someone(w, p), amount(p)),
}
CLAIMS: dict[str, Action] = {
    "claim": lambda w, p: w.claim(someone(w, p), 0),
    "claim by an old leaf": lambda w, p: w.claim(someone(w, p), 1 + p(20)),
    "claim for many": lambda w, p: w.claim_many([someone(w, p) for _ in range(1 + p(5))]),
    "claim the split": lambda w, p: w.claim_split(p(4)),
}
SHARES: dict[str, Action] = {
    "transfer": lambda w, p: w.transfer(anyone(w, p), anyone(w, p), p(102)),
    "deposit": lambda w, p: w.deposit(anyone(w, p), amount(p)),
    "withdraw": lambda w, p: w.withdraw(anyone(w, p), someone(w, p)),
    "withdraw to oneself": lambda w, p: (lambda who: w.withdraw(who, who))(anyone(w, p)),
}
PAYMENTS: dict[str, Action] = {
    "pay": lambda w, p: w.pay(someone(w, p), amount(p)),
    "collect": lambda w, p: (lambda value: w.collect(w.cashier, someone(w, p), value, p(value + 1), False))(amount(p)),
    "collect wrongly": lambda w, p: w.collect(anyone(w, p), someone(w, p), amount(p), amount(p), bool(p(2))),
    "sweep": lambda w, p: w.sweep(),
    "pay an operator": lambda w, p: w.pay_operator(someone(w, p), 0),
    "pay an operator by an old leaf": lambda w, p: w.pay_operator(someone(w, p), 1 + p(20)),
    "pay the treasury": lambda w, p: w.pay_treasury(w.treasury if p(4) else anyone(w, p), someone(w, p)),
}
STAKES: dict[str, Action] = {
    "bond": lambda w, p: w.bond(someone(w, p), someone(w, p), amount(p)),
    "bond a seat's worth": lambda w, p: w.bond(someone(w, p), someone(w, p), w.terms.seat_stake),
    "unbond": lambda w, p: w.unbond(anyone(w, p), someone(w, p), amount(p)),
    "take a seat": lambda w, p: w.take_seat(someone(w, p), p(w.terms.stages + 1)),
    "take a seat again": lambda w, p: w.take_seat(*seat(w, p)),
    "leave a seat": lambda w, p: w.leave_seat(*seat(w, p)),
    "release a seat": lambda w, p: w.release_seat(*seat(w, p)),
    "bind a key": lambda w, p: w.bind(someone(w, p), w.signers[p(len(w.signers))]),
    "equivocate": equivocate,
    "report": lambda w, p: w.report(someone(w, p), *seat(w, p), p(6)),
    "contest": lambda w, p: w.contest(someone(w, p), slash_id(w, p)),
    "judge": lambda w, p: w.judge_slash(slash_id(w, p), bool(p(2))),
    "execute": lambda w, p: w.execute_slash(slash_id(w, p)),
    "drop": lambda w, p: w.drop_slash(slash_id(w, p)),
}
REGISTRATIONS: dict[str, Action] = {"register": register}
TIME: dict[str, Action] = {"wait": lambda w, p: w.wait(WAITS_S[p(len(WAITS_S))])}


NEVER = {
    *("resolve another challenge", "resolve uncalled", "claim by an old leaf", "pay an operator by an old leaf"),
    "wait",  # it returns nothing
}
"""Actions that don't succeed, whoever does them when."""


def picked(data: st.DataObject) -> Pick:
    return lambda below: data.draw(st.integers(0, below - 1))


class ContractsMachine(RuleBasedStateMachine):
    """Few accounts, so that what they do meets."""

    @initialize()
    def start(self) -> None:
        self.world = started(4)

    @rule(data=st.data(), action=st.sampled_from(list(EPOCHS.values())))
    def an_epoch_goes_on(self, data: st.DataObject, action: Action) -> None:
        action(self.world, picked(data))

    @rule(data=st.data(), action=st.sampled_from(list(CLAIMS.values())))
    def shares_are_claimed(self, data: st.DataObject, action: Action) -> None:
        action(self.world, picked(data))

    @rule(data=st.data(), action=st.sampled_from(list(SHARES.values())))
    def shares_earn_and_move(self, data: st.DataObject, action: Action) -> None:
        action(self.world, picked(data))

    @rule(data=st.data(), action=st.sampled_from(list(PAYMENTS.values())))
    def answers_are_paid(self, data: st.DataObject, action: Action) -> None:
        action(self.world, picked(data))

    @rule(data=st.data(), action=st.sampled_from(list(STAKES.values())))
    def stake_is_at_risk(self, data: st.DataObject, action: Action) -> None:
        action(self.world, picked(data))

    @rule(data=st.data())
    def a_model_is_registered(self, data: st.DataObject) -> None:
        register(self.world, picked(data))

    @rule(seconds=st.sampled_from(WAITS_S))
    def time_passes(self, seconds: int) -> None:
        self.world.wait(seconds)

    @invariant()
    def no_unit_is_lost(self) -> None:
        if hasattr(self, "world"):
            self.world.audit_money()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.audit()
            self.world.empty()


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_any_sequence_of_actions_keeps_the_books() -> None:
    examples = max(1, settings.default.max_examples // 4)  # type: ignore[union-attr]
    run_state_machine_as_test(ContractsMachine, settings=settings(max_examples=examples, stateful_step_count=40))


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_ten_thousand_actions_of_fifty_actors_lose_nothing() -> None:
    """Not one unit is unaccounted for at any time, nor when everybody has taken out what is theirs."""
    world, draw = started(50), random.Random(20261122)
    actions = [
        action for group in (EPOCHS, CLAIMS, SHARES, PAYMENTS, STAKES, REGISTRATIONS, TIME) for action in group.items()
    ]
    actions += [("advance", advance)] * 3 + [(name, STAKES[name]) for name in ("report", "contest", "judge")]
    succeeded: Counter[str] = Counter()
    for step in range(10_000):
        name, action = draw.choice(actions)
        succeeded[name] += action(world, draw.randrange) is True
        if step % 500 == 0:
            world.audit()
    world.audit()
    assert {name for name, _ in actions if not succeeded[name]} == NEVER
    assert len(world.settlement_model.finals) > 100
    assert world.refusals["EpochSettlementRootReplaced"] > 100
    assert world.settlement_model.burnt > 0
    assert world.stakes.outrun > 0
    wanted = {"EpochSettlementArbitrationOver", "ProviderRegistrySignerTaken", "ModelRegistryCapTooSmall"}
    assert wanted <= set(world.refusals)
    world.empty()
