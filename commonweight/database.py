"""How a role keeps its ledger: a SQL database by URL, whose commits survive a power cut."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import BigInteger, Integer, create_engine, event, inspect
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session

from commonweight.errors import ConfigError, LedgerError

SQLITE_WAIT_S = 60
"""For others to let go of the database's lock, before that is a failure."""
Counter = BigInteger().with_variant(Integer, "sqlite")
"""An integer column of 63 bits."""


def open_database(url: str, tables: type[DeclarativeBase]) -> Engine:
    """The database at an SQLAlchemy URL, with `tables` in it.

    Raises ConfigError for a URL that can't be used, LedgerError for a database that can't be opened, or whose tables
    lack columns: another version has made it.
    """
    try:
        engine = create_engine(make_url(url), pool_pre_ping=True)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _make_durable)
        tables.metadata.create_all(engine)
        _check_columns(engine, tables)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        shown = re.sub(r"//[^@/]*@", "//…@", url)  # without the password
        raise ConfigError(
            f"The ledger's URL {shown!r} can't be used: {error}. Use sqlite:///FILE, or postgresql+psycopg://… with "
            "the `postgres` extra installed."
        ) from error
    except SQLAlchemyError as error:
        raise LedgerError(f"The ledger can't be opened: {_reason(error)}. Check that the database is there.") from error
    return engine


@contextmanager
def transaction(engine: Engine, conflict: str = "The ledger contradicts itself.") -> Iterator[Session]:
    """A transaction that is committed at the end of the block.

    Raises LedgerError: with `conflict` where a key exists already, and where the database fails.
    """
    try:
        with Session(engine) as session, session.begin():
            yield session
    except IntegrityError as error:
        raise LedgerError(conflict) from error
    except SQLAlchemyError as error:
        raise LedgerError(
            f"The ledger's database failed: {_reason(error)}. Nothing was recorded; start again when it is back."
        ) from error


def _check_columns(engine: Engine, tables: type[DeclarativeBase]) -> None:
    inspector = inspect(engine)
    for name, table in tables.metadata.tables.items():
        if missing := set(table.columns.keys()) - {column["name"] for column in inspector.get_columns(name)}:
            raise LedgerError(
                f"The ledger was made by another version of Commonweight: {name} without {', '.join(sorted(missing))}. "
                "Let that version finish what it has begun, then give this one a new ledger."
            )


def _reason(error: SQLAlchemyError) -> str:
    """What the database said, on one line, without the statement that it was about."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _make_durable(connection: object, _record: object) -> None:
    """A commit on SQLite survives a power cut, readers don't block the writer, and a writer waits for another."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_WAIT_S * 1000}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
