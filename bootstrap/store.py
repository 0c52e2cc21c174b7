"""The corrections of live traffic in a database, one row each, each in its split from the moment it is written."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, exists, func, or_, select

from aligner_chain.exchange import Correction, Exchange
from bootstrap import tombstones
from bootstrap.database import Database, Schema, insert_new
from bootstrap.records import (
    SPLITS,
    Feedback,
    Record,
    Split,
    check_identifier,
    encoded,
    feedback_fields,
    placed,
    record_of,
)
from bootstrap.tables import CORRECTIONS, FEEDBACK, METADATA, TOMBSTONES, held_out
from bootstrap.tombstones import REFERENCES

SCHEMA = Schema("collection", METADATA)
_PAGE = 500
_C, _F = CORRECTIONS.c, FEEDBACK.c


class CorrectionStore:
    """Corrections in a SQLite file or a PostgreSQL database: written once, read in pages, deleted for good.

    Threads and processes may share one. A prompt that was recorded as held out under any `split_key` is never read
    as training data, also where another record of it is in the training split.

    Args:
        url_or_path: a file's path, a `sqlite:///` URL or a `postgresql://` URL. The tables are made where there are
            none, and upgraded where they are of an older version; `docs/upgrading.md` says how.

    Raises:
        StoreError: the database is corrupt, of an unknown version, or cannot be opened. Every method raises it too.
        MissingExtraError: it is a PostgreSQL database, and psycopg is not installed.
    """

    def __init__(self, url_or_path: str | os.PathLike[str]) -> None:
        self.database = Database(url_or_path, SCHEMA)

    @property
    def path(self) -> Path | None:
        """The file; None where the store is a server's database."""
        return self.database.path

    @property
    def url(self) -> str:
        """The file's path or the server's URL, the password left out: for messages, not to connect by."""
        return self.database.name

    # --- writing ---

    def append(self, records: Iterable[Correction | Record]) -> int:
        """Writes corrections, all or none, and returns how many were new.

        A known id is left as it was. What was deleted is left out: by its id, or with its subject if it was collected
        before that was deleted.

        Raises:
            RecordError: a correction cannot be written as it is; the message names it.
        """
        rows = [_row(one if isinstance(one, Record) else Record(correction=one)) for one in records]
        if not rows:
            return 0
        rows.sort(key=_id)  # two writers who insert the same ids in two orders would wait for each other
        with self.database.write(shared=True) as connection:
            return insert_new(connection, CORRECTIONS, tombstones.living_corrections(connection, rows))

    def add_feedback(self, feedback: Iterable[Feedback]) -> int:
        """Writes what was said of corrections, all or none, and returns how much of it was new.

        It may come before its correction. What is about a deleted correction is left out and not counted.

        Raises:
            RecordError: some of it cannot be written as it is; the message names it.
        """
        rows = sorted(map(feedback_fields, feedback), key=_id)
        if not rows:
            return 0
        with self.database.write(shared=True) as connection:
            return insert_new(connection, FEEDBACK, tombstones.living_feedback(connection, rows))

    def kept_open(self) -> AbstractContextManager[None]:
        """While it lasts, many small appends are cheap; see `Database.kept_open`."""
        return self.database.kept_open()

    # --- reading ---

    def count(self, split: Split | None = None) -> int:
        """How many corrections there are, of one split or of all."""
        return self._count(CORRECTIONS, *_within(split))

    def feedback_count(self) -> int:
        """How much feedback there is."""
        return self._count(FEEDBACK)

    def deleted_count(self) -> int:
        """How many corrections have been deleted."""
        return self._count(TOMBSTONES, TOMBSTONES.c.kind == "correction")

    def corrections(self, split: Split | None = None) -> Iterator[Correction]:
        """The corrections of one split, or all, in order of their ids, in bounded memory.

        Each page is read by itself: rows written meanwhile with greater ids are included. `error` is not stored and
        comes back None; all else comes back equal.
        """
        return (record.correction for record in self.records(split))

    def records(
        self,
        split: Split | None = None,
        *,
        feedback: bool = False,
        since_ms: int | None = None,
        until_ms: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[Record]:
        """As `corrections`, each with what collecting it added.

        Args:
            split: None for all.
            feedback: also read what was said of each, oldest first.
            since_ms: only what was collected at this time or later, in milliseconds since the epoch.
            until_ms: only what was collected before this time.
            newest_first: from the greatest id down; what is written meanwhile is not included.
        """
        conditions = [*_within(split), *_between(since_ms, until_ms)]
        page = self._page(conditions, feedback, newest_first)
        while page:
            yield from page
            last = page[-1].correction.id
            beyond = _C.id < last if newest_first else _C.id > last
            page = self._page([*conditions, beyond], feedback, newest_first)

    def get(self, correction_id: str) -> Record | None:
        """The record with this id and its feedback, or None."""
        with self.database.read() as connection:
            found = _read(connection, [_C.id == check_identifier("id", correction_id)], feedback=True, limit=1)
        return found[0] if found else None

    def find(self, *, message_id: str | None = None, run_id: str | None = None) -> list[Record]:
        """The records of a message or of a run, with their feedback, in order of their ids.

        Raises:
            ValueError: neither is given.
        """
        wanted = {"message_id": message_id, "run_id": run_id}
        conditions = [_C[name] == check_identifier(name, value) for name, value in wanted.items() if value is not None]
        if not conditions:
            raise ValueError("find needs a message_id or a run_id")
        with self.database.read() as connection:
            return _read(connection, conditions, feedback=True)

    def prompts(self, split: Split) -> list[Exchange]:
        """The distinct prompts of a split, each with the exchange that was recorded first, in order of ids."""
        first = select(func.min(_C.id)).where(*_within(split)).group_by(_C.prompt)
        with self.database.read() as connection:
            rows = connection.execute(select(CORRECTIONS).where(_C.id.in_(first)).order_by(_C.id))
            return [_record(row).correction.exchange for row in rows]

    def ids(self, split: Split) -> list[str]:
        """The ids of all corrections of a split, in order."""
        with self.database.read() as connection:
            return list(connection.execute(select(_C.id).where(*_within(split)).order_by(_C.id)).scalars())

    # --- deleting ---

    def delete(
        self,
        *,
        ids: Iterable[str] = (),
        subject: str | None = None,
        tenant: str | None = None,
        before_ms: int | None = None,
    ) -> int:
        """Deletes corrections with their feedback and all that was derived from them, for good, all or none.

        Their ids stay, so that no replay brings them back and exports can leave them out; of a subject a hash stays.
        A SQLite file is written anew before this returns (VACUUM), so that no byte of the text is left in it; for that
        it needs as much free disk space again, and writers wait. PostgreSQL overwrites the text later (autovacuum).
        Neither reaches into backups.

        Args:
            ids: these corrections. They may be recorded later: then they are left out. Goes with nothing else.
            subject: all of this subject, also what is recorded later but was collected before now.
            tenant: only in this tenant. Without it a subject is deleted in every tenant.
            before_ms: only what was collected before this time, in milliseconds since the epoch. Without a subject and
                a tenant also older feedback that belongs to no correction.

        Returns:
            How many corrections there were.

        Raises:
            ValueError: nothing says what to delete, or `ids` is given beside something else. A tenant alone is not enough:
                too much would go by mistake; give `before_ms` with it.
            StoreError: nothing was deleted; or, of a SQLite file, all was, and the message says that a reader kept the
                text in the log.
        """
        wanted = [check_identifier("id", one) for one in ids]
        if bool(wanted) == (subject is not None or before_ms is not None) or (wanted and tenant is not None):
            raise ValueError("delete needs either ids, or a subject or before_ms (a tenant only narrows these)")
        with self.database.write() as connection:
            deletion = tombstones.Deletion(connection)
            if wanted:
                deletion.ids(wanted)
            else:
                _delete_where(deletion, subject, tenant, before_ms)
            if deletion.erased:
                tombstones.note_scrubbing(connection)
        self._scrub()
        return deletion.corrections

    def deleted(self, ids: Iterable[str]) -> set[str]:
        """Which of these corrections have been deleted."""
        with self.database.read() as connection:
            return set(tombstones.buried(connection, "correction", [check_identifier("id", one) for one in ids]))

    def close(self) -> None:
        """Lets the database go; safe to call twice."""
        self.database.close()

    def _scrub(self) -> None:
        """Takes what was deleted from the disk, also what an earlier process had no time for."""
        with self.database.read() as connection:
            if not tombstones.is_scrubbing_due(connection):
                return
        self.database.scrub()
        with self.database.write() as connection:
            tombstones.forget_scrubbing(connection)

    def _count(self, table: Table, *conditions: ColumnElement[bool]) -> int:
        with self.database.read() as connection:
            return connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one()

    def _page(self, conditions: Sequence[ColumnElement[bool]], feedback: bool, newest_first: bool) -> list[Record]:
        with self.database.read() as connection:
            return _read(connection, conditions, feedback=feedback, limit=_PAGE, newest_first=newest_first)


def _delete_where(
    deletion: tombstones.Deletion, subject: str | None, tenant: str | None, before_ms: int | None
) -> None:
    named = {"subject": subject, "tenant": tenant}
    conditions = [_C[name] == check_identifier(name, value) for name, value in named.items() if value is not None]
    deletion.where(and_(*conditions, *_between(None, before_ms)))
    if subject is not None:
        deletion.subject(subject, tenant, before_ms)
    elif tenant is None and before_ms is not None:
        deletion.orphans(before_ms)


def _within(split: Split | None) -> list[ColumnElement[bool]]:
    if split is None:
        return []
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if split != "train":
        return [_C.split == split]
    other = CORRECTIONS.alias()
    return [_C.split == split, ~exists().where(other.c.prompt == _C.prompt, held_out(other.c.split))]


def _between(since_ms: int | None, until_ms: int | None) -> list[ColumnElement[bool]]:
    since = [] if since_ms is None else [_C.at_ms >= since_ms]
    return since if until_ms is None else [*since, _C.at_ms < until_ms]


def _read(
    connection: Connection,
    conditions: Sequence[ColumnElement[bool]],
    *,
    feedback: bool,
    limit: int | None = None,
    newest_first: bool = False,
) -> list[Record]:
    order = _C.id.desc() if newest_first else _C.id
    query = select(CORRECTIONS).where(*conditions).order_by(order).limit(limit)
    records = [_record(row) for row in connection.execute(query)]
    return _with_feedback(connection, records) if feedback else records


def _with_feedback(connection: Connection, records: Sequence[Record]) -> list[Record]:
    """The records with what was said of each: by correction id, else by message, else by run."""
    keys: dict[str, list[str | None]] = {
        "correction": [one.correction.id for one in records],
        "message": [one.correction.exchange.message_id for one in records],
        "run": [one.correction.exchange.run_id for one in records],
    }
    said: dict[tuple[str, str], list[Feedback]] = defaultdict(list)
    points_to = [column.in_({key for key in keys[kind] if key is not None}) for kind, (column, _) in REFERENCES.items()]
    for row in connection.execute(select(FEEDBACK).where(or_(*points_to)).order_by(_F.at_ms, _F.id)):
        feedback = Feedback(**row._asdict())
        said[_target(feedback)].append(feedback)
    named = (list(zip(keys, one, strict=True)) for one in zip(*keys.values(), strict=True))
    return [
        replace(record, feedback=tuple(sorted((f for name in names for f in said.get(name, ())), key=_order)))
        for record, names in zip(records, named, strict=True)
    ]


def _target(feedback: Feedback) -> tuple[str, str]:
    """What feedback is about: the first that it names of a correction, a message and a run."""
    if feedback.correction_id:
        return "correction", feedback.correction_id
    return ("message", feedback.message_id) if feedback.message_id else ("run", feedback.run_id or "")


def _row(record: Record) -> dict[str, Any]:
    fields = encoded(record)
    fields["prompt"], fields["split"] = placed(record)
    return fields


def _id(row: Mapping[str, Any]) -> str:
    return str(row["id"])


def _record(row: Row[Any]) -> Record:
    return record_of(row._asdict())


def _order(feedback: Feedback) -> tuple[int, str]:
    return feedback.at_ms, feedback.id
