"""The simulated cheats fare as the closed forms say, by the rules' own draws and pay."""

from collections.abc import Sequence
from itertools import product
from math import isclose, sqrt

import pytest

from commonweight.bench.verification_model import (
    WITHIN_EPOCHS,
    Adversary,
    Outcome,
    best_share,
    best_withholding,
    in_one,
    never,
    scattered,
    simulate,
    suite,
    whole_rounds,
    withholds_best,
)
from commonweight.devnet.spec import devnet_spec
from commonweight.rules.audits import Audit, Kind, Verdict, left_outstanding, paid_rounds
from commonweight.rules.economics import (
    SAVED,
    Cheat,
    chance_caught,
    cheating_profit,
    expected_audits,
    finding_power,
    round_risk,
    scattered_risk,
    share_paid,
)
from commonweight.rules.spec import ModelSpec, build_spec

EPOCHS, ROUNDS, MICROBATCHES = 600, 8, 3
STAKE, COST = 0.5, 0.8
SHOWN = frozenset({Verdict.FAILED})
EVERYTHING = frozenset({Verdict.FAILED, Verdict.PASSED})


def small_spec() -> ModelSpec:
    fields = devnet_spec(1, 1, "0x" + "ab" * 32, 10**6, rounds_per_epoch=ROUNDS).model_dump()
    fields["training"]["microbatches_per_round"] = MICROBATCHES
    fields["verification"] |= {"round_rate": "0.06", "microbatch_rate": "0.09", "data_rate": "0.02"}
    return build_spec(fields)


def play(adversary: Adversary, *, epochs: int = EPOCHS) -> Outcome:
    (outcome,) = simulate(small_spec(), [adversary], epochs=epochs, seed=4, stake=STAKE, cost=COST)
    return outcome


def is_near(measured: float, expected: float, samples: int) -> bool:
    """Within four standard errors of a mean of numbers between 0 and 1."""
    return abs(measured - expected) <= 4 * sqrt(max(expected * (1 - expected), 1 / samples) / samples)


def test_fraud_is_proven_as_often_as_the_rates_say_and_costs_the_epoch_and_the_stake() -> None:
    spec = small_spec()
    cases = list(product(Cheat, (0.3, 1.0), (0.0, 0.5)))
    adversaries = [Adversary("", cheat, whole_rounds(spec, share), collusion=r) for cheat, share, r in cases]
    outcomes = simulate(spec, adversaries, epochs=EPOCHS, seed=4, stake=STAKE, cost=COST)
    for (cheat, share, collusion), outcome in zip(cases, outcomes, strict=True):
        risk = share * round_risk(spec, cheat, MICROBATCHES, finding_power(collusion=collusion))
        in_epoch = chance_caught(risk, ROUNDS)
        assert is_near(outcome.caught, chance_caught(risk, ROUNDS * WITHIN_EPOCHS), EPOCHS // WITHIN_EPOCHS)
        assert is_near(outcome.paid, 1 - in_epoch, EPOCHS)
        profit = cheating_profit(in_epoch, reward=1, stake=STAKE, saved=share * COST * float(SAVED[cheat]))
        assert abs(outcome.profit - profit) < 4 * outcome.profit_error


def test_scattered_microbatches_are_found_as_often_as_the_rates_say() -> None:
    spec = small_spec()
    outcome = play(Adversary("", Cheat.WORK, scattered(spec, 0.3)))
    assert is_near(outcome.paid, 1 - chance_caught(scattered_risk(spec, 0.3), ROUNDS), EPOCHS)


def test_what_is_false_in_one_microbatch_is_found_as_often_as_the_rates_say() -> None:
    spec = small_spec()
    outcome = play(Adversary("", Cheat.WORK, in_one(spec, 0.4)))
    risk = 0.4 * (0.06 + 0.94 * 0.09 / MICROBATCHES)
    assert is_near(outcome.paid, 1 - chance_caught(risk, ROUNDS), EPOCHS)
    assert isclose(0.4 * round_risk(spec, Cheat.WORK, 1), risk)


def test_who_withholds_is_never_convicted_and_paid_as_the_formula_says() -> None:
    spec = small_spec()
    cases = list(product((Cheat.WORK, Cheat.STEP), (0.2, 0.6, 1.0)))
    adversaries = [Adversary("", cheat, whole_rounds(spec, share), SHOWN) for cheat, share in cases]
    outcomes = simulate(spec, adversaries, epochs=EPOCHS, seed=5, stake=STAKE, cost=COST)
    for (cheat, share), outcome in zip(cases, outcomes, strict=True):
        expected = share_paid(spec, share)
        profit = share * COST * float(SAVED[cheat]) - (1 - outcome.paid)
        assert outcome.caught == 0
        assert is_near(outcome.paid, expected, EPOCHS // 10)  # what is outstanding spoils about so many in a row
        assert isclose(outcome.profit, profit, abs_tol=0.03)


def test_text_cant_be_withheld() -> None:
    outcome = play(Adversary("", Cheat.TEXT, whole_rounds(small_spec(), 1), SHOWN))
    assert is_near(outcome.paid, 1 - chance_caught(0.02, ROUNDS * MICROBATCHES), EPOCHS)
    assert outcome.caught > 0


def test_honest_providers_lose_nothing_but_by_false_alarms() -> None:
    honest = play(Adversary("", Cheat.WORK, never))
    assert (honest.paid, honest.profit, honest.caught) == (1, 0, 0)
    expected = expected_audits(small_spec(), 0)
    assert isclose(honest.audits, expected[Kind.ROUND] + expected[Kind.LOSS], abs_tol=0.1)
    accused = play(Adversary("", Cheat.WORK, never, false_alarms=0.05))
    loss = chance_caught(0.05, float(sum(expected.values()))) * (1 + STAKE)
    assert abs(-accused.profit - loss) < 4 * accused.profit_error


def test_who_withholds_everything_is_paid_as_who_computes_nothing() -> None:
    """Until the first audit, and never again: what it withheld is outstanding for good."""
    spec = small_spec()
    everything = play(Adversary("", Cheat.WORK, never, EVERYTHING))
    nothing = play(Adversary("", Cheat.WORK, whole_rounds(spec, 1), SHOWN))
    assert everything.paid == nothing.paid < 10 / EPOCHS
    assert everything.profit < nothing.profit < 0


def test_who_leaves_and_comes_back_owes_nothing() -> None:
    spec = small_spec()
    stays, leaves = (
        play(Adversary("", Cheat.WORK, whole_rounds(spec, 1), SHOWN, leaves=leaves)) for leaves in (False, True)
    )
    first = 1 - chance_caught(round_risk(spec, Cheat.WORK, MICROBATCHES), ROUNDS)
    # Paid in an epoch in which nothing was drawn, and in none after the first in which something was.
    expected = sum(first**epoch for epoch in range(1, WITHIN_EPOCHS + 1)) / WITHIN_EPOCHS
    assert stays.paid < expected / 2
    assert is_near(leaves.paid, expected, EPOCHS // WITHIN_EPOCHS)


def test_equal_seeds_give_equal_numbers() -> None:
    adversary = Adversary("", Cheat.WORK, scattered(small_spec(), 0.3))
    assert play(adversary, epochs=10) == play(adversary, epochs=10)


@pytest.mark.parametrize("cheat", Cheat)
@pytest.mark.parametrize(("stake", "cost"), [(0.0, 1.0), (0.5, 0.8), (20.0, 1.0)])
def test_the_best_share_brings_more_than_others(cheat: Cheat, stake: float, cost: float) -> None:
    spec = small_spec()
    best = best_share(spec, cheat, stake=stake, cost=cost)
    others = [
        Adversary("", cheat, whole_rounds(spec, share), SHOWN if w else frozenset())
        for share in (0.01, 0.5, 1)
        for w in (False, True)
    ]
    best_outcome, *outcomes = simulate(spec, [best, *others], epochs=400, seed=1, stake=stake, cost=cost)
    assert all(best_outcome.profit >= o.profit - 4 * (best_outcome.profit_error + o.profit_error) for o in outcomes)


@pytest.mark.parametrize("rounds", [(4,), (2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    ("risk", "saved", "shown"), [(0.1, 0.8, 1), (0.3, 0.9, 1), (0.4, 1.0, 1), (0.1, 0.3, 0.4), (0.2, 0.6, 0.3)]
)
def test_the_best_withholding_is_the_best_of_all_policies(
    rounds: tuple[int, ...], stays: bool, risk: float, saved: float, shown: float
) -> None:
    """By brute force: every choice after every history of draws, four rounds long. In the last case less of a false
    round is shown than it saves, so that it pays to stay.
    """

    def best(history: tuple[tuple[bool, Verdict | None], ...]) -> float:
        count, is_due = paid(history, rounds)
        gain = count - len(history) + sum(saved * cheats for cheats, _ in history)
        if len(history) == sum(rounds):
            return gain - is_due * stays * (1 / risk - 1)
        going_on = max(
            sum(
                p * best((*history, (cheats, verdict)))
                for p, verdict in (
                    (1 - risk, None),
                    (risk * shown * cheats, Verdict.WITHHELD),
                    (risk * (1 - shown * cheats), Verdict.PASSED),
                )
                if p
            )
            for cheats in (False, True)
        )
        return max(gain, going_on) if is_due and not stays else going_on

    found = best_withholding(risk, rounds[0], saved, shown=shown, epochs=len(rounds), stays=stays)
    assert isclose(found.gain, best(()), abs_tol=1e-9)
    assert not stays or (found.gain > 0) == (saved > shown)


def paid(history: Sequence[tuple[bool, Verdict | None]], rounds: Sequence[int]) -> tuple[int, bool]:
    """How many rounds of all epochs are paid, and whether an audit is due after them."""
    count, outstanding, left = 0, frozenset[Kind](), list(history)
    for length in rounds:
        verdicts = {Audit(n, 0, Kind.ROUND): verdict for n, (_, verdict) in enumerate(left[:length]) if verdict}
        count += len(paid_rounds(range(len(left[:length])), verdicts, outstanding))
        outstanding = left_outstanding(verdicts, outstanding)
        left = left[length:]
    return count, bool(outstanding)


@pytest.mark.parametrize("cheat", [Cheat.WORK, Cheat.STEP])
@pytest.mark.parametrize("rates", [("0.06", "0"), ("0.05", "0.25"), ("0", "0.1")])
def test_who_withholds_best_gains_what_the_induction_says(cheat: Cheat, rates: tuple[str, str]) -> None:
    fields = small_spec().model_dump()
    fields["verification"] |= {"round_rate": rates[0], "microbatch_rate": rates[1]}
    spec = build_spec(fields)
    (outcome,) = simulate(spec, [withholds_best(spec, cheat, cost=0.9)], epochs=1000, seed=2, stake=5, cost=0.9)
    risk = round_risk(spec, cheat, MICROBATCHES)
    gain = best_withholding(risk, ROUNDS, 0.9 * float(SAVED[cheat]), epochs=WITHIN_EPOCHS).gain
    assert gain > 0
    assert outcome.caught == 0
    assert outcome.most == gain / ROUNDS / WITHIN_EPOCHS
    assert abs(outcome.profit - outcome.most) < 4 * outcome.profit_error + 1e-12


@pytest.mark.parametrize("rounds", [1, 2, 8, 30])
@pytest.mark.parametrize("rates", [("0.05", "0.06"), ("0.3", "0"), ("0", "0.3"), ("0.05", "0.9")])
def test_who_stays_loses_by_withholding(rounds: int, rates: tuple[str, str]) -> None:
    """Whatever part of its work is false, in whole rounds or in parts."""
    fields = small_spec().model_dump()
    fields["verification"] |= {"round_rate": rates[0], "microbatch_rate": rates[1]}
    fields["economics"]["rounds_per_epoch"] = rounds
    spec = build_spec(fields)
    plans = [(Cheat.WORK, whole_rounds), (Cheat.WORK, scattered), (Cheat.WORK, in_one), (Cheat.STEP, whole_rounds)]
    adversaries = [Adversary("", cheat, plan(spec, share), SHOWN) for share in (0.3, 0.9) for cheat, plan in plans]
    outcomes = simulate(spec, adversaries, epochs=3000 // rounds // 5 * 5, seed=6, stake=0, cost=0.8)
    assert all(outcome.profit < 0 == outcome.caught for outcome in outcomes)


def test_the_suite_has_a_name_for_each() -> None:
    adversaries = suite(small_spec(), stake=STAKE, cost=COST)
    outcomes = simulate(small_spec(), adversaries, epochs=10, seed=1, stake=STAKE, cost=COST)
    assert len({outcome.name for outcome in outcomes}) == len(adversaries)
