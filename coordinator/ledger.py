"""The ledger of work: all that the coordinator must not forget, in a SQL database.

Everything else that it knows can be asked again (from the nodes that reconnect) or computed. Each method is one
transaction; what it records, it records once: the keys make a second credit for a unit impossible.
"""

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, LargeBinary, String, UniqueConstraint, func, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from commonweight.database import Counter, open_database, transaction
from commonweight.errors import LedgerError
from commonweight.rules.statement import CreditedReport, SealedRound, ServedLine, Statement, parse_statement


class Table(DeclarativeBase):
    """Base of the ledger's tables."""


class ModelRow(Table):
    """The one model that this ledger is of, and the last generation that was formed."""

    __tablename__ = "model"
    model_id: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    spec_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    settlement: Mapped[str] = mapped_column(String(42))
    chain_id: Mapped[int] = mapped_column(Counter)
    generation: Mapped[int] = mapped_column(Counter, default=0)


class SeatRow(Table):
    """Who holds a stage, for good."""

    __tablename__ = "seats"
    stage: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    node: Mapped[str] = mapped_column(String(42), unique=True)


class ReportRow(Table):
    """One stage's credited work in one sealed round, as the epoch's statement will show it."""

    __tablename__ = "reports"
    round: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    stage: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    credited: Mapped[dict[str, object]] = mapped_column(JSON)


class EpochRow(Table):
    """A closed epoch: its statement, and whether the chain has made it final."""

    __tablename__ = "epochs"
    epoch: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    statement: Mapped[bytes] = mapped_column(LargeBinary)
    statement_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    final: Mapped[bool] = mapped_column(default=False)
    __table_args__ = (UniqueConstraint("statement_hash"),)


class PublishedRow(Table):
    """A version that nodes were told to keep and to generate with."""

    __tablename__ = "published"
    round: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)


class ServedRow(Table):
    """A request that the model has answered: how many tokens went through each stage, and in which epoch they count."""

    __tablename__ = "served"
    request_id: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    epoch: Mapped[int] = mapped_column(Counter, index=True)
    round: Mapped[int] = mapped_column(Counter)
    prompt_tokens: Mapped[int] = mapped_column(Counter)
    completion_tokens: Mapped[int] = mapped_column(Counter)
    stages: Mapped[list[list[str]]] = mapped_column(JSON)
    """Node and account of each stage, in order."""


@dataclass(frozen=True)
class Progress:
    """Where training stands."""

    generation: int
    round: int
    """Next to be sealed."""
    seats: dict[int, str]
    roots: tuple[bytes, ...]
    """Of each stage at the start of `round`; empty before the first."""


class Ledger:
    """One model's ledger. Methods block on the database; call them off the event loop."""

    def __init__(self, url: str) -> None:
        """Open the database at an SQLAlchemy URL, such as sqlite:///ledger.db; raises as `open_database`."""
        self._engine = open_database(url, Table)

    def open_model(self, *, model_id: bytes, spec_hash: bytes, settlement: str, chain_id: int) -> Progress:
        """Where this model stands. Raises LedgerError if the ledger is of another one."""
        with transaction(self._engine, "Another coordinator has just begun this ledger.") as session:
            row = session.scalar(select(ModelRow))
            wanted = (model_id, spec_hash, settlement, chain_id)
            if row is None:
                row = ModelRow(
                    model_id=model_id,
                    spec_hash=spec_hash,
                    settlement=settlement,
                    chain_id=chain_id,
                    generation=0,
                )
                session.add(row)
            elif (found := (row.model_id, row.spec_hash, row.settlement, row.chain_id)) != wanted:
                raise LedgerError(
                    f"The ledger is of model 0x{found[0].hex()} with spec 0x{found[1].hex()} on chain {found[3]}; "
                    f"asked for was 0x{model_id.hex()} with spec 0x{spec_hash.hex()} on chain {chain_id}. "
                    "Each model has its own ledger: give another --ledger."
                )
            last = session.scalar(select(ReportRow.round).order_by(ReportRow.round.desc()).limit(1))
            reports = () if last is None else _sealed(session, last, last + 1)[0].reports
            return Progress(
                generation=row.generation,
                round=0 if last is None else last + 1,
                seats={seat.stage: seat.node for seat in session.scalars(select(SeatRow))},
                roots=tuple(bytes.fromhex(report.state_after[2:]) for report in reports),
            )

    def record_seat(self, stage: int, node: str) -> None:
        """This node holds this stage from now on. Raises LedgerError if either has another partner."""
        with transaction(self._engine, f"Stage {stage} is held already, or {node} holds another one.") as session:
            session.add(SeatRow(stage=stage, node=node))

    def record_generation(self, generation: int) -> None:
        """This generation was formed; its number is never used again."""
        with transaction(self._engine) as session:
            session.scalars(select(ModelRow)).one().generation = generation

    def record_round(self, round_: int, reports: Sequence[CreditedReport]) -> None:
        """A round is sealed, with the credit of every stage. Raises LedgerError if it is sealed already."""
        rows = [ReportRow(round=round_, stage=report.stage, credited=report.model_dump()) for report in reports]
        with transaction(self._engine, f"Round {round_} is sealed already; it can't be credited twice.") as session:
            _take_turn(session)
            session.add_all(rows)

    def sealed_rounds(self, first: int, end: int) -> tuple[SealedRound, ...]:
        """The sealed rounds in range(first, end), in order."""
        with transaction(self._engine) as session:
            return _sealed(session, first, end)

    def record_published(self, round_: int) -> None:
        """The version that is ready to train `round_` is about to be published."""
        with transaction(self._engine, f"The version of round {round_} was published before.") as session:
            session.add(PublishedRow(round=round_))

    def published(self) -> int:
        """The version that was published last; 0 where none was."""
        with transaction(self._engine) as session:
            return session.scalar(select(func.max(PublishedRow.round))) or 0

    def record_served(
        self, request_id: bytes, *, round_: int, prompt_tokens: int, completion_tokens: int, rounds_per_epoch: int
    ) -> tuple[int, bool]:
        """A request was answered by the version that is ready to train `round_`; recorded once, whatever is said later.

        It counts in the epoch that is being trained, and for those who were credited for the round before `round_`:
        they held that version. Returns the epoch, and whether it is new. Raises LedgerError where that round isn't
        sealed.
        """
        with transaction(self._engine) as session:
            _take_turn(session)  # so that no round is sealed between the look at the epoch and the record
            if (known := session.get(ServedRow, request_id)) is not None:
                return known.epoch, False
            sealed = _sealed(session, round_ - 1, round_)
            if not sealed:
                raise LedgerError(
                    f"Nobody can have served the version of round {round_}: round {round_ - 1} isn't sealed."
                )
            last = session.scalar(select(func.max(ReportRow.round)))
            assert last is not None, "a round is sealed"
            row = ServedRow(
                request_id=request_id,
                epoch=(last + 1) // rounds_per_epoch,
                round=round_,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                stages=[[report.node, report.account] for report in sealed[0].reports],
            )
            session.add(row)
            return row.epoch, True

    def served_in(self, epoch: int) -> tuple[ServedLine, ...]:
        """The tokens that each stage's provider served, as the epoch's statement shows them. Final once it is over."""
        tokens: Tally[tuple[int, str, str]] = Tally()
        with transaction(self._engine) as session:
            for row in session.scalars(select(ServedRow).where(ServedRow.epoch == epoch)):
                for stage, (node, account) in enumerate(row.stages):
                    tokens[stage, node, account] += row.prompt_tokens + row.completion_tokens
        return tuple(
            ServedLine(stage=stage, node=node, account=account, tokens=count)
            for (stage, node, account), count in sorted(tokens.items())
            if count > 0
        )

    def record_statement(self, epoch: int, statement: bytes, statement_hash: bytes) -> None:
        """The epoch is closed with this statement, and with no other. Raises LedgerError if it is closed already."""
        with transaction(self._engine, f"Epoch {epoch} is closed already; it can't have another statement.") as session:
            session.add(EpochRow(epoch=epoch, statement=statement, statement_hash=statement_hash))

    def record_final(self, epoch: int) -> None:
        """The chain has finalised the epoch."""
        with transaction(self._engine) as session:
            row = session.get(EpochRow, epoch)
            if row is None:
                raise LedgerError(f"Epoch {epoch} is final on chain, but the ledger has no statement of it.")
            row.final = True

    def statement(self, epoch: int) -> Statement | None:
        """The statement of a closed epoch, or None where it isn't closed."""
        with transaction(self._engine) as session:
            row = session.get(EpochRow, epoch)
            return None if row is None else parse_statement(row.statement, row.statement_hash)

    def final_epochs(self) -> int:
        """How many epochs the chain has made final: also the number of the next one."""
        with transaction(self._engine) as session:
            return len(session.scalars(select(EpochRow.epoch).where(EpochRow.final)).all())

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()


def _take_turn(session: Session) -> None:
    """Wait until no other transaction that does the same is open; it ends with this one."""
    session.execute(update(ModelRow).values(generation=ModelRow.generation))


def _sealed(session: Session, first: int, end: int) -> tuple[SealedRound, ...]:
    by_round: dict[int, list[CreditedReport]] = {}
    for row in session.scalars(
        select(ReportRow)
        .where(ReportRow.round >= first, ReportRow.round < end)
        .order_by(ReportRow.round, ReportRow.stage)
    ):
        by_round.setdefault(row.round, []).append(CreditedReport.model_validate(row.credited))
    return tuple(SealedRound(round=number, reports=tuple(reports)) for number, reports in by_round.items())
