"""Who replays a unit that was drawn, and what several auditors' opinions come to.

Whoever held a seat in a stage when the epoch's tip was committed may audit it, and so may the coordinator's referee;
the beacon ranks them anew for each unit. Who isn't there is passed over. An opinion that work is good stands. Any other
is followed by a second one, of the next, and then by the referee's: its word is the last. So no auditors in league can
harm a provider, and what two of them have signed stands beside the referee's word for all to see.

Some orders are **known bad**: the report that is shown isn't the signed one, two of its results have changed places.
Which ones follows from the epoch's seed, that nobody but the coordinator has until the epoch is over. An auditor who
passes one hasn't replayed it.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from enum import Enum

from commonweight.rules.audits import Audit, Kind, Verdict, rate_limit
from commonweight.rules.load import Load
from commonweight.rules.merkle import keccak, word
from commonweight.rules.receipt import Receipt
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import stage_units

Owner = str | None
"""Of a seat, by its address; None stands for the coordinator's referee."""

_REFEREE = bytes(20)
_REFEREES = (Kind.DATA, Kind.ANSWER)
"""The kinds that seat holders don't audit."""
MAX_SEATED = 2
"""So many seat holders are asked about what the provider claims; then the referee is."""


def rank_auditors(beacon: bytes, audit: Audit, owners: Collection[str]) -> tuple[Owner, ...]:
    """Who is to audit a unit, the first choice first; the last is the referee, None.

    `beacon` is the round's, `owners` hold seats in the stage and aren't the provider's. Only the referee audits tokens
    (seat holders needn't have the text, and no weights are replayed) and answers (what buyers ask is to be seen by as
    few as can be).
    """
    if audit.kind in _REFEREES:
        return (None,)

    def drawn(owner: Owner) -> bytes:
        return keccak(beacon + audit.place + (_REFEREE if owner is None else bytes.fromhex(owner[2:])))

    ranked = sorted({None, *owners}, key=drawn)
    return tuple(ranked[: ranked.index(None) + 1])


def is_known_bad(spec: ModelSpec, seed: bytes, audit: Audit, load: Load) -> bool:
    """Whether the first seat holder who audits the unit is shown a false report; `seed` is the epoch's, `load` that of
    whose work it is.
    """
    if audit.kind in _REFEREES or len(load) == 1 or spec.stages == 1:
        return False
    drawn = keccak(seed + word(audit.round) + audit.place)
    return int.from_bytes(drawn, "big") < rate_limit(spec.verification.known_bad_rate)


def known_bad_report(audit: Audit, report: Report, seed: bytes, *, is_last: bool) -> Report:
    """The false report: what the stage sent on for two microbatches has changed places; of the last stage its losses,
    and the gradients that it sent back.

    Both tensors are somewhere to be had, so that nothing but the replay tells. Where a stage has sent the same twice
    the report may be the true one.
    """
    count = len(report.hops)
    assert count > 1, "two microbatches change places"
    number = int.from_bytes(keccak(seed + word(audit.round) + audit.place + b"\x01"), "big")
    one = number % count if audit.microbatch is None else report.position(audit.microbatch)
    other = (one + 1 + number // count % (count - 1)) % count
    hops = list(report.hops)
    for here, there in ((one, other), (other, one)):
        own, given = report.hops[here], report.hops[there]
        if is_last:
            hops[here] = replace(own, loss=given.loss, gradient_out=given.gradient_out)
        else:
            hops[here] = replace(own, activation_out=given.activation_out)
    return replace(report, hops=tuple(hops))


def opinion_receipt(model_id: bytes, audit: Audit, claim: bytes, verdict: Verdict, evidence_hash: bytes) -> Receipt:
    """What an auditor signs, on a `Report.claim`, or of an answer an `Answer.trace`. All is in the unit: a second look
    may honestly come out otherwise (what was withheld has come), so two opinions of one auditor are no equivocation.
    """
    said = word(list(Verdict).index(verdict)) + evidence_hash
    unit = keccak(word(audit.round) + audit.place + claim + said)
    return Receipt(model_id, audit.stage, unit=unit, output=unit)


def recording_receipt(model_id: bytes, audit: Audit, claim: bytes, operators: bytes) -> Receipt:
    """What an auditor signs about how it came to its opinion: the hashes of its replay's operators."""
    unit = keccak(word(audit.round) + audit.place + claim + keccak(operators) + b"operators")
    return Receipt(model_id, audit.stage, unit=unit, output=unit)


def left_to_ask(ranking: Sequence[Owner], opinions: int) -> Sequence[Owner]:
    """Whom to ask next about the provider's claim, the first choice first: who is left of the ranking, but after
    MAX_SEATED opinions, which didn't settle it, only the referee.
    """
    return ranking if opinions < MAX_SEATED else (None,)


def settled_verdict(opinions: Sequence[tuple[Owner, Verdict]]) -> Verdict | None:
    """What the opinions on the provider's claim come to, in the order in which they were given; None: not yet."""
    if not opinions:
        return None
    owner, verdict = opinions[-1]
    is_good = len(opinions) == 1 and verdict is Verdict.PASSED
    return verdict if owner is None or is_good else None


class Standing(Enum):
    """What an opinion is worth, once the unit is decided."""

    PAID = "paid"
    UNPAID = "unpaid"
    """It says nothing: what it took was withheld, or couldn't be replayed."""
    OVERRULED = "overruled"
    """It contradicts the verdict. Proof of who is wrong may follow."""
    FALSE = "false"
    """It passes what is known to be bad, while what the provider claims instead is good."""


def opinion_standing(opinion: Verdict, decided: Verdict, *, known_bad: bool) -> Standing:
    """`known_bad`: it is on a claim that wasn't the provider's. Where that is false, too, the other may be true."""
    if known_bad:
        if opinion is Verdict.PASSED and decided is Verdict.PASSED:
            return Standing.FALSE
        return Standing.PAID if opinion is Verdict.FAILED else Standing.UNPAID
    if opinion not in (Verdict.PASSED, Verdict.FAILED):
        return Standing.UNPAID
    if opinion is decided:
        return Standing.PAID
    return Standing.OVERRULED if decided in (Verdict.PASSED, Verdict.FAILED) else Standing.UNPAID


def audit_units(spec: ModelSpec, audit: Audit, load: Load) -> int:
    """What an audit is worth: as much as the work that it repeats. `load`: whose work is audited."""
    return stage_units(spec, audit.stage) * (len(load) if audit.microbatch is None else 1)


def is_in_order(owners: Iterable[Owner], ranking: Iterable[Owner]) -> bool:
    """Whether nobody was asked out of turn; who wasn't there was passed over."""
    rest = iter(ranking)
    return all(owner in rest for owner in owners)
