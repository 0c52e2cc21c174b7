"""Cells of the tables in the docs, each from the figures of one measure, and the lines of a table of cells."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from statistics import fmean, stdev

from stored import Figures

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5 % quantile of Student's t by the number of values; that of ten is a little wide for more."""


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def percent(value: float, digits: int = 1) -> str:
    """A share between 0 and 1."""
    return f"{100 * value:.{digits}f} %"


def between(ends: Sequence[float], digits: int = 2) -> str:
    """An interval."""
    low, high = ends
    return f"[{low:z.{digits}f}, {high:z.{digits}f}]"


def share(value: float, ends: Sequence[float]) -> str:
    """A share with its interval, in per cent; the interval of what cannot vary is left out."""
    told = between([100 * end for end in ends], digits=1)
    return percent(value) if ends[0] == ends[1] else f"{percent(value)} {told}"


def counted(one: Figures) -> str:
    """A share of so many, with its interval: `{k, n, share, interval_95}`."""
    return f"{one['k']} of {one['n']}: {share(one['share'], one['interval_95'])}"


def mean(one: Figures) -> str:
    """`{mean, interval_95}`."""
    return f"{one['mean']:.3f} {between(one['interval_95'], digits=3)}"


def measured(one: Figures) -> str:
    """A mean where there is one, else a share."""
    return mean(one) if "mean" in one else counted(one)


def ratio(one: Figures) -> str:
    """How many times as much: `{median, interval_95}`."""
    return f"{one['median']:.2f} {between(one['interval_95'])}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval by Student's t; of one value alone nobody knows, which is NaN."""
    if len(values) < 2:
        return fmean(values), nan
    return fmean(values), STUDENT[min(len(values), max(STUDENT))] * stdev(values) / len(values) ** 0.5


def over_seeds(values: Sequence[float]) -> str:
    """The mean of shares, one for each seed, and half the 95 % interval of Student's t, in per cent."""
    middle, half = interval(values)
    told = f"{100 * middle:.1f}"
    return told if isnan(half) else f"{told} ± {100 * half:.1f}"
