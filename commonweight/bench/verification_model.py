"""Cheats simulated against the rules themselves: real beacons, `draw_audits`, `paid_rounds` of epoch after epoch; no
computing.

What a real network adds is whether an audit's verdict is right; here it is, but for the errors that are asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, stdev

from commonweight.rules.audits import Audit, Kind, Verdict, draw_audits, left_outstanding, paid_rounds
from commonweight.rules.beacon import hash_chain, round_beacon
from commonweight.rules.economics import (
    SAVED,
    Cheat,
    chance_caught,
    cheating_profit,
    finding_power,
    round_risk,
    share_paid,
)
from commonweight.rules.load import undivided
from commonweight.rules.spec import ModelSpec

STAGE = 0
"""The one that is simulated: it has audits of every kind."""
WITHIN_EPOCHS = 5
SHARES = tuple(n / 100 for n in range(1, 101))
"""Of rounds: what an adversary that adapts chooses from."""
EQUAL = 1e-9
"""Who gains less than this by cheating, in rewards of a round, is honest."""


@dataclass(frozen=True)
class Seen:
    """What a provider knows when it begins a round."""

    epoch: int
    """Since it came, from 0."""
    round: int
    """Of the epoch, from 0."""
    verdicts: dict[Audit, Verdict]
    """Of the epoch's rounds before it, in order."""
    outstanding: frozenset[Kind]
    """Since earlier epochs."""


Plan = Callable[[Random, Seen], frozenset[int] | None]
"""Which microbatches of a round are false; None: it leaves instead, for good."""


@dataclass(frozen=True)
class Adversary:
    """A provider that doesn't do what it is paid for."""

    name: str
    cheat: Cheat
    plan: Plan
    withholds: frozenset[Verdict] = frozenset()
    """Audits that would come to this are withheld, but those of data, which need nothing of the provider."""
    collusion: float = 0.0
    """The share of audits whose auditor passes what is false."""
    false_alarms: float = 0.0
    """The share of audits of true units that fail."""
    leaves: bool = False
    """For good, after WITHIN_EPOCHS at the latest; then another one comes, who owes no audits. If it leaves earlier an
    honest one works until then."""
    most: float = 0.0
    """The most that it can bring over honesty, on average, in rewards of an epoch, where rates and stake are enough."""


@dataclass(frozen=True)
class Outcome:
    """What became of one adversary, over `epochs` simulated ones. In each it has its seat and its stake."""

    name: str
    epochs: int
    caught: float
    """Share of the blocks of five epochs in which fraud was proven."""
    paid: float
    """Mean share of an epoch's reward."""
    profit: float
    """Mean of what an epoch brought over honesty, in rewards of an epoch."""
    profit_error: float
    """Standard error of that mean."""
    most: float
    """See `Adversary.most`."""
    audits: float
    """Mean number of audits in an epoch, without those of data."""


def never(_random: Random, _seen: Seen) -> frozenset[int]:
    """The plan of a provider that computes everything."""
    return frozenset()


def whole_rounds(spec: ModelSpec, share: float) -> Plan:
    """Everything in this share of the rounds is false."""
    everything = frozenset(range(spec.training.microbatches_per_round))
    return lambda random, _seen: everything if random.random() < share else frozenset()


def scattered(spec: ModelSpec, share: float) -> Plan:
    """This share of the microbatches is false."""
    microbatches = range(spec.training.microbatches_per_round)
    return lambda random, _seen: frozenset(n for n in microbatches if random.random() < share)


def in_one(spec: ModelSpec, share: float) -> Plan:
    """One microbatch in this share of the rounds is false."""
    microbatches = range(spec.training.microbatches_per_round)
    return lambda random, _seen: frozenset({random.choice(microbatches)} if random.random() < share else ())


def best_share(spec: ModelSpec, cheat: Cheat, *, stake: float, cost: float, collusion: float = 0.0) -> Adversary:
    """Who cheats in the share of rounds that brings most, and either has fraud proven or withholds what would prove it.

    `stake` and `cost`, what computing an epoch costs, are in rewards of an epoch. Only shares of at least 1 % count.
    """
    rounds, everything = spec.economics.rounds_per_epoch, spec.training.microbatches_per_round
    risk = round_risk(spec, cheat, everything, finding_power(collusion=collusion))

    def profit(share: float, withholds: bool) -> float:
        saved = share * cost * float(SAVED[cheat])
        if withholds and cheat is not Cheat.TEXT:
            return saved - (1 - share_paid(spec, share))
        return cheating_profit(chance_caught(share * risk, rounds), reward=1, stake=stake, saved=saved)

    share, withholds = max(((s, w) for s in SHARES for w in (False, True)), key=lambda choice: profit(*choice))
    return Adversary(
        f"best share, false {cheat.value}: {share:.0%} of the rounds" + (", withholds" if withholds else ""),
        cheat,
        whole_rounds(spec, share),
        frozenset({Verdict.FAILED}) if withholds else frozenset(),
        collusion,
    )


@dataclass(frozen=True)
class Withholding:
    """The best that withholding can bring to who sees each verdict in time."""

    gain: float
    """Over honesty, in rewards of a round, in all."""
    cheats: tuple[tuple[bool, ...], ...]
    """Whether to cheat, by all rounds left (from 1), and by the epoch's rounds since its last audit that passed."""


def best_withholding(
    risk: float, rounds: int, saved: float, *, shown: float = 1.0, epochs: int = 1, stays: bool = False
) -> Withholding:
    """The optimal policy of who sees after each round whether it was drawn, by backward induction.

    `risk`: the chance that a round is drawn, whole or a microbatch of it; `shown`: that this shows the cheat. Cheating
    saves `saved` of a round's reward, at most 1; who cheats withholds what would show it. It has `epochs` of so many
    `rounds`. Once nothing is paid any more until an audit passes, it leaves for good; or it `stays` until one does,
    after these epochs honestly. A microbatch that passes counts as a whole round, so the gain is an upper bound.
    """
    passes = risk * (1 - shown)
    # What is still to be gained, while nothing is paid; and else, by the rounds that withholding would void besides.
    void = 1 - 1 / risk if stays and risk else 0.0
    normal = [0.0] * (rounds + 1)
    cheats: list[tuple[bool, ...]] = []
    for _ in range(epochs):
        normal = [normal[0]] * (rounds + 1)
        for last in reversed(range(rounds)):
            choices = [
                (
                    risk * normal[0] + (1 - risk) * normal[count + 1],
                    saved + risk * shown * (void - count - 1) + passes * normal[0] + (1 - risk) * normal[count + 1],
                )
                for count in range(last + 1)
            ]
            if stays:
                void = max(
                    risk * normal[0] + (1 - risk) * (void - 1), saved + passes * normal[0] + (1 - passes) * (void - 1)
                )
            cheats.append(tuple(false > true + EQUAL for true, false in choices))
            normal = [max(pair) for pair in choices]
    return Withholding(normal[0], tuple(cheats))


def withholds_best(spec: ModelSpec, cheat: Cheat, *, cost: float) -> Adversary:
    """Who cheats in whole rounds by the optimal policy, withholds the first audit that would show it, and leaves."""
    rounds, everything = spec.economics.rounds_per_epoch, frozenset(range(spec.training.microbatches_per_round))
    risk = round_risk(spec, cheat, len(everything))
    policy = best_withholding(risk, rounds, cost * float(SAVED[cheat]), epochs=WITHIN_EPOCHS)

    def plan(_random: Random, seen: Seen) -> frozenset[int] | None:
        last = next((audit for audit in reversed(seen.verdicts) if _shows(audit, cheat, everything)), None)
        if seen.outstanding or (last is not None and seen.verdicts[last] is Verdict.WITHHELD):
            return None
        left = (WITHIN_EPOCHS - seen.epoch) * rounds - seen.round
        since = seen.round - (last.round if last is not None else -1) - 1
        return everything if policy.cheats[left - 1][since] else frozenset()

    return Adversary(
        f"best withholding, false {cheat.value}, then leaves",
        cheat,
        plan,
        frozenset({Verdict.FAILED}),
        leaves=True,
        most=policy.gain / rounds / WITHIN_EPOCHS,
    )


def suite(spec: ModelSpec, *, stake: float, cost: float) -> list[Adversary]:
    """Each way to cheat, always and on a tenth; with the evidence served and withheld; and those that choose best."""
    shown = frozenset({Verdict.FAILED})
    always, tenth, single = whole_rounds(spec, 1), whole_rounds(spec, 0.1), scattered(spec, 0.1)
    return [
        Adversary("honest, 1 of 10,000 audits wrong", Cheat.WORK, never, false_alarms=1e-4),
        Adversary("lazy: all rounds", Cheat.WORK, always),
        Adversary("lazy: a tenth of the rounds", Cheat.WORK, tenth),
        Adversary("lazy: a tenth of the microbatches", Cheat.WORK, single),
        Adversary("the same, a third of audits by accomplices", Cheat.WORK, single, collusion=1 / 3),
        Adversary("false steps: all rounds", Cheat.STEP, always),
        Adversary("false steps: a tenth of the rounds", Cheat.STEP, tenth),
        Adversary("gradient false in one microbatch: a tenth of the rounds", Cheat.WORK, in_one(spec, 0.1)),
        Adversary("wrong text: a tenth of the microbatches", Cheat.TEXT, single),
        Adversary("lazy in all rounds, withholds", Cheat.WORK, always, shown),
        Adversary("lazy in a tenth of the rounds, withholds", Cheat.WORK, tenth, shown),
        Adversary("lazy in a tenth of the microbatches, withholds", Cheat.WORK, single, shown),
        Adversary("false steps in all rounds, withholds", Cheat.STEP, always, shown),
        Adversary("honest, withholds everything", Cheat.WORK, never, frozenset({Verdict.FAILED, Verdict.PASSED})),
        *(best_share(spec, cheat, stake=stake, cost=cost) for cheat in Cheat),
        *(withholds_best(spec, cheat, cost=cost) for cheat in (Cheat.WORK, Cheat.STEP)),
    ]


def simulate(
    spec: ModelSpec, adversaries: Sequence[Adversary], *, epochs: int, seed: int, stake: float, cost: float
) -> list[Outcome]:
    """Play every adversary against the same drawn audits. `epochs`: a multiple of WITHIN_EPOCHS.

    `stake` and `cost`, what computing an epoch costs, are in rewards of an epoch. A slashed provider works on until the
    epoch ends.
    """
    randoms = [Random(f"{seed}/{number}") for number in range(len(adversaries))]  # noqa: S311 - a simulation
    played: list[list[_Epoch]] = [[] for _ in adversaries]
    outstanding: list[frozenset[Kind] | None] = [frozenset() for _ in adversaries]
    beacons = Random(seed)  # noqa: S311
    for epoch in range(epochs):
        drawn = _draw_epoch(spec, beacons)
        for number, (adversary, random) in enumerate(zip(adversaries, randoms, strict=True)):
            since = epoch % WITHIN_EPOCHS if adversary.leaves else epoch
            before = outstanding[number] if since else frozenset()
            result, outstanding[number] = _play(spec, adversary, random, drawn, since, before)
            played[number].append(result)
    return [_outcome(adversary, results, stake, cost) for adversary, results in zip(adversaries, played, strict=True)]


@dataclass(frozen=True)
class _Epoch:
    saved: float
    """Share of the epoch's work."""
    paid: float
    is_proven: bool
    audits: int


def _draw_epoch(spec: ModelSpec, random: Random) -> list[list[Audit]]:
    """The audits of STAGE in each round of an epoch; the outputs that enter the beacon are random, too."""
    _, *values = hash_chain(random.randbytes(32), spec.economics.rounds_per_epoch)
    loads = undivided(spec.stages, spec.training.microbatches_per_round)
    rounds = (draw_audits(spec, n, round_beacon(value, random.randbytes(32)), loads) for n, value in enumerate(values))
    return [[audit for audit in drawn if audit.stage == STAGE] for drawn in rounds]


def _play(
    spec: ModelSpec,
    adversary: Adversary,
    random: Random,
    drawn: Sequence[Sequence[Audit]],
    epoch: int,
    outstanding: frozenset[Kind] | None,
) -> tuple[_Epoch, frozenset[Kind] | None]:
    """An epoch, and what is outstanding after it. None, before or after: it has left, and an honest one works."""
    verdicts: dict[Audit, Verdict] = {}
    false_work, stayed = 0.0, 0
    for round_, audits in enumerate(drawn):
        bad = None if outstanding is None else adversary.plan(random, Seen(epoch, round_, verdicts, outstanding))
        if bad is None:
            break
        stayed += 1
        false_work += len(bad) / spec.training.microbatches_per_round
        for audit in audits:
            verdicts[audit] = _verdict(adversary, random, audit, bad)
    rounds = len(drawn)
    result = _Epoch(
        false_work * float(SAVED[adversary.cheat]) / rounds,
        (len(paid_rounds(range(stayed), verdicts, outstanding or ())) + rounds - stayed) / rounds,
        Verdict.FAILED in verdicts.values(),
        sum(audit.kind is not Kind.DATA for audits in drawn for audit in audits),
    )
    return result, None if stayed < rounds or outstanding is None else left_outstanding(verdicts, outstanding)


def _verdict(adversary: Adversary, random: Random, audit: Audit, bad: frozenset[int]) -> Verdict:
    if _shows(audit, adversary.cheat, bad):
        verdict = Verdict.PASSED if random.random() < adversary.collusion else Verdict.FAILED
    else:
        verdict = Verdict.FAILED if random.random() < adversary.false_alarms else Verdict.PASSED
    is_withheld = verdict in adversary.withholds and audit.kind is not Kind.DATA
    return Verdict.WITHHELD if is_withheld else verdict


def _shows(audit: Audit, cheat: Cheat, bad: frozenset[int]) -> bool:
    """Whether the audit looks at something false, if these microbatches are."""
    if (audit.kind is Kind.DATA) != (cheat is Cheat.TEXT):
        return False
    return bool(bad) if audit.kind is Kind.ROUND or cheat is Cheat.STEP else audit.microbatch in bad


def _outcome(adversary: Adversary, played: Sequence[_Epoch], stake: float, cost: float) -> Outcome:
    profits = [cost * each.saved - (1 - each.paid) - stake * each.is_proven for each in played]
    blocks = [played[first : first + WITHIN_EPOCHS] for first in range(0, len(played), WITHIN_EPOCHS)]
    return Outcome(
        name=adversary.name,
        epochs=len(played),
        caught=fmean(any(each.is_proven for each in block) for block in blocks),
        paid=fmean(each.paid for each in played),
        profit=fmean(profits),
        profit_error=stdev(profits) / len(profits) ** 0.5,
        most=adversary.most,
        audits=fmean(each.audits for each in played),
    )
