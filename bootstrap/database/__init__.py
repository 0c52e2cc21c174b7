"""The one place that opens a database: settings, transactions, revisions, and errors with a way out.

A database is a SQLite file or one of a PostgreSQL server; who uses it sees no difference. What the two do differently is
in `sqlite` and `postgres`, behind the seam `Backend`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Dialect, Engine, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from bootstrap.database.postgres import Server
from bootstrap.database.revisions import Schema
from bootstrap.database.sqlite import File
from bootstrap.errors import StoreError

__all__ = ["BUSY_TIMEOUT_S", "Database", "Schema", "insert_into", "insert_new"]

BUSY_TIMEOUT_S = 10.0


class Backend(Protocol):
    """What a kind of database does in its own way."""

    engine: Engine

    def connect(self) -> AbstractContextManager[Connection]:
        """A connection for one transaction."""

    @property
    def name(self) -> str:
        """What messages call it; never a password."""

    @property
    def path(self) -> Path | None:
        """The file, where it is one."""

    def reading(self, connection: Connection) -> AbstractContextManager[object]:
        """A transaction that sees one state."""

    def writing(self, connection: Connection, *, shared: bool) -> AbstractContextManager[object]:
        """A transaction that is the only writer, or one of those that share."""

    def make_ready(self) -> None:
        """Prepares an empty or old database to be written to."""

    def kept_open(self) -> AbstractContextManager[object]:
        """Keeps open what is costly to open and close, for this thread."""

    def scrub(self) -> None:
        """Takes what was deleted from the disk, as far as the database can."""

    def explain(self, error: BaseException | None) -> str:
        """An error with its way out."""


class Database:
    """A SQLite file or a PostgreSQL database with the tables of one schema, made and upgraded when it is opened.

    Of several processes that open it at once, one upgrades it and the others wait. Threads may share it. After a fork
    the child uses connections of its own.

    Args:
        target: a file's path, or a URL: `sqlite:///relative.db`, `sqlite:////absolute.db`,
            `postgresql://user:password@host/name` (extra `postgres`). Missing folders are made.
        schema: what the database holds.
        busy_timeout_s: how long a transaction waits for another process's, in seconds.
        prepare: make the tables or bring them to the newest revision. False opens a database as it is, to ask for its
            `revision` and nothing else.

    Raises:
        StoreError: it is no such database, its revision is unknown, or it cannot be opened.
        MissingExtraError: it is a PostgreSQL database, and psycopg is not installed.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        schema: Schema,
        *,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        prepare: bool = True,
    ) -> None:
        self.schema = schema
        self._backend = _backend(target, busy_timeout_s)
        if prepare:
            self._prepare()

    @property
    def name(self) -> str:
        """The file's path or the URL, the password left out."""
        return self._backend.name

    @property
    def path(self) -> Path | None:
        """The file; None where it is a server's database."""
        return self._backend.path

    def revision(self) -> str | None:
        """The revision that the database is at, None where it is empty."""
        with self.read() as connection:
            return self.schema.revision_of(connection, self.name)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and holds up nobody."""
        with self._explaining(), self._backend.connect() as connection, self._backend.reading(connection):
            yield connection

    @contextmanager
    def write(self, *, shared: bool = False) -> Iterator[Connection]:
        """A transaction that is the only writer until it ends; committed, or rolled back by an error.

        Args:
            shared: let other shared writers write at the same time, where the database can (PostgreSQL).
        """
        with (
            self._explaining(),
            self._backend.connect() as connection,
            self._backend.writing(connection, shared=shared),
        ):
            yield connection

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Makes many transactions of this thread cheap: they share a connection.

        Else each opens a SQLite file, and the last to close it waits for the disk. Only for as long as there is something
        to do: a file that is kept open must not be moved, and the process should not fork.
        """
        with self._explaining(), self._backend.kept_open():
            yield

    def scrub(self) -> None:
        """Takes what was deleted from the disk: SQLite's log is emptied. PostgreSQL does so by itself, later."""
        with self._explaining():
            self._backend.scrub()

    def close(self) -> None:
        """Lets the connections go. Using the database again opens it again."""
        self._backend.engine.dispose()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise StoreError(self._backend.explain(error.orig)) from error
        except (PoolTimeoutError, json.JSONDecodeError) as error:  # the second: damage that SQLite did not notice
            raise StoreError(self._backend.explain(error)) from error

    def _prepare(self) -> None:
        # Looked at before it is locked: opening a store must not wait for a writer.
        if self.revision() == self.schema.head:
            return
        with self._explaining():
            self._backend.make_ready()
        with self.write() as connection:
            if self.schema.revision_of(connection, self.name) != self.schema.head:
                self.schema.upgrade(connection)


def insert_into(connection: Connection, table: Table) -> SqliteInsert | postgresql.Insert:
    """An INSERT that can say what to do on a conflict, in the words of the connection's database."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite_insert(table)


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Inserts rows, leaves those whose key is there already as they are, and returns how many were new.

    Args:
        connection: a transaction that writes.
        table: where to.
        rows: every column's value as the driver takes it: they go past SQLAlchemy's types, which cost as much time as
            the insert itself.
    """
    if not rows:
        return 0
    sql, values = _insert_new(connection.dialect, table)
    return connection.exec_driver_sql(sql, list(map(values, rows))).rowcount


@lru_cache(maxsize=16)
def _insert_new(dialect: Dialect, table: Table) -> tuple[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
    """The statement, and what takes its values out of a row: in order, since drivers look up names one by one."""
    insert = postgresql.insert if dialect.name == "postgresql" else sqlite_insert
    compiled = insert(table).on_conflict_do_nothing().compile(dialect=dialect)
    return str(compiled), itemgetter(*(compiled.positiontup or ()))


def _backend(target: str | os.PathLike[str], busy_timeout_s: float) -> Backend:
    text = os.fspath(target)
    if "://" not in text:
        return File(Path(text).expanduser().absolute(), busy_timeout_s)
    url = _url(text)
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        return File(Path(url.database).absolute(), busy_timeout_s)
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        return Server(url, busy_timeout_s)
    raise StoreError(f"{url.drivername}:// is no database that corrections can be kept in.\n{_TARGETS}")


def _url(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):  # neither the error nor the message shows it: it may hold a password
        raise StoreError(
            f"The URL that begins with {text.partition('://')[0][:20]!r}:// cannot be read. A character of a password "
            f"that means something in a URL is written as its code (@ as %40, / as %2F).\n{_TARGETS}"
        ) from None


_TARGETS = "Give a file's path, sqlite:////absolute/path.db or postgresql://user:password@host/name"
