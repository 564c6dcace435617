"""Whether cheating pays: what a model's audits find, what that costs a cheat, and what it had saved.

Proof of sampling: being honest is the best reply if and only if `p (1 − r) q (R + S) > C + B`. p is the rate of audits,
r the share of auditors that collude, q the power of an audit, R the reward of a unit, S the stake, C the compute that
cheating on the unit saves, B what it brings from outside. Amounts are in any one currency; those without another
are in rewards of an epoch, what a stage earns in one. Unlike R of a single unit, fraud costs all of that.
"""

import math
from enum import Enum
from fractions import Fraction

from commonweight.rules.audits import Kind
from commonweight.rules.spec import ModelSpec


class Cheat(Enum):
    """What is false, and so which audits show it."""

    WORK = "work"
    """Outputs or input gradients: audits of microbatches and of whole rounds."""
    STEP = "step"
    """Weight gradients, the optimizer's step, the next state: audits of whole rounds."""
    TEXT = "text"
    """The tokens of the first stage: audits of the data. (Others see it, too, if the auditor has the text.)"""


SAVED = {Cheat.WORK: Fraction(1), Cheat.STEP: Fraction(1, 3), Cheat.TEXT: Fraction(0)}
"""The most that each saves, of a round's work: all; the weights' gradients, one product of three; nothing."""

REPLAYED = Fraction(2, 3)
"""What an audit of a microbatch costs, of the microbatch's work: forward and input gradient, two products of three."""


def expected_audits(spec: ModelSpec, stage: int) -> dict[Kind, Fraction]:
    """How many audits of each kind an epoch draws for a stage, on average; of the kinds that the stage has."""
    rates, rounds = spec.verification, spec.economics.rounds_per_epoch
    microbatches = rounds * spec.training.microbatches_per_round
    single = Kind.LOSS if stage == spec.stages - 1 else Kind.MICROBATCH
    whole = Fraction(rates.round_rate)
    audits = {Kind.ROUND: whole * rounds, single: (1 - whole) * Fraction(rates.microbatch_rate) * microbatches}
    return audits | ({Kind.DATA: Fraction(rates.data_rate) * microbatches} if stage == 0 else {})


def audit_cost(spec: ModelSpec, kind: Kind) -> Fraction:
    """The work of one kind's audits over the work of the stage that they audit."""
    whole = Fraction(spec.verification.round_rate)
    if kind is Kind.ROUND:
        return whole
    return Fraction(0) if kind is Kind.DATA else (1 - whole) * Fraction(spec.verification.microbatch_rate) * REPLAYED


def finding_power(detection: float = 1.0, collusion: float = 0.0) -> float:
    """(1 − r) q: the probability that the audit of a false unit says so."""
    return (1 - collusion) * detection


def round_risk(spec: ModelSpec, cheat: Cheat, bad: int, power: float = 1.0) -> float:
    """The probability that a round with `bad` false microbatches is found out; for a false step `bad` is 0 or 1."""
    rates = spec.verification
    whole, single, text = (float(rate) * power for rate in (rates.round_rate, rates.microbatch_rate, rates.data_rate))
    if bad == 0:
        return 0.0
    if cheat is Cheat.STEP:
        return whole
    if cheat is Cheat.TEXT:
        return chance_caught(text, bad)
    return whole + (1 - float(rates.round_rate)) * chance_caught(single, bad)


def scattered_risk(spec: ModelSpec, share: float, power: float = 1.0) -> float:
    """The same of a round in which each microbatch's work is false with probability `share`."""
    rates, microbatches = spec.verification, spec.training.microbatches_per_round
    whole, single = float(rates.round_rate), float(rates.microbatch_rate) * power
    return whole * power * chance_caught(share, microbatches) + (1 - whole) * chance_caught(
        share * single, microbatches
    )


def chance_caught(risk: float, times: float) -> float:
    """The probability of being found out at least once in `times` independent risks."""
    if risk >= 1:
        return 1.0 if times else 0.0
    return -math.expm1(times * math.log1p(-risk))


def times_until_caught(risk: float, certainty: float) -> float:
    """The least number of independent risks in which `chance_caught` is at least `certainty`; infinite without risk."""
    if risk <= 0:
        return math.inf
    return 1 if risk >= 1 else math.ceil(math.log1p(-certainty) / math.log1p(-risk))


def cheating_profit(found: float, *, reward: float, stake: float, saved: float, gain: float = 0.0) -> float:
    """What cheating brings over honesty, on average: C + B − p (1 − r) q (R + S).

    `found`: the probability that it is proven, of one unit, or of all that is done in an epoch; the others likewise.
    """
    return saved + gain - found * (reward + stake)


def needed_rate(*, reward: float, stake: float, saved: float, gain: float = 0.0, power: float = 1.0) -> float:
    """The rate of audits at which cheating on a unit brings nothing; over 1, no rate is enough."""
    at_risk = power * (reward + stake)
    return (saved + gain) / at_risk if at_risk else math.inf


def needed_stake(found: float, *, reward: float, saved: float, gain: float = 0.0) -> float:
    """The stake at which cheating brings nothing: (C + B) / (p (1 − r) q) − R, or 0 where the reward is enough.

    Over an epoch, take its whole reward and who cheats all the time: what an epoch's cheating saves grows with how much
    there is of it, and its risk more slowly, so no smaller share needs as much. Infinite where nothing is ever found.
    """
    if saved + gain <= 0:
        return 0.0
    return max(0.0, (saved + gain) / found - reward) if found else math.inf


def share_paid(spec: ModelSpec, cheat: Cheat, share: float) -> float:
    """The share of its rounds that who withholds is paid for in the long run.

    In the share `share` of its rounds, at random, everything is false, and every audit that would show it is withheld.
    Audits of data can't be withheld: what they need is in the report. By `paid_rounds` a round is paid unless it, or
    the nearest audit that looks at as much, was withheld: the nearest after it in its epoch, or the nearest before it
    in any. So who cheats always is paid until the first audit, and never again.
    """
    rounds, whole = spec.economics.rounds_per_epoch, float(spec.verification.round_rate)
    if cheat is Cheat.TEXT:
        return 1.0
    single = round_risk(spec, Cheat.WORK, spec.training.microbatches_per_round) - whole if cheat is Cheat.WORK else 0.0
    kept, drawn = 1 - share, whole + single
    # That no audit of a whole round was withheld since the last that passed; or none of either kind: of all rounds
    # before, and of so many rounds after.
    deep_before = kept if whole else 1.0
    before = kept * (whole + single * deep_before) / drawn if drawn else 1.0
    deep = [1 - share * chance_caught(whole, distance) for distance in range(rounds)]
    after = [1.0]
    for distance in range(1, rounds):
        after.append(kept * whole + kept * single * deep[distance - 1] + (1 - drawn) * after[-1])
    paid = (
        kept * whole + kept * single * deep_before * deep[left] + (1 - drawn) * before * after[left]
        for left in range(rounds)
    )
    return sum(paid) / rounds


def leaving_gain(risk: float, saved: float) -> float:
    """The most that withholding can bring over honesty, in rewards of a round: to who then leaves for good.

    `risk`: the probability that a false round is drawn; `saved`: by its being false, of its reward. To who stays
    withholding brings nothing, whatever the rates and the epochs' length: a round that is drawn costs its reward, and
    the next 1 / risk − 1 rounds', which is how long an honest provider waits for an audit to pass; so on average it
    costs risk · 1 / risk rewards to cheat in a round, and saves at most one. Who leaves instead has cheated in
    1 / risk rounds by then, and isn't paid for the last. At 1 % of whole rounds that are 32 rounds' pay, once, for
    false steps.
    """
    if saved <= risk:
        return 0.0
    return saved / risk - 1 if risk else math.inf


def collusion_share(seats: int, friends: int, known_bad_rate: float = 0.0) -> float:
    """r: the probability that a false unit passes because its panel's first opinion on it is a friend's.

    `friends` of the `seats` whose holders may audit the stage are the cheat's, all are there, and the referee is no
    friend. By `settled_verdict` a first opinion that the unit is good stands; any later one is overruled, since an
    honest auditor has said otherwise by then. A friend who is shown a false report knows it, the cheat having told him
    the true one: he catches it, and whoever is next decides.
    """
    if not friends:
        return 0.0
    return friends / (seats + 1) * (1 - known_bad_rate / seats)


def known_bad_share(seats: int, known_bad_rate: float) -> float:
    """The part of what a seat's holder is shown that is known to be bad, where all work is good and all are there.

    Less than the rate: after each false report another one's holder is shown the true one, if anybody is next but the
    referee.
    """
    return known_bad_rate / (1 + known_bad_rate * (seats - 1) / seats) if seats else 0.0


def audits_pay(spec: ModelSpec, seats: int) -> float:
    """The part of what an epoch pays for computing that a stage's auditors get, where it has so many."""
    whole, single = Fraction(spec.verification.round_rate), Fraction(spec.verification.microbatch_rate)
    drawn = float(whole + (1 - whole) * single)
    rate = shown_rate(spec)
    opinions = seats / (seats + 1) * (1 + rate * (seats - 1) / seats) if seats else 0.0
    return drawn * opinions / (1 + drawn * opinions)


def shown_rate(spec: ModelSpec) -> float:
    """The known-bad rate; 0 where there is nothing to exchange, as by `is_known_bad`."""
    is_single = spec.training.microbatches_per_round == 1 or spec.stages == 1
    return 0.0 if is_single else float(spec.verification.known_bad_rate)


def audit_reward(spec: ModelSpec, kind: Kind) -> Fraction:
    """What an audit of this kind pays, in rewards of a stage for an epoch: as much as the work that it repeats."""
    if kind is Kind.DATA:
        return Fraction(0)
    units = 1 if kind is Kind.ROUND else spec.training.microbatches_per_round
    return Fraction(1, spec.economics.rounds_per_epoch * units)


def audit_expense(spec: ModelSpec, kind: Kind) -> Fraction:
    """What an audit of this kind costs its auditor, in the same rewards, if computing costs all that it earns."""
    return audit_reward(spec, kind) * (1 if kind is Kind.ROUND else REPLAYED)


def waving_stake(spec: ModelSpec, seats: int) -> float:
    """The stake at which passing all audits unseen brings nothing, in rewards of a stage for an epoch.

    `known_bad_share · (reward + stake) > cost` of every kind of audit. Infinite where nothing is known to be bad.
    """
    found = known_bad_share(seats, shown_rate(spec))
    return max(
        needed_stake(found, reward=float(audit_reward(spec, kind)), saved=float(audit_expense(spec, kind)))
        for kind in (Kind.ROUND, Kind.MICROBATCH)
    )


def waving_rate(spec: ModelSpec, seats: int, stake: float) -> float:
    """The least known-bad rate at which it brings nothing with this stake; infinite where none is enough."""
    share = max(
        needed_rate(reward=float(audit_reward(spec, kind)), stake=stake, saved=float(audit_expense(spec, kind)))
        for kind in (Kind.ROUND, Kind.MICROBATCH)
    )
    rate = share / (1 - share * (seats - 1) / seats) if share <= 1 else math.inf
    return rate if rate <= 1 else math.inf
