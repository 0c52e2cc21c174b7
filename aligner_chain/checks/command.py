"""The command `aligner-chain check`: recorded corrections through the checks."""

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
Runs recorded corrections through the checks, as they would run before each is served, and tells what comes of them
beside keeping every original and serving every correction.

A JSON line is {"question": ..., "answer": ..., "correction": ...}, and where there are some "context": [...] (passages)
and "criteria": [...] (those that the Aligner says were broken). Of a folder every *.jsonl is read."""

EXAMPLE = f"""\
checks:
  {" ".join(CHECKS)}
each is off, warn, restore (put the original's text back where its place is well defined, else keep) or keep (serve the
original). Bounds of the length: shortest and longest (multiples of the answer's), margin (characters).

example:
  aligner-chain check --replay corrections.jsonl
  aligner-chain check --replay corrections.jsonl --set numbers=keep links=off longest=3 --json"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command to those of `aligner-chain`."""
    check = commands.add_parser(
        "check",
        help="see what the checks make of recorded corrections",
        description=HELP,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("--replay", nargs="+", type=Path, required=True, metavar="FILE", help="JSON lines, or a folder")
    check.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings than the defaults")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    return check


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    """What the command prints."""
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
