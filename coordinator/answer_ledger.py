"""The part of the ledger that is about answers: what gateways report, what stages say of it, what is sealed of both.

A report and the parts of an answer come in any order, and each counts once. They wait until the answer is sealed with a
round, or dropped.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import delete, exists, func, select, tuple_, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from commonweight.database import transaction
from commonweight.rules.statement import AnswerLine, SealedRound
from coordinator.tables import AnswerRow, ModelRow, PartRow, ReportRow, ServedRow, UnauditedPartRow

UnauditedParts = Mapping[tuple[int, int], bytes]
"""Whole parts (AnswerPart, serialized) of a sealed round's answers that were drawn: by the answer's number in the
round, and by stage.
"""


@dataclass(frozen=True)
class RecordedPart:
    """One stage's part of an answer, as it was recorded."""

    version: int
    session: bytes
    stage: int
    node: str
    """Who has signed it."""
    message: bytes
    """AnswerPart, serialized."""
    signature: bytes


@dataclass(frozen=True)
class Reported:
    """An answer that a gateway has reported."""

    request_id: bytes
    session: bytes
    version: int
    prompt_tokens: int
    completion_tokens: int
    gateway: str
    signature: bytes


class AnswerLedger:
    """That of one model. Methods block on the database; call them off the event loop."""

    def __init__(self, engine: Engine) -> None:
        """On a database that has the tables."""
        self._engine = engine

    def record_served(self, reported: Reported) -> bool:
        """A request was answered; recorded once, whatever is said of it later. Whether it is new.

        Raises LedgerError where its session was reported for another request.
        """
        conflict = f"Session {reported.session.hex()} was reported for another request; a session answers one."
        with transaction(self._engine, conflict) as session:
            take_turn(session)
            if session.scalar(select(ServedRow).where(ServedRow.request_id == reported.request_id)) is not None:
                return False
            session.add(ServedRow(**vars(reported)))
            return True

    def record_part(self, part: RecordedPart, limit: int) -> bool:
        """A stage has said its part of an answer. Whether this is what counts: False where it has said another before.

        Nothing is recorded once the answer is sealed or dropped. `limit`: so many of a node wait at most; the next one
        takes the place of the oldest of which no gateway has reported the answer, or else of the oldest.
        """
        with transaction(self._engine) as session:
            take_turn(session)
            served = session.scalar(select(ServedRow).where(ServedRow.session == part.session))
            if served is not None and not served.is_open:
                return True
            known = session.scalar(select(PartRow).where(PartRow.session == part.session, PartRow.stage == part.stage))
            if known is not None:
                return (known.node, known.part) == (part.node, part.message)
            if session.scalars(select(func.count()).where(PartRow.node == part.node)).one() >= limit:
                is_reported = exists().where(ServedRow.session == PartRow.session)
                least = select(PartRow).where(PartRow.node == part.node).order_by(is_reported, PartRow.number)
                session.delete(session.scalars(least.limit(1)).one())
            session.add(
                PartRow(
                    session=part.session,
                    stage=part.stage,
                    version=part.version,
                    node=part.node,
                    part=part.message,
                    signature=part.signature,
                )
            )
            return True

    def complete_answers(
        self, stages: int, replicas: Collection[tuple[int, str]], limit: int
    ) -> list[tuple[Reported, tuple[RecordedPart, ...]]]:
        """Reported answers of which all stages have said their parts, each by one of the stage's `replicas` (stage and
        node), in the order of the reports, at most `limit`; the parts in stage order.
        """
        said = select(PartRow.session).where(tuple_(PartRow.stage, PartRow.node).in_(list(replicas)))
        complete = said.group_by(PartRow.session).having(func.count() == stages)
        with transaction(self._engine) as session:
            take_turn(session)  # so that no part makes room for another between the two looks
            reported = session.scalars(
                select(ServedRow)
                .where(ServedRow.is_open, ServedRow.session.in_(complete))
                .order_by(ServedRow.number)
                .limit(limit)
            ).all()
            parts: dict[bytes, list[RecordedPart]] = {row.session: [] for row in reported}
            for row in session.scalars(select(PartRow).where(PartRow.session.in_(parts)).order_by(PartRow.stage)):
                parts[row.session].append(_part(row))
            return [(_reported(row), tuple(parts[row.session])) for row in reported]

    def drop_answers(self, sessions: Collection[bytes]) -> None:
        """These answers are never sealed; of what is said of them later nothing is kept."""
        with transaction(self._engine) as session:
            take_turn(session)
            _close(session, sessions)

    def drop_versions(self, kept: Collection[int]) -> list[tuple[Reported, frozenset[int]]]:
        """Answers of other versions are never sealed. Returns those that were reported, in that order, and of each the
        stages that have said their parts.
        """
        with transaction(self._engine) as session:
            take_turn(session)
            is_late = (ServedRow.is_open, ServedRow.version.not_in(kept))
            late = session.scalars(select(ServedRow).where(*is_late).order_by(ServedRow.number)).all()
            is_of_late = PartRow.session.in_(select(ServedRow.session).where(*is_late))
            stages: dict[bytes, set[int]] = {row.session: set() for row in late}
            for of, stage in session.execute(select(PartRow.session, PartRow.stage).where(is_of_late)):
                stages[of].add(stage)
            session.execute(delete(PartRow).where(is_of_late | PartRow.version.not_in(kept)))
            session.execute(update(ServedRow).where(*is_late).values(is_open=False))
            return [(_reported(row), frozenset(stages[row.session])) for row in late]

    def answer_claim(self, round_: int, index: int, stage: int) -> tuple[bytes, bytes]:
        """The stage's part (AnswerPart, serialized) of an answer that was sealed with a round whose audits aren't all
        decided, and the state root of the version that generated it.
        """
        with transaction(self._engine) as session:
            line = session.get_one(AnswerRow, (round_, index)).line
            version = AnswerLine.model_validate(line, strict=False).version
            reports = select(ReportRow).where(ReportRow.round == version - 1, ReportRow.stage == stage)
            credited = session.scalars(reports.limit(1)).one().credited  # they have averaged: their states are equal
            part = session.get_one(UnauditedPartRow, (round_, index, stage)).part
            return part, bytes.fromhex(str(credited["state_after"])[2:])


def take_turn(session: Session) -> None:
    """Wait until no other transaction that does the same is open; it ends with this one."""
    session.execute(update(ModelRow).values(generation=ModelRow.generation))


def add_answers(session: Session, sealed: SealedRound, unaudited: UnauditedParts) -> None:
    """The answers of a round that is sealed in this transaction."""
    sessions = [bytes.fromhex(line.session[2:]) for line in sealed.answers]
    for number, line in enumerate(sealed.answers):
        session.add(AnswerRow(round=sealed.round, number=number, session=sessions[number], line=line.model_dump()))
    for (number, stage), part in unaudited.items():
        session.add(UnauditedPartRow(round=sealed.round, number=number, stage=stage, part=part))
    _close(session, sessions)


def sealed_answers(session: Session, first: int, end: int) -> dict[int, list[AnswerLine]]:
    """Those of the rounds in range(first, end), by round, each round's in order."""
    found: dict[int, list[AnswerLine]] = {}
    rows = select(AnswerRow).where(AnswerRow.round >= first, AnswerRow.round < end)
    for row in session.scalars(rows.order_by(AnswerRow.round, AnswerRow.number)):
        line = AnswerLine.model_validate(row.line, strict=False)  # JSON has lists for tuples
        found.setdefault(row.round, []).append(line)
    return found


def _close(session: Session, sessions: Collection[bytes]) -> None:
    session.execute(update(ServedRow).where(ServedRow.session.in_(sessions)).values(is_open=False))
    session.execute(delete(PartRow).where(PartRow.session.in_(sessions)))


def _reported(row: ServedRow) -> Reported:
    return Reported(
        request_id=row.request_id,
        session=row.session,
        version=row.version,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        gateway=row.gateway,
        signature=row.signature,
    )


def _part(row: PartRow) -> RecordedPart:
    return RecordedPart(
        version=row.version,
        session=row.session,
        stage=row.stage,
        node=row.node,
        message=row.part,
        signature=row.signature,
    )
