"""What auditors say, as a devnet counts it."""

from collections.abc import Mapping
from typing import Any

from commonweight.rules.audits import Verdict
from commonweight.rules.panel import Standing, opinion_standing

BY_AUDITORS, BY_REFEREE, OVERRULED = "by_auditors", "by_referee", "overruled"
"""Opinions on what providers claim: whose they are, and how many another one has overruled."""
KNOWN_BAD, CAUGHT, WAVED_THROUGH = "known_bad", "known_bad_caught", "known_bad_passed"
"""Opinions on what is known to be bad, and of these what they say."""
OPINIONS = (BY_AUDITORS, BY_REFEREE, OVERRULED, KNOWN_BAD, CAUGHT, WAVED_THROUGH)
WHY_CONVICTED = {
    "known bad": "it passed a report that is known to be bad",
    "overruled": "it contradicts the referee, and has signed an operator that doesn't compute what it says",
}
"""Of an auditor, by the reason that the coordinator gives."""


def counted_as(opinion: Mapping[str, Any], decided: str) -> tuple[str, ...]:
    """What one of the opinions that an audit.decided lists is counted as, of OPINIONS."""
    verdict, known_bad = Verdict(opinion["verdict"]), opinion["known_bad"]
    if known_bad:
        return (KNOWN_BAD, *{Verdict.FAILED: [CAUGHT], Verdict.PASSED: [WAVED_THROUGH]}.get(verdict, []))
    by = BY_REFEREE if opinion["owner"] is None else BY_AUDITORS
    standing = opinion_standing(verdict, Verdict(decided), known_bad=False)
    return (by, OVERRULED) if standing is Standing.OVERRULED else (by,)
