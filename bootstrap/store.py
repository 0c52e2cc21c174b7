"""The corrections of live traffic in a database, one row each, each in its split from the moment it is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Literal, get_args

from sqlalchemy import JSON, Column, ColumnElement, Index, MetaData, Row, Table, Text, exists, func, select
from sqlalchemy.dialects.sqlite import insert

from aligner_chain.exchange import Correction, Edit, Exchange, Turn, Usage
from bootstrap.database import Database
from bootstrap.errors import RecordError

Split = Literal["train", "gate", "report"]

SCHEMA_VERSION = 1
HELD_OUT_SHARE = 0.2
_PAGE = 500

# Identifiers are text, to be searched by. What a model or a user wrote is JSON: its escapes hold every Python string
# as it is, also the lone surrogates that a database's text refuses.
_EXCHANGE_IDENTIFIERS = ("upstream", "message_id", "run_id", "subject", "tenant", "split_key")
_IDENTIFIERS = ("id", "outcome", "aligner", "template", *_EXCHANGE_IDENTIFIERS)
_DOCUMENTS = ("turns", "answer", "context", "text", "reason", "edits", "scores", "criteria", "usage")
_TABLE = Table(
    "corrections",
    MetaData(),
    Column("id", Text, primary_key=True),
    Column("split", Text, nullable=False),
    Column("prompt", Text, nullable=False),  # the hash of the normalised prompt
    *(Column(name, Text, nullable=False) for name in ("outcome", "aligner", "template")),
    *(Column(name, Text) for name in _EXCHANGE_IDENTIFIERS),
    *(Column(name, JSON, nullable=False) for name in _DOCUMENTS),
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

    def append(self, corrections: Iterable[Correction]) -> int:
        """Writes corrections, all or none, and returns how many were new; a known id is left as it was.

        Raises:
            RecordError: a correction cannot be written as it is; the message names it.
        """
        rows = [_row(correction) for correction in corrections]
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
        conditions = _within(split)
        page = self._page(conditions)
        while page:
            yield from map(_correction, page)
            page = self._page([*conditions, _C.id > page[-1].id])

    def prompts(self, split: Split) -> list[Exchange]:
        """The distinct prompts of a split, each with the exchange that was recorded first, in order of ids."""
        first = select(func.min(_C.id)).where(*_within(split)).group_by(_C.prompt)
        with self._database.read() as connection:
            rows = connection.execute(select(_TABLE).where(_C.id.in_(first)).order_by(_C.id))
            return [_exchange(row) for row in rows]

    def close(self) -> None:
        """Lets the database go; safe to call twice."""
        self._database.close()

    def _page(self, conditions: Sequence[ColumnElement[bool]]) -> Sequence[Row[Any]]:
        with self._database.read() as connection:
            return connection.execute(select(_TABLE).where(*conditions).order_by(_C.id).limit(_PAGE)).all()


def split_of(turns: Sequence[Turn], split_key: str | None = None) -> Split:
    """The split that a prompt belongs to, the same on every machine and at every time.

    A fifth is held out: by the hash of `split_key`, which keeps what belongs together on one side, or of the normalised
    prompt where there is none. A held-out prompt goes half and half to the gate set and the report set, always by its
    normalised prompt, so that no prompt is in both.
    """
    prompt = normalised_prompt(turns)
    if _fraction("held out", split_key or prompt) >= HELD_OUT_SHARE:
        return "train"
    return "gate" if _fraction("half", prompt) < 0.5 else "report"


def normalised_prompt(turns: Sequence[Turn]) -> str:
    """All turns as one text in which neither case nor the kind and amount of white space makes a difference."""
    return json.dumps([[turn.role, " ".join(turn.text.casefold().split())] for turn in turns])


def _fraction(salt: str, text: str) -> float:
    """A number from 0 to below 1 that looks random and depends on both texts only."""
    digest = hashlib.sha256(f"{salt}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _within(split: Split | None) -> list[ColumnElement[bool]]:
    if split is None:
        return []
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, not {split!r}")
    if split != "train":
        return [_C.split == split]
    other = _TABLE.alias()
    return [_C.split == split, ~exists().where(other.c.prompt == _C.prompt, other.c.split != split)]


def _row(correction: Correction) -> dict[str, Any]:
    """The row of one correction, checked: whatever is wrong with it is found before the database is asked."""
    try:
        row = {
            **_exchange_columns(correction.exchange),
            "id": correction.id,
            "outcome": correction.outcome,
            "aligner": correction.aligner,
            "template": correction.template,
            "text": correction.text,
            "reason": correction.reason,
            "edits": [[edit.start, edit.end, edit.before, edit.after] for edit in correction.edits],
            "scores": {name: float(score) for name, score in correction.scores.items()},
            "criteria": list(correction.criteria),
            "usage": asdict(correction.usage),
        }
        json.dumps(row)
        for name in _IDENTIFIERS:
            if row[name] is not None:
                row[name].encode()
    except (AttributeError, TypeError, ValueError) as error:
        which: object = getattr(correction, "id", correction)
        raise RecordError(
            f"The correction {which!r} cannot be stored: {error}. Mend it and append it again."
        ) from error
    return row


def _exchange_columns(exchange: Exchange) -> dict[str, Any]:
    return {
        "split": split_of(exchange.turns, exchange.split_key),
        "prompt": hashlib.sha256(normalised_prompt(exchange.turns).encode()).hexdigest(),
        "turns": [[turn.role, turn.text] for turn in exchange.turns],
        "answer": exchange.answer,
        "context": list(exchange.context),
        **{name: getattr(exchange, name) for name in _EXCHANGE_IDENTIFIERS},
    }


def _exchange(row: Row[Any]) -> Exchange:
    return Exchange(
        turns=tuple(Turn(role=role, text=text) for role, text in row.turns),
        answer=row.answer,
        context=tuple(row.context),
        **{name: getattr(row, name) for name in _EXCHANGE_IDENTIFIERS},
    )


def _correction(row: Row[Any]) -> Correction:
    return Correction(
        id=row.id,
        exchange=_exchange(row),
        outcome=row.outcome,
        aligner=row.aligner,
        template=row.template,
        text=row.text,
        reason=row.reason,
        edits=tuple(Edit(start=start, end=end, before=before, after=after) for start, end, before, after in row.edits),
        scores=MappingProxyType(row.scores),
        criteria=tuple(row.criteria),
        usage=Usage(**row.usage),
    )
