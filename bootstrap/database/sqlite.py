"""A database in a SQLite file.

Every transaction opens a connection of its own and closes it: nothing is open in between, so that threads need no care and
a forked child inherits no connection.
"""

from __future__ import annotations

import shlex
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from bootstrap.errors import StoreError

_STILL_THERE = (
    "The rows are deleted, but their text is still on the disk in {path}: {why}.\n"
    "Run the same deletion again later; that takes the text away too."
)
_LOG_PAGES = 8000  # of 4 KiB; moving the log into the file costs less per row the more it holds


class File:
    """The backend of a SQLite file; a missing file and a missing folder are made now, and never again.

    Raises:
        StoreError: they cannot be made.
    """

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self.path = path
        self.engine = _engine(path, busy_timeout_s)
        self._busy_timeout_s = busy_timeout_s
        self._kept = threading.local()
        if path.is_dir():
            raise StoreError(
                f"{path} is a folder, and a database is a file. One in it would be  {path / 'corrections.db'}"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise StoreError(f"{path} cannot be made or written ({error}). {_DENIED}") from error

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """As `Backend.connect`: the one that this thread keeps open and does not use, else a new one."""
        kept = getattr(self._kept, "connection", None)
        if kept is not None and not kept.in_transaction():
            yield kept
        else:
            with self.engine.connect() as connection:
                yield connection

    def reading(self, connection: Connection) -> AbstractContextManager[object]:
        """As `Backend.reading`."""
        return connection.execution_options(begin="BEGIN").begin()

    def writing(self, connection: Connection, *, shared: bool) -> AbstractContextManager[object]:
        """As `Backend.writing`; a file has one writer at a time, whether it shares or not."""
        return connection.execution_options(begin="BEGIN IMMEDIATE").begin()

    def make_ready(self) -> None:
        """Makes the file a write-ahead log's, for good. SQLite does not wait for a lock here, so this does."""
        deadline = time.monotonic() + self._busy_timeout_s
        with self._connected() as connection:
            while not _switched_to_wal(connection, may_wait=time.monotonic() < deadline):
                time.sleep(0.01)

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """As `Backend.kept_open`. SQLite moves the log into the file when the last connection is closed."""
        before = getattr(self._kept, "connection", None)
        with self.engine.connect() as connection:
            self._kept.connection = connection
            try:
                yield
            finally:
                self._kept.connection = before

    def scrub(self) -> None:
        """Writes the file anew and empties the log.

        `secure_delete` alone does not do: when SQLite spreads rows over pages, it leaves copies of them in the gaps.

        Raises:
            StoreError: there is no room for it, or a reader or writer held it up for too long.
        """
        try:
            with self._connected() as connection:
                connection.execute("VACUUM")
                (held, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except StoreError as error:
            raise StoreError(_STILL_THERE.format(path=self.path, why=error)) from error
        if held:
            why = f"another process is reading the log {self.path.name}-wal"
            raise StoreError(_STILL_THERE.format(path=self.path, why=why))

    def explain(self, error: BaseException | None) -> str:
        """As `Backend.explain`."""
        name = getattr(error, "sqlite_errorname", "")
        kind = "_".join(name.split("_")[:2])  # SQLITE_CORRUPT_INDEX is a SQLITE_CORRUPT
        ways_out = _WAYS_OUT.get(kind, _CORRUPT)
        return f"{self.path} cannot be used as a database: {error} ({name or type(error).__name__}).\n" + (
            ways_out.format(move=_move_away(self.path))
        )

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection outside of any transaction."""
        with closing(self.engine.raw_connection()) as pooled:
            try:
                yield cast(sqlite3.Connection, pooled.driver_connection)
            except sqlite3.Error as error:
                raise StoreError(self.explain(error)) from error


def _switched_to_wal(connection: sqlite3.Connection, *, may_wait: bool) -> bool:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if may_wait and error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            return False
        raise
    return True


def _engine(path: Path, busy_timeout_s: float) -> Engine:
    # A file that was moved away while it was in use must not be taken for a new one.
    existing = f"{path.as_uri()}?mode=rw"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(existing, timeout=busy_timeout_s, uri=True)

    # An error must not print the rows that it is about.
    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, and late
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options()["begin"])


def _move_away(path: Path) -> str:
    """The command that moves a database aside, with the log beside it: SQLite would replay it into the next one."""
    files = [path, *(file for suffix in ("-wal", "-shm") if (file := path.with_name(path.name + suffix)).exists())]
    aside = shlex.quote(str(path.with_name(f"broken-{path.name}")))
    return f"mkdir {aside} && mv {shlex.join(map(str, files))} {aside}"


_CORRUPT = (
    "The file is damaged or no database. Restore a copy of it, or move it away and a new one is started:\n  {move}"
)
_FULL = "The disk is full or failing. Free some space and try again; what was written before stays. To see it:  df -h"
_DENIED = "Check that it is there and its permissions: the file and its folder must be writable, also for reading."
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
