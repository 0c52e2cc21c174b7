"""A PostgreSQL server for the tests, on this machine: its own cluster in a temporary folder, never run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psycopg

_PLACES = "/usr/lib/postgresql/*/bin"  # Debian keeps the server's programs off the PATH
_SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "max_connections=60",
    "shared_buffers=16MB",
    "listen_addresses=127.0.0.1",
)
SECRET = "a secret"


def missing() -> str | None:
    """Why there can be no server here, None where there can."""
    if _programs() is None:
        return (
            "no PostgreSQL server: neither initdb on the PATH nor in /usr/lib/postgresql (apt-get install postgresql)"
        )
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody to run it as"
    return None


class PostgresServer:
    """A server with a user `owner` whose password is `SECRET`; `new_database` makes a database of its own for a test."""

    def __init__(self) -> None:
        # Not one of pytest's folders: each run of pytest closes them to other users again.
        folder = Path(tempfile.mkdtemp(prefix="aligner-postgres-"))
        self._folder, self._count = folder, 0
        self.port = _free_port()
        if os.geteuid() == 0:
            user = _user()
            assert user is not None
            os.chown(folder, user.pw_uid, user.pw_gid)
        password = folder / "password"
        password.write_text(SECRET)
        password.chmod(0o644)
        _run("initdb", "--pgdata", self.data, "--auth=scram-sha-256", "--username=owner", f"--pwfile={password}",
             "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        with (Path(self.data) / "postgresql.conf").open("a", encoding="utf-8") as file:
            quoted = [line.replace("=", " = '") + "'" for line in _SETTINGS]
            file.write("\n".join([*quoted, f"port = {self.port}", f"unix_socket_directories = '{folder}'", ""]))
        self.start()

    @property
    def data(self) -> str:
        return str(self._folder / "data")

    def start(self) -> None:
        _run("pg_ctl", "start", "--wait", "--pgdata", self.data, f"--log={self._folder / 'log'}")

    def stop(self) -> None:
        _run("pg_ctl", "stop", "--wait", "--mode=fast", "--pgdata", self.data)

    def remove(self) -> None:
        """Stops it and takes its files away."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder)

    def url(self, database: str, *, password: str = SECRET, user: str = "owner") -> str:
        return f"postgresql://{user}:{password.replace(' ', '%20')}@127.0.0.1:{self.port}/{database}"

    def new_database(self, *options: str) -> str:
        """Makes an empty database and returns its URL."""
        self._count += 1
        name = f"test_{self._count}"
        self.execute(f"CREATE DATABASE {name} {' '.join(options)}")
        return self.url(name)

    def execute(self, statement: str, url: str | None = None) -> list[tuple[object, ...]]:
        """Runs one statement, as the owner, outside of a transaction."""
        with psycopg.connect(url or self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


def _run(program: str, *arguments: str) -> None:
    folder = _programs()
    user = _user() if os.geteuid() == 0 else None
    assert folder is not None
    done = subprocess.run(
        [folder / program, *arguments],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would never end
        stderr=subprocess.DEVNULL,
        timeout=60,
        **({} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}),
    )
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}")


def _programs() -> Path | None:
    found = shutil.which("initdb")
    places: Sequence[Path] = [Path(found).resolve().parent] if found else sorted(Path("/").glob(_PLACES[1:]))
    return places[-1] if places else None


def _user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
