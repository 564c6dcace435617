"""The ledger's tables."""

from sqlalchemy import JSON, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from commonweight.database import Counter


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
    """The stage that a node holds."""

    __tablename__ = "seats"
    node: Mapped[str] = mapped_column(String(42), primary_key=True)
    stage: Mapped[int] = mapped_column(Counter)


class BeaconRow(Table):
    """The secret that an epoch's audits follow from: who reads it before the epoch is over can cheat unseen."""

    __tablename__ = "beacons"
    epoch: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    seed: Mapped[bytes] = mapped_column(LargeBinary(32))


class RoundRow(Table):
    """A sealed round, with the beacon value that was revealed then."""

    __tablename__ = "rounds"
    round: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    beacon: Mapped[str] = mapped_column(String(66))


class ReportRow(Table):
    """One replica's credited work in one sealed round, as the epoch's statement will show it before its audits."""

    __tablename__ = "reports"
    round: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    stage: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    node: Mapped[str] = mapped_column(String(42), primary_key=True)
    credited: Mapped[dict[str, object]] = mapped_column(JSON)


class UnauditedRow(Table):
    """A whole report, hops and all, of a replica of which something was drawn; until its round's audits are decided."""

    __tablename__ = "unaudited"
    round: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    stage: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    replica: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    """Its number among the stage's reports."""
    report: Mapped[bytes] = mapped_column(LargeBinary)


class VerdictRow(Table):
    """What one audit came to, as the epoch's statement will show it."""

    __tablename__ = "verdicts"
    round: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    stage: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    replica: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    microbatch: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    """-1: the whole round."""
    convicts: Mapped[bool] = mapped_column(index=True)
    """Whether it proves fraud, of the provider or of an auditor."""
    line: Mapped[dict[str, object]] = mapped_column(JSON)


class EquivocationRow(Table):
    """Two receipts for one unit of work, both signed by a node that holds the stage: fraud that proves itself."""

    __tablename__ = "equivocations"
    stage: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    node: Mapped[str] = mapped_column(String(42), primary_key=True)
    line: Mapped[dict[str, object]] = mapped_column(JSON)


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
    """An answer that a gateway has reported, in the order in which the reports came."""

    __tablename__ = "served"
    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    request_id: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    session: Mapped[bytes] = mapped_column(LargeBinary(16), unique=True)
    version: Mapped[int] = mapped_column(Counter)
    prompt_tokens: Mapped[int] = mapped_column(Counter)
    completion_tokens: Mapped[int] = mapped_column(Counter)
    gateway: Mapped[str] = mapped_column(String(42))
    signature: Mapped[bytes] = mapped_column(LargeBinary(65))
    is_open: Mapped[bool] = mapped_column(default=True, index=True)
    """Whether it may still be sealed: it is neither sealed nor dropped."""


class PartRow(Table):
    """A stage's part of an answer that is neither sealed nor dropped, in the order in which the parts came."""

    __tablename__ = "parts"
    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    session: Mapped[bytes] = mapped_column(LargeBinary(16))
    stage: Mapped[int] = mapped_column(Counter)
    version: Mapped[int] = mapped_column(Counter, index=True)
    node: Mapped[str] = mapped_column(String(42))
    part: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary(65))
    __table_args__ = (UniqueConstraint("session", "stage"), Index("parts_in_order", "node", "number"))


class AnswerRow(Table):
    """An answer that was sealed with a round, as the epoch's statement will show it."""

    __tablename__ = "answers"
    round: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    """Among those of the round."""
    session: Mapped[bytes] = mapped_column(LargeBinary(16), unique=True)
    line: Mapped[dict[str, object]] = mapped_column(JSON)


class UnauditedPartRow(Table):
    """A whole part of a sealed answer, where it was drawn; until its round's audits are decided."""

    __tablename__ = "unaudited_parts"
    round: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    """Of the answer among those of the round."""
    stage: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=False)
    part: Mapped[bytes] = mapped_column(LargeBinary)
