"""Shares with their intervals, and what every file of results says of the machine, the versions and the seed."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import stored

from aligner_chain import __version__
from bootstrap.demo.show import machine_figures
from bootstrap.evaluation import wilson

DRAWS = 2000
"""Resamples of a bootstrap interval."""

Figures = dict[str, Any]


def share(flags: Iterable[bool]) -> Figures:
    """How many of the cases are true, with the Wilson interval of their share."""
    known = [bool(flag) for flag in flags]
    k, n = sum(known), len(known)
    return {"k": k, "n": n, "share": k / n if n else None, "interval_95": list(wilson(k, n))}


def shown(one: Figures) -> str:
    """A share as a person reads it."""
    if not one["n"]:
        return "-"
    low, high = one["interval_95"]
    return f"{one['share']:.1%} ({one['k']}/{one['n']}, {low:.1%} to {high:.1%})"


def ratio(ours: Sequence[float], others: Sequence[float]) -> Figures:
    """The total of `ours` by that of `others`, measured on the same answers, with its bootstrap interval over answers."""
    dice, pairs = random.Random(0), list(zip(ours, others, strict=True))
    drawn = sorted(_ratio(dice.choices(pairs, k=len(pairs))) for _ in range(DRAWS))
    return {"ratio": _ratio(pairs), "interval_95": middle(drawn)}


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(one for one, _ in pairs) / sum(other for _, other in pairs)


def middle(values: Sequence[float]) -> list[float]:
    """The values between which 95 % of them lie."""
    cuts = statistics.quantiles(values, n=40, method="inclusive")
    return [cuts[0], cuts[-1]]


def write(name: str, seed: int, started: float, figures: Figures) -> Path:
    """Writes `harm_<name>.json`; `started` is of `time.monotonic`."""
    run = machine_figures(started)
    run["versions"]["aligner_chain"] = __version__
    return stored.write(f"harm_{name}", {"seed": seed, "commit": stored.commit(), **run, "threads": 1, **figures})


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows under their columns."""
    lines = [columns, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip(), flush=True)
