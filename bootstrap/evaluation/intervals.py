"""Shares and paired changes of shares with their intervals, and how many cases an interval would need. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

from aligner_chain.calibration import Z_95
from aligner_chain.calibration import wilson as wilson

MOST_CASES = 10_000_000
"""Nobody judges more cases than this; what would need more is not a question of cases."""


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


class PairedTable(NamedTuple):
    """How many cases held before and after: `both`, only after (`gained`), only before (`lost`), or `neither`."""

    both: int
    gained: int
    lost: int
    neither: int

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> PairedTable:
        """Counts the cases of two measurements in the same order."""
        if len(before) != len(after):
            raise ValueError(f"before and after must be of the same cases, not of {len(before)} and {len(after)}")
        both = sum(bool(b and a) for b, a in zip(before, after, strict=True))
        gained, lost = sum(map(bool, after)) - both, sum(map(bool, before)) - both
        return cls(both, gained, lost, len(before) - both - gained - lost)

    @property
    def n(self) -> int:
        return sum(self)

    def scaled(self, n: int) -> PairedTable:
        """The same rates over about `n` cases."""
        return PairedTable(*(round(count * n / self.n) for count in self))

    def unchanged(self) -> PairedTable:
        """As it would be if no case had changed."""
        return PairedTable(self.both + self.lost, 0, 0, self.neither + self.gained)

    def interval(self, z: float = Z_95) -> PairedChange:
        """The change of the share with its interval; see `paired_interval`."""
        if self.n == 0:
            return PairedChange(change=0.0, low=-1.0, high=1.0, gained=0, lost=0, n=0)
        correlation = self._correlation()
        down, up = _distances(self.both + self.gained, self.n, z)
        down_before, up_before = _distances(self.both + self.lost, self.n, z)
        change = (self.gained - self.lost) / self.n
        low = change - _combined(down, up_before, correlation)
        high = change + _combined(up, down_before, correlation)
        return PairedChange(change=change, low=low, high=high, gained=self.gained, lost=self.lost, n=self.n)

    def _correlation(self) -> float:
        """The phi coefficient of before and after, drawn towards 0 by a continuity correction where it is positive."""
        both, gained, lost, neither = self
        margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
        if margins == 0:
            return 0.0
        product = both * neither - gained * lost
        return (product if product < 0 else max(product - self.n / 2, 0.0)) / sqrt(margins)


def paired_interval(before: Sequence[bool], after: Sequence[bool], z: float = Z_95) -> PairedChange:
    """The change of a share over the same cases, with its interval.

    Method 10 of R. G. Newcombe 1998, Statistics in Medicine 17, 2635-2650: the Wilson intervals of both shares, combined
    by their distances from the estimates and a correlation with a continuity correction.

    Args:
        before: what held for each case before.
        after: what holds for the same cases, in the same order.
        z: the normal quantile; the default makes a 95 % interval.
    """
    return PairedTable.of(before, after).interval(z)


def net_interval(wins: int, losses: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of (wins - losses) / n, of n cases of which the others are ties; from -1 to 1 where n is 0.

    The score interval of T. Tango 1998, Statistics in Medicine 17, 891-908. Without ties it is Wilson's of the wins, twice
    less 1; with nothing but ties each side is Wilson's upper bound of none.

    Raises:
        ValueError: a count is negative, or there are more wins and losses than cases.
    """
    if min(wins, losses) < 0 or wins + losses > n:
        raise ValueError(f"{wins} wins and {losses} losses cannot be of {n} cases")
    return (_net_low(wins, losses, n, z), -_net_low(losses, wins, n, z)) if n else (-1.0, 1.0)


def two_sided(alpha: float) -> float:
    """The normal quantile of an interval with confidence 1 - `alpha`; 1.96 for 5 %."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not be {alpha}")
    return Z_95 if alpha == 0.05 else NormalDist().inv_cdf(1 - alpha / 2)


def fewest(enough: Callable[[int], bool], start: int) -> int | None:
    """The smallest number of cases from `start` on that is enough, about; None where `MOST_CASES` are not."""
    high = max(start, 1)
    while not enough(high):
        high *= 2
        if high > MOST_CASES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return max(high, start)


def cases_to_shrink(n: int, half: float, distance: float) -> int | None:
    """How many cases shrink an interval's half width, which goes with the root of their number, to `distance`."""
    return max(n + 1, round(n * (half / distance) ** 2) + 1) if distance > 0 else None


def _net_low(wins: int, losses: int, n: int, z: float) -> float:
    """The lowest difference that the counts do not speak against, by bisection: the score falls as it rises."""
    low, high = -1.0, (wins - losses) / n
    for _ in range(60):
        middle = (low + high) / 2
        far = wins - losses - n * middle > z * sqrt(n * _net_variance(wins, losses, n, middle))
        low, high = (middle, high) if far else (low, middle)
    return high


def _net_variance(wins: int, losses: int, n: int, difference: float) -> float:
    """Of one case, at the likeliest shares of wins and losses that are `difference` apart."""
    b = (2 * n - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    lost = (sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    return max(2 * lost + difference * (1 - difference), 0.0)


def _distances(k: int, n: int, z: float) -> tuple[float, float]:
    """How far the ends of the Wilson interval are from the share."""
    low, high = wilson(k, n, z)
    return k / n - low, high - k / n


def _combined(distance: float, other: float, correlation: float) -> float:
    return sqrt(max(0.0, distance**2 - 2 * correlation * distance * other + other**2))
