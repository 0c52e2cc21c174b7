"""Deletes corrections for good: with all that hangs on them, and so that they do not come back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
)

from bootstrap.database import insert_into
from bootstrap.records import now_ms
from bootstrap.tables import CORRECTIONS, FEEDBACK, NEIGHBOURS, TOMBSTONES

_CHUNK = 500  # keys in one statement; databases have a limit
_C, _F, _T = CORRECTIONS.c, FEEDBACK.c, TOMBSTONES.c

# What feedback may point to, each with the column of a correction that it means.
REFERENCES: Mapping[str, tuple[Column[Any], Column[Any]]] = {
    "correction": (_F.correction_id, _C.id),
    "message": (_F.message_id, _C.message_id),
    "run": (_F.run_id, _C.run_id),
}
_SUBJECT = "subject"
_SCRUBBING = {"kind": "scrubbing", "key": "", "at_ms": 0}


def chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """The keys in parts that fit into one statement."""
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))


def buried(connection: Connection, kind: str, keys: Sequence[str]) -> dict[str, int]:
    """Which of these keys have a tombstone, and of when it is."""
    found: dict[str, int] = {}
    for part in chunks(keys):
        rows = connection.execute(select(_T.key, _T.at_ms).where(_T.kind == kind, _T.key.in_(part)))
        found |= {row.key: row.at_ms for row in rows}
    return found


def living_corrections(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows of corrections that were not deleted, neither by their id nor with their subject."""
    if not _any_tombstone(connection):
        return rows
    ids = buried(connection, "correction", [row["id"] for row in rows])
    hashes = {key for row in rows for key in _hashes_of(row)}
    subjects = buried(connection, _SUBJECT, sorted(hashes))
    return [
        row
        for row in rows
        if row["id"] not in ids and not any(subjects.get(key, -1) >= row["at_ms"] for key in _hashes_of(row))
    ]


def living_feedback(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows of feedback that are about nothing that was deleted."""
    if not _any_tombstone(connection):
        return rows
    for kind, (reference, _) in REFERENCES.items():
        gone = buried(connection, kind, [row[reference.name] for row in rows if row[reference.name] is not None])
        rows = [row for row in rows if row[reference.name] not in gone]
    return rows


class Deletion:
    """Deletes within one transaction and counts; the database does it by itself, nothing is read into memory.

    `corrections` is how many there were; `erased` whether anything that somebody wrote was deleted.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._at_ms = now_ms()
        self.corrections = 0
        self.erased = False

    def where(self, condition: ColumnElement[bool]) -> None:
        """Deletes corrections with their feedback and neighbours, and leaves tombstones."""
        for kind, (reference, target) in REFERENCES.items():
            graves = select(literal(kind), target, literal(self._at_ms)).where(condition, target.is_not(None))
            bury = insert_into(self._connection, TOMBSTONES).from_select([_T.kind, _T.key, _T.at_ms], graves)
            self._connection.execute(bury.on_conflict_do_nothing())
            self._delete(FEEDBACK, reference.in_(select(target).where(condition)))
        self._delete_neighbours(select(_C.id).where(condition))
        self.corrections += self._delete(CORRECTIONS, condition)

    def ids(self, ids: Sequence[str]) -> None:
        """As `where`, by ids; those that are not there get their tombstones too."""
        for part in chunks(ids):
            graves = [{"kind": "correction", "key": one, "at_ms": self._at_ms} for one in part]
            self._connection.execute(insert_into(self._connection, TOMBSTONES).on_conflict_do_nothing(), graves)
            self._delete(FEEDBACK, _F.correction_id.in_(part))
            self._delete_neighbours(part)
            self.where(_C.id.in_(part))

    def subject(self, subject: str, tenant: str | None, before_ms: int | None) -> None:
        """Leaves a tombstone for all of a subject that was collected until then, without its name."""
        until_ms = self._at_ms if before_ms is None else min(self._at_ms, before_ms - 1)
        grave = {"kind": _SUBJECT, "key": _hash(tenant, subject), "at_ms": until_ms}
        bury = insert_into(self._connection, TOMBSTONES)
        newer = bury.on_conflict_do_update(
            index_elements=[_T.kind, _T.key], set_={"at_ms": bury.excluded.at_ms}, where=bury.excluded.at_ms > _T.at_ms
        )
        self._connection.execute(newer, grave)

    def orphans(self, before_ms: int) -> None:
        """Deletes feedback from before a time that belongs to no correction (any more)."""
        owned = exists().where(or_(*(reference == target for reference, target in REFERENCES.values())))
        self._delete(FEEDBACK, and_(_F.at_ms < before_ms, ~owned))

    def _delete(self, table: Table, condition: ColumnElement[bool]) -> int:
        count = self._connection.execute(delete(table).where(condition)).rowcount
        self.erased |= count > 0
        return count

    def _delete_neighbours(self, keys: Sequence[str] | Select[Any]) -> None:
        for scope in _scopes(self._connection):
            self._delete(NEIGHBOURS, and_(NEIGHBOURS.c.scope == scope, NEIGHBOURS.c.key.in_(keys)))


def note_scrubbing(connection: Connection) -> None:
    """Notes that what was deleted is still to be taken from the disk, in case the process ends before that."""
    connection.execute(insert_into(connection, TOMBSTONES).on_conflict_do_nothing(), _SCRUBBING)


def is_scrubbing_due(connection: Connection) -> bool:
    """Whether something that was deleted is still to be taken from the disk."""
    return connection.execute(select(_T.at_ms).where(_T.kind == _SCRUBBING["kind"])).first() is not None


def forget_scrubbing(connection: Connection) -> None:
    """Notes that nothing deleted is on the disk any more."""
    connection.execute(delete(TOMBSTONES).where(_T.kind == _SCRUBBING["kind"]))


def _any_tombstone(connection: Connection) -> bool:
    return connection.execute(select(_T.kind).limit(1)).first() is not None


def _scopes(connection: Connection) -> list[str]:
    """The scopes of near-duplicates, each found by one step into the index; there are few."""
    scope = NEIGHBOURS.c.scope
    found = list(connection.execute(select(func.min(scope))).scalars())
    while found[-1] is not None:
        found += connection.execute(select(func.min(scope)).where(scope > found[-1])).scalars()
    return found[:-1]


def _hashes_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The tombstones that a row's subject may have: in its tenant, and in every tenant."""
    subject, tenant = row["subject"], row["tenant"]
    if subject is None:
        return ()
    return (_hash(None, subject),) if tenant is None else (_hash(None, subject), _hash(tenant, subject))


def _hash(tenant: str | None, subject: str) -> str:
    return hashlib.sha256(json.dumps([tenant, subject]).encode()).hexdigest()
