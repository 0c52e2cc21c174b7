"""Strength: whether more of it only adds corrections, and whether its order beats serving corrections at random."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence

from report import Figures, middle, share, shown, table
from side_by_side import Judge

from aligner_chain import Aligner, Correction, Exchange
from bootstrap.measures import edit_size

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DRAWS = 200
"""Random orders in which the corrections of strength 1 are served until as many words, or answers, have changed."""


def measure(aligner: Aligner, answers: Sequence[Exchange], judge: Judge, seed: int) -> Figures:
    """Every strength on the same answers, each beside random corrections of strength 1 of the same edit ratio."""
    served = {strength: aligner.correct(answers, strength=strength) for strength in STRENGTHS}
    always, right = served[1.0], [judge(one, one.answer) for one in answers]
    rows = [_row(strength, served[strength], always, right, judge, seed) for strength in STRENGTHS]
    return {"answers": len(answers), "right": sum(right), "monotone": _monotone(served.values()), "rows": rows}


def _monotone(served: Sequence[Sequence[Correction]]) -> Figures:
    """An answer's texts are monotone where it stays as it is up to some strength and is one and the same from there on."""
    ways = list(zip(*served, strict=True))
    return share(_is_monotone(way) for way in ways)


def _is_monotone(way: Sequence[Correction]) -> bool:
    changed = [one.changed for one in way]
    return changed == sorted(changed) and len({one.text for one in way if one.changed}) <= 1


def _row(
    strength: float,
    served: Sequence[Correction],
    always: Sequence[Correction],
    right: Sequence[bool],
    judge: Judge,
    seed: int,
) -> Figures:
    edited, words = _edited(served), sum(len(one.exchange.answer.split()) for one in served)
    fine, n_changed = [judge(one.exchange, one.text) for one in served], sum(one.changed for one in served)
    return {
        "strength": strength,
        "changed": share(one.changed for one in served),
        "edit_ratio": edited / words,
        "wrong_fixed": share(now for now, before in zip(fine, right, strict=True) if not before),
        "right_damaged": share(not now for now, before in zip(fine, right, strict=True) if before),
        "right_changed": share(one.changed for one, before in zip(served, right, strict=True) if before),
        "at_random": {
            "as many words": _at_random(always, right, judge, edited, random.Random(seed), by_words=True),
            "as many answers": _at_random(always, right, judge, n_changed, random.Random(seed), by_words=False),
        },
    }


def _edited(served: Sequence[Correction]) -> int:
    return sum(edit_size(one.exchange.answer, one.text) for one in served if one.changed)


def _at_random(
    always: Sequence[Correction],
    right: Sequence[bool],
    judge: Judge,
    budget: int,
    dice: random.Random,
    *,
    by_words: bool,
) -> Figures:
    """The corrections of strength 1 in random orders, each served until the budget is spent: mean and 95 % of the draws."""
    changed = [
        (edit_size(one.exchange.answer, one.text) if by_words else 1, before, judge(one.exchange, one.text))
        for one, before in zip(always, right, strict=True)
        if one.changed
    ]
    n_right = sum(right)
    drawn = [_drawn(changed, budget, dice) for _ in range(DRAWS)]
    n_wrong = len(right) - n_right
    shares = [(fixed / n_wrong, damaged / n_right, moved / n_right) for fixed, damaged, moved in drawn]
    names = ("wrong_fixed", "right_damaged", "right_changed")
    columns = {name: [one[at] for one in shares] for at, name in enumerate(names)}
    return {name: {"mean": statistics.mean(one), "interval_95": middle(one)} for name, one in columns.items()}


def _drawn(changed: Sequence[tuple[int, bool, bool]], budget: int, dice: random.Random) -> tuple[int, int, int]:
    """How many wrong answers are fixed, right ones damaged and right ones changed in one random order."""
    fixed = damaged = moved = spent = 0
    for size, before, now in dice.sample(changed, len(changed)):
        if spent + size > budget:
            break
        spent += size
        fixed, damaged, moved = fixed + (now and not before), damaged + (before and not now), moved + before
    return fixed, damaged, moved


def show(figures: Figures) -> None:
    print(f"\nmonotone per answer: {shown(figures['monotone'])}")
    columns = ("strength", "changed", "words edited", "wrong fixed", "right changed", "right damaged")
    table(columns, (line for row in figures["rows"] for line in _shown_row(row)))


def _shown_row(row: Figures) -> Iterator[list[str]]:
    names = ("wrong_fixed", "right_changed", "right_damaged")
    edited = f"{row['edit_ratio']:.2%}"
    yield [str(row["strength"]), shown(row["changed"]), edited, *(shown(row[name]) for name in names)]
    for matched, drawn in row["at_random"].items():
        yield ["", f"  at random, {matched}", "", *(_shown_draws(drawn[name]) for name in names)]


def _shown_draws(one: Figures) -> str:
    low, high = one["interval_95"]
    return f"{one['mean']:.1%} ({low:.1%} to {high:.1%})"
