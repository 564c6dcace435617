"""Auditors simulated against the rules themselves: real beacons and seeds, `rank_auditors`, `is_known_bad`,
`settled_verdict`, epoch after epoch; no computing.

One seat holder is simulated among others who are honest, in the stage of an honest provider or of a friend who cheats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, stdev

from commonweight.bench.verification_model import STAGE, WITHIN_EPOCHS
from commonweight.rules.audits import Audit, Kind, Verdict, draw_audits
from commonweight.rules.beacon import hash_chain, round_beacon
from commonweight.rules.load import undivided
from commonweight.rules.panel import (
    Owner,
    Standing,
    audit_units,
    is_known_bad,
    left_to_ask,
    opinion_standing,
    rank_auditors,
    settled_verdict,
)
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import stage_units

SUBJECT, *OTHERS = (f"0x{number:040x}" for number in range(1, 9))
"""The simulated seat holder, and the honest ones beside it."""

Says = Callable[[Random, bool], Verdict | None]
"""What the auditor answers without a replay; None: it replays, and tells the truth. Whether an order is known bad only
the provider can tell it.
"""


@dataclass(frozen=True)
class SimulatedAuditor:
    """A seat holder, and whom it audits."""

    name: str
    says: Says
    others: int = 0
    """Honest seat holders beside it."""
    false_share: float = 0.0
    """Of the provider's microbatches; a friend's, who shows it which orders are known bad."""


@dataclass(frozen=True)
class AuditorOutcome:
    """What became of one, over `epochs` simulated ones. In each it has its seat and its stake."""

    name: str
    epochs: int
    caught: float
    """Share of the blocks of five epochs in which it, or the friend, was convicted."""
    audits: float
    """Its mean number of orders in an epoch."""
    profit: float
    """Mean of what an epoch brought over auditing honestly, in rewards of an epoch of its stage, to both friends."""
    profit_error: float
    """Standard error of that mean."""


def never(_random: Random, _known_bad: bool) -> None:
    """It replays everything."""


def waves(share: float) -> Says:
    """Passes this share of its orders."""
    return lambda random, _known_bad: Verdict.PASSED if random.random() < share else None


def cries_fraud(_random: Random, _known_bad: bool) -> Verdict:
    """Says of all orders that they are fraud."""
    return Verdict.FAILED


def colludes(_random: Random, known_bad: bool) -> Verdict:
    """Passes what its friend has signed, and nothing else."""
    return Verdict.FAILED if known_bad else Verdict.PASSED


def auditors() -> list[SimulatedAuditor]:
    """Each way to be a bad auditor."""
    return [
        SimulatedAuditor("honest auditor", never),
        SimulatedAuditor("passes everything unseen", waves(1)),
        SimulatedAuditor("passes a tenth unseen", waves(0.1)),
        SimulatedAuditor("always cries fraud", cries_fraud),
        SimulatedAuditor("colludes: alone in the stage, a tenth of microbatches false", colludes, 0, 0.1),
        SimulatedAuditor("colludes: one of three, a tenth of microbatches false", colludes, 2, 0.1),
    ]


def simulate_auditors(spec: ModelSpec, *, epochs: int, seed: int, stake: float, cost: float) -> list[AuditorOutcome]:
    """Play every auditor against the same draws. `epochs`: a multiple of WITHIN_EPOCHS; `stake` and `cost`, what
    computing an epoch of the stage costs, are in rewards of an epoch of the stage.
    """
    subjects, loads = auditors(), undivided(spec.stages, spec.training.microbatches_per_round)
    randoms = [Random(f"{seed}/{number}") for number in range(len(subjects))]  # noqa: S311 - a simulation
    beacons = Random(seed)  # noqa: S311
    played: list[list[_Epoch]] = [[] for _ in subjects]
    for _ in range(epochs):
        epoch_seed = beacons.randbytes(32)
        _, *values = hash_chain(epoch_seed, spec.economics.rounds_per_epoch)
        drawn = [
            (audit, beacon)
            for number, value in enumerate(values)
            for beacon in (round_beacon(value, beacons.randbytes(32)),)
            for audit in draw_audits(spec, number, beacon, loads)
            if audit.stage == STAGE and audit.kind is not Kind.DATA
        ]
        for subject, random, epochs_played in zip(subjects, randoms, played, strict=True):
            epochs_played.append(_play(spec, subject, random, epoch_seed, drawn))
    return [_outcome(subject, each, stake, cost) for subject, each in zip(subjects, played, strict=True)]


@dataclass(frozen=True)
class _Epoch:
    orders: int
    saved: float
    """Of the work of the stage's epoch: what wasn't replayed, and what the friend didn't compute."""
    unpaid: float
    """Of the reward: what the two would have had, and haven't."""
    convicted: int
    """How many of the two."""


def _play(
    spec: ModelSpec, subject: SimulatedAuditor, random: Random, seed: bytes, drawn: Sequence[tuple[Audit, bytes]]
) -> _Epoch:
    owners = [SUBJECT, *OTHERS[: subject.others]]
    load = tuple(range(spec.training.microbatches_per_round))
    per_epoch = stage_units(spec, STAGE) * len(load) * spec.economics.rounds_per_epoch
    orders, saved, unpaid, due = 0, subject.false_share, 0.0, 0.0
    is_convicted = is_friend_convicted = False
    for audit, beacon in drawn:
        truth = _truth(subject, spec, random, audit)
        left: Sequence[Owner] = rank_auditors(beacon, audit, owners)
        said: list[_Said] = []
        if left[0] is not None and is_known_bad(spec, seed, audit, load):
            owner, *left = left
            said.append(_ask(subject, random, owner, truth, known_bad=True))
        while (decided := settled_verdict([(each.owner, each.verdict) for each in said if not each.known_bad])) is None:
            owner, *left = left_to_ask(left, sum(not each.known_bad for each in said))
            said.append(_ask(subject, random, owner, truth, known_bad=False))
        is_friend_convicted |= bool(subject.false_share) and decided is Verdict.FAILED
        for each in said:
            if each.owner == SUBJECT:
                standing = opinion_standing(each.verdict, decided, known_bad=each.known_bad)
                worth = audit_units(spec, audit, load) / per_epoch
                orders += 1
                due += worth
                unpaid += worth * (standing is not Standing.PAID)
                saved += worth * (not each.replayed)
                is_convicted |= standing in (Standing.FALSE, Standing.OVERRULED)
    return _Epoch(
        orders,
        saved,
        (due if is_convicted else unpaid) + is_friend_convicted,
        is_convicted + is_friend_convicted,
    )


@dataclass(frozen=True)
class _Said:
    owner: Owner
    verdict: Verdict
    known_bad: bool
    replayed: bool


def _ask(subject: SimulatedAuditor, random: Random, owner: Owner, truth: Verdict, *, known_bad: bool) -> _Said:
    shown = Verdict.FAILED if known_bad else truth
    says = subject.says(random, known_bad) if owner == SUBJECT else None
    return _Said(owner, says or shown, known_bad, replayed=says is None)


def _truth(subject: SimulatedAuditor, spec: ModelSpec, random: Random, audit: Audit) -> Verdict:
    looked_at = spec.training.microbatches_per_round if audit.kind is Kind.ROUND else 1
    is_false = any(random.random() < subject.false_share for _ in range(looked_at))
    return Verdict.FAILED if is_false else Verdict.PASSED


def _outcome(subject: SimulatedAuditor, played: Sequence[_Epoch], stake: float, cost: float) -> AuditorOutcome:
    profits = [cost * each.saved - each.unpaid - stake * each.convicted for each in played]
    blocks = [played[first : first + WITHIN_EPOCHS] for first in range(0, len(played), WITHIN_EPOCHS)]
    return AuditorOutcome(
        name=subject.name,
        epochs=len(played),
        caught=fmean(any(each.convicted for each in block) for block in blocks),
        audits=fmean(each.orders for each in played),
        profit=fmean(profits),
        profit_error=stdev(profits) / len(profits) ** 0.5,
    )
