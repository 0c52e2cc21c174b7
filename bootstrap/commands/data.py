"""`aligner-bootstrap pairs`, `export` and `import`: training data out of a store, and into one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrap.commands.base import STORE_HELP, add_command, existing_store, say
from bootstrap.errors import TrainingDataError

if TYPE_CHECKING:
    from bootstrap.pairs import Filters
    from bootstrap.pairs.building import Progress

_FORMS = ("preference", "prompt-completion", "triples", "openai-preference")
_EVERY_S = 0.5


def add(commands: Any) -> None:
    """Adds `pairs`, `export` and `import`."""
    _add_pairs(commands)
    _add_export(commands)
    _add_import(commands)


def _add_pairs(commands: Any) -> None:
    about = "count the training rows that a store gives, and what each filter drops; nothing is written"
    parser = add_command(commands, "pairs", about, "aligner-bootstrap pairs --store corrections.db", _pairs)
    _add_building(parser)


def _add_export(commands: Any) -> None:
    example = (
        "aligner-bootstrap export --store corrections.db --out pairs-1\n"
        "  aligner-bootstrap export --store corrections.db --check pairs-1/manifest.json"
    )
    parser = add_command(
        commands, "export", "write training rows with a manifest, or check an export", example, _export
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="a new folder")
    what.add_argument(
        "--check",
        type=Path,
        metavar="MANIFEST",
        help="say which rows of an export were deleted since, and which files changed; exit code 3 where there are any",
    )
    parser.add_argument(
        "--format",
        choices=("jsonl", "parquet", "datasets"),
        default="jsonl",
        help="format of the files (default jsonl)",
    )
    _add_building(parser)


def _add_building(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, help=STORE_HELP)
    parser.add_argument("--form", choices=_FORMS, default="preference", help="form of the rows (default preference)")
    parser.add_argument(
        "--split",
        choices=("train", "gate", "report"),
        default="train",
        help="which rows (default train); the others are held out, and training on them makes every figure worthless",
    )
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help='a filter\'s setting, as context_chars=8192, or a filter to leave out, as off="refusal flip"; may be repeated',
    )
    _add_output(parser)


def _add_import(commands: Any) -> None:
    example = "aligner-bootstrap import --store corrections.db gold.jsonl"
    parser = add_command(commands, "import", "take question-answer-correction or preference rows", example, _import)
    parser.add_argument("file", type=Path, help="JSON lines")
    parser.add_argument("--store", required=True, help=STORE_HELP)
    parser.add_argument(
        "--form", choices=("triples", "preference"), default="triples", help="form of the rows (default triples)"
    )
    parser.add_argument(
        "--source",
        choices=("gold", "human", "verified", "annotated"),
        help="who vouches for the rows (default: what each row says, else gold)",
    )
    parser.add_argument("--upstream", metavar="NAME@VERSION", help="the model that gave the answers")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--progress", action="store_true", help="show progress also where there is no terminal")


def _pairs(arguments: argparse.Namespace) -> int:
    from bootstrap.pairs.building import stream
    from bootstrap.pairs.forms import FORMS

    filters = _filters(arguments.filter)
    with (
        closing(existing_store(arguments.store)) as store,
        _Shown(arguments.progress) as progress,
        stream(
            store, FORMS[arguments.form].maker(filters), split=arguments.split, filters=filters, progress=progress
        ) as rows,
    ):
        count = 0
        for _ in rows:
            count += 1
    dropped = dict(rows.dropped.most_common())
    if arguments.json:
        told = {"form": arguments.form, "split": arguments.split, "read": rows.read, "rows": count, "dropped": dropped}
        print(json.dumps(told, indent=2))
        return 0
    say(f"{rows.read} corrections of the split {arguments.split} make {count} rows ({arguments.form}).")
    _say_dropped(dropped)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if arguments.check is not None:
        return _check(arguments)
    from bootstrap.pairs.exports import export

    with closing(existing_store(arguments.store)) as store, _Shown(arguments.progress) as progress:
        told = export(
            store,
            arguments.out,
            form=arguments.form,
            format=arguments.format,
            split=arguments.split,
            filters=_filters(arguments.filter),
            progress=progress,
        )
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), **told}, indent=2, ensure_ascii=False))
        return 0
    say(f"{told['rows']} rows of {told['read']} corrections of the split {told['split']} are in {arguments.out}.")
    _say_dropped(told["dropped"])
    for sentence in told["boilerplate"]:
        say(f'Taken out of chosen texts as boilerplate: "{sentence}"')
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from bootstrap.pairs.manifests import check

    with closing(existing_store(arguments.store)) as store:
        found = check(arguments.check, store)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        say(f"Of {found.rows} rows {len(found.deleted)} were deleted from the store since.")
        for one in found.deleted[:20]:
            say(f"  {one}")
        for name in found.altered:
            say(f"{name} is missing or not as it was written.")
        if not found.good:
            say("Do not train on it any more. Export again:  aligner-bootstrap export --store URL --out NEW_FOLDER")
    return 0 if found.good else 3


def _import(arguments: argparse.Namespace) -> int:
    from bootstrap.pairs.imports import import_file
    from bootstrap.store import CorrectionStore

    with closing(CorrectionStore(arguments.store)) as store:
        found = import_file(
            store, arguments.file, form=arguments.form, source=arguments.source, upstream=arguments.upstream
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return 0
    splits = ", ".join(f"{count} {split}" for split, count in sorted(found.splits.items()))
    say(f"{found.rows} rows, {found.new} of them new. By split: {splits}.")
    return 0


def _say_dropped(dropped: dict[str, int]) -> None:
    from bootstrap.pairs.filters import HELD_OUT, OPTIONAL

    for reason, count in sorted(dropped.items(), key=lambda item: -item[1]):
        say(f"  {count:>9} left out: {reason}")
    if optional := [reason for reason in dropped if reason in OPTIONAL and reason != HELD_OUT]:
        say(f'To keep what a filter leaves out:  --filter off="{optional[0]}"')


def _filters(settings: list[str]) -> Filters:
    """The filters with the settings of the command line; a tuple's setting may be repeated."""
    from bootstrap.pairs import Filters

    defaults = Filters()
    found: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        kind = type(getattr(defaults, name, None)) if name in Filters.__dataclass_fields__ else None
        if kind is None or not value:
            names = ", ".join(Filters.__dataclass_fields__)
            raise TrainingDataError(f"--filter {setting!r} is not NAME=VALUE with one of the names {names}.")
        found[name] = (*found.get(name, ()), value) if kind is tuple else _number(setting, kind, value)
    return Filters(**found)


def _number(setting: str, kind: type[Any], value: str) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise TrainingDataError(f"--filter {setting!r}: {value!r} is no number.") from error


class _Shown:
    """Progress on the standard error, where that is a terminal or it was asked for."""

    def __init__(self, wanted: bool) -> None:
        self._shown = wanted or sys.stderr.isatty()
        self._told = 0.0

    def __enter__(self) -> Progress:
        return self._tell if self._shown else _tell_nobody

    def __exit__(self, *_: object) -> None:
        if self._told:
            print(file=sys.stderr)

    def _tell(self, what: str, number: int) -> None:
        now = time.monotonic()
        if now - self._told > _EVERY_S:
            self._told = now
            print(f"\r{what}: {number:,} corrections   ", end="", file=sys.stderr, flush=True)


def _tell_nobody(what: str, number: int) -> None:
    """Progress for those who did not ask."""
