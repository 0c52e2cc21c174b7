"""What a paid judge said before, in a database: it survives a kill and is shared by processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, select

from bootstrap.database import Database, Schema, insert_new
from bootstrap.records import now_ms

METADATA = MetaData()
# `key` is a hash and `verdict` a word or two: no text of a question or an answer is kept, so that nothing of somebody
# whose answers are deleted from the store stays here.
JUDGEMENTS = Table(
    "judgements",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("judge", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)
SCHEMA = Schema("judgements", METADATA)
_PAGE = 500


class Judgements:
    """Verdicts by key, written once: of two processes that judge the same, the first one's verdict counts for both.

    Args:
        url_or_path: a file of its own, not that of the store, or a `postgresql://` URL.

    Raises:
        StoreError: the database cannot be used, or holds something else. Every method raises it too.
    """

    def __init__(self, url_or_path: str | os.PathLike[str]) -> None:
        self._database = Database(url_or_path, SCHEMA)

    def of(self, keys: Iterable[str]) -> dict[str, str]:
        """The verdicts that are known, by their keys."""
        wanted, found = list(keys), dict[str, str]()
        columns = JUDGEMENTS.c.key, JUDGEMENTS.c.verdict
        with self._database.read() as connection:
            for start in range(0, len(wanted), _PAGE):
                query = select(*columns).where(JUDGEMENTS.c.key.in_(wanted[start : start + _PAGE]))
                found |= {row.key: row.verdict for row in connection.execute(query)}
        return found

    def add(self, judge: str, verdicts: Mapping[str, str]) -> None:
        """Writes verdicts; those whose key is known stay as they are."""
        at_ms = now_ms()
        rows = [
            {"key": key, "judge": judge, "verdict": verdict, "at_ms": at_ms}
            for key, verdict in sorted(verdicts.items())
        ]
        with self._database.write(shared=True) as connection:
            insert_new(connection, JUDGEMENTS, rows)

    def close(self) -> None:
        """Lets the database go; safe to call twice."""
        self._database.close()
