"""Writing the pages: each is complete on the disk before it takes the place of the old one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction
from bootstrap.files import remove_abandoned, replace_file, write_synced
from bootstrap.registry import Event, Registry
from bootstrap.report.figures import file_name
from bootstrap.report.index_page import render_index
from bootstrap.report.round_page import render_round
from bootstrap.rounds import Ledger, Round
from bootstrap.rounds.examples import Answered, read_answers, read_examples

INDEX = "index.html"
_UNFINISHED = ".new-report-"
_ABANDONED_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The files that were written: the index, and the page of each round by its number."""

    index: Path
    rounds: Mapping[int, Path]


def write_reports(
    registry_home: str | os.PathLike[str] | None,
    *,
    database: str | None = None,
    round: int | None = None,  # noqa: A002  (what it is called everywhere)
    out: Path | None = None,
) -> Written:
    """Writes the index over all rounds anew, and the page of one round or of all.

    The pages show texts of held-out prompts, as many as the round kept (`RoundConfig.examples`).

    Args:
        registry_home: the folder of the `Registry`; None takes `ALIGNER_HOME`.
        database: the registry's database by URL, where it is not in the folder.
        round: the number of the one whose page is written; None writes all.
        out: the folder of the pages, made if need be. Default: `reports` in the registry's folder.

    Raises:
        ConfigurationError: the pages cannot be written there.
        RoundError: there is no such round.
        StoreError: the registry's database cannot be used.
    """
    registry = Registry(registry_home, database)
    ledger, history = Ledger(registry.database), registry.history()
    rounds = ledger.rounds()
    asked = rounds if round is None else [ledger.round(round)]
    folder = registry.home / "reports" if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder, _UNFINISHED, older_than_s=_ABANDONED_S)
        made = {one.number: _write(folder / file_name(one.number), _page(registry, one, history)) for one in asked}
        linked = [one.number for one in rounds if (folder / file_name(one.number)).exists()]
        index = _write(folder / INDEX, render_index(rounds, history=history, linked=linked))
    except OSError as error:
        raise ConfigurationError(
            f"The pages cannot be written in {folder}: {error}\nWrite them elsewhere:  aligner-bootstrap report --out reports"
        ) from error
    return Written(index=index, rounds=made)


def _page(registry: Registry, one: Round, history: Sequence[Event]) -> str:
    answers, examples, lost = _examples(registry, one)
    return render_round(one, history=history, answers=answers, examples=examples, lost=lost)


def _examples(registry: Registry, one: Round) -> tuple[list[Answered], list[Correction], str]:
    """What was kept of a round that has ended, and why it cannot be read where it cannot."""
    if not one.finished:  # they may be half written
        return [], [], ""
    try:
        return read_answers(registry.home, one.number), read_examples(registry.home, one.number), ""
    except (OSError, ValueError, TypeError, KeyError) as error:  # figures are worth a page without examples
        return [], [], f"{type(error).__name__}: {error}"


def _write(path: Path, text: str) -> Path:
    staged = path.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}.html")
    try:
        write_synced(staged, text)
        replace_file(path, staged)
    finally:
        staged.unlink(missing_ok=True)
    return path
