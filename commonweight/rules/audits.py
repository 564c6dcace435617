"""Which work is replayed, and what comes of it for who did it.

An audit replays a unit of work from what its provider and the neighbours have committed to. Whether a unit is audited
is decided by the round's beacon alone (beacon.py), for everyone to recompute.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from math import ceil, inf

from commonweight.rules.load import Load, Loads
from commonweight.rules.merkle import keccak, word
from commonweight.rules.spec import ModelSpec

NO_ANSWERS = bytes(32)
"""Their root, where none were sealed with a round."""
NO_EVIDENCE = bytes(32)
"""The evidence hash of a verdict that needs none."""


class Kind(Enum):
    """What an audit looks at."""

    ROUND = "round"
    """All microbatches of a replica's round, the sum of their gradients, and the step: the next state root."""
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
    replica: int = 0
    """Whose work it is: a number among those that reported the stage in the round, in order of their addresses."""

    def __str__(self) -> str:
        counted = "answer" if self.kind is Kind.ANSWER else "microbatch"
        microbatch = "" if self.microbatch is None else f", {counted} {self.microbatch}"
        where = f"round {self.round}, stage {self.stage}, replica {self.replica}{microbatch}"
        return f"the {self.kind.value} audit of {where}"

    @property
    def answer(self) -> int:
        """The number of the answer that it is of."""
        assert self.kind is Kind.ANSWER, "another unit is of none"
        assert self.microbatch is not None, "it was drawn by its number"
        return self.microbatch

    @property
    def order(self) -> tuple[int, int, int, int, int]:
        """Audits are listed in this order."""
        microbatch = -1 if self.microbatch is None else self.microbatch
        return self.round, self.stage, self.replica, _NUMBER[self.kind], microbatch

    @property
    def place(self) -> bytes:
        """What tells the unit from others of its round, as hashed."""
        return _place(*self.order[1:])


def draw_audits(
    spec: ModelSpec,
    round_: int,
    beacon: bytes,
    loads: Loads,
    answers: Sequence[Sequence[int]] = (),
    answers_root: bytes = NO_ANSWERS,
) -> tuple[Audit, ...]:
    """The audits of a round, in order, each kind with the rate that the spec has for it.

    Of a replica's round either all is replayed, or one microbatch, each as likely as the others, or nothing. Tokens and
    answers are drawn one by one. `answers` were sealed with the round: of each, by stage, the replica whose part of it
    is a unit. Their root is mixed in for them alone: the coordinator says which answers are sealed, and mustn't steer
    by it what else is drawn.
    """
    rates = spec.verification
    mixed = keccak(beacon + answers_root) if answers else beacon

    def is_drawn(audit: Audit, rate: str) -> bool:
        return _chance(mixed if audit.kind is Kind.ANSWER else beacon, audit.place) < rate_limit(rate)

    def of_replica(stage: int, replica: int, load: Load) -> list[Audit]:
        audits: list[Audit] = []
        single = Kind.LOSS if stage == spec.stages - 1 else Kind.MICROBATCH
        if is_drawn(whole := Audit(round_, stage, Kind.ROUND, None, replica), rates.round_rate):
            audits.append(whole)
        elif (number := _chance(beacon, _place(stage, replica, _NUMBER[single], -1))) < rate_limit(
            rates.microbatch_rate
        ):
            audits.append(Audit(round_, stage, single, load[number % len(load)], replica))
        texts = (Audit(round_, stage, Kind.DATA, microbatch, replica) for microbatch in (() if stage else load))
        parts = (
            Audit(round_, stage, Kind.ANSWER, number, replica)
            for number, replicas in enumerate(answers)
            if replicas[stage] == replica
        )
        audits += (text for text in texts if is_drawn(text, rates.data_rate))
        return audits + [part for part in parts if is_drawn(part, rates.answer_rate)]

    return tuple(
        audit
        for stage, of_stage in enumerate(loads)
        for replica, load in enumerate(of_stage)
        for audit in of_replica(stage, replica, load)
    )


def _chance(beacon: bytes, place: bytes) -> int:
    return int.from_bytes(keccak(beacon + place), "big")


@lru_cache
def rate_limit(rate: str) -> int:
    """A hash below it is drawn."""
    return ceil(Fraction(rate) * 2**256)


@lru_cache(maxsize=2**14)
def _place(stage: int, replica: int, kind: int, microbatch: int) -> bytes:
    """`microbatch`: -1 for a whole round."""
    return word(stage) + word(replica) + word(kind) + word(microbatch + 1)


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
