"""`aligner-bootstrap feedback`: what people and scripts say of corrections, one by one or from a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.errors import ConfigurationError
from aligner_chain.jsonl import lines, object_of
from aligner_chain.showing import visible
from bootstrap.commands.base import STORE_HELP, add_command, existing_store, say_to_stderr
from bootstrap.errors import RecordError
from bootstrap.records import Feedback, Kind, Record, feedback_fields

if TYPE_CHECKING:
    from bootstrap.store import CorrectionStore

Redact = Callable[[Feedback], Feedback]
_FIELDS = frozenset(field.name for field in fields(Feedback))


def add(commands: Any) -> None:
    """Adds `feedback`."""
    parser = add_command(
        commands,
        "feedback",
        "say what was good or bad about an answer",
        "aligner-bootstrap feedback --store corrections.db --message msg-7f2a --thumb down --comment 'wrong date'",
        _feedback,
    )
    parser.add_argument("--store", required=True, help=STORE_HELP)
    about = parser.add_mutually_exclusive_group(required=True)
    about.add_argument("--correction", metavar="ID", help="about the correction with this id")
    about.add_argument("--message", metavar="ID", help="about the answer in the message with this id")
    about.add_argument("--run", metavar="ID", dest="run_id", help="about the answer of the run with this id")
    about.add_argument(
        "--file", type=Path, metavar="FILE.jsonl", help="many: an object of the fields of Feedback a line"
    )
    _add_what_to_say(parser)
    parser.add_argument("--show", action="store_true", help="print what was said so far, and write nothing")
    parser.add_argument("--author", help="who says so")
    add_redaction(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_what_to_say(parser: argparse.ArgumentParser) -> None:
    said = parser.add_argument_group("what to say, one or more")
    said.add_argument("--thumb", choices=("up", "down"), help="about the answer as it was served")
    said.add_argument("--score", type=float, metavar="X", help="about the answer as it was served, on a scale of yours")
    said.add_argument("--comment", metavar="TEXT", help="a text, @FILE, or - for the standard input")
    said.add_argument("--edit", metavar="TEXT", help="what the answer should have been: a text, @FILE, or -")
    said.add_argument("--review", choices=("accept", "reject"), help="whether the correction is right")


def add_redaction(parser: argparse.ArgumentParser) -> None:
    """Adds the option that `redaction` reads."""
    parser.add_argument("--no-redaction", action="store_true", help="keep personal data in comments and edits")


def redaction(arguments: argparse.Namespace) -> Redact | None:
    """What replaces personal data in comments and edits before they are written; None with --no-redaction."""
    from bootstrap.redact import Redactor

    return None if arguments.no_redaction else Redactor().feedback


def _feedback(arguments: argparse.Namespace) -> int:
    said = [] if arguments.file else list(_said(arguments))
    if sum(map(bool, (arguments.show, arguments.file, said))) != 1:
        raise ConfigurationError(
            "Do one of three things: say something (--thumb, --score, --comment, --edit or --review, with --correction, "
            "--message or --run), write a --file, or --show what was said."
        )
    store = existing_store(arguments.store)
    if arguments.show:
        _show(_found(store, arguments), arguments)
        return 0
    redact = redaction(arguments)
    if arguments.file:
        said = read_feedback(lines(arguments.file), str(arguments.file), redact)
    elif redact:
        said = list(map(redact, said))
    _write(store, said, arguments)
    return 0


def _said(arguments: argparse.Namespace) -> Iterator[Feedback]:
    about = {"correction_id": arguments.correction, "message_id": arguments.message, "run_id": arguments.run_id}
    values: Mapping[Kind, Any] = {
        "thumb": _yes(arguments.thumb, "up"),
        "score": arguments.score,
        "comment": _text(arguments.comment),
        "edit": _text(arguments.edit),
        "review": _yes(arguments.review, "accept"),
    }
    for kind, value in values.items():
        if value is not None:
            yield Feedback(kind=kind, value=value, author=arguments.author, **about)


def _yes(word: str | None, yes: str) -> bool | None:
    return None if word is None else word == yes


def _text(given: str | None) -> str | None:
    """A text of the command line, of a file, or of the standard input; the line end at its end is an editor's."""
    if given is None or not (given == "-" or given.startswith("@")):
        return given
    try:
        text = sys.stdin.read() if given == "-" else Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{given} cannot be read: {error}. A text that begins with @ can be given by -"
        ) from error
    return text.removesuffix("\n")


def read_feedback(rows: Iterable[str], source: str, redact: Redact | None = None) -> list[Feedback]:
    """The feedback of JSON lines, each an object of the fields of `Feedback`, redacted.

    Without an "id" a line is new each time that it is read; without "at_ms" it was said now.

    Raises:
        RecordError: some lines are none; the message tells all of them by their numbers.
    """
    said, wrong = list[Feedback](), list[str]()
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            one = feedback_of(object_of(row))
            said.append(redact(one) if redact else one)
        except (ValueError, TypeError) as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        raise RecordError(
            f"Nothing of {source} was written, since of its lines {len(wrong):,} are wrong:\n" + "\n".join(wrong)
        )
    return said


def feedback_of(row: object) -> Feedback:
    """An object of the fields of `Feedback` as one. Raises `TypeError` or `ValueError` where it is none."""
    if not isinstance(row, dict):
        raise TypeError("not a JSON object")
    if unknown := sorted(set(row) - _FIELDS):
        raise ValueError(f"unknown field {unknown[0]!r} (known: {', '.join(sorted(_FIELDS))})")
    if missing := sorted({"kind", "value"} - set(row)):
        raise ValueError(f'"{missing[0]}" is missing')
    for name in _FIELDS - {"value"} & set(row):
        wanted = int if name == "at_ms" else str
        nothing = row[name] is None and name not in ("id", "kind", "at_ms")
        if not nothing and type(row[name]) is not wanted:
            raise TypeError(f'"{name}" is not {"a whole number" if wanted is int else "a text"}')
    if not 0 <= row.get("at_ms", 0) < 2**63:
        raise ValueError('"at_ms" is no time in milliseconds since the epoch')
    feedback = Feedback(**row)
    feedback_fields(feedback)  # what the store would refuse
    return feedback


def _write(store: CorrectionStore, said: list[Feedback], arguments: argparse.Namespace) -> None:
    new = store.add_feedback(said)
    if not arguments.file and new and not _found(store, arguments):
        say_to_stderr("No such correction is recorded yet. The feedback is kept, and joins it when it comes.")
    if arguments.json:
        print(json.dumps({"given": len(said), "written": new, "ids": [one.id for one in said]}))
        return
    rest = "" if new == len(said) else f" {len(said) - new:,} were known already, or are about deleted corrections."
    print(f"{new:,} written.{rest}")


def _found(store: CorrectionStore, arguments: argparse.Namespace) -> list[Record]:
    if arguments.correction is None:
        return store.find(message_id=arguments.message, run_id=arguments.run_id)
    record = store.get(arguments.correction)
    return [record] if record else []


def _show(records: list[Record], arguments: argparse.Namespace) -> None:
    if not records:
        raise RecordError(
            "No such correction is recorded. What was said of it waits for it, and is shown when it comes."
        )
    if arguments.json:
        found = [
            {"correction_id": one.correction.id, "feedback": [asdict(said) for said in one.feedback]} for one in records
        ]
        print(json.dumps(found, indent=2))
        return
    for record in records:
        print(f"{record.correction.id} ({record.correction.outcome})")
        for said in record.feedback:
            print(f"  {_line(said)}")
        if not record.feedback:
            print("  nothing was said of it")


def _line(said: Feedback) -> str:
    who = f" by {said.author}" if said.author else ""
    value = {"thumb": ("down", "up"), "review": ("reject", "accept")}.get(said.kind)
    shown = value[bool(said.value)] if value else str(said.value)
    return visible(f"{_time(said.at_ms)}  {said.kind:<7}  {shown}{who}").replace("\n", "\n    ")


def _time(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a time that no calendar has, as a file can bring
        return f"{at_ms} ms"
