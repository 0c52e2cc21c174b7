"""The test that survives peeking, the level of a test among many, and the win rate at equal length."""

from __future__ import annotations

import random
from itertools import islice, product
from math import exp, tanh

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.evaluation import (
    controlled_win_rate,
    e_values,
    level,
    lower_bound,
    scores_in_random_order,
    sequential_gate,
    verdict_scores,
    win_rate_gate,
)

scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=60)


def preferences(rng: random.Random, win_rate: float):
    while True:
        yield float(rng.random() < win_rate)


def test_e_values_by_hand():
    # A bet of 0.4 grows by 1.4 on a win and shrinks by 0.6 on a loss; one of nothing stays at 1. Their mean is the e-value.
    assert list(e_values([1, 0, 0.5], bets=(0.4, 0.0))) == pytest.approx(
        [1.2, (1.4 * 0.6 + 1) / 2, (1.4 * 0.6 + 1) / 2]
    )
    assert list(e_values([])) == []


@pytest.mark.parametrize("win_rate", [0.5, 0.3])
@pytest.mark.parametrize("items", [1, 4, 9])
def test_the_expected_e_value_is_at_most_one_for_what_is_not_better(win_rate, items):
    # Exact: over all sequences of wins and losses, weighted by their probability.
    expected = 0.0
    for outcome in product((0.0, 1.0), repeat=items):
        probability = win_rate ** sum(outcome) * (1 - win_rate) ** (items - sum(outcome))
        *_, e_value = e_values(outcome)
        expected += probability * e_value
    assert expected == pytest.approx(1.0) if win_rate == 0.5 else expected < 1


@settings(max_examples=60)
@given(scores)
def test_e_values_are_positive_and_a_win_is_worth_more_than_a_tie_and_that_more_than_a_loss(some):
    values = list(e_values(some))
    assert all(value > 0 for value in values)
    lost, tied, won = ([*e_values([*some, last])][-1] for last in (0, 0.5, 1))
    assert lost < tied < won
    assert tied == pytest.approx(values[-1] if values else 1.0)


@settings(max_examples=60)
@given(scores.filter(bool))
def test_the_bound_lies_above_one_half_just_where_the_gate_promotes(some):
    *_, e_value = e_values(some)
    found = lower_bound({score: some.count(score) for score in some}, alpha=0.2)
    assert 0 <= found <= sum(some) / len(some) + 1e-9
    assert (found >= 0.5) == (e_value >= 5) or e_value == pytest.approx(5)


def test_thousands_of_wins_are_no_overflow():
    *_, e_value = e_values([1.0] * 3000)
    assert e_value > 1e300
    assert lower_bound({1.0: 2000}) > 0.99


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_what_is_no_score_is_refused(score):
    with pytest.raises(ValueError, match="between 0"):
        sequential_gate("judge", [1, score])


def test_false_promotions_under_peeking_are_rare_and_power_is_high():
    gates = [sequential_gate("", preferences(random.Random(run), 0.5)) for run in range(200)]
    assert sum(gate.passed for gate in gates) <= 18  # a draw of Binomial(200, 5 %) is larger in 1 of 200
    assert sum(gate.decision == "reject" for gate in gates) <= 18
    better = [sequential_gate("", preferences(random.Random(run), 0.65)) for run in range(40)]
    assert sum(gate.passed for gate in better) >= 38
    assert sum(gate.n for gate in better) / 40 < 150


def test_the_gate_asks_for_nothing_after_its_decision():
    asked = []
    wins = (asked.append(number) or 1.0 for number in range(1000))
    gate = sequential_gate("judge", wins)
    assert gate.passed
    assert len(asked) == gate.n < 20
    assert gate.bound > 0.5 == gate.threshold
    worse = sequential_gate("judge", iter([0.0] * 1000))
    assert (worse.decision, worse.n) == ("reject", 12)
    undecided = sequential_gate("judge", iter([0.0, 1.0] * 300), most=100)
    assert (undecided.decision, undecided.n, undecided.needed) == ("hold", 100, None)


def test_a_paid_judge_is_asked_by_the_batch_and_in_an_order_of_the_seed():
    batches = []

    def judge(items):
        batches.append(list(items))
        return [1.0 for _ in items]

    gate = sequential_gate("judge", scores_in_random_order(range(400), judge, seed=3, batch=8))
    asked = [item for batch in batches for item in batch]
    assert gate.n <= len(asked) < gate.n + 8
    assert [len(batch) for batch in batches] == [8] * len(batches)
    assert len(set(asked)) == len(asked)
    assert asked != sorted(asked)
    again = scores_in_random_order(range(400), lambda items: items, seed=3, batch=5)
    assert list(islice(again, len(asked))) == asked
    with pytest.raises(ValueError, match="4 items were to be scored, and 1"):
        list(scores_in_random_order(range(4), lambda items: [1.0]))


def test_a_hold_says_how_many_items_would_decide():
    some = [1.0] * 57 + [0.0] * 43
    held = sequential_gate("judge", scores_in_random_order(some, list, seed=1))
    assert held.decision == "hold"
    assert held.needed is not None
    n = held.needed
    same_rate = sequential_gate(
        "judge", scores_in_random_order([1.0] * round(0.57 * n) + [0.0] * round(0.43 * n), list), most=n
    )
    assert same_rate.passed
    assert 400 < n < 450


def test_verdicts_become_scores():
    before, after = [True, True, False, False], [True, False, True, False]
    assert sorted(verdict_scores(before, after)) == [0.0, 0.5, 0.5, 1.0]
    assert sequential_gate("rules", verdict_scores([False] * 300, [True] * 40 + [False] * 260), most=300).passed


def test_levels_add_up_to_alpha_and_grow_with_promotions():
    assert level(0, 0) == pytest.approx(0.025)
    assert level(3, 2) == pytest.approx(0.05 * 3 / 20)
    assert sum(level(tests, 0) for tests in range(5000)) == pytest.approx(0.05, rel=1e-3)
    for tests, promoted, alpha in ((1, 2, 0.05), (0, -1, 0.05), (1, 1, 0.0)):
        with pytest.raises(ValueError, match="must"):
            level(tests, promoted, alpha)


def test_over_many_rounds_few_of_the_promotions_are_false():
    # E-values that are as large as they may be: 1 / u for what is not better would be too large, these have mean 1.
    rng, shares, power = random.Random(5), [], 0
    for _ in range(400):
        false = true = 0
        for tests in range(40):
            better = tests % 4 == 0
            alpha = level(tests, false + true, alpha=0.2)
            e_value = 1e6 if better else (1 / alpha if rng.random() < alpha else 0.0)
            if e_value >= 1 / alpha:
                false, true = false + (not better), true + better
        shares.append(false / max(false + true, 1))
        power += true
    assert sum(shares) / len(shares) <= 0.2
    assert sum(shares) > 0
    assert power == 400 * 10


def biased(rng: random.Random, n: int, theta: float, longer: float) -> tuple[list[float], list[float]]:
    differences = [rng.gauss(longer, 80) for _ in range(n)]
    odds = (theta + 1.5 * tanh(difference / 80) for difference in differences)
    return [float(rng.random() < 1 / (1 + exp(-one))) for one in odds], differences


def test_a_judge_that_likes_length_is_seen_through():
    won, longer = biased(random.Random(1), 1500, theta=0.0, longer=60)
    found = controlled_win_rate(won, longer, resamples=200)
    assert found.raw > 0.6
    assert found.low < 0.5 < found.high
    assert found.rate == pytest.approx(0.5, abs=0.05)
    assert found.phi == pytest.approx(1.5, abs=0.4)
    assert found == controlled_win_rate(won, longer, resamples=200)
    assert win_rate_gate("judge", won, longer, resamples=200).decision == "hold"


def test_what_is_better_at_equal_length_is_promoted_though_it_is_shorter():
    won, longer = biased(random.Random(2), 800, theta=0.8, longer=-60)
    gate = win_rate_gate("judge", won, longer, resamples=200)
    assert gate.passed
    assert gate.figure == pytest.approx(0.69, abs=0.06)
    assert sum(won) / len(won) < gate.figure
    lost = win_rate_gate("judge", [1 - one for one in won], [-one for one in longer], resamples=200)
    assert lost.decision == "reject"


@pytest.mark.parametrize(
    ("won", "longer"),
    [
        ([1.0] * 200, [90.0] * 200),
        ([1.0] * 200, [float(90 + n % 5) for n in range(200)]),
        ([0.0] * 200, [-float(90 + n % 5) for n in range(200)]),
        ([1.0] * 20, [0.0] * 20),
        ([], []),
    ],
    ids=["constant", "always longer", "always shorter", "few", "none"],
)
def test_where_length_and_quality_cannot_be_parted_it_holds(won, longer):
    assert win_rate_gate("judge", won, longer, resamples=50).decision == "hold"


def test_equal_lengths_leave_the_win_rate_as_it_is():
    found = controlled_win_rate([1.0] * 60 + [0.0] * 40, [0.0] * 100, resamples=200)
    assert found.rate == pytest.approx(0.6, abs=0.001)
    # The normal interval of 60 of 100 is 0.504 to 0.696.
    assert (found.low, found.high) == (pytest.approx(0.504, abs=0.02), pytest.approx(0.696, abs=0.02))


@pytest.mark.parametrize(("won", "longer"), [([], []), ([1.0], []), ([2.0], [1.0]), ([1.0], [float("nan")])])
def test_impossible_preferences_are_refused(won, longer):
    with pytest.raises(ValueError, match="scores"):
        controlled_win_rate(won, longer)
