"""The gateway's ledger: which payment was taken for what, and what became of it.

An order is one paid request. It is written before any work is done for it, so that no payment buys two answers, and
what was delivered is written as it is delivered, so that a gateway that is killed knows what it may collect. Each
method is one transaction.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Index, LargeBinary, String, UniqueConstraint, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from commonweight.chain.records import Authorization
from commonweight.database import Counter, open_database, transaction


class State(StrEnum):
    """What became of an order."""

    OPEN = "open"
    """It is being answered, or was when the gateway died."""
    SERVED = "served"
    """The answer has ended; its charge is to be collected."""
    MINED = "mined"
    """It is collected, under fewer blocks than are asked for: the chain may lose it yet."""
    COLLECTED = "collected"
    """It is collected for good."""
    VOID = "void"
    """Nothing was delivered: nothing will be collected."""
    WRITTEN_OFF = "written off"
    """It can't be collected any more."""


class Taken(Exception):
    """This payment has been taken for another request."""


class Overdrawn(Exception):
    """The payer has signed for more than it has, with what isn't collected yet."""


class Table(DeclarativeBase):
    """Base of the ledger's tables."""


class OrderRow(Table):
    """One paid request."""

    __tablename__ = "orders"
    request_id: Mapped[bytes] = mapped_column(LargeBinary(16), primary_key=True)
    payer: Mapped[str] = mapped_column(String(42))
    nonce: Mapped[bytes] = mapped_column(LargeBinary(32))
    request_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    authorization: Mapped[dict[str, str]] = mapped_column(JSON)
    expires: Mapped[int] = mapped_column(Counter)
    prompt_tokens: Mapped[int] = mapped_column(Counter)
    completion_tokens: Mapped[int] = mapped_column(Counter, default=0)
    round: Mapped[int | None] = mapped_column(Counter)
    session: Mapped[bytes | None] = mapped_column(LargeBinary(16))
    charge: Mapped[str] = mapped_column(String(78), default="0")
    state: Mapped[str] = mapped_column(String(16), index=True)
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    transaction: Mapped[str | None] = mapped_column(String(66))
    reported: Mapped[bool] = mapped_column(default=False)
    __table_args__ = (
        UniqueConstraint("payer", "nonce"),
        Index("kept_answers", "expires", sqlite_where=answer.is_not(None), postgresql_where=answer.is_not(None)),
    )


@dataclass(frozen=True)
class Order:
    """One paid request."""

    request_id: bytes
    """16 random bytes."""
    request_hash: bytes
    """Of what was asked."""
    authorization: Authorization
    expires: int
    """Unix time until which its answer is kept; at most the authorisation's `valid_before`."""
    prompt_tokens: int
    completion_tokens: int = 0
    """Delivered."""
    round: int | None = None
    """The version of the model that answered; None before it began."""
    session: bytes | None = None
    """What its stages know the answer by; likewise."""
    charge: int = 0
    """For what was delivered, in the token's smallest unit."""
    state: State = State.OPEN
    answer: dict[str, Any] | None = None
    """Of a request that wasn't streamed: paid for before it is sent, so it can be asked for again."""
    transaction: str | None = None
    """That collected the charge; the buyer is told it before it is deep enough."""
    reported: bool = False
    """Whether the coordinator knows what was served."""


class Ledger:
    """One gateway's orders. Methods block on the database; call them off the event loop."""

    def __init__(self, url: str) -> None:
        """Open the database at an SQLAlchemy URL, such as sqlite:///gateway.db; raises as `open_database`."""
        self._engine = open_database(url, Table)
        self._accepting = threading.Lock()

    def uncollected(self, payer: str) -> Mapping[bytes, int]:
        """What it has signed for and may still have to pay, by request."""
        with transaction(self._engine) as session:
            return _uncollected(session, payer)

    def accept(self, order: Order, balance: int, uncollected: Mapping[bytes, int]) -> None:
        """A payment is taken for a request. Raises Taken, and Overdrawn where `balance` doesn't cover it.

        All that a payer has signed for has to be there when one of its payments is collected, so those that are
        still to be collected count in full. `uncollected`: from before `balance` was read, which may or may not know
        of those that have been collected since.
        """
        payment = order.authorization
        row = OrderRow(
            request_id=order.request_id,
            payer=payment.from_,
            nonce=payment.nonce,
            request_hash=order.request_hash,
            authorization=_to_json(payment),
            expires=order.expires,
            prompt_tokens=order.prompt_tokens,
            state=State.OPEN,
        )
        with self._accepting, transaction(self._engine) as session:
            if _find(session, payment.from_, payment.nonce) is not None:
                raise Taken
            owed = {**uncollected, **_uncollected(session, payment.from_)}
            if sum(owed.values()) + payment.value > balance:
                raise Overdrawn
            session.add(row)

    def find(self, payer: str, nonce: bytes) -> Order | None:
        """The order that this payment was taken for."""
        with transaction(self._engine) as session:
            row = _find(session, payer, nonce)
            return None if row is None else to_order(row)

    def record_delivered(self, order: Order) -> None:
        """So much of the answer has been delivered as `order` says. Changes nothing once the order is closed."""
        self._update_open(order.request_id, **_progress(order))

    def close_order(self, order: Order) -> None:
        """The answer has ended with `order`'s numbers; its charge is to be collected, if there is any."""
        self._update_open(order.request_id, **_progress(order), answer=order.answer, state=_closed(order.charge))

    def close_all(self) -> list[Order]:
        """Close what a gateway that died left open, with what it had recorded as delivered; returns those orders."""
        with transaction(self._engine) as session:
            rows = session.scalars(select(OrderRow).where(OrderRow.state == State.OPEN)).all()
            for row in rows:
                row.state = _closed(int(row.charge))
            return [to_order(row) for row in rows]

    def served(self) -> list[Order]:
        """Those whose charge is to be collected."""
        with transaction(self._engine) as session:
            return [to_order(row) for row in session.scalars(select(OrderRow).where(OrderRow.state == State.SERVED))]

    def mined(self) -> list[Order]:
        """Those whose charge is collected, but perhaps not for good."""
        with transaction(self._engine) as session:
            return [to_order(row) for row in session.scalars(select(OrderRow).where(OrderRow.state == State.MINED))]

    def record_mined(self, request_id: bytes, transaction_hash: str) -> None:
        """The charge is on the router; the chain may lose it yet."""
        self._update(request_id, state=State.MINED, transaction=transaction_hash)

    def record_unmined(self, request_id: bytes) -> None:
        """The chain has lost the collection: the charge is to be collected again."""
        self._update(request_id, state=State.SERVED, transaction=None)

    def record_collected(self, request_id: bytes, transaction_hash: str) -> None:
        """The charge is on the router for good."""
        self._update(request_id, state=State.COLLECTED, transaction=transaction_hash)

    def record_written_off(self, request_id: bytes) -> None:
        """The charge can't be collected any more."""
        self._update(request_id, state=State.WRITTEN_OFF)

    def unreported(self) -> list[Order]:
        """Those with delivered tokens, closed, that the coordinator hasn't confirmed."""
        with transaction(self._engine) as session:
            query = select(OrderRow).where(
                OrderRow.reported.is_(False), OrderRow.state != State.OPEN, OrderRow.completion_tokens > 0
            )
            return [to_order(row) for row in session.scalars(query)]

    def record_reported(self, request_id: bytes) -> None:
        """The coordinator knows what was served."""
        self._update(request_id, reported=True)

    def forget_answers(self, now: int) -> None:
        """Drop the answers that have expired."""
        with transaction(self._engine) as session:
            expired = update(OrderRow).where(OrderRow.expires < now, OrderRow.answer.is_not(None))
            session.execute(expired.values(answer=None))

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()

    def _update(self, request_id: bytes, **values: object) -> None:
        with transaction(self._engine) as session:
            session.execute(update(OrderRow).where(OrderRow.request_id == request_id).values(**values))

    def _update_open(self, request_id: bytes, **values: object) -> None:
        with transaction(self._engine) as session:
            row = update(OrderRow).where(OrderRow.request_id == request_id, OrderRow.state == State.OPEN)
            session.execute(row.values(**values))


def _find(session: Session, payer: str, nonce: bytes) -> OrderRow | None:
    return session.scalar(select(OrderRow).where(OrderRow.payer == payer, OrderRow.nonce == nonce))


def _uncollected(session: Session, payer: str) -> dict[bytes, int]:
    rows = session.scalars(
        select(OrderRow).where(OrderRow.payer == payer, OrderRow.state.in_((State.OPEN, State.SERVED)))
    )
    return {row.request_id: int(row.authorization["value"]) for row in rows}


def _progress(order: Order) -> dict[str, object]:
    return {
        "round": order.round,
        "session": order.session,
        "completion_tokens": order.completion_tokens,
        "charge": str(order.charge),
    }


def _closed(charge: int) -> State:
    return State.SERVED if charge else State.VOID


def to_order(row: OrderRow) -> Order:
    """The order in a row."""
    return Order(
        request_id=row.request_id,
        request_hash=row.request_hash,
        authorization=_from_json(row.authorization),
        expires=row.expires,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        round=row.round,
        session=row.session,
        charge=int(row.charge),
        state=State(row.state),
        answer=row.answer,
        transaction=row.transaction,
        reported=row.reported,
    )


def _to_json(payment: Authorization) -> dict[str, str]:
    return {
        "from": payment.from_,
        "value": str(payment.value),
        "valid_after": str(payment.valid_after),
        "valid_before": str(payment.valid_before),
        "nonce": payment.nonce.hex(),
        "signature": payment.signature.hex(),
    }


def _from_json(fields: dict[str, str]) -> Authorization:
    return Authorization(
        from_=fields["from"],
        value=int(fields["value"]),
        valid_after=int(fields["valid_after"]),
        valid_before=int(fields["valid_before"]),
        nonce=bytes.fromhex(fields["nonce"]),
        signature=bytes.fromhex(fields["signature"]),
    )
