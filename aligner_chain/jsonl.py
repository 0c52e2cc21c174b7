"""JSON lines that people give to a command, read as exchanges; what is wrong with a line is said with its place."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path
from shlex import quote
from typing import TypeVar

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange, Turn

T = TypeVar("T")

_GZIP, _UTF_16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")
"""How files begin that are no text, or one as PowerShell's `>` writes it."""


def lines(path: Path) -> Iterator[str]:
    """The lines of a file. Raises `ConfigurationError` where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:  # a mark in front, as programs of Windows put it, is no text
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(unreadable(path, error)) from error


def standard_input() -> Iterator[str]:
    """The lines of stdin, as those of a file: UTF-8, whatever the locale makes of it. Raises `ConfigurationError` where it is none."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise ConfigurationError(unreadable("/dev/stdin", error)) from error


def unreadable(path: str | os.PathLike[str], error: OSError | UnicodeDecodeError) -> str:
    """Why a file of lines could not be read, for a person: what is there in its place, and the way out."""
    if isinstance(error, FileNotFoundError):
        where = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
        return f"There is no file {path}{where}. Check the path given."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder. Give the file in it."
    if isinstance(error, UnicodeDecodeError) and error.object.startswith(_GZIP):
        return f"{path} is compressed. Unpack it first:  gunzip -c {quote(str(path))} > unpacked.jsonl"
    if isinstance(error, UnicodeDecodeError):
        found = "utf-16" if error.object.startswith(_UTF_16) else "latin1"
        return f"{path} is not UTF-8 text ({error}). Convert it first:  iconv -f {found} -t utf-8 {quote(str(path))} > utf8.jsonl"
    return f"{path} cannot be read: {error.strerror or error}. Check the path given, and who may read it."


def object_of(line: str) -> object:
    """What a line of JSON holds. Raises `ValueError` that says why it is none, and at which character of the line."""
    try:
        return json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parsed(
    lines: Iterable[str], source: str, read: Callable[[object], T], command: str, program: str = "aligner-chain"
) -> Iterator[T]:
    """What `read` makes of each line that is not empty.

    Its `ValueError` and `TypeError` become a `ConfigurationError` that names `source`, the line and the `command` of the
    `program` whose help shows the form.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield read(object_of(line))
            except (ValueError, TypeError) as error:
                raise ConfigurationError(
                    f"{source}, line {number}: {error}. `{program} {command} --help` shows the form."
                ) from error


def exchange_of(row: object) -> Exchange:
    """An object of "answer", "question" or "turns", and whatever else an `Exchange` holds. A key too many is an error."""
    if not isinstance(row, Mapping):
        raise TypeError("not a JSON object")
    known = {field.name for field in fields(Exchange)} | {"question"}
    if unknown := sorted(set(row) - known):
        raise ValueError(f"unknown key {unknown[0]!r} (known: {', '.join(sorted(known))})")
    if ("question" in row) == ("turns" in row):
        raise ValueError('exactly one of "question" and "turns" is needed')
    texts = {name: text_of(row, name) for name in row if name not in {"question", "turns", "context"}}
    if "answer" not in texts:
        raise ValueError('"answer" is missing')
    return Exchange(turns=_turns(row), context=_context(row), **texts)


def text_of(row: Mapping[str, object], name: str) -> str:
    """The text under that name. Raises `TypeError` where there is none."""
    value = row.get(name)
    if not isinstance(value, str):
        raise TypeError(f'"{name}" is {"missing" if value is None else "not a text"}')
    return value


def _turns(row: Mapping[str, object]) -> tuple[Turn, ...]:
    if "question" in row:
        return (Turn(role="user", text=text_of(row, "question")),)
    turns = row["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise TypeError('"turns" is not a list of {"role": ..., "text": ...}')
    return tuple(Turn(role=text_of(turn, "role"), text=text_of(turn, "text")) for turn in turns)


def _context(row: Mapping[str, object]) -> tuple[str, ...]:
    passages = row.get("context", [])
    if not isinstance(passages, list) or not all(isinstance(passage, str) for passage in passages):
        raise TypeError('"context" is not a list of texts')
    return tuple(passages)
