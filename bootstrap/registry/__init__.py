"""The models that rounds made: immutable versions, the pair that is served, and the way back.

    home/upstream/<number>/   home/aligner/<number>/   the weights; never changed once they have their number
    home/registry.db          what each version was made from; every promotion and rollback, with its figures
    home/served.json          the pair that is served, for `aligner_chain.serving`; replaced in one step

A pair is promoted by one database transaction and then published as `served.json`. Where a process is killed in between,
whoever opens the registry next publishes it. A killed `add` leaves a folder `.new-*` that a later one removes.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, Table, func, insert, select

from aligner_chain.serving import FILE_NAME
from aligner_chain.serving import SCHEMA as SERVED_SCHEMA
from aligner_chain.serving import home as default_home
from bootstrap.database import Database
from bootstrap.errors import RegistryError
from bootstrap.files import is_disk_error, remove_abandoned, replace_file, sync, sync_tree, write_synced
from bootstrap.registry.tables import EVENTS, PAIRS, SCHEMA, VERSIONS

Kind = Literal["upstream", "aligner"]

_UNFINISHED = ".new-"
_ABANDONED_S = 3600.0

_NEWEST_EVENT = select(EVENTS).order_by(EVENTS.c.id.desc()).limit(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One model in the registry: its folder, when it was saved (UTC) and what it was made from."""

    kind: Kind
    number: int
    path: Path
    created: datetime
    manifest: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """`name@version`, as in `served.json`."""
        return f"{self.kind}@{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairVersion:
    """An upstream and the Aligner that was measured with it, and the figures that they were promoted on.

    `upstream` is None where only an Aligner is served.
    """

    number: int
    upstream: Version | None
    aligner: Version
    created: datetime
    figures: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One change of what is served: what was done, when (UTC), and the pair that was served from then on."""

    action: Literal["promote", "rollback"]
    pair: PairVersion
    time: datetime


class _Unchecked(Enum):
    ANY_PAIR = "any pair"


class Registry:
    """Versions of upstreams and Aligners in one folder, and which pair of them is served.

    Threads and processes may share it. Whatever fails, the pair that is served stays as it was.

    Args:
        home: the folder, made if need be. Default: `$ALIGNER_HOME`, else the platform's data folder of this user.

    Raises:
        StoreError: `registry.db` cannot be used. Every method raises it too.
    """

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self.home = default_home() if home is None else Path(home).expanduser().absolute()
        self._database = Database(self.home / "registry.db", SCHEMA)
        self._finish_publishing()

    @property
    def database(self) -> Database:
        """The database, which rounds and leases share."""
        return self._database

    def add(self, kind: Kind, write: Callable[[Path], object], manifest: Mapping[str, Any]) -> Version:
        """Saves a model as the next version of its kind.

        Args:
            kind: "upstream" or "aligner".
            write: writes the model's files into the empty folder that it is given.
            manifest: what the model was made from, as JSON.

        Raises:
            RegistryError: the files cannot be written, for instance because the disk is full. Nothing is left of them.
                What else `write` raises is passed on, and nothing is left then either.
        """
        json.dumps(manifest)  # what cannot be recorded is refused before the weights are written
        folder = self.home / _known(kind) / f"{_UNFINISHED}{uuid.uuid4().hex}"
        with self._explaining(f"The {kind} could not be saved"):
            for place in (self.home, folder.parent):
                remove_abandoned(place, _UNFINISHED, older_than_s=_ABANDONED_S)
            try:
                folder.mkdir(parents=True)
                write(folder)
                sync_tree(folder)
                return self._adopt(kind, folder, manifest)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def versions(self, kind: Kind) -> list[Version]:
        """All versions of a kind, oldest first."""
        query = select(VERSIONS).where(VERSIONS.c.kind == _known(kind)).order_by(VERSIONS.c.number)
        with self._database.read() as connection:
            return [self._version(row) for row in connection.execute(query)]

    def promote(
        self,
        upstream: Version | None,
        aligner: Version,
        *,
        figures: Mapping[str, Any],
        expected: PairVersion | Literal[_Unchecked.ANY_PAIR] | None = _Unchecked.ANY_PAIR,
    ) -> PairVersion:
        """Serves an upstream and an Aligner from now on, both together.

        Args:
            upstream: None where only an Aligner is served.
            aligner: the Aligner that was measured with `upstream`.
            figures: what they were promoted on, as JSON.
            expected: the pair that must be served until now (None: none). Default: whichever is.

        Raises:
            RegistryError: a version is not in this registry, another pair than `expected` is served, or `served.json`
                cannot be written.
        """
        json.dumps(figures)

        def record(connection: Connection) -> int:
            head = _head(connection)
            if expected is not _Unchecked.ANY_PAIR:
                _check_expected(expected, head)
            pair = {
                "upstream": self._number(connection, "upstream", upstream) if upstream else None,
                "aligner": self._number(connection, "aligner", aligner),
                "created": _now(),
                "figures": dict(figures),
            }
            return _event(connection, "promote", _insert(connection, PAIRS, pair), back=head.id if head else None)

        return self._serve(record)

    def served(self) -> PairVersion | None:
        """The pair that is served, or None where none was ever promoted."""
        with self._database.read() as connection:
            head = _head(connection)
            return self._pair(connection, head.pair) if head else None

    def rollback(self) -> PairVersion:
        """Serves again what was served before the present pair was promoted; called again, what was before that.

        Raises:
            RegistryError: there is no such pair, or its weights are gone.
        """

        def record(connection: Connection) -> int:
            head = _head(connection)
            if head is None or head.back is None:
                raise RegistryError(
                    f"There is no pair to go back to in {self.home}: {_named(head)} is served and none was before.\n"
                    "See the versions and the history:  aligner-bootstrap registry list"
                )
            before = connection.execute(select(EVENTS).where(EVENTS.c.id == head.back)).one()
            return _event(connection, "rollback", before.pair, back=before.back)

        return self._serve(record)

    def history(self) -> list[Event]:
        """Every promotion and rollback, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(EVENTS).order_by(EVENTS.c.id)).all()
            return [
                Event(action=row.action, pair=self._pair(connection, row.pair), time=datetime.fromisoformat(row.time))
                for row in rows
            ]

    def _adopt(self, kind: Kind, folder: Path, manifest: Mapping[str, Any]) -> Version:
        """Gives a finished folder its number, its name and its row."""
        adopted = None
        try:
            with self._database.write() as connection:
                number = _next_number(connection, kind, folder.parent)
                row = {"kind": kind, "number": number, "created": _now(), "manifest": dict(manifest)}
                connection.execute(insert(VERSIONS), row)
                version = self._find(connection, kind, number)
                adopted = folder.rename(version.path)
                sync(folder.parent)
        except BaseException:
            if adopted is not None:  # a database notices a full disk only when it commits
                adopted.rename(folder)
            raise
        return version

    def _serve(self, record: Callable[[Connection], int]) -> PairVersion:
        """Records a change of what is served by `record`, which returns the event's id, and publishes it."""
        with self._explaining("The pair could not be published"), self._staged() as staged:
            with self._database.write() as connection:
                event = record(connection)
                pair = self._pair(connection, _last(connection).pair)
                _check_weights(pair)
                write_synced(staged, _content(pair))  # before the commit: a full disk must stop it here
            # Again a writer's lock: of several promotions at once the last to be committed must be the one published.
            with self._database.write() as connection:
                if _last(connection).id == event:
                    replace_file(self.home / FILE_NAME, staged)
        return pair

    def _finish_publishing(self) -> None:
        """Publishes what was promoted by a process that was killed before it could."""
        pair = self.served()
        if pair is None or self._published() == _content(pair):
            return
        problem = "The pair could not be published"
        with self._explaining(problem), self._staged() as staged, self._database.write() as connection:
            write_synced(staged, _content(self._pair(connection, _last(connection).pair)))
            replace_file(self.home / FILE_NAME, staged)

    def _published(self) -> str | None:
        try:
            return (self.home / FILE_NAME).read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A name for a file that is about to take the place of `served.json`; nothing is left there afterwards."""
        staged = self.home / f"{_UNFINISHED}{uuid.uuid4().hex}.json"
        try:
            yield staged
        finally:
            staged.unlink(missing_ok=True)

    @contextmanager
    def _explaining(self, problem: str) -> Iterator[None]:
        """Turns a disk's errors, whoever raises them, into one that says the way out."""
        try:
            yield
        except Exception as error:  # Rust libraries raise a bare Exception on a full disk; the rest is passed on.
            if not is_disk_error(error):
                raise
            free = shutil.disk_usage(self.home).free / 2**20
            raise RegistryError(
                f"{problem} in {self.home}: {error}\n"
                f"What was half written is removed ({free:,.1f} MiB are free now); the served pair is as it was.\n"
                "Free disk space, or keep the registry on another disk:  export ALIGNER_HOME=/path/with/space\n"
                "See what it holds:  aligner-bootstrap registry list"
            ) from error

    def _number(self, connection: Connection, kind: Kind, version: Version) -> int:
        """The number of a version, after a check that it is one of this registry and of this kind."""
        if version.path != self._path(kind, version.number):
            raise RegistryError(
                f"{version.identity} in {version.path} is not {kind} of the registry {self.home}.\n"
                "See what it holds:  aligner-bootstrap registry list"
            )
        return self._find(connection, kind, version.number).number

    def _path(self, kind: Kind, number: int) -> Path:
        return self.home / kind / str(number)

    def _find(self, connection: Connection, kind: Kind, number: int) -> Version:
        of_that_name = (VERSIONS.c.kind == kind) & (VERSIONS.c.number == number)
        row = connection.execute(select(VERSIONS).where(of_that_name)).one_or_none()
        if row is None:
            raise RegistryError(
                f"{kind}@{number} is not in the registry {self.home}.\n"
                "See what it holds:  aligner-bootstrap registry list"
            )
        return self._version(row)

    def _version(self, row: Row[Any]) -> Version:
        return Version(
            kind=row.kind,
            number=row.number,
            path=self._path(row.kind, row.number),
            created=datetime.fromisoformat(row.created),
            manifest=row.manifest,
        )

    def _pair(self, connection: Connection, number: int) -> PairVersion:
        row = connection.execute(select(PAIRS).where(PAIRS.c.number == number)).one()
        return PairVersion(
            number=number,
            upstream=None if row.upstream is None else self._find(connection, "upstream", row.upstream),
            aligner=self._find(connection, "aligner", row.aligner),
            created=datetime.fromisoformat(row.created),
            figures=row.figures,
        )


def _known(kind: Kind) -> Kind:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    return kind


def _head(connection: Connection) -> Row[Any] | None:
    """The event that made the served pair, or None."""
    return connection.execute(_NEWEST_EVENT).one_or_none()


def _last(connection: Connection) -> Row[Any]:
    """The event that made the served pair, where one was surely recorded."""
    return connection.execute(_NEWEST_EVENT).one()


def _insert(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """Inserts a row and returns the number that it got."""
    return int(connection.execute(insert(table).values(**row).returning(table.primary_key.columns[0])).scalar_one())


def _event(connection: Connection, action: str, pair: int, *, back: int | None) -> int:
    return _insert(connection, EVENTS, {"action": action, "pair": pair, "back": back, "time": _now()})


def _next_number(connection: Connection, kind: Kind, parent: Path) -> int:
    """One more than every number in use, also by a folder without a row: a database may have been lost, weights not."""
    recorded = connection.execute(select(func.max(VERSIONS.c.number)).where(VERSIONS.c.kind == kind)).scalar_one()
    on_disk = (int(folder.name) for folder in parent.iterdir() if folder.name.isdecimal())
    return max(recorded or 0, *on_disk, 0) + 1


def _check_expected(expected: PairVersion | None, head: Row[Any] | None) -> None:
    if (expected and expected.number) != (head and head.pair):
        wanted = f"pair {expected.number}" if expected else "none"
        raise RegistryError(
            f"{_named(head)} is served and {wanted} was expected: another round or a rollback came first. Nothing was "
            "promoted.\nSee what happened:  aligner-bootstrap registry list\nThen start again:  aligner-bootstrap round run"
        )


def _check_weights(pair: PairVersion) -> None:
    for version in (pair.upstream, pair.aligner):
        if version is not None and not version.path.is_dir():
            raise RegistryError(
                f"The weights of {version.identity} are gone from {version.path}; the served pair is as it was.\n"
                "Put the folder back from a copy, or see what else there is:  aligner-bootstrap registry list"
            )


def _named(head: Row[Any] | None) -> str:
    return f"pair {head.pair}" if head else "no pair"


def _content(pair: PairVersion) -> str:
    """The text of `served.json`; paths are relative, so that a home can be moved."""
    entries = {
        name: version and {"identity": version.identity, "path": f"{version.kind}/{version.number}"}
        for name, version in (("upstream", pair.upstream), ("aligner", pair.aligner))
    }
    return json.dumps({"schema": SERVED_SCHEMA, "pair": str(pair.number), **entries}, indent=1) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat()
