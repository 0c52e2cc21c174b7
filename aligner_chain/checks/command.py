"""The command `aligner-chain check`: recorded corrections through the checks, or traffic through correctors."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from aligner_chain.checks import CHECKS, Checks
from aligner_chain.checks.replay import recorded, replay
from aligner_chain.errors import ConfigurationError

HELP = """\
--replay runs recorded corrections through the checks, as they would run before each is served, and tells what comes of
them beside keeping every original and serving every correction.

A JSON line is {"question": ..., "answer": ..., "correction": ...}, and where there are some "context": [...] (passages)
and "criteria": [...] (those that the Aligner says were broken). Of a folder every *.jsonl is read.

--audit has correctors correct the same answers, and compares what harm they do to right ones, how far they mend wrong
ones, how much they change and how long they take. The null correctors "copy" and "refuse" always stand beside them.

A JSON line is {"question": ..., "answer": ...}, or has turns and passages as in `aligner-chain correct`; and what is known
of the answer: "correction" (a right one; the same text where the answer is right), "ok" (whether it needs nothing), both
or none. A TARGET is an Aligner's folder or hub id, or package.module:attribute, found from the current folder, of

  a function f(question, answer) or f(exchange) that returns a text
  a LangChain Runnable that takes {"question": ..., "answer": ...} and returns a text or a message
  an aligner_chain.Aligner

Importing a module runs its code. Without --corrector aligner=TARGET the Aligner that is served takes part as "aligner"."""

EXAMPLE = f"""\
checks:
  {" ".join(CHECKS)}
each is off, warn, restore (put the original's text back where its place is well defined, else keep) or keep (serve the
original). Bounds of the length: shortest and longest (multiples of the answer's), margin (characters).

example:
  aligner-chain check --replay corrections.jsonl
  aligner-chain check --replay corrections.jsonl --set numbers=keep links=off longest=3 --json
  aligner-chain check --audit traffic.jsonl --corrector aligner=path critique=my_chains:critique --page audit.html"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command to those of `aligner-chain`."""
    check = commands.add_parser(
        "check",
        help="see what checks make of recorded corrections, or compare correctors",
        description=HELP,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject = check.add_mutually_exclusive_group(required=True)
    subject.add_argument("--replay", nargs="+", type=Path, metavar="FILE", help="JSON lines, or a folder")
    subject.add_argument("--audit", type=Path, metavar="FILE", help="JSON lines")
    check.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of --replay: other settings")
    check.add_argument(
        "--corrector", nargs="+", action="extend", default=[], metavar="NAME=TARGET", help="of --audit: who takes part"
    )
    check.add_argument("--page", type=Path, metavar="FILE", help="of --audit: write one HTML page, too")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    return check


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    """What the command prints with --replay."""
    if arguments.corrector or arguments.page:
        raise ConfigurationError(
            "--corrector and --page are for --audit; --replay takes the corrections from its files."
        )
    report = replay(chain.from_iterable(map(recorded, _files(arguments.replay))), _checks(arguments.set))
    if arguments.json:
        yield json.dumps(report.as_json())
    else:
        yield from report.table()


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise ConfigurationError(
                f"{path} holds no *.jsonl. --replay takes files of JSON lines, or folders of them."
            )
        yield from found


def _checks(settings: Sequence[str]) -> Checks:
    values = dict[str, Any]()
    known = {field.name for field in fields(Checks)} - {"may_delete"}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise ConfigurationError(f"There is no setting {name!r} of the checks. Known: {', '.join(sorted(known))}.")
        values[name] = value if name in CHECKS else _number(name, value)
    return Checks(**values)


def _number(name: str, value: str) -> float:
    try:
        return int(value) if name == "margin" else float(value)
    except ValueError as error:
        raise ConfigurationError(f"{name} takes a number, not {value!r}.") from error
