"""Others' files into a store: question-answer-correction rows and preferences become records like those of traffic."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from aligner_chain.exchange import Correction, Exchange, edits_between
from bootstrap.errors import TrainingDataError
from bootstrap.pairs.filters import IMPORTED
from bootstrap.pairs.reading import PREFERENCE, TRIPLE, parse_preference, parse_triple, read_rows
from bootstrap.pairs.values import Source, Triple
from bootstrap.records import Record, encoded

if TYPE_CHECKING:
    from bootstrap.store import CorrectionStore

Form = Literal["triples", "preference"]

_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What became of a file: how many rows it has, how many were new, and how many belong to each split."""

    rows: int
    new: int
    splits: Mapping[str, int]


_FORMS: Mapping[Form, tuple[Callable[[object], Triple], str]] = MappingProxyType(
    {"triples": (parse_triple, TRIPLE), "preference": (parse_preference, PREFERENCE)}
)


def import_file(
    store: CorrectionStore,
    path: str | os.PathLike[str],
    *,
    form: Form = "triples",
    source: Source | None = None,
    upstream: str | None = None,
) -> Imported:
    """Takes a file of JSON lines into a store, in bounded memory.

    A row becomes a record whose `aligner` is `import:` and who vouches for it, as `import:gold`: so it is known for good
    that no Aligner wrote it. Its id follows from its content, `source` and `upstream`, so that a file that is imported
    again, also after a crash in the middle, adds only what is not there. Its split follows from its prompt, as always: a
    fifth is held out.

    Args:
        store: where the records go.
        path: JSON lines, see `read_triples` and docs/training_data.md.
        form: "triples" (question, answer, correction) or "preference" (prompt, chosen, rejected).
        source: who vouches for the rows: a "gold" set, a "human", an independent verifier ("verified"), or a strong model
            ("annotated"). None: what each row says under `source`, and "gold" where it says nothing.
        upstream: the model that gave the answers, as `name@version`, where that is known.

    Raises:
        TrainingDataError: lines are bad (the first 20 are named), or it is a pipe. Nothing was imported.
        RecordError: a row cannot be stored; nothing was imported.
    """
    _require_readable_twice(Path(path))
    for record in _records(path, form, source, upstream):
        encoded(record)
    rows, new, splits = 0, 0, Counter[str]()
    records = _records(path, form, source, upstream)
    while batch := list(islice(records, _BATCH)):
        new += store.append(batch)
        rows += len(batch)
        splits.update(record.split for record in batch)
    return Imported(rows=rows, new=new, splits=dict(splits))


def _require_readable_twice(path: Path) -> None:
    """Refuses a pipe: it is looked through before anything is written, and would be empty then."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise TrainingDataError(
            f"{path} is no file but a pipe or the like, and an import reads its rows twice: nothing of a bad file is taken. "
            "Nothing was imported. Write the rows to a file first, and name that:  ... > rows.jsonl"
        )


def _records(path: str | os.PathLike[str], form: Form, source: Source | None, upstream: str | None) -> Iterator[Record]:
    parse, expected = _FORMS[form]
    return (_record(row, source, upstream) for row in read_rows(path, parse, expected))


def _record(row: Triple, source: Source | None, upstream: str | None) -> Record:
    row = replace(row, source=source or row.source)
    text = row.answer if row.correction is None else row.correction
    correction = Correction(
        id=_id(row, upstream),
        exchange=Exchange(turns=row.turns, answer=row.answer, context=row.context, upstream=upstream),
        text=text,
        outcome="approved" if row.correction is None else "corrected",
        edits=edits_between(row.answer, text),
        criteria=row.criteria,
        aligner=f"{IMPORTED}{row.source}",
    )
    return Record(correction=correction)


def _id(row: Triple, upstream: str | None) -> str:
    """A UUID (version 8) of the row's content, the same whenever and wherever it is imported."""
    content = json.dumps([asdict(row), upstream], sort_keys=True).encode()
    value = int.from_bytes(hashlib.sha256(content).digest()[:16])
    return str(UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62))
