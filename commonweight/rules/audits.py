"""Which work is replayed, and what comes of it for who did it.

An audit replays a unit of work from what its provider and the neighbours have committed to. Whether a unit is audited
is decided by the round's beacon alone (beacon.py), for everyone to recompute.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from math import ceil, inf

from commonweight.rules.merkle import keccak, word
from commonweight.rules.spec import ModelSpec

NO_ANSWERS = bytes(32)
"""Their root, where none were sealed with a round."""
NO_EVIDENCE = bytes(32)
"""The evidence hash of a verdict that needs none."""


class Kind(Enum):
    """What an audit looks at."""

    ROUND = "round"
    """All microbatches of a stage's round, the sum of their gradients, and the step: the next state root."""
    MICROBATCH = "microbatch"
    """One microbatch: the output, the gradient that was sent back, and its part of the round's gradient, by the sketch
    (commonweight/model/sketch.py); and the step from that gradient to the next state root.
    """
    LOSS = "loss"
    """The same on the last stage, where the output is the loss."""
    DATA = "data"
    """The tokens of one microbatch on the first stage."""
    ANSWER = "answer"
    """One answer that was sealed with the round: the codes that went out, or the tokens that were chosen."""


_NUMBER = {kind: number for number, kind in enumerate(Kind)}
TRAINING = frozenset(Kind) - {Kind.ANSWER}
"""The kinds that look at what a round is paid for."""
WORK = TRAINING - {Kind.DATA}
"""The kinds that replay a stage's work."""
_COVERS = {kind: {kind} for kind in Kind} | {Kind.ROUND: WORK}
"""What an audit looks at, as kinds. Whether tokens are those due, only an audit of tokens shows."""


class Verdict(Enum):
    """What an audit came to."""

    PASSED = "passed"
    FAILED = "failed"
    """The replay contradicts what the provider has signed: fraud."""
    WITHHELD = "withheld"
    """What it takes to replay the unit wasn't to be had in time."""
    UNDECIDED = "undecided"
    """The auditor couldn't, for reasons of its own."""


@dataclass(frozen=True)
class Audit:
    """One unit of work that was drawn."""

    round: int
    stage: int
    kind: Kind
    microbatch: int | None = None
    """None: the whole round. Of an answer its number among those that were sealed with the round."""

    def __str__(self) -> str:
        counted = "answer" if self.kind is Kind.ANSWER else "microbatch"
        microbatch = "" if self.microbatch is None else f", {counted} {self.microbatch}"
        return f"the {self.kind.value} audit of round {self.round}, stage {self.stage}{microbatch}"

    @property
    def answer(self) -> int:
        """The number of the answer that it is of."""
        assert self.kind is Kind.ANSWER, "another unit is of none"
        assert self.microbatch is not None, "it was drawn by its number"
        return self.microbatch

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Audits are listed in this order."""
        return self.round, self.stage, _NUMBER[self.kind], -1 if self.microbatch is None else self.microbatch

    @property
    def place(self) -> bytes:
        """What tells the unit from others of its round, as hashed."""
        return _place(*self.order[1:])


def draw_audits(
    spec: ModelSpec, round_: int, beacon: bytes, answers: int = 0, answers_root: bytes = NO_ANSWERS
) -> tuple[Audit, ...]:
    """The audits of a round, in order, each kind with the rate that the spec has for it.

    Of a stage's round either all is replayed, or one microbatch, each as likely as the others, or nothing. Tokens and
    answers are drawn one by one. `answers`: so many were sealed with the round; each stage's part of one is a unit.
    Their root is mixed in for them alone: the coordinator says which answers are sealed, and mustn't steer by it what
    else is drawn.
    """
    rates, microbatches = spec.verification, spec.training.microbatches_per_round
    audits: list[Audit] = []

    def chance(stage: int, kind: Kind, unit: int = -1) -> int:
        mixed = keccak(beacon + answers_root) if kind is Kind.ANSWER else beacon
        return int.from_bytes(keccak(mixed + _place(stage, _NUMBER[kind], unit)), "big")

    def each(stage: int, kind: Kind, rate: str, units: int) -> list[Audit]:
        limit = rate_limit(rate)
        return [Audit(round_, stage, kind, unit) for unit in range(units) if chance(stage, kind, unit) < limit]

    for stage in range(spec.stages):
        single = Kind.LOSS if stage == spec.stages - 1 else Kind.MICROBATCH
        if chance(stage, Kind.ROUND) < rate_limit(rates.round_rate):
            audits.append(Audit(round_, stage, Kind.ROUND))
        elif (number := chance(stage, single)) < rate_limit(rates.microbatch_rate):
            audits.append(Audit(round_, stage, single, number % microbatches))
        if stage == 0:
            audits += each(stage, Kind.DATA, rates.data_rate, microbatches)
        audits += each(stage, Kind.ANSWER, rates.answer_rate, answers)
    return tuple(audits)


@lru_cache
def rate_limit(rate: str) -> int:
    """A hash below it is drawn."""
    return ceil(Fraction(rate) * 2**256)


@lru_cache(maxsize=2**14)
def _place(stage: int, kind: int, microbatch: int) -> bytes:
    """`microbatch`: -1 for a whole round."""
    return word(stage) + word(kind) + word(microbatch + 1)


def paid_rounds(
    rounds: Collection[int], verdicts: Mapping[Audit, Verdict], outstanding: Collection[Kind] = ()
) -> frozenset[int]:
    """Which of an epoch's rounds one provider is paid for in one stage, or for which rounds' answers.

    `rounds`: those that it reported, or with which answers were sealed. `verdicts`: of the audits of that stage in
    them, of the kinds that look at what is to be paid. After fraud, none.
    A withheld audit voids every round back to the last that passed an audit which looks at as much, and on to the next
    that does, be it epochs later: `outstanding` are the kinds withheld in earlier epochs, none that looks at as much
    having passed since. If it cost its own unit only, who always cheats and withholds what is drawn would earn nearly
    everything. One that passed in the same round shows nothing about what was withheld.
    """
    if Verdict.FAILED in verdicts.values():
        return frozenset()
    void: set[int] = set()
    cleared = _cleared(verdicts)
    for withheld, kind in _withheld(verdicts, outstanding):
        start = max((round_ for round_ in cleared[kind] if round_ < withheld), default=-1)
        end = min((round_ for round_ in cleared[kind] if round_ > withheld), default=inf)
        void |= {round_ for round_ in rounds if start < round_ < end}
    return frozenset(rounds) - void


def left_outstanding(verdicts: Mapping[Audit, Verdict], outstanding: Collection[Kind] = ()) -> frozenset[Kind]:
    """The kinds of audit that the provider still has to pass after the epoch of these verdicts."""
    last = {kind: max(rounds, default=-1) for kind, rounds in _cleared(verdicts).items()}
    return frozenset(kind for withheld, kind in _withheld(verdicts, outstanding) if last[kind] <= withheld)


def _withheld(verdicts: Mapping[Audit, Verdict], outstanding: Collection[Kind]) -> set[tuple[int, Kind]]:
    """Rounds and kinds; -1 for a round of an earlier epoch."""
    withheld = {(audit.round, audit.kind) for audit, verdict in verdicts.items() if verdict is Verdict.WITHHELD}
    return withheld | {(-1, kind) for kind in outstanding}


def _cleared(verdicts: Mapping[Audit, Verdict]) -> dict[Kind, set[int]]:
    """By kind, the rounds in which an audit passed that looks at as much."""
    cleared: dict[Kind, set[int]] = {kind: set() for kind in Kind}
    for audit, verdict in verdicts.items():
        if verdict is Verdict.PASSED:
            for kind in _COVERS[audit.kind]:
                cleared[kind].add(audit.round)
    return cleared
