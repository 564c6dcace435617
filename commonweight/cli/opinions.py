"""What became of an auditor's opinions: how many there were, what they earned, and why some earned nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from commonweight.cli.audited import Earlier
from commonweight.cli.statements import Published
from commonweight.rules.audits import Audit, Verdict
from commonweight.rules.panel import Standing
from commonweight.rules.statement import AuditLine, Conviction, Opinion, Statement

EMPTY = {
    Verdict.WITHHELD: "it says no more than that what it takes was withheld",
    Verdict.UNDECIDED: "it says no more than that the auditor couldn't tell",
}
"""Of opinions that nobody is paid for, whatever the verdict."""


@dataclass(frozen=True)
class UnpaidOpinions:
    """That one reason leaves unpaid."""

    audits: tuple[Audit, ...]
    why: str

    @property
    def span(self) -> str:
        more = f" and {len(self.audits) - 1} more" if len(self.audits) > 1 else ""
        return f"{self.audits[0]}{more}"


@dataclass(frozen=True)
class Opinions:
    """Of one auditor about one stage in one epoch."""

    auditor: Conviction
    """Stage and the key that signed; convicted or not."""
    account: str
    """Who is paid for them."""
    lines: tuple[tuple[AuditLine, Opinion], ...]
    unpaid: tuple[UnpaidOpinions, ...]

    @property
    def units(self) -> int:
        return sum(int(opinion.units) for _, opinion in self.lines)

    @property
    def paid(self) -> int:
        """How many."""
        return len(self.lines) - sum(len(each.audits) for each in self.unpaid)


def opinions_in(published: Published, is_wanted: Callable[[Opinion], bool], earlier: Earlier) -> tuple[Opinions, ...]:
    """The epoch's opinions for which somebody may be paid, by stage, auditor and account."""
    found: dict[tuple[int, str, str], list[tuple[AuditLine, Opinion]]] = {}
    for line in published.statement.audits:
        for opinion in line.opinions:
            if opinion.account is not None and is_wanted(opinion):
                key = (line.stage, opinion.auditor, opinion.account)
                found.setdefault(key, []).append((line, opinion))
    every = []
    for (stage, node, account), lines in sorted(found.items()):
        auditor = Conviction(stage=stage, node=node)
        reasons: dict[str, list[Audit]] = {}
        for line, opinion in lines:
            if opinion.units == "0":
                why = _why_unpaid(line, opinion) or _why_distrusted(auditor, published, earlier)
                reasons.setdefault(why, []).append(line.audit)
        unpaid = tuple(UnpaidOpinions(tuple(audits), why) for why, audits in reasons.items())
        every.append(Opinions(auditor, account, tuple(lines), unpaid))
    return tuple(every)


def _why_unpaid(line: AuditLine, opinion: Opinion) -> str | None:
    """What about the opinion itself earns nothing."""
    said = Verdict(opinion.verdict)
    proof = f"; it is disproven by {opinion.disproof}" if opinion.is_disproven else ""
    match line.standing_of(opinion):
        case Standing.PAID:
            return None
        case Standing.FALSE:
            return f"it passes a false report, which was shown to test it{proof}"
        case Standing.OVERRULED:
            return f"it says {said.value}, and the verdict is {line.verdict}{proof}"
        case Standing.UNPAID:
            return EMPTY.get(said, f"it says {said.value}, and the verdict is {line.verdict}")


def _why_distrusted(auditor: Conviction, published: Published, earlier: Earlier) -> str:
    """Why an opinion that is right earns nothing."""
    statement: Statement = published.statement
    if auditor in statement.convicted:
        return earlier.conviction(auditor, published)
    return "nothing says why: `commonweight audit` finds what is wrong with the statement"
