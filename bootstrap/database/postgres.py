"""A database of a PostgreSQL server, spoken to by psycopg.

Threads share a small pool of connections; a forked child leaves its parent's alone and opens its own.
"""

from __future__ import annotations

import os
import shlex
import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL

from aligner_chain.errors import MissingExtraError
from bootstrap.errors import StoreError

_CONNECT_TIMEOUT_S = 10
_LOCK = 0x414C474E  # any number that nobody else takes for a lock in the same database; this one reads "ALGN"


class Server:
    """The backend of a PostgreSQL database.

    Raises:
        MissingExtraError: psycopg is not installed.
    """

    path: Path | None = None

    def __init__(self, url: URL, busy_timeout_s: float) -> None:
        self._url = url
        self._busy_timeout_s = busy_timeout_s
        try:
            self.engine = _engine(url)
        except ImportError as error:  # psycopg itself, or the library that it needs
            raise MissingExtraError("psycopg", "postgres") from error

    @property
    def name(self) -> str:
        """The URL without a password, wherever it stands."""
        query = {name: "***" if "password" in name else value for name, value in self._url.query.items()}
        return self._url.set(query=query).render_as_string(hide_password=True)

    def connect(self) -> AbstractContextManager[Connection]:
        """As `Backend.connect`: one of the pool's."""
        return self.engine.connect()

    def reading(self, connection: Connection) -> AbstractContextManager[object]:
        """As `Backend.reading`."""
        return connection.execution_options(isolation_level="REPEATABLE READ", begin=None).begin()

    def writing(self, connection: Connection, *, shared: bool) -> AbstractContextManager[object]:
        """As `Backend.writing`, by a lock that the transaction's end releases, also behind a pooler."""
        lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        timeout = func.set_config("lock_timeout", f"{self._busy_timeout_s:.3f}s", True)
        # By schema: two collections may live in one database. In one statement, since each is a journey to the server.
        statement = select(timeout, lock(_LOCK, func.hashtext(func.current_schema())))
        return connection.execution_options(isolation_level="READ COMMITTED", begin=statement).begin()

    def make_ready(self) -> None:
        """Looks whether the database can hold every text.

        Raises:
            StoreError: it cannot.
        """
        with self.engine.connect() as connection:
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise StoreError(
                f"{self.name} is encoded in {encoding}, which cannot hold every text. Make one that can:\n"
                f"  createdb --encoding=UTF8 --template=template0 {self._server()} NAME"
            )

    def kept_open(self) -> AbstractContextManager[object]:
        """The pool keeps connections open anyway."""
        return nullcontext()

    def scrub(self) -> None:
        """Nothing to do: autovacuum overwrites what was deleted, in its time."""

    def explain(self, error: BaseException | None) -> str:
        """As `Backend.explain`."""
        code = getattr(error, "sqlstate", None) or ""
        kind = code or _kind_of_refusal(str(error))
        ways_out = _WAYS_OUT.get(kind) or _WAYS_OUT.get(kind[:2], _OTHER)
        found = " ".join(str(error).split())
        return f"{self.name} cannot be used: {found} ({code or type(error).__name__}).\n" + ways_out.format(
            server=self._server(), database=shlex.quote(self._url.database or ""), user=self._url.username or "USER"
        )

    def _server(self) -> str:
        """The options by which PostgreSQL's own commands find the server."""
        options = {"--host": self._url.host or self._url.query.get("host"), "--port": self._url.port}
        options["--username"] = self._url.username
        return " ".join(f"{name}={shlex.quote(str(value))}" for name, value in options.items() if value)


def _engine(url: URL) -> Engine:
    # A network that is gone without a word is noticed within half a minute, and not after hours.
    defaults = {"connect_timeout": _CONNECT_TIMEOUT_S, "keepalives_idle": 30, "tcp_user_timeout": 30_000}
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={name: value for name, value in defaults.items() if name not in url.query},
        pool_pre_ping=True,  # a server that was restarted in between is no error
        pool_use_lifo=True,
        hide_parameters=True,  # an error must not print the rows that it is about
        paramstyle="format",  # by position, as SQLite's
    )
    event.listen(engine, "begin", _begin)
    _ENGINES.add(engine)
    return engine


def _begin(connection: Connection) -> None:
    statement = connection.get_execution_options().get("begin")
    if statement is not None:
        connection.execute(statement)


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_ENGINES):
        engine.dispose(close=False)  # closing them would end the parent's sessions


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _kind_of_refusal(message: str) -> str:
    """The class of an error that came before there was a session, which has no code."""
    signs: dict[str, tuple[str, ...]] = {
        "28": ("password authentication failed", "no password supplied", "authentication failed", "pg_hba.conf"),
        "3D": ('database "', "does not exist"),
    }
    if all(sign in message for sign in signs["3D"]):
        return "3D"
    return "28" if any(sign in message for sign in signs["28"]) else "08"


_AWAY = "The server is away, or the connection was lost; what was committed stays. See whether it answers:\n  pg_isready {server}"
_OTHER = "See what the server says about it in its own log."
_WAYS_OUT: dict[str, str] = {
    "08": _AWAY,
    "57": _AWAY,
    "28": "Check the user and the password; special characters of a password are written as codes (@ as %40). To try:\n"
    "  psql {server} --dbname={database}",
    "3D": "Make the database:\n  createdb --encoding=UTF8 --template=template0 {server} {database}",
    "53": "The server has no room: free disk space, or allow more connections (53300). What was written before stays.",
    "25006": "The server, or this user, may only read. Give the URL of the primary server.",
    "42501": "The user may not do that. As the database's owner:\n"
    "  psql --dbname={database} --command='GRANT CREATE, USAGE ON SCHEMA public TO \"{user}\"'",
    "55P03": "Another process is writing to it. Try again when it has finished.",
    "40": "Two processes got in each other's way. Try again.",
}
