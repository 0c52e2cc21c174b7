"""Which database belongs to a home, and that nobody starts a second one beside it by mistake."""

from __future__ import annotations

import os
from pathlib import Path

from bootstrap.database import Database
from bootstrap.errors import RegistryError
from bootstrap.files import write_synced
from bootstrap.registry.tables import SCHEMA

ENVIRONMENT = "ALIGNER_REGISTRY"
FILE_NAME = "registry.db"
NOTE = "registry.url"


def open_database(home: Path, database: str | os.PathLike[str] | None, *, may_look_up: bool) -> Database:
    """Opens the database of a home, made if need be.

    A home whose database is on a server holds the note `registry.url`, without a password: who opens the home and does
    not name the server is told so, instead of being given an empty registry.

    Args:
        home: the registry's folder.
        database: a path or a URL; None takes `home/registry.db`.
        may_look_up: None takes `$ALIGNER_REGISTRY` first. Only for the default home: with a home of its own a demo must
            not write into the database of the models that are served.

    Raises:
        RegistryError: the home's database is on a server, which was not named.
        StoreError: it cannot be used.
    """
    if database is None and may_look_up:
        database = os.environ.get(ENVIRONMENT) or None
    if database is None:
        _check_note(home)
        return Database(home / FILE_NAME, SCHEMA)
    opened = Database(database, SCHEMA)
    home.mkdir(parents=True, exist_ok=True)
    if opened.path is None:
        _leave_note(home, opened.name)
    return opened


def _check_note(home: Path) -> None:
    try:
        server = (home / NOTE).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return
    raise RegistryError(
        f"The registry of {home} is kept in {server}. Name it, with its password:\n"
        f"  export {ENVIRONMENT}=postgresql://user:password@host/name   (for the home in ALIGNER_HOME)\n"
        "  aligner-bootstrap registry list --home HOME --database postgresql://user:password@host/name\n"
        f"If it is not kept there any more, remove {home / NOTE}."
    )


def _leave_note(home: Path, server: str) -> None:
    path = home / NOTE
    if not path.exists() or path.read_text(encoding="utf-8").strip() != server:
        write_synced(path, server + "\n")
