"""The gates of what has a limit: the length of answers, which may not collapse either, and the figures of a training."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, sqrt
from statistics import fmean

from bootstrap.evaluation.intervals import cases_to_shrink, two_sided
from bootstrap.evaluation.results import GateResult, Verdict, remedy, verdict_of

ROUNDING = 1e-9
"""A difference of two shares such as .0225 - .0125 comes out a little above .01."""

LEAST_LENGTHS = 30
"""Of fewer answers the normal interval of a ratio says too little."""


def length_ratio_gate(
    name: str,
    before: Sequence[float],
    after: Sequence[float],
    at_most: float = 1.15,
    at_least: float | None = None,
    *,
    alpha: float = 0.05,
) -> GateResult:
    """Promotes where the ratio of mean lengths is shown to lie within the limits, rejects where it is shown to be outside.

    The interval is that of a ratio of paired means, by the delta method. Fewer than 30 answers are held. Of two limits the
    nearer one is the gate's `threshold`, and the interval's end on that side its `bound`.

    Args:
        before: the length of each answer that is served, in any unit.
        after: the lengths of the candidate's answers to the same prompts.
        at_least: None does not ask how short they are.
    """
    if len(before) != len(after):
        raise ValueError(f"before and after must be of the same cases, not of {len(before)} and {len(after)}")
    n, known = len(before), len(before) >= LEAST_LENGTHS and sum(before) > 0
    ratio = sum(after) / sum(before) if known else 1.0
    half = two_sided(alpha) * _ratio_error(before, after, ratio) if known else 0.0
    low, high = ratio - half, ratio + half
    least = -inf if at_least is None else at_least
    inside, outside = min(at_most - high, low - least), min(at_most - low, high - least)
    verdict = verdict_of(inside, outside) if known else "hold"
    short = ratio - least < at_most - ratio
    missing = LEAST_LENGTHS if n < LEAST_LENGTHS else None
    needed = cases_to_shrink(n, half, min(at_most - ratio, ratio - least)) if known else missing
    return GateResult(
        name=name,
        decision=verdict,
        figure=ratio,
        bound=low if short else high,
        threshold=least if short else at_most,
        n=n,
        measured="the mean length of answers, candidate over served, to the same prompts",
        found=f"{ratio:.3f} times as long, interval {low:.3f} to {high:.3f}" if known else "too little text",
        required=f"{_limits(at_most, at_least)}, over {LEAST_LENGTHS} answers or more",
        remedy=remedy(verdict, n, needed),
        needed=needed if verdict == "hold" else None,
    )


def _limits(at_most: float, at_least: float | None) -> str:
    if at_least is None:
        return f"the upper bound must be at most {at_most:.3f}"
    return f"the interval must lie between {at_least:.3f} and {at_most:.3f}"


def limit_gate(name: str, figure: float | None, at_most: float, n: int) -> GateResult:
    """A hard limit: promotes where `figure` is at most `at_most`, rejects above it, holds where it was not measured.

    Args:
        figure: a share, a ratio or whatever the limit is of; None or not a number counts as not measured.
        n: how many cases it was measured on.
    """
    known = figure is not None and isfinite(figure) and n > 0
    value = float(figure) if known and figure is not None else 0.0
    verdict: Verdict = "hold" if not known else "promote" if value <= at_most + ROUNDING else "reject"
    return GateResult(
        name=name,
        decision=verdict,
        figure=value,
        bound=value,
        threshold=at_most,
        n=n if known else 0,
        measured=f"{name}, as the training reported it",
        found=f"{value:.4g}" if known else "not measured",
        required=f"it must be at most {at_most:.4g}",
        remedy="" if known else "a measurement: without one nothing is shown to keep the limit",
    )


def _ratio_error(before: Sequence[float], after: Sequence[float], ratio: float) -> float:
    """The standard error of a ratio of paired means."""
    n = len(before)
    squares = sum((a - ratio * b) ** 2 for b, a in zip(before, after, strict=True))
    return sqrt(squares / (n - 1) / n) / fmean(before)
