"""Whether cheating pays: formulas against each other, and by brute force against `draw_audits` and `paid_rounds`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, pairwise, permutations, product
from math import inf, isclose
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.bench.verification_model import best_withholding
from commonweight.devnet.spec import devnet_spec
from commonweight.rules.audits import Audit, Kind, Verdict, draw_audits, left_outstanding, paid_rounds
from commonweight.rules.beacon import hash_chain, round_beacon
from commonweight.rules.economics import (
    Cheat,
    audit_cost,
    audits_pay,
    chance_caught,
    cheating_profit,
    collusion_share,
    expected_audits,
    finding_power,
    known_bad_share,
    leaving_gain,
    needed_rate,
    needed_stake,
    round_risk,
    scattered_risk,
    share_paid,
    shown_rate,
    waving_rate,
    waving_stake,
)
from commonweight.rules.epoch import report_units
from commonweight.rules.load import undivided
from commonweight.rules.panel import Owner, audit_units, is_known_bad, left_to_ask, rank_auditors, settled_verdict
from commonweight.rules.spec import ModelSpec, build_spec

amounts = st.just(0.0) | st.floats(1e-9, 1e6)
probabilities = st.floats(0, 1)


def spec_with(rounds: int = 30, microbatches: int = 16, stages: int = 2, **rates: str) -> ModelSpec:
    fields: dict[str, Any] = devnet_spec(stages, 1, "0x" + "ab" * 32, 10**6, rounds_per_epoch=rounds).model_dump()
    fields["training"]["microbatches_per_round"] = microbatches
    fields["verification"] |= {f"{name}_rate": rate for name, rate in rates.items()}
    return build_spec(fields)


@given(amounts, amounts, amounts, st.floats(0, 0.9), st.floats(0.1, 1))
def test_at_the_needed_rate_cheating_brings_nothing(
    reward: float, saved: float, gain: float, collusion: float, detection: float
) -> None:
    power = finding_power(detection, collusion)
    assert isclose(power, detection - collusion * detection)
    rate = needed_rate(reward=reward, stake=10, saved=saved, gain=gain, power=power)
    assert isclose(
        cheating_profit(rate * power, reward=reward, stake=10, saved=saved, gain=gain), 0, abs_tol=1e-9 * (saved + gain)
    )


@given(st.floats(1e-6, 1), amounts, amounts, amounts)
def test_at_the_needed_stake_cheating_brings_nothing_and_with_more_it_loses(
    found: float, reward: float, saved: float, gain: float
) -> None:
    stake = needed_stake(found, reward=reward, saved=saved, gain=gain)
    at = cheating_profit(found, reward=reward, stake=stake, saved=saved, gain=gain)
    assert at <= 1e-9 * (1 + saved + gain)
    assert stake == 0 or isclose(at, 0, abs_tol=1e-9 * (1 + saved + gain))
    assert cheating_profit(found, reward=reward, stake=stake + 1, saved=saved, gain=gain) < at


def test_what_is_never_found_no_stake_stops() -> None:
    assert needed_stake(0, reward=1, saved=0.5) == inf
    assert needed_rate(reward=0, stake=0, saved=1) == inf
    assert needed_stake(0, reward=1, saved=0) == 0


def test_examples_of_proof_of_sampling() -> None:
    assert isclose(needed_rate(reward=1, stake=10, saved=0.6), 0.0545, abs_tol=1e-4)
    assert isclose(needed_rate(reward=1, stake=10, saved=0.6, power=finding_power(collusion=0.3)), 0.0779, abs_tol=1e-4)
    assert isclose(needed_stake(0.01 * finding_power(collusion=0.3), reward=1, saved=0.6), 84.7, abs_tol=0.1)


@given(st.floats(1e-4, 1), st.integers(1, 200), st.floats(0, 1), st.floats(0, 10))
def test_the_stake_for_who_always_cheats_is_enough_for_who_cheats_less(
    risk: float, rounds: int, cost: float, gain: float
) -> None:
    stake = needed_stake(chance_caught(risk, rounds), reward=1, saved=cost, gain=gain)
    for bad in range(1, rounds + 1):
        part = bad / rounds
        found = chance_caught(risk, bad)
        assert cheating_profit(found, reward=1, stake=stake, saved=part * cost, gain=part * gain) <= 1e-9 * (1 + gain)


def test_about_nine_draws_an_epoch_find_a_cheat_on_a_tenth_within_five() -> None:
    units = 10**6
    assert isclose(chance_caught(9.21 / units, 0.1 * units * 5), 0.99, abs_tol=1e-4)


@given(probabilities, st.integers(0, 1000))
def test_chance_caught_is_that_of_at_least_one(risk: float, times: int) -> None:
    assert isclose(chance_caught(risk, times), 1 - (1 - risk) ** times, abs_tol=1e-9)


def test_audits_cost_and_number() -> None:
    spec = spec_with(round="0.02", microbatch="0.3", data="0.05", stages=3)
    middle = {Kind.ROUND: Fraction(3, 5), Kind.MICROBATCH: Fraction(882, 100)}
    assert expected_audits(spec, 1) == middle
    assert expected_audits(spec, 0) == middle | {Kind.DATA: Fraction(24)}
    assert expected_audits(spec, 2) == {Kind.ROUND: Fraction(3, 5), Kind.LOSS: Fraction(882, 100)}
    assert audit_cost(spec, Kind.ROUND) == Fraction(1, 50)
    assert audit_cost(spec, Kind.LOSS) == Fraction(98, 100) * Fraction(3, 10) / 16
    assert audit_cost(spec, Kind.DATA) == 0


def test_the_number_of_audits_is_that_of_the_draws() -> None:
    spec, epochs = spec_with(rounds=4, microbatches=4, round="0.3", microbatch="0.2", data="0.1"), 400
    counts: dict[tuple[int, Kind], int] = {}
    for epoch in range(epochs):
        for value in hash_chain(epoch.to_bytes(32, "big"), 4)[1:]:
            for audit in draw_audits(spec, 0, round_beacon(value, bytes(32)), undivided(2, 4)):
                counts[audit.stage, audit.kind] = counts.get((audit.stage, audit.kind), 0) + 1
    expected = {(stage, kind): n for stage in range(2) for kind, n in expected_audits(spec, stage).items()}
    assert counts.keys() == expected.keys()
    assert all(abs(counts[key] / epochs - n) < 4 * float(n / epochs) ** 0.5 for key, n in expected.items())


def draws(spec: ModelSpec) -> Iterator[tuple[float, Audit | None]]:
    """Every draw of one stage's round with its probability: the whole round, one microbatch, or nothing."""
    whole, single = float(spec.verification.round_rate), float(spec.verification.microbatch_rate)
    microbatches = spec.training.microbatches_per_round
    yield whole, Audit(0, 1, Kind.ROUND)
    for number in range(microbatches):
        yield (1 - whole) * single / microbatches, Audit(0, 1, Kind.LOSS, number)
    yield (1 - whole) * (1 - single), None


def shows(audit: Audit | None, cheat: Cheat, bad: int) -> bool:
    """Whether it looks at something false if the first `bad` microbatches are."""
    if audit is None or not bad:
        return False
    return audit.microbatch is None or cheat is Cheat.STEP or audit.microbatch < bad


some_rates = st.sampled_from(["0", "0.05", "0.3", "0.9", "1"])


@given(some_rates, some_rates, probabilities, st.integers(0, 4))
def test_round_risk_is_that_of_all_draws(whole: str, single: str, power: float, bad: int) -> None:
    spec = spec_with(microbatches=4, round=whole, microbatch=single, data=single)
    for cheat in (Cheat.WORK, Cheat.STEP):
        by_hand = power * sum(p for p, audit in draws(spec) if shows(audit, cheat, bad))
        assert isclose(round_risk(spec, cheat, bad, power), by_hand, abs_tol=1e-9)
    assert isclose(round_risk(spec, Cheat.TEXT, bad, power), 1 - (1 - float(single) * power) ** bad, abs_tol=1e-9)


@given(some_rates, some_rates, probabilities, probabilities)
def test_scattered_risk_is_that_of_rounds_with_so_many_false_microbatches(
    whole: str, single: str, share: float, power: float
) -> None:
    spec = spec_with(microbatches=3, round=whole, microbatch=single)
    weights = [(1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share**2 * (1 - share), share**3]
    mean = sum(weight * round_risk(spec, Cheat.WORK, bad, power) for bad, weight in enumerate(weights))
    assert isclose(scattered_risk(spec, share, power), mean, abs_tol=1e-9)


@given(st.integers(1, 12), some_rates, some_rates, st.integers(1, 12))
def test_what_a_lie_saves_is_no_larger_than_what_a_drawn_audit_shows_of_it(
    microbatches: int, whole: str, single: str, bad: int
) -> None:
    """That is why withholding doesn't pay: a false part of the round is shown by as many of the audits of parts."""
    spec, bad = spec_with(microbatches=microbatches, round=whole, microbatch=single), min(bad, microbatches)
    drawn = round_risk(spec, Cheat.WORK, microbatches)
    assert drawn == round_risk(spec, Cheat.STEP, bad)
    assert round_risk(spec, Cheat.WORK, bad) >= drawn * bad / microbatches - 1e-12


def long_run(spec: ModelSpec, odds: dict[tuple[Kind | None, bool], float]) -> float:
    """The share of rounds that are paid in the long run, by the rules: of every epoch that may follow, with whatever is
    outstanding by then. `odds` of a round: what is drawn of it, and whether that is withheld.
    """
    rounds = spec.economics.rounds_per_epoch
    epochs = []
    for played in product(odds.items(), repeat=rounds):
        probability, verdicts = 1.0, {}
        for round_, ((kind, is_withheld), p) in enumerate(played):
            probability *= p
            if kind is not None:
                audit = Audit(round_, 1, kind, None if kind is Kind.ROUND else 0)
                verdicts[audit] = Verdict.WITHHELD if is_withheld else Verdict.PASSED
        epochs.append((probability, verdicts))
    states = [frozenset(), frozenset({Kind.ROUND}), frozenset({Kind.LOSS}), frozenset({Kind.ROUND, Kind.LOSS})]
    chain, pay = np.zeros((4, 4)), np.zeros(4)
    for (before, outstanding), (p, verdicts) in product(enumerate(states), epochs):
        chain[before, states.index(left_outstanding(verdicts, outstanding))] += p
        pay[before] += p * len(paid_rounds(range(rounds), verdicts, outstanding)) / rounds
    return float(np.linalg.matrix_power(chain / chain.sum(axis=1, keepdims=True), 2**20)[0] @ pay)


def odds_of(spec: ModelSpec, cheat: Cheat, lies: dict[int, float]) -> dict[tuple[Kind | None, bool], float]:
    """For `long_run`, where so many microbatches are false with these probabilities, and all that shows is withheld."""
    odds: dict[tuple[Kind | None, bool], float] = {}
    for (bad, weight), (p, audit) in product(lies.items(), draws(spec)):
        outcome = audit.kind if audit else None, shows(audit, cheat, bad)
        odds[outcome] = odds.get(outcome, 0) + p * weight
    return odds


@given(st.integers(1, 3), some_rates, some_rates, probabilities, st.sampled_from([Cheat.WORK, Cheat.STEP]))
def test_share_paid_is_what_paid_rounds_leaves_over_all_draws(
    rounds: int, whole: str, single: str, share: float, cheat: Cheat
) -> None:
    spec = spec_with(rounds=rounds, microbatches=2, round=whole, microbatch=single)
    paid = long_run(spec, odds_of(spec, cheat, {0: 1 - share, 2: share}))
    assert isclose(share_paid(spec, share), paid, abs_tol=1e-6)


@given(st.integers(1, 3), some_rates, some_rates, st.lists(probabilities, min_size=4, max_size=4))
def test_who_withholds_is_paid_for_no_more_than_is_true(
    rounds: int, whole: str, single: str, weights: list[float]
) -> None:
    """However the lies are spread over rounds and microbatches: also where few audits but those of whole rounds show
    them, and most of the others pass. So it doesn't pay, even if computing costs all that it earns.
    """
    spec = spec_with(rounds=rounds, microbatches=3, round=whole, microbatch=single)
    weights = weights if sum(weights) > 0.1 else [1, 0, 0, 0]
    lies = {bad: weight / sum(weights) for bad, weight in enumerate(weights)}
    true = 1 - sum(bad * weight for bad, weight in lies.items()) / 3
    if whole != "0" or single != "0":
        assert long_run(spec, odds_of(spec, Cheat.WORK, lies)) <= true + 1e-6


@given(st.integers(1, 60), some_rates, some_rates)
def test_who_withholds_and_cheats_in_all_is_never_paid_again(rounds: int, whole: str, single: str) -> None:
    spec = spec_with(rounds=rounds, microbatches=4, round=whole, microbatch=single)
    for cheat, bad in ((Cheat.WORK, 4), (Cheat.STEP, 1)):
        assert share_paid(spec, 1) == (round_risk(spec, cheat, bad) == 0)
    assert share_paid(spec, 0) == 1


@given(st.floats(1e-4, 1), probabilities, st.integers(1, 40), st.integers(1, 4), probabilities, probabilities)
def test_withholding_brings_nothing_to_who_stays_and_a_bounded_sum_to_who_leaves(
    risk: float, of_whole: float, rounds: int, epochs: int, saved: float, false: float
) -> None:
    """By the best of all policies, at any rate, in epochs of any length, even if computing costs all that it earns.

    `of_whole`: the share of the audits that are of whole rounds, which show each lie; `false`: the part of a round that
    is false, if it is, which is the share of the others that show it, and the most that is saved.
    """
    shown, saved = of_whole + (1 - of_whole) * false, saved * false
    stays = best_withholding(risk, rounds, saved, shown=shown, epochs=epochs, stays=True)
    assert abs(stays.gain) < 1e-6
    assert not any(map(any, stays.cheats))
    leaves = best_withholding(risk, rounds, saved, shown=shown, epochs=epochs)
    assert -1e-9 <= leaves.gain <= leaving_gain(risk, saved / false if false else 0) + 1e-6


@pytest.mark.parametrize("epochs", [(4,), (2, 2), (1, 2, 1)])
@pytest.mark.parametrize("rates", [("0.003", "0.31"), ("0.5", "0.02"), ("0.3", "0"), ("0", "0.9"), ("0.2", "1")])
def test_no_policy_brings_who_stays_more_than_honesty(epochs: tuple[int, ...], rates: tuple[str, str]) -> None:
    """By brute force, by `paid_rounds`: in every round none, one or both of two microbatches are false, whatever has
    happened before; and what is drawn of it is withheld if it shows that, or served, or withheld though it is true.
    After these epochs it is honest until an audit has passed.
    """
    spec = spec_with(microbatches=2, round=rates[0], microbatch=rates[1])
    drawn = round_risk(spec, Cheat.STEP, 1)
    starts = list(accumulate(epochs, initial=0))

    def gain(history: tuple[tuple[int, Audit | None, bool], ...]) -> float:
        paid, outstanding = 0, frozenset[Kind]()
        for start, end in pairwise(starts):
            verdicts = {
                replace(audit, round=start + number): Verdict.WITHHELD if is_withheld else Verdict.PASSED
                for number, (_, audit, is_withheld) in enumerate(history[start:end])
                if audit is not None
            }
            paid += len(paid_rounds(range(start, end), verdicts, outstanding))
            outstanding = left_outstanding(verdicts, outstanding)
        saved = sum(bad for bad, _, _ in history) / 2
        return paid - len(history) + saved - (1 / drawn - 1 if outstanding else 0)

    def best(history: tuple[tuple[int, Audit | None, bool], ...]) -> float:
        if len(history) == starts[-1]:
            return gain(history)
        return max(
            sum(
                p * max(best((*history, (bad, audit, it))) for it in withholding(audit, bad))
                for p, audit in merged(bad)
                if p
            )
            for bad in range(3)
        )

    def merged(bad: int) -> list[tuple[float, Audit | None]]:
        """Audits of one microbatch count as one where both show what is false, or neither."""
        whole, first, second, nothing = draws(spec)
        return [whole, first, second, nothing] if bad == 1 else [whole, (first[0] + second[0], first[1]), nothing]

    def withholding(audit: Audit | None, bad: int) -> tuple[bool, ...]:
        if audit is None:
            return (False,)
        return (True,) if shows(audit, Cheat.WORK, bad) else (False, True)

    assert best(()) == pytest.approx(0, abs=1e-9)


def test_who_has_patience_and_leaves_gains_the_bound() -> None:
    """In long epochs, too: who only cheats in the first rounds of each has none before them to lose."""
    bound = leaving_gain(0.02, 0.6)
    assert bound == pytest.approx(29)
    for rounds in (1, 10):
        assert isclose(best_withholding(0.02, rounds, 0.6, epochs=2000 // rounds).gain, bound, rel_tol=0.01)
    assert leaving_gain(0.5, 0.3) == leaving_gain(0, 0) == 0
    assert leaving_gain(0, 0.3) == inf


def panel_outcomes(seats: int, friends: int, rate: Fraction, says: Callable[[bool, bool], Verdict]) -> Fraction:
    """The probability that a unit passes, over all rankings: by `settled_verdict`, and who it is that is asked.

    `says`: what one says of it, by whether it is a friend, and whether it is the referee. A false report counts for
    nothing, it takes its auditor out.
    """
    owners = [*(f"0x{number:040x}" for number in range(seats)), None]
    passed = Fraction(0)
    rankings = list(permutations(owners))
    for ranking in rankings:
        for is_bad, weight in ((True, rate), (False, 1 - rate)):
            left: Sequence[Owner] = ranking[1:] if is_bad and ranking[0] is not None else ranking
            opinions: list[tuple[str | None, Verdict]] = []
            while (decided := settled_verdict(opinions)) is None:
                owner, *left = left_to_ask(left, len(opinions))
                is_friend = owner is not None and int(owner, 16) < friends
                opinions.append((owner, says(is_friend, owner is None)))
            passed += weight * (decided is Verdict.PASSED)
    return passed / len(rankings)


@pytest.mark.parametrize("rate", [Fraction(0), Fraction(1, 10), Fraction(1)])
@pytest.mark.parametrize(("seats", "friends"), [(n, c) for n in range(5) for c in range(n + 1)])
def test_collusion_is_that_of_all_rankings_and_nobody_is_framed(seats: int, friends: int, rate: Fraction) -> None:
    def on_false_work(is_friend: bool, _: bool) -> Verdict:
        return Verdict.PASSED if is_friend else Verdict.FAILED

    def on_good_work(is_friend: bool, _: bool) -> Verdict:
        return Verdict.FAILED if is_friend else Verdict.PASSED

    passes = panel_outcomes(seats, friends, rate, on_false_work)
    assert isclose(collusion_share(seats, friends, float(rate)), passes, abs_tol=1e-12)
    assert panel_outcomes(seats, friends, rate, on_good_work) == 1


@given(st.integers(1, 9), probabilities)
def test_what_is_known_bad_is_that_of_all_rankings(seats: int, rate: float) -> None:
    """Where the first is a seat's holder, it is shown it; then the next is asked, which may be the referee."""
    first, second = seats / (seats + 1), (seats - 1) / seats
    shown, asked = first * rate, first * (1 + rate * second)
    assert isclose(known_bad_share(seats, rate), shown / asked, abs_tol=1e-12)
    assert known_bad_share(seats, rate) <= rate
    assert known_bad_share(0, rate) == 0


@given(st.integers(1, 9), st.sampled_from(["0", "0.02", "0.3", "1"]), st.integers(1, 40), st.floats(0, 100))
def test_waving_audits_through_doesn_t_pay_from_the_stake_and_the_rate_on(
    seats: int, rate: str, rounds: int, stake: float
) -> None:
    spec = spec_with(rounds=rounds, known_bad=rate)
    load = tuple(range(spec.training.microbatches_per_round))
    epoch = rounds * report_units(spec, 0, len(load))
    units = ((Kind.ROUND, None), (Kind.MICROBATCH, 0))
    rewards = [audit_units(spec, Audit(0, 0, *unit), load) / epoch for unit in units]

    def profit(found: float, stake: float) -> float:
        """Of the audit that pays most to be passed unseen; to replay it costs as much as it pays."""
        return max(cheating_profit(found, reward=reward, stake=stake, saved=reward) for reward in rewards)

    found = known_bad_share(seats, shown_rate(spec))
    enough = waving_stake(spec, seats)
    assert (enough == inf) == (rate == "0")
    if enough < inf:
        assert isclose(profit(found, enough), 0, abs_tol=1e-12) or (enough == 0 and profit(found, 0) <= 0)
    least = waving_rate(spec, seats, stake)
    if least < inf:
        assert isclose(profit(known_bad_share(seats, least), stake), 0, abs_tol=1e-9)
    else:
        assert profit(known_bad_share(seats, 1), stake) > -1e-9


def test_nothing_is_known_bad_where_there_is_nothing_to_exchange() -> None:
    assert shown_rate(spec_with(known_bad="0.5")) == 0.5
    assert shown_rate(spec_with(microbatches=1, known_bad="0.5")) == 0
    assert shown_rate(spec_with(stages=1, known_bad="0.5")) == 0
    assert waving_stake(spec_with(stages=1, known_bad="0.5"), 2) == inf


@pytest.mark.parametrize("seats", [0, 1, 2])
def test_auditors_get_what_statements_pay_them(seats: int) -> None:
    """By what is drawn in many epochs, all owners being there and none the provider's."""
    spec, epochs = spec_with(rounds=4, microbatches=4, round="0.3", microbatch="0.2", data="0", known_bad="0.5"), 300
    owners = [f"0x{number:040x}" for number in range(1, seats + 1)]
    loads = undivided(2, 4)
    done = epochs * 4 * 2 * report_units(spec, 0, 4)
    paid = 0
    for epoch in range(epochs):
        seed = epoch.to_bytes(32, "big")
        for round_, value in enumerate(hash_chain(seed, 4)[1:]):
            beacon = round_beacon(value, bytes(32))
            for audit in draw_audits(spec, round_, beacon, loads):
                ranking, (load,) = rank_auditors(beacon, audit, owners), loads[audit.stage]
                asked = ranking[:2] if is_known_bad(spec, seed, audit, load) else ranking[:1]
                paid += sum(owner is not None for owner in asked) * audit_units(spec, audit, load)
    assert isclose(audits_pay(spec, seats), paid / (done + paid), rel_tol=0.08)
