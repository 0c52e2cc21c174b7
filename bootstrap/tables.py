"""The tables of a collection: corrections, what people said of them, what was deleted, and near-duplicates.

`bootstrap.migrations` makes them in a database, revision by revision; this is what they are at the newest one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Dialect,
    Float,
    Index,
    MetaData,
    SmallInteger,
    Table,
    Text,
    column,
    literal_column,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from bootstrap.records import DOCUMENTS, EXCHANGE_IDENTIFIERS


class Document(TypeDecorator[Any]):
    r"""A value of JSON: written as its text (`records.encoded`), read as what the text says.

    PostgreSQL keeps it as `json`, which takes every escape; `jsonb` refuses `\u0000` and half a surrogate pair, turns
    1e300 into an integer and forgets the order of keys. SQLite keeps text: a column that it knows as JSON would turn a
    number of more than 64 bits into a float.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(JSON() if dialect.name == "postgresql" else Text())

    def bind_processor(self, dialect: Dialect) -> None:
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str], Any] | None:
        return None if dialect.name == "postgresql" else json.loads  # psycopg has read it already


# Ids are compared by their characters' numbers, as Python and SQLite do it, and not in the order of some language.
_Key = Text().with_variant(Text(collation="C"), "postgresql")


def held_out(split: ColumnElement[str]) -> ColumnElement[bool]:
    """What the index by prompts holds. A query that says the same, without parameters, has it in every plan."""
    return split != literal_column("'train'")


def _where_set(name: str) -> dict[str, Any]:
    """What an index leaves out: most records have no such identifier."""
    return _only(column(name).is_not(None))


def _only(condition: ColumnElement[bool]) -> dict[str, Any]:
    return {"sqlite_where": condition, "postgresql_where": condition}


METADATA = MetaData()
# Every index is paid for with every record. Hashes of prompts cost most: they are in no order, so that each of them
# changes another page of the index. A question about prompts is always whether one is held out, and few are.
CORRECTIONS = Table(
    "corrections",
    METADATA,
    Column("id", _Key, primary_key=True),
    Column("split", Text, nullable=False),
    Column("prompt", _Key, nullable=False),  # the hash of the normalised prompt
    *(Column(name, Text, nullable=False) for name in ("outcome", "aligner", "template", "redactor")),
    *(Column(name, Text) for name in EXCHANGE_IDENTIFIERS),
    *(Column(name, Document, nullable=False) for name in DOCUMENTS),
    Column("weight", Float, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("corrections_by_split", "split", "id"),
    Index("corrections_by_prompt", "prompt", "split", "id", **_only(held_out(column("split")))),
    Index("corrections_by_message", "message_id", **_where_set("message_id")),
    Index("corrections_by_run", "run_id", **_where_set("run_id")),
    Index("corrections_by_subject", "subject", "tenant", **_where_set("subject")),
    Index("corrections_by_time", "at_ms"),
)
FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("id", _Key, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("value", Document, nullable=False),
    Column("correction_id", Text),
    Column("message_id", Text),
    Column("run_id", Text),
    Column("author", Text),
    Column("at_ms", BigInteger, nullable=False),
    Index("feedback_by_correction", "correction_id"),
    Index("feedback_by_message", "message_id"),
    Index("feedback_by_run", "run_id"),
    Index("feedback_by_time", "at_ms"),
)
# What was deleted and must not come back: a correction, message or run by its id, a subject by a hash, without its name.
TOMBSTONES = Table(
    "tombstones",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("key", _Key, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),  # of a subject: what is younger is not meant
)
# The bands of MinHash signatures: two texts with the same value in a band are worth a comparison.
NEIGHBOURS = Table(
    "neighbours",
    METADATA,
    Column("scope", _Key, primary_key=True),
    Column("key", _Key, primary_key=True),
    Column("band", SmallInteger, primary_key=True),
    Column("value", BigInteger, nullable=False),
    Index("neighbours_by_value", "scope", "band", "value"),
)
