"""Who cheats on a devnet, and how: what `--byzantine` takes, and what `python -m adversary` and `python -m
adversary.auditor` do.

Nothing of the coordinator cheats here: its referee can be relied on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from commonweight.devnet.accounts import auditor_name, node_name
from commonweight.errors import ConfigError

SESSIONS = "sessions"
"""What a fraction is of where answers are cheated with; training is honest then."""


class Where(Enum):
    """The stages that a way of cheating is possible on."""

    ANY = "any stage"
    FIRST = "the first stage"
    LAST = "the last stage"
    INNER = "a stage between two others"

    def includes(self, stage: int, stages: int) -> bool:
        """Whether it can be done on `stage` of a model with so many."""
        first, last = stage == 0, stage == stages - 1
        return {Where.ANY: True, Where.FIRST: first, Where.LAST: last, Where.INNER: not first and not last}[self]


class Who(Enum):
    """Of a stage, the processes that cheat."""

    PROVIDER = "its provider"
    AUDITOR = "its first auditor"
    BOTH = "both"

    def names(self, stage: int) -> list[str]:
        """Of these processes."""
        node, auditor = node_name(stage), auditor_name(stage)
        return {Who.PROVIDER: [node], Who.AUDITOR: [auditor], Who.BOTH: [node, auditor]}[self]


@dataclass(frozen=True)
class Way:
    """One way of cheating."""

    does: str
    """For people. What is said of an output is, on the last stage, done with the loss."""
    fraction: str = "microbatches"
    """What a fraction is of."""
    where: Where = Where.ANY
    who: Who = Who.PROVIDER


KINDS: Mapping[str, Way] = {
    "zeros": Way("computes nothing and sends zeros, both ways"),
    "noise": Way("computes nothing and sends noise, both ways"),
    "cached": Way("computes nothing and sends what it computed for an earlier microbatch, both ways"),
    "copied": Way("computes nothing and sends on what came in, both ways", where=Where.INNER),
    "no-backward": Way("makes up the gradient that it sends back, and its own"),
    "no-weight-gradients": Way("sends what is due, both ways, and computes no gradient of its weights"),
    "biased": Way("adds a small constant to what it sends on"),
    "under-tolerance": Way("claims another numerics class, and adds as much as the tolerance between classes hides"),
    "low-precision": Way("computes in bfloat16 although the spec says float32"),
    "false-loss": Way("reports half the loss", where=Where.LAST),
    "wrong-data": Way("draws other text than is due", where=Where.FIRST),
    "scaled-gradient": Way("steps with ten times its gradient", "rounds"),
    "flipped-gradient": Way("steps against its gradient", "rounds"),
    "hidden-gradient": Way("adds to its gradient what it hides in one microbatch's line", "rounds"),
    "unseen-gradient": Way("adds to its gradient what no sketch of it shows", "rounds"),
    "stale": Way("computes with the weights of two rounds ago", "rounds"),
    "no-step": Way("doesn't step, and says that the state is the next one", "rounds"),
    "false-root": Way("makes up the root of its next state", "rounds"),
    "equivocate": Way("signs two reports of one round, and sends both", "rounds"),
    "withhold": Way("works honestly and gives auditors nothing", "rounds"),
    "adaptive": Way("sends zeros in as many rounds as pay, and withholds these when they are drawn", "its stake"),
    "flood": Way("sends zeros, contests that it is slashed, and proposes to slash everybody else"),
    "stale-answers": Way("generates with the weights that training began with", SESSIONS),
    "low-precision-answers": Way("generates in bfloat16 although the spec says float32", SESSIONS),
    "made-up-answers": Way("generates without computing: codes are noise, tokens are drawn from noise", SESSIONS),
    "withhold-answers": Way("generates honestly and gives auditors no trace of it", SESSIONS),
    "collude": Way("sends zeros, both ways, and its stage's auditor passes whatever it is shown", who=Who.BOTH),
    "wave-through": Way("as an auditor, passes what it is shown, without a replay", "audits", who=Who.AUDITOR),
    "false-alarm": Way("as an auditor, says of all work that it is fraud", "audits", who=Who.AUDITOR),
    "auditor-silent": Way("as an auditor, takes orders and never answers", "audits", who=Who.AUDITOR),
}


@dataclass(frozen=True)
class Cheating:
    """A way of cheating, and how often."""

    kind: str
    fraction: float = 1.0
    """See `Way.fraction`."""

    def __str__(self) -> str:
        return self.kind if self.fraction == 1 else f"{self.kind}:{Decimal(repr(self.fraction)):f}"

    @classmethod
    def parse(cls, text: str) -> "Cheating":
        """From KIND[:FRACTION]. Raises ConfigError."""
        kind, colon, fraction = text.partition(":")
        if kind not in KINDS:
            raise ConfigError(f"{kind!r} is no way of cheating. There are: {', '.join(KINDS)}.")
        if not colon:
            return cls(kind)
        if not re.fullmatch(r"[0-9]*\.?[0-9]+", fraction, re.ASCII) or not 0 < float(fraction) <= 1:
            raise ConfigError(f"{text!r}: the fraction {fraction!r} must be a number above 0 and at most 1, as in 0.1.")
        return cls(kind, float(fraction))


def parse_byzantine(texts: Sequence[str], stages: int, auditors: int, buyers: int) -> dict[str, Cheating]:
    """By the name of the process that cheats, from STAGE:KIND[:FRACTION] for each; `auditors` and `buyers` say how many
    of these there are.

    Raises ConfigError that names the text.
    """
    found: dict[int, Cheating] = {}
    for text in texts:
        number, colon, rest = text.partition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,6}", number, re.ASCII):
            raise ConfigError(f"--byzantine {text!r} must be STAGE:KIND or STAGE:KIND:FRACTION, as in 1:zeros:0.1.")
        stage = int(number)
        if stage >= stages:
            raise ConfigError(f"--byzantine {text!r}: there is no stage {stage}; there are 0 to {stages - 1}.")
        if stage in found:
            raise ConfigError(f"--byzantine {text!r}: stage {stage} cheats by {found[stage]} already.")
        try:
            cheating = Cheating.parse(rest)
        except ConfigError as error:
            raise ConfigError(f"--byzantine {text!r}: {error.args[0]}") from None
        if KINDS[cheating.kind].who is not Who.PROVIDER and auditors <= stage:
            raise ConfigError(
                f"--byzantine {text!r}: {cheating.kind} takes an auditor of stage {stage}: give --auditors {stage + 1}."
            )
        if KINDS[cheating.kind].fraction == SESSIONS and not buyers:
            raise ConfigError(f"--byzantine {text!r}: {cheating.kind} takes a buyer of answers: give --buyers 1.")
        where = KINDS[cheating.kind].where
        if not where.includes(stage, stages):
            raise ConfigError(f"--byzantine {text!r}: {cheating.kind} is possible on {where.value} only.")
        found[stage] = cheating
    return {name: how for stage, how in found.items() for name in KINDS[how.kind].who.names(stage)}
