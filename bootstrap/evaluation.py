"""The statistics of the gates: shares and paired changes with 95 % intervals, and what they decide. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from aligner_chain.calibration import Z_95 as Z_95
from aligner_chain.calibration import wilson as wilson


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedChange:
    """How a share changed between two measurements of the same cases.

    `change` is the share after less the share before, between -1 and 1; `low` and `high` bound it. `gained` cases became
    true, `lost` cases became false, of `n`.
    """

    change: float
    low: float
    high: float
    gained: int
    lost: int
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """What a gate decided and on what: `bound` is the interval's lower end, `threshold` what had to be reached.

    `figure` is the estimate: a change (-1 to 1) or a share (0 to 1), over `n` cases. `reason` is a sentence for a person.
    """

    name: str
    passed: bool
    figure: float
    bound: float
    threshold: float
    n: int
    reason: str


def paired_interval(before: Sequence[bool], after: Sequence[bool], z: float = Z_95) -> PairedChange:
    """The change of a share over the same cases, with its interval.

    Method 10 of R. G. Newcombe 1998, Statistics in Medicine 17, 2635-2650: the Wilson intervals of both shares, combined
    by their distances from the estimates and a correlation with a continuity correction.

    Args:
        before: what held for each case before.
        after: what holds for the same cases, in the same order.
        z: the normal quantile; the default makes a 95 % interval.
    """
    if len(before) != len(after):
        raise ValueError(f"before and after must be of the same cases, not of {len(before)} and {len(after)}")
    n = len(before)
    both = sum(b and a for b, a in zip(before, after, strict=True))
    gained, lost = sum(map(bool, after)) - both, sum(map(bool, before)) - both
    if n == 0:
        return PairedChange(change=0.0, low=-1.0, high=1.0, gained=0, lost=0, n=0)
    correlation = _correlation(both, gained, lost, n - both - gained - lost)
    down, up = _distances(both + gained, n, z)
    down_before, up_before = _distances(both + lost, n, z)
    change = (gained - lost) / n
    low = change - _combined(down, up_before, correlation)
    high = change + _combined(up, down_before, correlation)
    return PairedChange(change=change, low=low, high=high, gained=gained, lost=lost, n=n)


def superiority_gate(name: str, before: Sequence[bool], after: Sequence[bool]) -> GateResult:
    """Passes where the lower end of the paired 95 % interval of the change is above 0."""
    change = paired_interval(before, after)
    return _change_gate(name, change, passed=change.n > 0 and change.low > 0, threshold=0.0, relation="above")


def non_inferiority_gate(name: str, before: Sequence[bool], after: Sequence[bool], margin: float = 0.01) -> GateResult:
    """Passes where the lower end of the paired 95 % interval of the change is not below minus `margin` (a share)."""
    change = paired_interval(before, after)
    return _change_gate(
        name, change, passed=change.n > 0 and change.low >= -margin, threshold=-margin, relation="at least"
    )


def share_gate(name: str, k: int, n: int, at_least: float) -> GateResult:
    """Passes where k of n is a share of at least `at_least`. The estimate decides; its lower bound is for the reader."""
    low, high = wilson(k, n)
    share = k / n if n else 0.0
    reason = f"{k} of {n} ({share:.2%}, 95 % interval {low:.2%} to {high:.2%}); it must be at least {at_least:.2%}"
    return GateResult(
        name=name, passed=n > 0 and share >= at_least, figure=share, bound=low, threshold=at_least, n=n, reason=reason
    )


def _change_gate(name: str, change: PairedChange, *, passed: bool, threshold: float, relation: str) -> GateResult:
    reason = (
        f"{100 * change.change:+.2f} points over {change.n} cases ({change.gained} gained, {change.lost} lost); the lower "
        f"95 % bound is {100 * change.low:+.2f} and must be {relation} {100 * threshold:+.2f}"
    )
    return GateResult(
        name=name,
        passed=passed,
        figure=change.change,
        bound=change.low,
        threshold=threshold,
        n=change.n,
        reason=reason,
    )


def _distances(k: int, n: int, z: float) -> tuple[float, float]:
    """How far the ends of the Wilson interval are from the share."""
    low, high = wilson(k, n, z)
    return k / n - low, high - k / n


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """The phi coefficient of before and after, drawn towards 0 by a continuity correction where it is positive."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    n, product = both + gained + lost + neither, both * neither - gained * lost
    return (product if product < 0 else max(product - n / 2, 0.0)) / sqrt(margins)


def _combined(distance: float, other: float, correlation: float) -> float:
    return sqrt(max(0.0, distance**2 - 2 * correlation * distance * other + other**2))
