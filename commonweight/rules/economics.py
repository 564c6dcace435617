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
    """What microbatches gave: outputs, input gradients, parts of the round's gradient. Audits of these microbatches,
    and of whole rounds.
    """
    STEP = "step"
    """The round's gradient in most of its parts, the optimizer's step, the next state: every audit of work."""
    TEXT = "text"
    """The tokens of the first stage: audits of the data. (Others see it, too, if the auditor has the text.)"""


SAVED = {Cheat.WORK: Fraction(1), Cheat.STEP: Fraction(1, 3), Cheat.TEXT: Fraction(0)}
"""The most that each saves, of the work that is false: all; the weights' gradients, one product of three; nothing."""


def expected_audits(spec: ModelSpec, stage: int) -> dict[Kind, Fraction]:
    """How many audits of each kind an epoch draws for a stage, on average; of the kinds that the stage has."""
    rates, rounds = spec.verification, spec.economics.rounds_per_epoch
    single = Kind.LOSS if stage == spec.stages - 1 else Kind.MICROBATCH
    audits = {Kind.ROUND: Fraction(rates.round_rate) * rounds, single: _single_rate(spec) * rounds}
    texts = Fraction(rates.data_rate) * rounds * spec.training.microbatches_per_round
    return audits | ({Kind.DATA: texts} if stage == 0 else {})


def _single_rate(spec: ModelSpec) -> Fraction:
    """The probability that of a stage's round one microbatch is drawn."""
    return (1 - Fraction(spec.verification.round_rate)) * Fraction(spec.verification.microbatch_rate)


def audit_cost(spec: ModelSpec, kind: Kind) -> Fraction:
    """The work of one kind's audits over the work of the stage that they audit."""
    if kind is Kind.ROUND:
        return Fraction(spec.verification.round_rate)
    return Fraction(0) if kind is Kind.DATA else _single_rate(spec) / spec.training.microbatches_per_round


def finding_power(detection: float = 1.0, collusion: float = 0.0) -> float:
    """(1 − r) q: the probability that the audit of a false unit says so."""
    return (1 - collusion) * detection


def round_risk(spec: ModelSpec, cheat: Cheat, bad: int, power: float = 1.0) -> float:
    """The probability that a round with `bad` false microbatches is found out; of a false step any but 0 are all."""
    if bad == 0:
        return 0.0
    if cheat is Cheat.TEXT:
        return chance_caught(float(spec.verification.data_rate) * power, bad)
    looked_at = 1.0 if cheat is Cheat.STEP else bad / spec.training.microbatches_per_round
    return power * (float(spec.verification.round_rate) + float(_single_rate(spec)) * looked_at)


def scattered_risk(spec: ModelSpec, share: float, power: float = 1.0) -> float:
    """The same of a round in which each microbatch's work is false with probability `share`."""
    whole = float(spec.verification.round_rate) * chance_caught(share, spec.training.microbatches_per_round)
    return power * (whole + float(_single_rate(spec)) * share)


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


def share_paid(spec: ModelSpec, share: float) -> float:
    """The share of its rounds that who withholds is paid for in the long run.

    In the share `share` of its rounds, at random, everything is false, and every audit that would show it is withheld;
    each audit of work would. (Of text none can be withheld: what it needs is in the report.) By `paid_rounds` a round
    is paid unless it, or the nearest audit that looks at as much, was withheld: the nearest after it in its epoch, or
    the nearest before it in any. So who cheats always is paid until the first audit, and never again.
    """
    rounds, whole, single = (
        spec.economics.rounds_per_epoch,
        float(spec.verification.round_rate),
        float(_single_rate(spec)),
    )
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

    `risk`: the probability that a false round is drawn, and shows it; `saved`: by its being false, of its reward. Most
    gains who makes whole rounds false: a part saves less, and an audit of the whole shows it as well. To who stays
    withholding brings nothing, whatever the rates and the epochs' length: a withheld audit costs its round's reward,
    and those of the rounds until the next drawn one, on average of as many as one waits for an audit. So to cheat in a
    round costs that share of a reward in which a drawn audit shows it, and saves no larger one. Who leaves instead has
    cheated in 1 / risk rounds by then, and isn't paid for the last. Where three whole rounds in ten are seen to be
    false, that are 2.3 rounds' pay, once.
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
    drawn = float(audit_cost(spec, Kind.ROUND) + audit_cost(spec, Kind.MICROBATCH))
    rate = shown_rate(spec)
    opinions = seats / (seats + 1) * (1 + rate * (seats - 1) / seats) if seats else 0.0
    return drawn * opinions / (1 + drawn * opinions)


def shown_rate(spec: ModelSpec) -> float:
    """The known-bad rate; 0 where there is nothing to exchange, as by `is_known_bad`."""
    is_single = spec.training.microbatches_per_round == 1 or spec.stages == 1
    return 0.0 if is_single else float(spec.verification.known_bad_rate)


def waving_stake(spec: ModelSpec, seats: int) -> float:
    """The stake at which passing all audits unseen brings nothing, in rewards of a stage for an epoch.

    `known_bad_share · (reward + stake) > cost` of every audit. Each pays as much as it costs, if computing costs all
    that it earns; so it takes most where a whole round is passed. Infinite where nothing is known to be bad.
    """
    most = 1 / spec.economics.rounds_per_epoch
    return needed_stake(known_bad_share(seats, shown_rate(spec)), reward=most, saved=most)


def waving_rate(spec: ModelSpec, seats: int, stake: float) -> float:
    """The least known-bad rate at which it brings nothing with this stake; infinite where none is enough."""
    most = 1 / spec.economics.rounds_per_epoch
    share = needed_rate(reward=most, stake=stake, saved=most)
    rate = share / (1 - share * (seats - 1) / seats) if share <= 1 else math.inf
    return rate if rate <= 1 else math.inf
