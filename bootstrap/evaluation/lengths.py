"""A win rate as it would be if both answers were equally long, since judges like long answers.

The model is logit P(win) = theta + phi tanh(d / s): d is how much longer the candidate's answer is, s the standard
deviation of d. The controlled win rate is that at d = 0, sigmoid(theta). It is the length part of length-controlled
AlpacaEval (Y. Dubois, B. Galambosi, P. Liang and T. Hashimoto 2024, arXiv 2404.04475); the difficulty of each prompt,
which that estimates for its own 805 prompts, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    Floats = NDArray[float64]

_RIDGE = 0.01
"""A prior on both parameters, worth about this many items: without it they are infinite where one side wins all."""
_STEPS = 30
_LEAP = 2.0
"""No longer step is taken in a logit: far from the solution Newton's method overshoots."""
_NO_STEP = 1e-6
_CHUNK = 1_000_000
"""Resamples times items at once, which bounds the memory to some 100 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlledRate:
    """A length-controlled win rate with its interval, shares of `n` items.

    `raw` is the rate without control. `longer` is the share of items with the longer answer by the candidate; near 0 or 1
    nothing can part quality from length. `phi` is how much the judge likes length, in logits, 0 for not at all.
    """

    rate: float
    low: float
    high: float
    raw: float
    longer: float
    phi: float
    n: int


def controlled_win_rate(
    scores: Sequence[float],
    length_differences: Sequence[float],
    *,
    alpha: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
) -> ControlledRate:
    """The win rate at equal length with a bootstrap interval.

    The number of items must have been fixed beforehand: the interval is not one that survives peeking.

    Args:
        scores: 1 won, 0.5 tied, 0 lost; one for each prompt.
        length_differences: the length of the candidate's answer less that of the served one, same order, any unit.
        alpha: 1 less the confidence of the interval, of which each side has half.
        resamples: of the items, with replacement, for the interval (percentile bootstrap).

    Raises:
        ValueError: there is no item, the two differ in number, or a score is not between 0 and 1.
    """
    import numpy as np

    if not scores or len(scores) != len(length_differences):
        raise ValueError(f"as many scores as differences are needed, not {len(scores)} and {len(length_differences)}")
    won, differences = np.asarray(scores, float), np.asarray(length_differences, float)
    if not ((won >= 0) & (won <= 1)).all() or not np.isfinite(differences).all():
        raise ValueError("scores lie between 0 (lost) and 1 (won), and differences of length are finite numbers")
    n, spread = len(won), float(differences.std())
    length = np.tanh(differences / spread) if spread else np.zeros(n)
    theta, phi = _fitted(np.ones((1, n)), won, length)[0]
    draws, chunk = np.random.default_rng(seed), max(_CHUNK // n, 1)
    counts = (min(chunk, resamples - start) for start in range(0, resamples, chunk))
    resampled = [
        _fitted(draws.multinomial(n, np.full(n, 1 / n), size).astype(float), won, length)[:, 0] for size in counts
    ]
    low, high = np.quantile(_sigmoid(np.concatenate(resampled)), [alpha / 2, 1 - alpha / 2])
    return ControlledRate(
        rate=float(_sigmoid(theta)),
        low=float(low),
        high=float(high),
        raw=float(won.mean()),
        longer=float((differences > 0).mean() + (differences == 0).mean() / 2),
        phi=float(phi),
        n=n,
    )


def _fitted(weights: Floats, won: Floats, length: Floats) -> Floats:
    """Theta and phi for each row of weights, by Newton's method. Shapes: (rows, n), (n,), (n,) -> (rows, 2)."""
    import numpy as np

    parameters = np.zeros((len(weights), 2))
    for _ in range(_STEPS):
        expected = _sigmoid(parameters[:, :1] + parameters[:, 1:] * length)
        error, curvature = weights * (won - expected), weights * expected * (1 - expected)
        gradient = np.stack([error.sum(1), error @ length], 1) - _RIDGE * parameters
        a, b, c = curvature.sum(1) + _RIDGE, curvature @ length, curvature @ length**2 + _RIDGE
        step = np.stack([c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], 1)
        step = np.clip(step / (a * c - b * b)[:, None], -_LEAP, _LEAP)
        parameters += step
        if np.abs(step).max() < _NO_STEP:
            break
    return parameters


def _sigmoid(value: Floats) -> Floats:
    import numpy as np

    curve: Floats = 1 / (1 + np.exp(-value))
    return curve
