from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.evaluation import non_inferiority_gate, paired_interval, share_gate, superiority_gate, wilson
from bootstrap.evaluation.intervals import net_interval

cases = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300)


def table(both: int, before_only: int, after_only: int, neither: int) -> tuple[list[bool], list[bool]]:
    rows = [(True, True)] * both + [(True, False)] * before_only + [(False, True)] * after_only
    rows += [(False, False)] * neither
    return [before for before, _ in rows], [after for _, after in rows]


# The examples of Newcombe 1998, Statistics in Medicine 17, 857-872, table I (method 3).
@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(k, n, low, high):
    assert wilson(k, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_wilson_by_hand():
    # k = n = z^2 = 4: the bounds are the roots of (1 - p)^2 = p (1 - p), which are 1/2 and 1.
    assert wilson(4, 4, z=2) == (pytest.approx(0.5), 1.0)


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_contains_the_share_and_mirrors_it(k, other):
    n = k + other
    low, high = wilson(k, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= k / n <= high
        assert (1 - high, 1 - low) == (pytest.approx(wilson(other, n)[0]), pytest.approx(wilson(other, n)[1]))


def test_wilson_narrows_with_more_cases():
    widths = [high - low for low, high in (wilson(3 * n, 4 * n) for n in (1, 10, 100, 1000))]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(k, n)


# (36, 12, 2, 0) is from Newcombe 1998, Statistics in Medicine 17, 2635-2650, table II, method 10. (59, 6, 16, 80) and
# (1, 1, 7, 12) are the examples of Fagerland, Lydersen and Laake 2017, Statistical Analysis of Contingency Tables,
# chapter 8 (Cavo et al. 2012, Bentur et al. 2009). All of them take the first classification less the second.
@pytest.mark.parametrize(
    ("cells", "difference", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),
        ((59, 6, 16, 80), -0.0621, -0.1186, -0.0046),
        ((1, 1, 7, 12), -0.2857, -0.5069, -0.0256),
    ],
)
def test_paired_interval_gives_the_published_intervals(cells, difference, low, high):
    first, second = table(*cells)
    found = paired_interval(before=second, after=first)
    assert found.change == pytest.approx(difference, abs=1e-4)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


# The wins and losses of (59, 6, 16, 80) and (1, 1, 7, 12) above, with Tango's interval as Fagerland, Lydersen and Laake give it.
@pytest.mark.parametrize(
    ("wins", "losses", "n", "low", "high"), [(6, 16, 161, -0.1240, -0.0054), (1, 7, 21, -0.5172, -0.0260)]
)
def test_net_interval_gives_the_published_intervals(wins, losses, n, low, high):
    assert net_interval(wins, losses, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_net_interval_by_hand():
    # With nothing but ties the score is n d / sqrt(n d (1 - d)) = z at d = z^2 / (n + z^2); here z^2 = n = 4.
    assert net_interval(0, 0, 4, z=2) == (pytest.approx(-0.5), pytest.approx(0.5))
    # Without ties it is Wilson's of the wins, twice less 1.
    for wins in range(8):
        low, high = wilson(wins, 7)
        assert net_interval(wins, 7 - wins, 7) == (pytest.approx(2 * low - 1), pytest.approx(2 * high - 1))
    assert net_interval(0, 0, 0) == (-1, 1)
    with pytest.raises(ValueError, match="3 wins and 2 losses cannot be of 4"):
        net_interval(3, 2, 4)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_net_interval_contains_the_rate_and_turns_with_it(wins, losses, ties):
    n = wins + losses + ties
    low, high = net_interval(wins, losses, n)
    assert -1 <= low <= high <= 1
    if n:
        assert low - 1e-9 <= (wins - losses) / n <= high + 1e-9
    assert net_interval(losses, wins, n) == (pytest.approx(-high), pytest.approx(-low))


def test_paired_interval_counts_what_was_gained_and_lost():
    found = paired_interval(*table(both=5, before_only=1, after_only=3, neither=2))
    assert (found.gained, found.lost, found.n, found.change) == (3, 1, 11, pytest.approx(2 / 11))


@given(cases)
def test_paired_interval_contains_the_change_and_turns_with_the_order(rows):
    before, after = [b for b, _ in rows], [a for _, a in rows]
    forth, back = paired_interval(before, after), paired_interval(after, before)
    assert -1 - 1e-9 <= forth.low <= forth.change <= forth.high <= 1 + 1e-9
    assert (back.change, back.low, back.high) == pytest.approx((-forth.change, -forth.high, -forth.low))
    assert (back.gained, back.lost) == (forth.lost, forth.gained)


@given(cases, st.randoms())
def test_paired_interval_does_not_depend_on_the_order_of_cases(rows, noise):
    shuffled = list(rows)
    noise.shuffle(shuffled)
    assert paired_interval(*zip(*rows, strict=True)) == paired_interval(*zip(*shuffled, strict=True))


def test_paired_interval_covers_the_true_change():
    noise, covered, runs, n = random.Random(7), 0, 1000, 80
    cells = [(True, True), (True, False), (False, True), (False, False)]
    weights, true_change = [0.5, 0.08, 0.18, 0.24], 0.10
    for _ in range(runs):
        found = paired_interval(*zip(*noise.choices(cells, weights, k=n), strict=True))
        covered += found.low <= true_change <= found.high
    assert 0.93 <= covered / runs <= 0.985


def test_without_a_case_nothing_is_known():
    found = paired_interval([], [])
    assert (found.change, found.low, found.high, found.n) == (0, -1, 1, 0)


def test_paired_interval_refuses_different_numbers_of_cases():
    with pytest.raises(ValueError, match="not of 2 and 1"):
        paired_interval([True, False], [True])


def test_superiority_needs_a_lower_bound_above_zero():
    assert superiority_gate("gain", *table(both=50, before_only=2, after_only=30, neither=20)).passed
    weak = superiority_gate("gain", *table(both=50, before_only=2, after_only=5, neither=20))
    assert not weak.passed
    assert weak.figure > 0 > weak.bound
    assert not superiority_gate("gain", *table(both=50, before_only=0, after_only=0, neither=50)).passed


def test_non_inferiority_allows_the_margin_and_no_more():
    same = table(both=900, before_only=3, after_only=3, neither=94)
    assert non_inferiority_gate("hold", *same, margin=0.01).passed
    assert not non_inferiority_gate("hold", *same, margin=0.001).passed
    assert not non_inferiority_gate("hold", *table(both=900, before_only=30, after_only=3, neither=67)).passed


def test_the_bound_may_lie_on_the_margin():
    before, after = table(both=30, before_only=4, after_only=2, neither=5)
    margin = -paired_interval(before, after).low
    assert non_inferiority_gate("edge", before, after, margin=margin).passed


def test_share_gate_is_decided_by_the_estimate_and_shows_the_bound():
    gate = share_gate("kept", 98, 100, at_least=0.98)
    assert gate.passed
    assert gate.bound < 0.98 == gate.figure == gate.threshold
    assert not share_gate("kept", 979, 1000, at_least=0.98).passed


@pytest.mark.parametrize(
    "gate", [superiority_gate("g", [], []), non_inferiority_gate("g", [], [], margin=1.0), share_gate("g", 0, 0, 0.0)]
)
def test_no_gate_passes_on_no_cases(gate):
    assert not gate.passed
    assert gate.n == 0


def test_the_reason_holds_the_figures():
    reason = superiority_gate("gain", *table(both=50, before_only=2, after_only=30, neither=20)).reason
    assert "+27.45 points over 102 cases (30 gained, 2 lost)" in reason
    assert "must be above +0.00" in reason
