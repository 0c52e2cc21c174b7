"""Strength: whether more of it only adds corrections, and whether its order beats serving corrections at random."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from report import Figures, middle, share, shown, table

from aligner_chain import Aligner, Correction, Exchange
from bootstrap.measures import edit_size

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DRAWS = 200
"""Random orders in which the corrections of strength 1 are served until as many words, or answers, have changed."""


Faults = Callable[[Exchange, str], int]
"""How many faults a text has as the answer; 0: it is right."""


class Served(NamedTuple):
    """What became of one answer: the words that were edited, and its faults before and after."""

    words: int
    before: int
    after: int
    changed: bool


def measure(aligner: Aligner, answers: Sequence[Exchange], faults: Faults, seed: int) -> Figures:
    """Every strength on the same answers, each beside random corrections of strength 1 of the same edit ratio."""
    corrections = {strength: aligner.correct(answers, strength=strength) for strength in STRENGTHS}
    served = {strength: [_served(one, faults) for one in found] for strength, found in corrections.items()}
    words = sum(len(one.answer.split()) for one in answers)
    return {
        "answers": len(answers),
        "right": sum(not one.before for one in served[1.0]),
        "faults": sum(one.before for one in served[1.0]),
        "monotone": _monotone(corrections.values()),
        "rows": [_row(strength, served[strength], served[1.0], words, seed) for strength in STRENGTHS],
    }


def _served(one: Correction, faults: Faults) -> Served:
    before, after = (faults(one.exchange, text) for text in (one.exchange.answer, one.text))
    return Served(edit_size(one.exchange.answer, one.text) if one.changed else 0, before, after, one.changed)


def _monotone(served: Sequence[Sequence[Correction]]) -> Figures:
    """An answer's texts are monotone where it stays as it is up to some strength and is one and the same from there on."""
    ways = list(zip(*served, strict=True))
    return share(_is_monotone(way) for way in ways)


def _is_monotone(way: Sequence[Correction]) -> bool:
    changed = [one.changed for one in way]
    return changed == sorted(changed) and len({one.text for one in way if one.changed}) <= 1


def _row(strength: float, served: Sequence[Served], always: Sequence[Served], words: int, seed: int) -> Figures:
    edited, n_changed = sum(one.words for one in served), sum(one.changed for one in served)
    return {
        "strength": strength,
        "changed": share(one.changed for one in served),
        "edit_ratio": edited / words,
        "wrong_fixed": share(not one.after for one in served if one.before),
        "faults_mended": sum(one.before - one.after for one in served),
        "right_damaged": share(one.after > 0 for one in served if not one.before),
        "right_changed": share(one.changed for one in served if not one.before),
        "at_random": {
            "as many words": _at_random(always, edited, random.Random(seed), by_words=True),
            "as many answers": _at_random(always, n_changed, random.Random(seed), by_words=False),
        },
    }


def _at_random(always: Sequence[Served], budget: int, dice: random.Random, *, by_words: bool) -> Figures:
    """The corrections of strength 1 in random orders, each served until the budget is spent: mean and 95 % of the draws."""
    n_right = sum(not one.before for one in always)
    n_wrong = len(always) - n_right
    draws = [_drawn([one for one in always if one.changed], budget, dice, by_words=by_words) for _ in range(DRAWS)]
    columns = {
        "wrong_fixed": [sum(one.before > 0 == one.after for one in drawn) / n_wrong for drawn in draws],
        "faults_mended": [sum(one.before - one.after for one in drawn) for drawn in draws],
        "right_damaged": [sum(one.before == 0 < one.after for one in drawn) / n_right for drawn in draws],
        "right_changed": [sum(one.before == 0 for one in drawn) / n_right for drawn in draws],
    }
    return {name: {"mean": statistics.mean(one), "interval_95": middle(one)} for name, one in columns.items()}


def _drawn(changed: Sequence[Served], budget: int, dice: random.Random, *, by_words: bool) -> list[Served]:
    """Those that are served in one random order."""
    drawn, spent = [], 0
    for one in dice.sample(changed, len(changed)):
        spent += one.words if by_words else 1
        if spent > budget:
            break
        drawn.append(one)
    return drawn


def show(figures: Figures) -> None:
    print(f"\nmonotone per answer: {shown(figures['monotone'])}")
    columns = ("strength", "changed", "words edited", "wrong fixed", "right changed", "right damaged", "faults mended")
    table(columns, (line for row in figures["rows"] for line in _shown_row(row)))


def _shown_row(row: Figures) -> Iterator[list[str]]:
    names = ("wrong_fixed", "right_changed", "right_damaged")
    edited = f"{row['edit_ratio']:.2%}"
    mended = str(row["faults_mended"])
    yield [str(row["strength"]), shown(row["changed"]), edited, *(shown(row[name]) for name in names), mended]
    for matched, drawn in row["at_random"].items():
        low, high = drawn["faults_mended"]["interval_95"]
        mended = f"{drawn['faults_mended']['mean']:.0f} ({low:.0f} to {high:.0f})"
        yield ["", f"  at random, {matched}", "", *(_shown_draws(drawn[name]) for name in names), mended]


def _shown_draws(one: Figures) -> str:
    low, high = one["interval_95"]
    return f"{one['mean']:.1%} ({low:.1%} to {high:.1%})"
