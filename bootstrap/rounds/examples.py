"""A few examples of each round, kept for people to look at; all else that a round read or wrote as text is removed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from aligner_chain.exchange import Correction
from bootstrap.judges import fully_right
from bootstrap.rounds.artifacts import read_corrections, read_exchanges, read_rows, write_corrections, write_rows
from bootstrap.rounds.upstream_stages import read_verdicts
from bootstrap.rounds.work import Work

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A held-out question, what the served upstream and the candidate answered, and whether each was right."""

    question: str
    before: str
    after: str
    right_before: bool
    right_after: bool


def keep(work: Work) -> None:
    """Writes some answers and some corrections of the gate prompts into the registry's folder `reports`."""
    folder, most = work.registry.home / "reports", work.config.examples
    if not most or "evaluate_upstream" not in work.folders:
        return
    folder.mkdir(exist_ok=True)
    dice = random.Random(work.number)
    answers = _some(_answered(work.folders["evaluate_upstream"]), most, dice)
    write_rows(_answers_file(work.registry.home, work.number), map(asdict, answers))
    if "evaluate_pair" in work.folders:
        corrections = read_corrections(work.folders["evaluate_pair"] / f"{work.measured}.jsonl")
        changed = [one for one in corrections if one.outcome != "approved"]
        shown = [*_some(changed, most, dice), *_some([one for one in corrections if not one.changed], most // 4, dice)]
        write_corrections(_corrections_file(work.registry.home, work.number), shown)


def read_answers(home: Path, number: int) -> list[Answered]:
    """The answers that were kept of a round."""
    path = _answers_file(home, number)
    return [Answered(**row) for row in read_rows(path)] if path.exists() else []


def read_examples(home: Path, number: int) -> list[Correction]:
    """The corrections that were kept of a round."""
    path = _corrections_file(home, number)
    return read_corrections(path) if path.exists() else []


def _answered(folder: Path) -> list[Answered]:
    """What was answered differently; the others show nothing. Nothing where there was no candidate."""
    if not (folder / "after.jsonl").exists():
        return []
    before, after = (read_exchanges(folder / f"{name}.jsonl") for name in ("before", "after"))
    right = (fully_right(read_verdicts(folder, name)) for name in ("before", "after"))
    return [
        Answered(question=new.question, before=old.answer, after=new.answer, right_before=was, right_after=now)
        for old, new, was, now in zip(before, after, *right, strict=True)
        if old.answer != new.answer
    ]


def _some(rows: Sequence[T], most: int, dice: random.Random) -> list[T]:
    return dice.sample(rows, min(len(rows), most))


def _answers_file(home: Path, number: int) -> Path:
    return home / "reports" / f"{number}-answers.jsonl"


def _corrections_file(home: Path, number: int) -> Path:
    return home / "reports" / f"{number}-corrections.jsonl"
