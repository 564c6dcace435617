"""Recomputing epochs: everything that follows from a statement, from the spec and from the chain."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from commonweight.chain.events import Swept
from commonweight.chain.records import EpochRecord
from commonweight.cli.answers import AnswerTotals, count_answers
from commonweight.cli.audited import count_audits
from commonweight.cli.panels import Panels, count_panels
from commonweight.cli.place import Place
from commonweight.cli.statements import Published, find_statement
from commonweight.errors import StatementMismatch
from commonweight.rules.epoch import credited_load, report_units
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import Carried, Conviction, Outstanding
from commonweight.watch.judge import check_epoch
from commonweight.watch.proposals import read_proposal


@dataclass(frozen=True)
class Verified:
    """An epoch in which nothing is wrong."""

    epoch: int
    final: bool
    rounds: int
    reports: int
    """Each with a signature that is its node's."""
    audits: Counter[tuple[str, str]]
    """By kind and verdict: all that the beacon draws, each opinion signed by who was to give it."""
    panels: Panels
    answers: AnswerTotals
    unpaid_reports: int
    unpaid_units: int
    """What these reports would have been worth."""
    convicted: tuple[Conviction, ...]
    """So far."""
    outstanding: tuple[Outstanding, ...]
    """After it."""
    accounts: int
    statement_hash: bytes


def verify_epochs(place: Place, spec: ModelSpec, only: int | None = None) -> Iterator[Verified]:
    """Recomputes every epoch from the first to the pending one; `only` one of them, if given, from what the statement
    of the one before it leaves to it.

    Raises StatementMismatch that names the first fault, StatementUnavailable where a statement can't be had.
    """
    first = 0 if only is None else only
    previous = _record(place, first - 1) if first else None
    carried = Carried() if previous is None else find_statement(place, previous).statement.carried()
    pending = place.settlement.pending()
    end = place.settlement.next_epoch() + (pending is not None) if only is None else only + 1
    for epoch in range(first, end):
        record = _record(place, epoch)
        published = find_statement(place, record)
        proposal = read_proposal(
            place.settlement,
            place.model,
            record,
            published.statement,
            accumulator_before=0 if previous is None else previous.accumulator,
            operator_earned=_operator_earned(place, record),
        )
        check_epoch(spec, published.statement, carried, proposal)
        yield _verified(spec, published)
        carried, previous = published.statement.carried(), record


def _record(place: Place, epoch: int) -> EpochRecord:
    record = place.settlement.epoch(epoch)
    if record is None:
        raise StatementMismatch(
            f"Epoch {epoch} is neither pending nor final: `commonweight epochs list` shows those that are."
        )
    return record


def _operator_earned(place: Place, record: EpochRecord) -> int:
    """By when the epoch was proposed."""
    sweeps = place.router.events(Swept)
    return sum(sweep.to_operators for sweep in sweeps if sweep.block_number <= record.block_number)


def _verified(spec: ModelSpec, published: Published) -> Verified:
    statement = published.statement
    reports = [line for sealed in statement.rounds for line in sealed.reports]
    unpaid = [line for line in reports if line.units == "0"]
    return Verified(
        epoch=statement.epoch,
        final=published.epoch.finalized,
        rounds=len(statement.rounds),
        reports=len(reports),
        audits=count_audits(statement.audits),
        panels=count_panels(spec, statement),
        answers=count_answers(statement),
        unpaid_reports=len(unpaid),
        unpaid_units=sum(report_units(spec, line.stage, len(credited_load(spec, line))) for line in unpaid),
        convicted=statement.convicted,
        outstanding=statement.outstanding,
        accounts=len(statement.accounts),
        statement_hash=published.epoch.statement_hash,
    )
