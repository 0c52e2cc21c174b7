import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner_chain.engines import drafting
from aligner_chain.engines.drafting import (
    COMBS,
    CPU_BF16,
    CPU_FP32,
    FIRST,
    RUNS,
    CostCurve,
    Drafter,
    comb_size,
    first_draft,
    run_length,
)

EOS, STOP = 99, 7
CURVES = st.sampled_from([CPU_BF16, CPU_FP32])
TEXTS = st.lists(st.integers(0, 11), max_size=60)
MOST = max(RUNS) + max(COMBS)


def accepted(branches, coming):
    """What a decoder hands back: the agreeing tokens of the one branch that begins right, and the token behind them."""
    for branch in branches:
        count = 0
        while count < min(len(branch), len(coming)) and branch[count] == coming[count]:
            count += 1
        if count:
            return coming[: count + 1]
    return coming[:1]


def decode(drafter, output, room=1000, beside=0):
    """Writes `output` with the drafter's help; returns the proposals, one a forward."""
    proposals, written = [], 0
    while written < len(output):
        proposals.append(drafter.propose(room, beside=beside))
        tokens = accepted(proposals[-1], output[written:])
        written += len(tokens)
        drafter.advance(tokens)
    return proposals


def drafted(proposals):
    return sum(len(branch) for branches in proposals for branch in branches)


def cost(proposals, curve):
    return sum(curve.cost(1 + sum(map(len, branches))) for branches in proposals)


def after(original, written, **options):
    """What is proposed behind `written`, of which nothing had been accepted from a proposal."""
    drafter = Drafter([*original, EOS], ends={STOP}, curve=CPU_BF16, **options)
    drafter.propose(100)
    drafter.advance(written)
    return drafter.propose(100)


@st.composite
def edits(draw):
    """A text and the same text after some random edits."""
    text = draw(TEXTS)
    edited = list(text)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(edited)))
        edited[start : start + draw(st.integers(0, 6))] = draw(st.lists(st.integers(0, 14), max_size=6))
    return text, edited


@given(edits(), st.lists(st.integers(0, 11) | st.just(EOS), max_size=40), CURVES, st.data())
@settings(max_examples=300)
def test_every_proposal_is_well_formed_and_the_same_again(pair, context, curve, data):
    original, output = [*pair[0], EOS], [*pair[1], EOS]
    room, beside, first = (data.draw(st.integers(1, most)) for most in (80, 70, 70))
    options = {"context": context, "ends": {STOP}, "curve": curve, "first": first}
    proposals = decode(Drafter(original, **options), output, room, beside)
    for branches in proposals:
        assert all(1 <= len(branch) <= room for branch in branches)
        assert len({branch[0] for branch in branches}) == len(branches)
        assert all(EOS not in branch[:-1] for branch in branches)
        assert sum(map(len, branches)) <= max(MOST, first)
    assert proposals == decode(Drafter(original, **options), output, room, beside)


@given(TEXTS, st.lists(st.lists(st.integers(0, 20) | st.just(EOS), min_size=1, max_size=9), max_size=30), CURVES)
def test_tokens_that_nobody_proposed_are_taken_too(original, chosen, curve):
    drafter = Drafter([*original, EOS], ends={STOP}, curve=curve)
    for tokens in chosen:
        drafter.advance(tokens)
        drafter.propose(10)


def test_without_room_nothing_is_drafted():
    assert Drafter([1, 2, EOS], curve=CPU_BF16).propose(0) == ()


@given(st.integers(0, 300), st.integers(1, 40), CURVES)
def test_a_copy_takes_one_forward_for_each_doubling_of_the_first_draft(length, first, curve):
    original = [*range(1000, 1000 + length), EOS]
    forwards, written, size = 0, 0, first
    while written < len(original):
        forwards, written, size = forwards + 1, written + size + 1, size * 2
    proposals = decode(Drafter(original, curve=curve, first=first), original)
    assert len(proposals) == forwards
    assert drafted(proposals) <= len(original)


def test_a_short_copy_takes_one_forward():
    assert decode(Drafter([1, 2, 3, EOS], curve=CPU_FP32), [1, 2, 3, EOS]) == [((1, 2, 3, EOS),)]


@given(st.integers(1, 400), st.integers(1, 300), st.integers(1, 300), CURVES)
def test_a_rewrite_costs_the_first_draft_and_three_more_at_most(length, first, written, curve):
    original, output = [*range(1000, 1000 + length), EOS], [*range(5000, 5000 + written), EOS]
    proposals = decode(Drafter(original, curve=curve, first=first), output)
    assert drafted(proposals[:1]) <= first
    assert len([branches for branches in proposals[1:] if branches]) <= 3
    assert proposals[4:] == [()] * len(proposals[4:])


def test_a_first_draft_is_as_long_as_it_may_cost():
    assert first_draft(CostCurve.measured({1: 1, 64: 1.05, 256: 1.5})) == FIRST
    assert (
        first_draft(CostCurve.measured({1: 2, 101: 22})) == 80
    )  # a fifth of a unit each, and eight forwards cost sixteen
    assert first_draft(CostCurve.measured({1: 1, 2: 100})) == 1


@pytest.mark.parametrize("curve", [CPU_BF16, CPU_FP32])
def test_a_long_rewrite_costs_five_percent_at_most(curve):
    dice = random.Random(0)
    original, output = ([dice.randrange(low, low + 5000) for _ in range(300)] + [EOS] for low in (1000, 3000))
    proposals = decode(Drafter(original, context=original, curve=curve), output)
    assert cost(proposals, curve) <= 1.05 * len(output) * curve.cost(1)


@pytest.mark.parametrize("curve", [CPU_BF16, CPU_FP32])
def test_light_edits_are_several_times_faster(curve):
    original = [*range(1000, 1200), EOS]
    output = [
        *original[:50],
        1,
        *original[51:120],
        *original[124:],
    ]
    proposals = decode(Drafter(original, curve=curve), output)
    assert len(proposals) <= 8
    assert cost(proposals, curve) * 5 < len(output) * curve.cost(1)


def test_behind_a_replaced_token_the_answer_goes_on():
    assert after([1, 2, 3, 4, 5, 6], [1, 2, 50])[0][:2] == (4, 5)


def test_behind_two_replaced_tokens_the_answer_goes_on():
    assert (5, 6, EOS) in after([1, 2, 3, 4, 5, 6], [1, 2, 50, 51])


def test_a_deletion_is_found_by_the_token_behind_it():
    assert (6, 8, EOS) in after([1, 2, 3, 4, 5, 6, 8], [1, 2, 5])


def test_an_inserted_sentence_is_followed_by_the_next_one_of_the_answer():
    assert after([1, 2, STOP, 3, 4, STOP, 5], [1, 2, STOP, 20, 21, 22, 23, STOP])[0][:3] == (3, 4, STOP)


def test_three_tokens_tell_the_place_and_the_nearest_counts():
    original = [1, 2, 3, 10, *range(20, 40), 1, 2, 3, 11, *range(40, 60), 1, 2, 3, 12]
    drafter = Drafter([*original, EOS], curve=CPU_BF16)
    drafter.propose(100)
    drafter.advance(original[:30])
    drafter.advance([70, 71, 1, 2, 3])
    assert drafter.propose(100)[0][:2] == (11, 40)


def test_what_the_prompt_or_the_output_said_before_is_proposed_latest_first():
    context = [50, 51, 52, 53]
    assert (52, 53) in [branch[:2] for branch in after([1, 2, 3], [60, 61, 62, 50, 51], context=context)]
    written = [50, 51, 80, 81, 82, 83, 50, 51]
    assert after([1, 2, 3], written, context=context)[0][:2] == (80, 81)


def test_frequent_tokens_of_the_answer_are_tried_alone():
    assert (3,) in after([3, 1, 3, 2, 3, 4, 3, 5], [60, 61, 62, 1, 63])


def test_nothing_stands_behind_an_end_of_text_in_the_prompt():
    assert (52, EOS) in after([1, 2, 3], [60, 61, 62, 50, 51], context=[50, 51, 52, EOS, 53])


@pytest.mark.parametrize("beside", [0, 7, 31])
@pytest.mark.parametrize("run", [0, 1, 20, 255])
@pytest.mark.parametrize("curve", [CPU_BF16, CPU_FP32])
def test_the_length_of_a_run_is_nearly_the_best_one(curve, run, beside):
    def rate(size):
        right = sum((run / (run + 1)) ** place for place in range(1, size + 1))
        return (beside + 1 + right) / curve.cost(beside + 1 + size)

    assert rate(run_length(curve, run, beside)) >= 0.95 * max(map(rate, RUNS)) - 1e-9


def test_drafts_follow_the_cost():
    free, dear = CostCurve.measured({1: 1.0, 1000: 1.0}), CostCurve.measured({1: 1.0, 1000: 1000.0})
    assert (run_length(free, 100, 0), comb_size(free, 1.0, 0)) == (max(RUNS), max(COMBS))
    assert (run_length(dear, 1, 0), comb_size(dear, 0.5, 0)) == (1, 0)
    assert comb_size(CPU_BF16, 0.0, 0) == comb_size(CPU_FP32, 0.0, 0) == 0


def test_a_full_batch_drafts_less():
    assert comb_size(CPU_FP32, 0.6, 63) < comb_size(CPU_BF16, 0.6, 0)
    assert run_length(CPU_FP32, 20, 63) <= run_length(CPU_FP32, 20, 0)


@given(st.dictionaries(st.integers(1, 500), st.floats(0.1, 100), min_size=1, max_size=8))
def test_a_cost_curve_runs_through_its_highest_points_and_never_falls(points):
    curve = CostCurve.measured(points)
    costs = [curve.cost(tokens) for tokens in range(1, 700)]
    assert all(low <= high + 1e-9 for low, high in pairwise(costs))
    for tokens in points:
        assert curve.cost(tokens) == pytest.approx(max(points[other] for other in points if other <= tokens))


def test_a_cost_curve_is_a_line_between_points_and_beyond_them():
    curve = CostCurve.measured({1: 1.0, 5: 3.0, 9: 4.0})
    assert [curve.cost(tokens) for tokens in (1, 3, 5, 7, 9, 13)] == [1.0, 2.0, 3.0, 3.5, 4.0, 5.0]
    assert CostCurve.measured({4: 2.0}).cost(100) == 2.0


@pytest.mark.parametrize("points", [{}, {1: 0.0}])
def test_a_cost_curve_needs_costs(points):
    with pytest.raises(ValueError, match="a cost curve needs points"):
        CostCurve.measured(points)


@given(st.integers(0, 5000))
def test_rounding_the_batch_keeps_its_size(tokens):
    assert 0.75 * tokens <= drafting._rounded(tokens) <= tokens
