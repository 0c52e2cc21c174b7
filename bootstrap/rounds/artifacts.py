"""What the stages of a round leave for those after them: files of JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from aligner_chain.exchange import Correction, Exchange, Turn
from bootstrap.records import Record, fields_of, record_of
from bootstrap.training import as_json

T = TypeVar("T")


def write_rows(path: Path, rows: Iterable[object]) -> int:
    """Writes values of JSON line by line and returns how many there were."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            count += 1
    return count


def read_rows(path: Path) -> list[Any]:
    """The values of a file that `write_rows` wrote."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_exchanges(path: Path, exchanges: Iterable[Exchange]) -> int:
    """Writes exchanges and returns how many."""
    return write_rows(path, map(asdict, exchanges))


def read_exchanges(path: Path) -> list[Exchange]:
    """The exchanges that `write_exchanges` wrote, equal."""
    return [
        Exchange(**{**row, "turns": _turns(row["turns"]), "context": tuple(row["context"])}) for row in read_rows(path)
    ]


def write_corrections(path: Path, corrections: Iterable[Correction]) -> int:
    """Writes corrections and returns how many."""
    return write_rows(path, (fields_of(Record(correction=one)) for one in corrections))


def read_corrections(path: Path) -> list[Correction]:
    """The corrections that `write_corrections` wrote; `error` and `tokens` are not kept."""
    return [record_of(row).correction for row in read_rows(path)]


def read_any(read: Callable[[Path], list[T]], path: Path) -> list[T]:
    """The rows of a file as `read` reads them, where it would refuse an empty one."""
    return read(path) if path.stat().st_size else []


def json_sha256(value: object) -> str:
    """The hash of a value of JSON, or of settings, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=as_json).encode()).hexdigest()


def _turns(rows: Sequence[Mapping[str, str]]) -> tuple[Turn, ...]:
    return tuple(Turn(**row) for row in rows)
