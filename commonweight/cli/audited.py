"""What became of a provider's work under audit: what was drawn, and why rounds and answers are unpaid."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from commonweight.cli.place import Place
from commonweight.cli.statements import Published, find_statement
from commonweight.errors import StatementMismatch, StatementUnavailable
from commonweight.rules.audits import TRAINING, Audit, Kind, Verdict, paid_rounds
from commonweight.rules.statement import AnswerLine, AuditLine, Conviction, CreditedReport, SealedRound, Statement

SINCE_EARLIER = (
    "{} audit is outstanding since an earlier epoch, in which what it takes was withheld: nothing is paid until one "
    "that looks at as much has passed"
)


@dataclass(frozen=True)
class Unpaid:
    """Rounds, or rounds' answers, that one reason leaves unpaid."""

    rounds: tuple[int, ...]
    """Ascending."""
    why: str

    @property
    def span(self) -> str:
        first, last = self.rounds[0], self.rounds[-1]
        return f"round {first}" if first == last else f"rounds {first} to {last}"


@dataclass(frozen=True)
class Audited:
    """One node's work at one stage in one epoch."""

    provider: Conviction
    """Stage and node; convicted or not."""
    rounds: tuple[int, ...]
    """That it did, ascending."""
    audits: tuple[AuditLine, ...]
    """Of its work, answers included."""
    unpaid: tuple[Unpaid, ...]
    answers: int = 0
    """That went through it, and were sealed with its rounds."""
    answer_tokens: int = 0
    """Delivered with them, prompts included."""
    unpaid_answers: tuple[Unpaid, ...] = ()

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """Audits by kind and verdict."""
        return count_audits(self.audits)

    @property
    def audited_rounds(self) -> int:
        """Of whose training anything was audited."""
        return len({line.round for line in self.audits if Kind(line.kind) in TRAINING})


def count_audits(lines: Sequence[AuditLine]) -> Counter[tuple[str, str]]:
    """By kind and verdict."""
    return Counter((line.kind, line.verdict) for line in lines)


@dataclass
class Earlier:
    """What earlier epochs' statements say about providers; each conviction is looked for once."""

    place: Place
    _found: dict[Conviction, str] = field(default_factory=dict)

    def conviction(self, provider: Conviction, published: Published) -> str:
        """Why `provider` is in this epoch's list of the convicted: the epoch, what it did, and the evidence's hash."""
        if provider not in self._found:
            self._found[provider] = self._search(provider, published)
        return self._found[provider]

    def outstanding(self, provider: Conviction, published: Published) -> frozenset[Kind]:
        """The kinds of audit that `provider` has withheld before this epoch and has still to pass.

        Raises StatementUnavailable or StatementMismatch where the statement of the epoch before can't be had.
        """
        if not published.statement.epoch:
            return frozenset()
        before = self._statement(published.statement.epoch - 1).outstanding
        mine = (each for each in before if (each.stage, each.node) == (provider.stage, provider.node))
        return frozenset(Kind(each.kind) for each in mine)

    def _search(self, provider: Conviction, published: Published) -> str:
        """Who is once in the list stays: the first statement that has it has the audit, too."""
        try:
            first = bisect_left(
                range(published.statement.epoch), True, key=lambda epoch: provider in self._statement(epoch).convicted
            )
            statement = published.statement if first == published.statement.epoch else self._statement(first)
        except (StatementUnavailable, StatementMismatch) as error:
            return f"convicted of fraud in an epoch whose statement can't be had: {error.args[0]}"
        cause = next(_proofs(statement, provider), None)
        if cause is None:
            return f"convicted of fraud in epoch {first}, whose statement has no proof of it"
        return f"convicted of fraud in epoch {first}: {cause}"

    def _statement(self, epoch: int) -> Statement:
        record = self.place.settlement.epoch(epoch)
        if record is None:
            raise StatementUnavailable(f"Epoch {epoch} isn't on the chain any more.")
        return find_statement(self.place, record).statement


def audited_work(published: Published, provider: Conviction, earlier: Earlier) -> Audited:
    """What became of the work that `provider` did in the epoch."""
    statement = published.statement
    lines = {sealed.round: line for sealed in statement.rounds for line in sealed.reports if _is_by(line, provider)}
    answers = {sealed.round: _answers_by(provider, sealed) for sealed in statement.rounds}
    tokens = {number: sum(line.delivered for line in of_round) for number, of_round in answers.items() if of_round}
    audits = _audits_of(statement, provider)
    training = [line for line in audits if Kind(line.kind) in TRAINING]
    of_answers = [line for line in audits if Kind(line.kind) is Kind.ANSWER]
    unpaid_rounds = frozenset(number for number, line in lines.items() if line.units == "0")
    unpaid_answers = _unpaid_answers(statement, provider, tokens, of_answers)
    case = partial(_reasons, published, provider, earlier)
    return Audited(
        provider,
        tuple(sorted(lines)),
        audits,
        case(sorted(lines), training, unpaid_rounds, TRAINING),
        answers=sum(map(len, answers.values())),
        answer_tokens=sum(tokens.values()),
        unpaid_answers=case(sorted(tokens), of_answers, unpaid_answers, {Kind.ANSWER}),
    )


def _unpaid_answers(
    statement: Statement, provider: Conviction, tokens: Mapping[int, int], audits: Sequence[AuditLine]
) -> frozenset[int]:
    """The rounds whose answers the provider isn't paid for; `tokens` by round, `audits` of these answers."""
    paid_for = sum(
        line.tokens for line in statement.served if (line.stage, line.node) == (provider.stage, provider.node)
    )
    verdicts = {line.audit: Verdict(line.verdict) for line in audits}
    for outstanding in ((), (Kind.ANSWER,)):
        paid = paid_rounds(tokens, verdicts, outstanding)
        if sum(tokens[number] for number in paid) == paid_for:
            return frozenset(tokens) - paid
    return frozenset(tokens)  # it is convicted


def _reasons(
    published: Published,
    provider: Conviction,
    earlier: Earlier,
    rounds: Sequence[int],
    audits: Sequence[AuditLine],
    left: frozenset[int],
    kinds: Collection[Kind],
) -> tuple[Unpaid, ...]:
    """Why those `left` of a provider's `rounds` are unpaid that `audits` of these `kinds` look at."""
    found: dict[frozenset[int], list[str]] = {}
    if left and provider in published.statement.convicted:
        found[left] = [earlier.conviction(provider, published)]
    else:
        for line in audits:
            if line.verdict == Verdict.WITHHELD.value and (void := _voided(rounds, audits, {line.audit}) & left):
                found.setdefault(void, []).append(f"what {line.audit} takes was withheld")
        why = "no audit says why: `commonweight audit` finds what is wrong with the statement"
        if left.difference(*found):
            try:
                due = earlier.outstanding(provider, published).intersection(kinds)
                for kind in sorted(due, key=lambda kind: kind.value):
                    if void := _voided(rounds, audits, outstanding={kind}) & left:
                        found.setdefault(void, []).append(SINCE_EARLIER.format(_article(kind)))
            except (StatementUnavailable, StatementMismatch) as error:
                why = f"no audit of the epoch says why, and the statement before it can't be had: {error.args[0]}"
        if unexplained := left.difference(*found):
            found[unexplained] = [why]
    unpaid = (Unpaid(tuple(sorted(void)), _first_of(reasons)) for void, reasons in found.items())
    return tuple(sorted(unpaid, key=lambda each: each.rounds))


def _article(kind: Kind) -> str:
    return f"{'an' if kind is Kind.ANSWER else 'a'} {kind.value}"


def _first_of(reasons: Sequence[str]) -> str:
    return reasons[0] + (f", and {len(reasons) - 1} more like it" if len(reasons) > 1 else "")


def _is_by(line: CreditedReport, provider: Conviction) -> bool:
    return (line.stage, line.node) == (provider.stage, provider.node)


def _audits_of(statement: Statement, provider: Conviction) -> tuple[AuditLine, ...]:
    """Of this provider's work."""
    replicas = {sealed.round: _replica(provider, sealed) for sealed in statement.rounds}
    lines = (line for line in statement.audits if line.stage == provider.stage)
    return tuple(line for line in lines if replicas.get(line.round) == line.replica)


def _answers_by(provider: Conviction, sealed: SealedRound) -> list[AnswerLine]:
    """Those that went through this provider's stage on its node."""
    own = _replica(provider, sealed)
    return [line for line in sealed.answers for part in line.parts[provider.stage :][:1] if part.replica == own]


def _replica(provider: Conviction, sealed: SealedRound) -> int | None:
    """Which replica of its stage it was in the round; None where it has reported nothing."""
    nodes = [line.node for line in sealed.replicas(provider.stage)]
    return nodes.index(provider.node) if provider.node in nodes else None


def _proofs(statement: Statement, convicted: Conviction) -> Iterator[str]:
    """What the statement convicts a node of, as a provider, as an auditor, or by its signatures alone."""
    for line in _audits_of(statement, convicted):
        if line.verdict == Verdict.FAILED.value:
            yield f"{line.audit} failed, evidence {line.evidence}"
    for line in statement.audits:
        for opinion in line.disproven:
            if (line.stage, opinion.auditor) == (convicted.stage, convicted.node):
                yield f"as an auditor it said {opinion.verdict} in {line.audit}, disproof {opinion.disproof}"
    for twice in statement.equivocations:
        if (twice.stage, twice.node) == (convicted.stage, convicted.node):
            yield f"it signed two results of unit {twice.unit}, {' and '.join(twice.outputs)}"


def _voided(
    rounds: Sequence[int],
    audits: Sequence[AuditLine],
    withheld: Collection[Audit] = (),
    outstanding: Collection[Kind] = (),
) -> frozenset[int]:
    """The rounds that these alone leave unpaid."""
    verdicts = {line.audit: Verdict(line.verdict) for line in audits if line.verdict == Verdict.PASSED.value}
    return frozenset(rounds) - paid_rounds(rounds, verdicts | dict.fromkeys(withheld, Verdict.WITHHELD), outstanding)
