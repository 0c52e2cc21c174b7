"""The rows of a registry's database as its values. Every function works inside a transaction that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Table, func, insert, select

from bootstrap.errors import RegistryError
from bootstrap.registry.tables import EVENTS, PAIRS, VERSIONS
from bootstrap.registry.values import KINDS, Event, FileRecord, Kind, PairVersion, Servers, Version

ALIASES = ("champion", "previous", "challenger")
SEE_LIST = "See what it holds:  aligner-bootstrap registry list"

_NEWEST_EVENT = select(EVENTS).order_by(EVENTS.c.id.desc()).limit(1)


class Catalogue:
    """Reads rows as values; `home` is the folder that the versions' folders are in."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def path(self, kind: Kind, number: int) -> Path:
        """The folder of a version."""
        return self.home / kind / str(number)

    def versions(self, connection: Connection, kind: Kind) -> list[Version]:
        """All versions of a kind, oldest first."""
        query = select(VERSIONS).where(VERSIONS.c.kind == known(kind)).order_by(VERSIONS.c.number)
        return [self._version(row) for row in connection.execute(query)]

    def version(self, connection: Connection, kind: Kind, number: int) -> Version:
        """One version.

        Raises:
            RegistryError: there is none of this number.
        """
        of_that_name = (VERSIONS.c.kind == known(kind)) & (VERSIONS.c.number == number)
        row = connection.execute(select(VERSIONS).where(of_that_name)).one_or_none()
        if row is None:
            raise RegistryError(f"{kind}@{number} is not in the registry {self.home}.\n{SEE_LIST}")
        return self._version(row)

    def number(self, connection: Connection, kind: Kind, version: Version) -> int:
        """The number of a version, after a check that it is one of this registry and of this kind."""
        if version.path != self.path(kind, version.number):
            raise RegistryError(
                f"{version.identity} in {version.path} is not {kind} of the registry {self.home}.\n{SEE_LIST}"
            )
        return self.version(connection, kind, version.number).number

    def pair(self, connection: Connection, number: int) -> PairVersion:
        """One pair.

        Raises:
            RegistryError: there is none of this number.
        """
        row = connection.execute(select(PAIRS).where(PAIRS.c.number == number)).one_or_none()
        if row is None:
            raise RegistryError(f"There is no pair {number} in the registry {self.home}.\n{SEE_LIST}")
        return PairVersion(
            number=number,
            upstream=None if row.upstream is None else self.version(connection, "upstream", row.upstream),
            aligner=self.version(connection, "aligner", row.aligner),
            created=datetime.fromisoformat(row.created),
            figures=row.figures,
        )

    def find_pair(self, connection: Connection, which: int | str) -> PairVersion:
        """A pair by its number or its alias.

        Raises:
            RegistryError: there is none.
        """
        if is_number(which):
            return self.pair(connection, int(which))
        named = aliases(connection)
        if which not in named:
            there = ", ".join(f"{name} (pair {number})" for name, number in named.items()) or "none"
            raise RegistryError(
                f"{which!r} names no pair in {self.home}. A name is one of {', '.join(ALIASES)}, or a pair's number; "
                f"there are: {there}.\n{SEE_LIST}"
            )
        return self.pair(connection, named[str(which)])

    def pairs(self, connection: Connection) -> list[PairVersion]:
        """All pairs, oldest first."""
        numbers = connection.execute(select(PAIRS.c.number).order_by(PAIRS.c.number)).scalars().all()
        return [self.pair(connection, number) for number in numbers]

    def events(self, connection: Connection) -> Iterator[Event]:
        """Every promotion and rollback, oldest first."""
        for row in connection.execute(select(EVENTS).order_by(EVENTS.c.id)).all():
            yield self._event(connection, row)

    def head(self, connection: Connection) -> Event | None:
        """The event that made the served pair, or None."""
        row = head(connection)
        return None if row is None else self._event(connection, row)

    def last(self, connection: Connection) -> Event:
        """The event that made the served pair, where one was surely recorded."""
        return self._event(connection, connection.execute(_NEWEST_EVENT).one())

    def before(self, connection: Connection) -> Event:
        """The event that a rollback returns to.

        Raises:
            RegistryError: there is none.
        """
        served = self.head(connection)
        if served is None or served.back is None:
            raise RegistryError(
                f"There is no pair to go back to in {self.home}: {named(served)} is served and none was before.\n"
                "See the versions and the history:  aligner-bootstrap registry list"
            )
        return self._event(connection, connection.execute(select(EVENTS).where(EVENTS.c.id == served.back)).one())

    def _event(self, connection: Connection, row: Row[Any]) -> Event:
        return Event(
            number=row.id,
            action=row.action,
            pair=self.pair(connection, row.pair),
            time=datetime.fromisoformat(row.time),
            back=row.back,
            servers=row.servers and Servers(urls=tuple(row.servers["urls"]), home=row.servers["home"]),
        )

    def _version(self, row: Row[Any]) -> Version:
        return Version(
            kind=row.kind,
            number=row.number,
            path=self.path(row.kind, row.number),
            created=datetime.fromisoformat(row.created),
            manifest=row.manifest,
            files=None if row.files is None else {name: FileRecord(**file) for name, file in row.files.items()},
            removed=None if row.removed is None else datetime.fromisoformat(row.removed),
        )


def known(kind: Kind) -> Kind:
    """The kind itself, where it is one."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return kind


def is_number(which: int | str) -> bool:
    """Whether a pair or a version is named by its number, and not by an alias."""
    return isinstance(which, int) or (which.isascii() and which.isdecimal() and len(which) < 10)


def head(connection: Connection) -> Row[Any] | None:
    """The event that made the served pair, or None."""
    return connection.execute(_NEWEST_EVENT).one_or_none()


def aliases(connection: Connection) -> dict[str, int]:
    """The numbers of the pairs that have a name, by it. They follow from the events, so nothing can contradict them."""
    named: dict[str, int] = {}
    if (served := head(connection)) is not None:
        named["champion"] = served.pair
        if served.back is not None:
            named["previous"] = connection.execute(select(EVENTS.c.pair).where(EVENTS.c.id == served.back)).scalar_one()
    newest = connection.execute(select(func.max(PAIRS.c.number))).scalar_one()
    if newest is not None and not connection.execute(select(EVENTS.c.id).where(EVENTS.c.pair == newest)).first():
        named["challenger"] = newest
    return named


def add_pair(connection: Connection, row: Mapping[str, Any]) -> int:
    """Adds a pair and returns its number, one more than every number before."""
    return _insert(connection, PAIRS, {**row, "created": now()})


def add_event(
    connection: Connection, action: str, pair: PairVersion, *, back: int | None, servers: Servers | None
) -> int:
    """Adds a change of the served pair and returns its id; `back` is the event that a rollback returns to."""
    row = {"action": action, "pair": pair.number, "back": back, "time": now(), "servers": servers and asdict(servers)}
    return _insert(connection, EVENTS, row)


def named(served: Event | None) -> str:
    """The pair of the newest event, as a sentence names it."""
    return f"pair {served.pair.number}" if served else "no pair"


def next_number(connection: Connection, kind: Kind, parent: Path) -> int:
    """One more than every number in use, also by a folder without a row: a database may have been lost, weights not."""
    recorded = connection.execute(select(func.max(VERSIONS.c.number)).where(VERSIONS.c.kind == kind)).scalar_one()
    on_disk = (int(folder.name) for folder in parent.iterdir() if folder.name.isdecimal())
    return max(recorded or 0, *on_disk, 0) + 1


def now() -> str:
    """The time as it is noted, in UTC."""
    return datetime.now(UTC).isoformat()


def _insert(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    # Not by the server's sequence, which skips a number for each transaction that was undone. There is one writer.
    key = table.primary_key.columns[0]
    number = (connection.execute(select(func.max(key))).scalar_one() or 0) + 1
    connection.execute(insert(table), {**row, key.name: number})
    return int(number)
