"""`aligner-chain check --audit`: the same traffic through any corrector."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from aligner_chain.audit import NULLS, Audit, audit
from aligner_chain.audit.correctors import load
from aligner_chain.audit.lines import table
from aligner_chain.audit.page import page
from aligner_chain.audit.rows import read
from aligner_chain.errors import AlignerNotConfiguredError, ConfigurationError
from aligner_chain.jsonl import lines as lines_of
from aligner_chain.jsonl import parsed
from aligner_chain.serving import resolve_aligner

OURS = "aligner"
"""The corrector that is in every audit where one is served."""


def lines(
    arguments: argparse.Namespace, progress: Callable[[str], None], notice: Callable[[str], None]
) -> Iterator[str]:
    """What the command prints. Writes the page, where one was asked for; `notice` is told what a reader must know."""
    if arguments.set:
        raise ConfigurationError("--set is for --replay; an audit looks with every check and serves nothing.")
    rows = list(parsed(lines_of(arguments.audit), str(arguments.audit), read, "check"))
    named = targets(arguments.corrector, notice)
    _require_place_of(arguments.page)
    with ExitStack() as opened:
        correctors = {name: load(target, opened) for name, target in named.items()}
        found = audit(correctors, rows, progress=progress)
    for text in failures(found):
        notice(text)
    if arguments.page is not None:
        arguments.page.write_text(page(found), encoding="utf-8")
    if arguments.json:
        yield json.dumps(found.as_json(), ensure_ascii=False)
    else:
        yield from table(found)


def targets(given: Sequence[str], notice: Callable[[str], None]) -> Mapping[str, str]:
    """The correctors to load by their names: the Aligner that is served first, unless another one is named so.

    Raises:
        ConfigurationError: One of `given` is not NAME=TARGET, or there is no corrector at all.
    """
    named = dict[str, str]()
    for one in given:
        name, sign, target = one.partition("=")
        if not (name and sign and target) or name in named or name in NULLS:
            raise ConfigurationError(
                f"--corrector {one!r} is not NAME=TARGET with a name of its own, other than {' and '.join(NULLS)}."
            )
        named[name] = target
    return named if OURS in named else {**_served(given, notice), **named}


def _served(given: Sequence[str], notice: Callable[[str], None]) -> Mapping[str, str]:
    try:
        return {OURS: resolve_aligner()}
    except AlignerNotConfiguredError:
        if not given:
            raise
        notice("no Aligner is served, so none but those named takes part")
        return {}


def _require_place_of(page: Path | None) -> None:
    """A page that cannot be written is said before the work, and not after it."""
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise ConfigurationError(f"--page {page} cannot be written: it takes a file in a folder that is there.")


def failures(found: Audit) -> Iterator[str]:
    """A line for each corrector that failed on answers."""
    for name, results in found.results.items():
        errors = [one.error for one in results if one.error is not None]
        if errors:
            first = f"{type(errors[0]).__name__}: {errors[0]}".partition("\n")[0]
            yield f"{name} failed on {len(errors)} of {found.total} answers, first with {first}"
