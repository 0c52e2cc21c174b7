"""The one place that opens a database: settings, transactions, the schema's version, and errors with a way out.

Databases are SQLite files. Every transaction opens a connection of its own and closes it: nothing is open in between, so
that threads need no care and a forked child inherits no connection.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, PoolProxiedConnection, create_engine, event, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from bootstrap.errors import StoreError

BUSY_TIMEOUT_S = 10.0


class Database:
    """A SQLite file with the tables of one schema, made at the first use.

    Args:
        target: a file's path, or a URL (`sqlite:///relative.db`, `sqlite:////absolute.db`). Missing folders are made.
        schema: the tables that the file holds.
        version: the number of this schema, kept in the file as `PRAGMA user_version`; from 1.
        busy_timeout_s: how long a transaction waits for another process's, in seconds.

    Raises:
        StoreError: the file is no such database, its version is another, or it cannot be opened.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        schema: MetaData,
        *,
        version: int,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        self.path = _file(target)
        self._busy_timeout_s = busy_timeout_s
        self._engine = _engine(self.path, busy_timeout_s)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The folder of {self.path} cannot be made ({error}). Choose a place to write.") from error
        self._prepare(schema, version)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and holds up nobody."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is the only writer until it ends; committed, or rolled back by an error."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        """Lets the engine go. Using the database again opens it again."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(begin=begin) as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise StoreError(_explain(self.path, error.orig)) from error
        except json.JSONDecodeError as error:  # a damaged page that SQLite did not notice
            raise StoreError(_explain(self.path, error)) from error

    def _prepare(self, schema: MetaData, version: int) -> None:
        # Looked at before it is locked: a store that is only read must not wait for a writer.
        with self.read() as connection:
            if _is_ready(connection, self.path, schema, version):
                return
        self._use_wal()
        with self.write() as connection:
            if not _is_ready(connection, self.path, schema, version):
                schema.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version = {version}")

    def _use_wal(self) -> None:
        """Makes the file a write-ahead log's, for good. SQLite does not wait for a lock here, so this does."""
        deadline = time.monotonic() + self._busy_timeout_s
        connection = self._engine.raw_connection()
        try:
            while not _switched_to_wal(connection, may_wait=time.monotonic() < deadline):
                time.sleep(0.01)
        except sqlite3.Error as error:
            raise StoreError(_explain(self.path, error)) from error
        finally:
            connection.close()


def _switched_to_wal(connection: PoolProxiedConnection, *, may_wait: bool) -> bool:
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if may_wait and error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            return False
        raise
    return True


def _is_ready(connection: Connection, path: Path, schema: MetaData, version: int) -> bool:
    """Whether the file holds the schema. False: it is empty."""
    found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    tables = set(inspect(connection).get_table_names())
    if found == 0 and not tables:
        return False
    if found != version and found != 0:
        raise StoreError(
            f"{path} has schema version {found}; this version of aligner-chain works with {version}. "
            "It was not touched.\nUpgrade:  pip install --upgrade aligner-chain\nOr start a new file under another name."
        )
    if missing := set(schema.tables) - tables:
        raise StoreError(
            f"{path} is a database of something else: it lacks {', '.join(sorted(missing))}. It was not touched.\n"
            "Check the path, or start a new file under another name."
        )
    return True


def _file(target: str | os.PathLike[str]) -> Path:
    text = os.fspath(target)
    if "://" not in text:
        return Path(text).expanduser().absolute()
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise StoreError(f"{text!r} is no database URL. Give a file's path, or sqlite:////absolute/path.db") from error
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise StoreError(
            f"{url.render_as_string()} is not a SQLite file, and only those are supported.\n"
            "Give a file's path, or sqlite:////absolute/path.db"
        )
    return Path(url.database).absolute()


def _engine(path: Path, busy_timeout_s: float) -> Engine:
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": busy_timeout_s})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, and late
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options()["begin"])


def _explain(path: Path, error: BaseException | None) -> str:
    name = getattr(error, "sqlite_errorname", "")
    kind = "_".join(name.split("_")[:2])  # SQLITE_CORRUPT_INDEX is a SQLITE_CORRUPT
    ways_out = _WAYS_OUT.get(kind, _CORRUPT)
    return f"{path} cannot be used as a database: {error} ({name or type(error).__name__}).\n" + ways_out.format(
        move=_move_away(path)
    )


def _move_away(path: Path) -> str:
    """The command that moves a database aside, with the log beside it: SQLite would replay it into the next one."""
    files = [path, *(file for suffix in ("-wal", "-shm") if (file := path.with_name(path.name + suffix)).exists())]
    aside = shlex.quote(str(path.with_name(f"broken-{path.name}")))
    return f"mkdir {aside} && mv {shlex.join(map(str, files))} {aside}"


_CORRUPT = (
    "The file is damaged or no database. Restore a copy of it, or move it away and a new one is started:\n  {move}"
)
_FULL = "The disk is full or failing. Free some space and try again; what was written before stays. To see it:  df -h"
_DENIED = "Check the path and its permissions: the file and its folder must be writable, also for reading."
_BUSY = "Another process is writing to it. Try again when it has finished; on a network folder, use a local disk."
_WAYS_OUT = {
    "SQLITE_NOTADB": _CORRUPT,
    "SQLITE_CORRUPT": _CORRUPT,
    "SQLITE_BUSY": _BUSY,
    "SQLITE_LOCKED": _BUSY,
    "SQLITE_FULL": _FULL,
    "SQLITE_IOERR": _FULL,
    "SQLITE_CANTOPEN": _DENIED,
    "SQLITE_READONLY": _DENIED,
    "SQLITE_PERM": _DENIED,
}
