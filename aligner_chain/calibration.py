"""From what score on an answer may skip its correction, with a bound on how many bad ones do. Pure functions.

Why the bound is exact: of the scores of n known-bad answers take the (k+1)-th largest as threshold t. Let q be the lowest
score above which no more than a share alpha of all bad answers lies. More than alpha of them lie above t only if t < q, and
then at most k of the n scores are q or more, each of which is so with a probability of at least alpha. Hence
P(miss rate > alpha) <= P(Binomial(n, alpha) <= k), whatever the distribution of the scores; it is an equality where they
have no ties. This is Wilks's distribution-free tolerance limit (S. S. Wilks 1941, Ann. Math. Statist. 12, 91-96), and
alpha is the upper bound of C. J. Clopper and E. S. Pearson (1934, Biometrika 26, 404-413) for k misses of n.

What it needs: the known-bad answers are drawn like the bad answers to come (exchangeable with them), and the model did not
learn from them. Another upstream, another Aligner or other questions break that: calibrate anew.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from fractions import Fraction
from typing import Any

from aligner_chain.errors import ConfigurationError

DELTA = 0.05
Z_95 = 1.96
_HALVINGS = 60
"""Steps of a bisection between 0 and 1, after which a float cannot be halved any further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A threshold and what it was measured on.

    With confidence 1 - `delta`, at most a share `alpha` of bad answers has a score of `criterion` above `threshold`.
    `n_bad` and `n_good` count the answers it was measured on; `kept` is the share of the good ones above it, None without
    any. `date` is ISO 8601 with its zone. `aligner` and `upstream` are the `name@version` of the models that gave scores
    and answers, the upstream None where it is not known or there were several. `package_version` is aligner-chain's.

    Raises `ConfigurationError` for values that cannot come from a calibration.
    """

    criterion: str
    threshold: float
    alpha: float
    delta: float
    n_bad: int
    n_good: int
    kept: float | None
    date: str
    aligner: str
    upstream: str | None
    package_version: str

    def __post_init__(self) -> None:
        for name, accepts in _FIELDS.items():
            if not accepts(getattr(self, name)):
                raise ConfigurationError(f'"{name}" of a calibration is {getattr(self, name)!r}. {_ANEW}')
        if self.n_bad < needed(self.alpha, self.delta):
            raise ConfigurationError(
                f"A calibration claims alpha={self.alpha} from {self.n_bad} bad answers, but "
                f"{needed(self.alpha, self.delta)} are needed. {_ANEW}"
            )

    def as_json(self) -> dict[str, Any]:
        """The fields as an object of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> Calibration:
        """Reads what `as_json` gave. Raises `ConfigurationError` for anything else."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            raise ConfigurationError(f"A calibration is not an object of exactly {', '.join(sorted(known))}. {_ANEW}")
        return cls(**values)


def calibrate(bad: Sequence[float], *, alpha: float, delta: float = DELTA) -> float | None:
    """The lowest threshold t that keeps P(the miss rate exceeds `alpha`) <= `delta`; an answer passes if its score is > t.

    The miss rate is the share of bad answers that pass. Bad answers with the same score pass or stay together, so ties make
    the threshold stricter, never laxer; at a threshold of 1.0 no probability passes.

    Args:
        bad: Scores of known-bad answers, higher for those that look all right; at least `needed(alpha, delta)` of them.
        alpha: The largest share of bad answers that may pass, between 0 and 1.
        delta: The risk that more than that pass nevertheless, between 0 and 1.

    Returns:
        The threshold, or None where there are too few bad answers: the gate stays shut.

    Raises:
        ConfigurationError: A score is not a finite number, or `alpha` or `delta` is not between 0 and 1.
    """
    _require_finite(bad)
    k = allowed(len(bad), alpha, delta)
    return None if k is None else sorted(bad, reverse=True)[k]


def allowed(n: int, alpha: float, delta: float = DELTA) -> int | None:
    """The largest k with P(Binomial(n, alpha) <= k) <= delta: how many of `n` bad answers may pass. None: not even none.

    Both shares are taken as the decimals they are written as and the sum is one of integers, so nothing is rounded.
    """
    share, risk = _decimal("alpha", alpha), _decimal("delta", delta)
    hit, base = share.numerator, share.denominator
    limit = base**n * risk.numerator // risk.denominator
    term = below = (base - hit) ** n  # of base ** n ways, those in which none is above
    if below > limit:
        return None
    k = 0
    while True:
        term = term * (n - k) * hit // ((k + 1) * (base - hit))  # from k to k + 1 above; the division leaves no rest
        below += term
        if below > limit:
            return k
        k += 1


def needed(alpha: float, delta: float = DELTA) -> int:
    """The fewest known-bad answers that can open a gate: 299, 59 and 29 for alpha 0.01, 0.05 and 0.1."""
    _decimal("alpha", alpha), _decimal("delta", delta)
    # What is whole but for the rounding of logarithms is whole.
    return max(1, math.ceil(math.log(delta) / math.log1p(-alpha) - 1e-9))


def passing(scores: Sequence[float], threshold: float) -> float | None:
    """The share of scores above a threshold; None of none."""
    return sum(score > threshold for score in scores) / len(scores) if scores else None


def wilson(k: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a share, k of n (E. B. Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    Args:
        k: how many of the cases are true, from 0 to `n`.
        n: how many cases there are; of none nothing is known, and the interval is 0 to 1.
        z: the normal quantile; the default makes a 95 % interval.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k must be between 0 and n, not {k} of {n}")
    if n == 0:
        return 0.0, 1.0
    share, shrink = k / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    # At the ends the exact bound is the share itself, which rounding would miss.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def auc(good: Sequence[float], bad: Sequence[float]) -> tuple[float, float, float]:
    """The probability that a good answer scores higher than a bad one, a tie counting half, with its 95 % interval.

    The value is the Mann-Whitney statistic over all pairs, in n log n. The interval is method 5 of R. G. Newcombe 2006
    (Statistics in Medicine 25, 559-573): the values from which it is no more than 1.96 standard errors away, with the
    variance of J. A. Hanley and B. J. McNeil 1982 (Radiology 143, 29-36). Unlike theirs it has a width at 0 and 1 too.

    Raises:
        ConfigurationError: One of the two has no score, or a score is not a finite number.
    """
    _require_finite([*good, *bad])
    if not good or not bad:
        raise ConfigurationError(
            f"An AUC compares good answers with bad ones, and there are {len(good)} good and {len(bad)} bad. "
            "Label some of both."
        )
    ranked = sorted(bad)
    wins = sum(bisect_left(ranked, score) + bisect_right(ranked, score) for score in good)
    value = wins / (2 * len(good) * len(bad))
    return value, _bound(value, 0.0, len(good), len(bad)), _bound(value, 1.0, len(good), len(bad))


def _bound(value: float, end: float, m: int, n: int) -> float:
    """The furthest AUC towards `end` that is no more than `Z_95` of its own standard errors away from `value`."""
    if value == end:
        return end
    near, far = value, end
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        if abs(value - middle) <= Z_95 * math.sqrt(_variance(middle, m, n)):
            near = middle
        else:
            far = middle
    return near


def _variance(value: float, m: int, n: int) -> float:
    mean = (m + n) / 2 - 1  # Hanley and McNeil have m - 1 and n - 1; with their mean unequal groups are covered better
    return value * (1 - value) * (1 + mean * ((1 - value) / (2 - value) + value / (1 + value))) / (m * n)


def _decimal(name: str, share: float) -> Fraction:
    if not 0 < share < 1:
        raise ConfigurationError(f"{name} is {share}; it is a share between 0 and 1, such as 0.05.")
    return Fraction(repr(float(share)))


def _require_finite(scores: Sequence[float]) -> None:
    if strange := [score for score in scores if not math.isfinite(score)]:
        raise ConfigurationError(
            f"{len(strange)} of {len(scores)} scores are no finite numbers, the first being {strange[0]}. Look for what "
            "gave them: an inspector that divides by nothing, or a model whose output overflows."
        )


_ANEW = "Ways out: take it out of aligner.json, or calibrate anew with  aligner-chain calibrate --write ALPHA"


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _inner_share(value: object) -> bool:
    return _share(value) and value not in (0, 1)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _named(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _moment(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    "criterion": _named,
    "threshold": _share,
    "alpha": _inner_share,
    "delta": _inner_share,
    "n_bad": _count,
    "n_good": _count,
    "kept": lambda value: value is None or _share(value),
    "date": _moment,
    "aligner": _named,
    "upstream": lambda value: value is None or _named(value),
    "package_version": _named,
}
"""What each field of a calibration has to be: the file that it is read from may have been changed by hand."""
