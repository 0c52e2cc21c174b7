"""Thresholds with a bound on what they let through: the binomial sums by brute force, and the bound by simulation."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain.calibration import Calibration, allowed, auc, calibrate, needed, passing
from aligner_chain.checkpoint import AlignerMetadata, read_metadata, write_metadata
from aligner_chain.errors import CheckpointError, ConfigurationError

ALPHAS = (0.01, 0.05, 0.1)
SETS, TESTED, MOST = 200, 10_000, 18
CALIBRATION = Calibration(
    criterion="keep",
    threshold=0.97,
    alpha=0.05,
    delta=0.05,
    n_bad=64,
    n_good=300,
    kept=0.61,
    date="2026-01-31T12:00:00+00:00",
    aligner="desk@3",
    upstream="support@2",
    package_version="0.1.0",
)
METADATA = AlignerMetadata(
    name="desk", version="3", template="aligner-chain/1", calibrations={"keep": CALIBRATION}, thresholds={"keep": 0.4}
)

Draw = Callable[[np.random.Generator, int], Any]
shares = st.integers(1, 99).map(lambda percent: percent / 100)
scores = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]) | st.floats(0, 1), min_size=1, max_size=40)


def below(n: int, alpha: Fraction, k: int) -> Fraction:
    """P(Binomial(n, alpha) <= k), term by term."""
    return sum((comb(n, i) * alpha**i * (1 - alpha) ** (n - i) for i in range(k + 1)), Fraction(0))


@given(st.integers(0, 40), shares, shares)
def test_what_may_pass_is_the_binomial_sum_by_brute_force(n: int, alpha: float, delta: float) -> None:
    exact, risk = Fraction(str(alpha)), Fraction(str(delta))
    fitting = [k for k in range(n + 1) if below(n, exact, k) <= risk]
    assert allowed(n, alpha, delta) == (max(fitting) if fitting else None)


@pytest.mark.parametrize(
    ("n", "alpha", "k"),
    [(298, 0.01, None), (299, 0.01, 0), (58, 0.05, None), (59, 0.05, 0), (92, 0.05, 0), (93, 0.05, 1), (28, 0.1, None),
     (29, 0.1, 0), (45, 0.1, 0), (46, 0.1, 1), (1000, 0.05, 38)],
)  # fmt: skip
def test_known_numbers_of_misses(n: int, alpha: float, k: int | None) -> None:
    assert allowed(n, alpha) == k


def test_a_sum_that_is_delta_to_the_last_digit_counts() -> None:
    assert allowed(1, 0.95, 0.05) == 0
    assert allowed(2, 0.5, 0.25) == 0
    assert allowed(2, 0.5, 0.75) == 1


def test_as_many_bad_answers_are_needed_as_the_paper_and_pencil_say() -> None:
    assert [needed(alpha) for alpha in ALPHAS] == [299, 59, 29]


@given(shares, shares)
def test_what_is_needed_is_the_fewest_that_open_the_gate(alpha: float, delta: float) -> None:
    n = needed(alpha, delta)
    assert allowed(n, alpha, delta) is not None
    assert allowed(n - 1, alpha, delta) is None


def test_too_few_bad_answers_keep_the_gate_shut() -> None:
    assert calibrate([0.1] * 58, alpha=0.05) is None
    assert calibrate([], alpha=0.05) is None


def test_the_threshold_is_the_largest_bad_score_that_may_not_pass() -> None:
    bad = [n / 100 for n in range(93)]
    random.Random(0).shuffle(bad)
    assert calibrate(bad[:59], alpha=0.05) == max(bad[:59])
    assert calibrate(bad, alpha=0.05) == 0.91


@given(st.lists(st.sampled_from([0.3, 0.5, 0.9, 1.0]), min_size=29, max_size=80))
def test_ties_never_let_more_pass(bad: list[float]) -> None:
    threshold = calibrate(bad, alpha=0.1)
    k = allowed(len(bad), 0.1)
    assert threshold is not None
    assert k is not None
    assert sum(score > threshold for score in bad) <= k
    assert sum(score >= threshold for score in bad) > k


def test_at_a_threshold_of_1_nothing_passes() -> None:
    assert calibrate([1.0] * 5 + [0.2] * 95, alpha=0.05) == 1.0
    assert passing([1.0, 0.9], 1.0) == 0
    assert passing([], 0.5) is None


@pytest.mark.parametrize("changed", [{"alpha": 0.0}, {"alpha": 1}, {"delta": 1.5}, {"delta": float("nan")}])
def test_shares_that_are_none(changed: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="a share between 0 and 1"):
        calibrate([0.5] * 60, **{"alpha": 0.05, **changed})


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="2 of 61 scores are no finite numbers, the first being nan"):
        calibrate([0.5] * 59 + [math.nan, math.inf], alpha=0.05)


# --- the bound ----------------------------------------------------------------------------------------------------

DISTRIBUTIONS: dict[str, Draw] = {
    "uniform": lambda rng, n: rng.random(n),
    "certain": lambda rng, n: rng.beta(8, 0.4, n),  # bad answers that look right: the scores crowd below 1
    "in steps": lambda rng, n: np.round(rng.beta(2, 2, n), 2),
    "saturated": lambda rng, n: np.where(rng.random(n) < 0.04, 1.0, rng.random(n)),
}


def exceedances(alpha: float, n: int, draw: Draw, threshold: Callable[[list[float]], float | None]) -> int:
    """How many of `SETS` calibration sets of `n` have a miss rate above `alpha` on `TESTED` other bad answers."""
    rng = np.random.default_rng([int(1000 * alpha), n])
    limits = [threshold(draw(rng, n).tolist()) for _ in range(SETS)]
    return sum(float(np.mean(draw(rng, TESTED) > limit)) > alpha for limit in limits)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("more", [0, 300])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_of_200_calibrations_few_miss_more_than_alpha(alpha: float, more: int, name: str) -> None:
    """Each exceeds it with a probability of 5 % at most; that 19 of 200 do happens once in 250 times."""
    n = needed(alpha) + more
    assert exceedances(alpha, n, DISTRIBUTIONS[name], lambda bad: calibrate(bad, alpha=alpha)) <= MOST


@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_miss_more_would_break_the_bound(alpha: float) -> None:
    def lax(bad: list[float]) -> float:
        return sorted(bad, reverse=True)[(allowed(len(bad), alpha) or 0) + 1]

    assert exceedances(alpha, needed(alpha), DISTRIBUTIONS["uniform"], lax) > MOST


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 59), (0.05, 93), (0.1, 120)])
def test_without_ties_the_risk_is_the_binomial_sum_and_not_less(alpha: float, n: int) -> None:
    """Of uniform scores the miss rate is known: 1 - t. So the risk can be counted over many sets."""
    rng, sets = np.random.default_rng(n), 5000
    exceeded = sum(1 - (calibrate(row.tolist(), alpha=alpha) or 0) > alpha for row in rng.random((sets, n)))
    risk = float(below(n, Fraction(str(alpha)), allowed(n, alpha) or 0))
    assert abs(exceeded / sets - risk) < 4 * math.sqrt(risk / sets)


# --- the area under the curve -------------------------------------------------------------------------------------


@given(scores, scores)
def test_the_auc_is_the_share_of_pairs_in_the_right_order(good: list[float], bad: list[float]) -> None:
    wins = sum((one > other) + (one == other) / 2 for one in good for other in bad)
    value, low, high = auc(good, bad)
    assert value == pytest.approx(wins / (len(good) * len(bad)))
    assert 0 <= low <= value <= high <= 1
    # The other way round everything is mirrored.
    assert auc(bad, good) == pytest.approx((1 - value, 1 - high, 1 - low))


def test_the_ends_of_the_interval_are_as_far_away_as_their_own_standard_error_says() -> None:
    good, bad = [0.4, 0.6, 0.7, 0.8, 0.9] * 8, [0.1, 0.3, 0.5, 0.65] * 6
    value, *ends = auc(good, bad)
    m, n = len(good), len(bad)
    for end in ends:
        # Hanley and McNeil's Q1 and Q2, with the mean of m - 1 and n - 1.
        q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)
        variance = (end * (1 - end) + ((m + n) / 2 - 1) * (q1 - end**2 + q2 - end**2)) / (m * n)
        assert abs(value - end) == pytest.approx(1.96 * math.sqrt(variance))


def test_a_perfect_order_of_few_is_not_certain() -> None:
    value, low, high = auc([0.9] * 5, [0.1] * 5)
    assert (value, high) == (1, 1)
    assert 0.5 < low < 0.8
    assert auc([0.9] * 500, [0.1] * 500)[1] > 0.99


def test_the_interval_of_the_auc_holds_the_truth_as_often_as_it_says() -> None:
    rng, truth = random.Random(0), 0.7602499  # of normals one standard deviation apart
    runs = [auc([rng.gauss(1, 1) for _ in range(60)], [rng.gauss(0, 1) for _ in range(40)]) for _ in range(400)]
    assert 0.92 < sum(low <= truth <= high for _, low, high in runs) / len(runs) < 0.98


def test_an_auc_needs_both_kinds() -> None:
    with pytest.raises(ConfigurationError, match="3 good and 0 bad"):
        auc([1, 1, 1], [])


# --- what is stored -----------------------------------------------------------------------------------------------


def test_calibrations_are_read_back(tmp_path: Path) -> None:
    write_metadata(tmp_path, METADATA)
    assert read_metadata(tmp_path) == METADATA
    assert Calibration.from_json(CALIBRATION.as_json()) == CALIBRATION
    assert replace(CALIBRATION, kept=None, upstream=None).kept is None


def test_an_aligner_without_calibrations_is_read(tmp_path: Path) -> None:
    (tmp_path / "aligner.json").write_text('{"schema": 1, "name": "x", "version": "1", "template": "aligner-chain/1"}')
    assert read_metadata(tmp_path).calibrations == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"threshold": 1.2}, '"threshold" of a calibration is 1.2'),
        ({"threshold": "0.9"}, '"threshold"'),
        ({"threshold": math.nan}, '"threshold"'),
        ({"alpha": 0}, '"alpha"'),
        ({"delta": 1.0}, '"delta"'),
        ({"n_bad": 58}, "claims alpha=0.05 from 58 bad answers, but 59 are needed"),
        ({"n_bad": 1e9}, '"n_bad"'),
        ({"n_good": -1}, '"n_good"'),
        ({"kept": True}, '"kept"'),
        ({"date": "yesterday"}, '"date"'),
        ({"date": "2026-01-31T12:00:00"}, '"date"'),
        ({"aligner": ""}, '"aligner"'),
        ({"upstream": 2}, '"upstream"'),
        ({"criterion": None}, '"criterion"'),
        ({"more": 1}, "not an object of exactly aligner, alpha"),
        ({"criterion": "copy"}, 'the calibration "keep" is one of "copy"'),
    ],
)
def test_a_calibration_changed_by_hand_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    write_metadata(tmp_path, METADATA)
    values = json.loads((tmp_path / "aligner.json").read_text())
    values["calibrations"]["keep"] |= changed
    (tmp_path / "aligner.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as refused:
        read_metadata(tmp_path)
    assert said in str(refused.value)


def test_calibrations_are_an_object(tmp_path: Path) -> None:
    row = '{"schema": 1, "name": "x", "version": "1", "template": "aligner-chain/1", "calibrations": []}'
    (tmp_path / "aligner.json").write_text(row)
    with pytest.raises(CheckpointError, match='"calibrations" is not an object'):
        read_metadata(tmp_path)


def test_a_threshold_holds_for_the_versions_it_was_measured_on() -> None:
    assert METADATA.threshold_of("keep") == METADATA.threshold_of("keep", upstream="support@2") == 0.97
    assert METADATA.threshold_of("copy") is None
    assert METADATA.threshold_of("keep", upstream="support@3") is None
    assert replace(METADATA, version="4").threshold_of("keep") is None
    unknown = replace(METADATA, calibrations={"keep": replace(CALIBRATION, upstream=None)})
    assert unknown.threshold_of("keep", upstream="support@3") == 0.97
