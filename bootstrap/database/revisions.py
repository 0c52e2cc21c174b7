"""What revision a database is at, and its upgrade to the newest one.

Alembic upgrades; it is imported only where there is something to upgrade, since it takes longer than opening a store.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlalchemy import Connection, MetaData, Text, column, inspect, select, table

from aligner_chain.errors import MissingExtraError
from bootstrap.errors import StoreError

_MIGRATIONS = Path(__file__).parent.parent / "migrations"

# Alembic hands revisions their connection in a global variable. A child that is forked meanwhile would keep it.
_UPGRADING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_UPGRADING.acquire, after_in_parent=_UPGRADING.release, after_in_child=_UPGRADING.release
    )


@dataclass(frozen=True)
class Schema:
    """One kind of database: a name, the tables at the newest revision, and the revisions in `migrations/<name>/`.

    The revision of a database is kept in it, in a table of this kind's own: `<name>_revision`.
    """

    name: str
    tables: MetaData

    @property
    def version_table(self) -> str:
        """The table that holds a database's revision."""
        return f"{self.name}_revision"

    @cached_property
    def revisions(self) -> tuple[str, ...]:
        """All revisions that this version of the package knows, oldest first, by the names of their files."""
        files = (_MIGRATIONS / self.name).glob("[0-9]*.py")
        names: list[str] = sorted(file.name.split("_")[0] for file in files)
        return tuple(names)

    @property
    def head(self) -> str:
        """The newest revision."""
        return self.revisions[-1]

    def revision_of(self, connection: Connection, name: str) -> str | None:
        """The revision that a database is at, None where it is empty.

        Args:
            connection: a transaction in it.
            name: what errors call it.

        Raises:
            StoreError: it is of a revision that is not known here, or holds something else.
        """
        tables = set(inspect(connection).get_table_names())
        if self.version_table not in tables:
            if tables:
                raise StoreError(_something_else(name, self.version_table))
            return None
        query = select(column("version_num", Text)).select_from(table(self.version_table))
        found = ", ".join(connection.execute(query).scalars()) or "none"
        if found not in self.revisions:
            raise StoreError(_unknown(name, found, self.head))
        if found == self.head and (missing := set(self.tables.tables) - tables):
            raise StoreError(_something_else(name, ", ".join(sorted(missing))))
        return found

    def upgrade(self, connection: Connection) -> None:
        """Brings a database to the newest revision, in the transaction it is given.

        Raises:
            MissingExtraError: alembic is not installed; SQLAlchemy alone may be, since others need it too.
        """
        try:
            from alembic import command
            from alembic.config import Config
        except ModuleNotFoundError as error:
            raise MissingExtraError("alembic", "collect") from error

        config = Config(attributes={"connection": connection, "version_table": self.version_table})
        # A "%" would begin one of the file format's variables.
        for option, folder in (("script_location", _MIGRATIONS), ("version_locations", _MIGRATIONS / self.name)):
            config.set_main_option(option, str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "newline")  # a folder's name may hold spaces and colons
        with _UPGRADING:
            command.upgrade(config, self.head)


def _unknown(name: str, found: str, head: str) -> str:
    return (
        f"{name} has revision {found}; this version of aligner-chain knows revisions up to {head}. It was not touched.\n"
        "Upgrade:  pip install --upgrade aligner-chain\nOr start a new database under another name."
    )


def _something_else(name: str, missing: str) -> str:
    return (
        f"{name} is a database of something else: it has tables and lacks {missing}. It was not touched.\n"
        "Check the path or the URL, or start a new database under another name."
    )
