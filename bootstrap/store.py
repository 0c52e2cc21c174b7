"""The corrections of live traffic in a database, one row each, each in its split from the moment it is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Float,
    Index,
    MetaData,
    Row,
    Table,
    Text,
    exists,
    func,
    select,
)
from sqlalchemy.dialects.sqlite import insert

from aligner_chain.exchange import Correction, Exchange
from bootstrap.database import Database
from bootstrap.records import DOCUMENTS, EXCHANGE_IDENTIFIERS, SPLITS, Record, Split, fields_of, record_of

SCHEMA_VERSION = 1
_PAGE = 500

_TABLE = Table(
    "corrections",
    MetaData(),
    Column("id", Text, primary_key=True),
    Column("split", Text, nullable=False),
    Column("prompt", Text, nullable=False),  # the hash of the normalised prompt
    *(Column(name, Text, nullable=False) for name in ("outcome", "aligner", "template", "redactor")),
    *(Column(name, Text) for name in EXCHANGE_IDENTIFIERS),
    *(Column(name, JSON, nullable=False) for name in DOCUMENTS),
    Column("weight", Float, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("corrections_by_split", "split", "id"),
    Index("corrections_by_prompt", "prompt", "split", "id"),
)
_C = _TABLE.c


class CorrectionStore:
    """Corrections in a SQLite file, written once and read in pages.

    Threads and processes may share a file. A prompt that was recorded as held out under any `split_key` is never read
    as training data, also where another record of it is in the training split.

    Args:
        url_or_path: a file's path or a `sqlite:///` URL; a new file is made where there is none.

    Raises:
        StoreError: the file is corrupt, of an unknown version, or cannot be opened. Every method raises it too.
    """

    def __init__(self, url_or_path: str | os.PathLike[str]) -> None:
        self._database = Database(url_or_path, _TABLE.metadata, version=SCHEMA_VERSION)
        self.path = self._database.path

    def append(self, records: Iterable[Correction | Record]) -> int:
        """Writes corrections, all or none, and returns how many were new; a known id is left as it was.

        Raises:
            RecordError: a correction cannot be written as it is; the message names it.
        """
        rows = [_row(one if isinstance(one, Record) else Record(correction=one)) for one in records]
        if not rows:
            return 0
        statement = insert(_TABLE).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
        with self._database.write() as connection:
            return connection.execute(statement, rows).rowcount

    def count(self, split: Split | None = None) -> int:
        """How many corrections there are, of one split or of all."""
        with self._database.read() as connection:
            return connection.execute(select(func.count()).select_from(_TABLE).where(*_within(split))).scalar_one()

    def corrections(self, split: Split | None = None) -> Iterator[Correction]:
        """The corrections of one split, or all, in order of their ids, in bounded memory.

        Each page is read by itself: rows written meanwhile with greater ids are included. `error` is not stored and
        comes back None; all else comes back equal.
        """
        return (record.correction for record in self.records(split))

    def records(self, split: Split | None = None) -> Iterator[Record]:
        """As `corrections`, each with what collecting it added."""
        conditions = _within(split)
        page = self._page(conditions)
        while page:
            yield from map(_record, page)
            page = self._page([*conditions, _C.id > page[-1].id])

    def prompts(self, split: Split) -> list[Exchange]:
        """The distinct prompts of a split, each with the exchange that was recorded first, in order of ids."""
        first = select(func.min(_C.id)).where(*_within(split)).group_by(_C.prompt)
        with self._database.read() as connection:
            rows = connection.execute(select(_TABLE).where(_C.id.in_(first)).order_by(_C.id))
            return [_record(row).correction.exchange for row in rows]

    def close(self) -> None:
        """Lets the database go; safe to call twice."""
        self._database.close()

    def _page(self, conditions: Sequence[ColumnElement[bool]]) -> Sequence[Row[Any]]:
        with self._database.read() as connection:
            return connection.execute(select(_TABLE).where(*conditions).order_by(_C.id).limit(_PAGE)).all()


def _within(split: Split | None) -> list[ColumnElement[bool]]:
    if split is None:
        return []
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if split != "train":
        return [_C.split == split]
    other = _TABLE.alias()
    return [_C.split == split, ~exists().where(other.c.prompt == _C.prompt, other.c.split != split)]


def _row(record: Record) -> dict[str, Any]:
    return fields_of(record) | {"split": record.split, "prompt": record.prompt}


def _record(row: Row[Any]) -> Record:
    return record_of(row._asdict())
