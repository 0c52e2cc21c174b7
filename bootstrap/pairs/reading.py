"""Rows in files: question-answer-correction and preferences as JSON lines, every bad line named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_args

from aligner_chain.exchange import Exchange, Turn
from aligner_chain.jsonl import object_of, unreadable
from bootstrap.errors import TrainingDataError
from bootstrap.pairs.values import Pair, Source, Triple
from bootstrap.records import is_unicode

_MOST_NAMED = 20

T = TypeVar("T")

TRIPLE = (
    "Each line must be a JSON object like\n"
    '  {"question": "...", "answer": "...", "correction": "...", "context": ["..."], "criteria": ["..."]}\n'
    "where context and criteria may be left out, a correction equal to its answer means that the answer is right, and "
    'instead of the question there may be  "turns": [{"role": "user", "text": "..."}, ...]'
)
ANSWERED = (
    'Each line must be a JSON object like\n  {"question": "...", "answer": "...", "context": ["..."]}\n'
    'where context may be left out, and instead of the question there may be  "turns": [{"role": "user", "text": "..."}, ...]'
)
PAIR = (
    "Each line must be a JSON object like\n"
    '  {"turns": [{"role": "user", "text": "..."}], "chosen": "...", "rejected": "...", "correction_id": "...", '
    '"upstream": "name@1"}\n'
    "where correction_id and upstream may be left out"
)
PREFERENCE = (
    "Each line must be a JSON object like\n"
    '  {"prompt": "...", "chosen": "...", "rejected": "..."}\n'
    'or, as messages,\n  {"prompt": [{"role": "user", "content": "..."}], "chosen": [{"role": "assistant", "content": "..."}], '
    '"rejected": [...]}'
)


def write_triples(path: str | os.PathLike[str], rows: Iterable[Triple]) -> None:
    """Writes triples as JSON lines that `read_triples` reads back equal; a row to keep has its answer as correction."""
    with Path(path).open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(triple_fields(row)) + "\n")


def write_pairs(path: str | os.PathLike[str], rows: Iterable[Pair]) -> None:
    """Writes preference pairs as JSON lines that `read_pairs` reads back equal."""
    with Path(path).open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row)) + "\n")


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Reads preference pairs from JSON lines, as `write_pairs` writes them.

    Raises:
        TrainingDataError: the file cannot be read, has no rows, or bad ones; the message names the lines.
    """
    return list(read_rows(path, parse_pair, PAIR))


def parse_pair(value: object) -> Pair:
    """The pair of a line's value; raises ValueError with what is wrong."""
    fields = _object(value)
    upstream = fields.get("upstream")
    return Pair(
        turns=_turns(fields),
        chosen=_filled(fields, "chosen"),
        rejected=_filled(fields, "rejected"),
        correction_id=_text(fields, "correction_id") if "correction_id" in fields else "",
        upstream=None if upstream is None else _checked(upstream, "upstream"),
    )


def triple_fields(row: Triple) -> dict[str, Any]:
    """A triple as an object of JSON."""
    return {**asdict(row), "correction": row.answer if row.correction is None else row.correction}


def read_triples(path: str | os.PathLike[str]) -> list[Triple]:
    """Reads the training data of an Aligner from JSON lines.

    Each line is an object of `question` (or `turns`: a list of `{"role", "text"}`), `answer` and `correction`; a
    correction equal to its answer means that the answer is right. Optional are `context`, `criteria` and `asked` (lists of
    strings) and `source`; other keys are left alone, and so are blank lines.

    Raises:
        TrainingDataError: the file cannot be read, has no rows, or lines are not as above; the message names the lines.
    """
    return list(read_rows(path, parse_triple, TRIPLE))


def read_answered(path: str | os.PathLike[str]) -> list[Exchange]:
    """Reads answered questions from JSON lines: `question` (or `turns`) and `answer`, with or without `context`.

    Raises:
        TrainingDataError: the file cannot be read, has no rows, or bad ones; the message names the lines.
    """
    return list(read_rows(path, parse_answered, ANSWERED))


def parse_answered(value: object) -> Exchange:
    """The exchange of a line's value; raises ValueError with what is wrong."""
    fields = _object(value)
    return Exchange(turns=_turns(fields), answer=_filled(fields, "answer"), context=_texts(fields, "context"))


def read_rows(path: str | os.PathLike[str], parse: Callable[[object], T], expected: str) -> Iterator[T]:
    """The rows of a file of JSON lines, each as `parse` makes it of the line's value, in bounded memory.

    `parse` raises ValueError with what is wrong with a value. After the first bad line nothing is given any more, but the
    rest of the file is read, so that the error tells of all bad lines.

    Raises:
        TrainingDataError: the file cannot be read, has no rows, or bad ones: the first 20 are named, all are counted, and
            `expected` follows.
    """
    rows, bad, named = 0, 0, list[str]()
    for number, line in _lines(path):
        rows += 1
        row = _read_line(line, parse)
        if not isinstance(row, _Bad):
            if not bad:
                yield row
            continue
        bad += 1
        if bad <= _MOST_NAMED:
            named.append(f"{path}, line {number}: {row.problem}.")
    if bad > len(named):
        named.append(f"... and {bad - len(named)} more: {bad} of {rows} lines are bad.")
    if bad:
        raise TrainingDataError("\n".join((*named, expected)))
    if not rows:
        raise TrainingDataError(f"{path} holds no rows. {expected}")


class _Bad:
    """What is wrong with a line."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(unreadable(path, error)) from error


def _read_line(line: str, parse: Callable[[object], T]) -> T | _Bad:
    try:
        return parse(object_of(line))
    except ValueError as error:
        return _Bad(str(error))


def parse_triple(value: object) -> Triple:
    """The triple of a line's value; raises ValueError with what is wrong."""
    fields = _object(value)
    answer, correction = _filled(fields, "answer"), _filled(fields, "correction")
    source = fields.get("source", "gold")
    if source not in get_args(Source):
        raise ValueError(f'"source" must be one of {", ".join(get_args(Source))}, not {source!r}')
    return Triple(
        turns=_turns(fields),
        answer=answer,
        correction=None if correction == answer else correction,
        context=_texts(fields, "context"),
        criteria=_texts(fields, "criteria"),
        asked=_texts(fields, "asked"),
        source=source,
    )


def parse_preference(value: object) -> Triple:
    """The triple of a preference: the rejected text is the answer, the chosen one its correction.

    Prompt and texts are strings or lists of messages. Where a text's messages begin with the prompt's, as in many public
    sets, only what follows counts, and that must be one message of the assistant.
    """
    fields = _object(value)
    prompt = _messages(fields, "prompt", role="user")
    if not any(turn.text.strip() for turn in prompt):
        raise ValueError('"prompt" is empty')
    chosen, rejected = (
        _reply(_messages(fields, name, role="assistant"), prompt, name) for name in ("chosen", "rejected")
    )
    if chosen == rejected:
        raise ValueError('"chosen" and "rejected" are the same')
    return Triple(turns=prompt, answer=rejected, correction=chosen)


def _reply(turns: tuple[Turn, ...], prompt: tuple[Turn, ...], name: str) -> str:
    reply = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if len(reply) != 1 or reply[0].role != "assistant":
        raise ValueError(f'"{name}" must be one message of the assistant')
    if not reply[0].text.strip():
        raise ValueError(f'"{name}" is empty')
    return reply[0].text


def _messages(fields: dict[str, Any], name: str, *, role: str) -> tuple[Turn, ...]:
    if name not in fields:
        raise ValueError(f'"{name}" is missing')
    value = fields[name]
    if isinstance(value, str):
        return (Turn(role=role, text=_checked(value, name)),)
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise ValueError(f'"{name}" must be text or a list of messages with "role" and "content"')
    return tuple(Turn(role=_text(message, "role"), text=_text(message, "content")) for message in value)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it is no object but {type(value).__name__}")
    return value


def _turns(fields: dict[str, Any]) -> tuple[Turn, ...]:
    if ("question" in fields) == ("turns" in fields):
        raise ValueError('it must have either "question" or "turns"')
    if "question" in fields:
        return (Turn(role="user", text=_filled(fields, "question")),)
    turns = fields["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError('"turns" must be a list of objects with "role" and "text"')
    return tuple(Turn(role=_text(turn, "role"), text=_text(turn, "text")) for turn in turns)


def _filled(fields: dict[str, Any], name: str) -> str:
    text = _text(fields, name)
    if not text.strip():
        raise ValueError(f'"{name}" is empty')
    return text


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise ValueError(f'"{name}" is missing')
    return _checked(fields[name], name)


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    texts = fields.get(name, [])
    if not isinstance(texts, list):
        raise ValueError(f'"{name}" must be a list of strings')
    return tuple(_checked(text, name) for text in texts)


def _checked(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f'"{name}" must be text, not {text!r:.60}')
    if not is_unicode(text):
        raise ValueError(f'"{name}" holds a lone surrogate, which is no Unicode text')
    return text
