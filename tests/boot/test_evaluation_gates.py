"""What each gate decides, what a policy makes of all of them, and what a person is told."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import run_examples

from bootstrap.evaluation import (
    Evidence,
    GatePolicy,
    GateResult,
    Preferences,
    candidate_gates,
    decide,
    explain,
    length_ratio_gate,
    limit_gate,
    non_inferiority_gate,
    null_gates,
    over_editing_gate,
    over_refusal_gate,
    share_gate,
    superiority_gate,
)


def table(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    rows = [(True, True)] * both + [(False, True)] * gained + [(True, False)] * lost + [(False, False)] * neither
    return [before for before, _ in rows], [after for _, after in rows]


GOOD = Evidence(
    right=table(1000, 300, 60, 640),
    refused=([False] * 2000, [False] * 2000),
    lengths=([100.0, 140.0] * 200, [104.0, 139.0] * 200),
)


def test_superiority_promotes_holds_and_rejects():
    assert superiority_gate("gain", *table(50, 30, 2, 20)).decision == "promote"
    assert superiority_gate("gain", *table(50, 2, 30, 20)).decision == "reject"
    held = superiority_gate("gain", *table(50, 6, 2, 42))
    assert held.decision == "hold"
    assert held.needed is not None
    rates = [round(count * held.needed / 100) for count in (50, 6, 2, 42)]
    assert superiority_gate("gain", *table(*rates)).passed
    fewer = [round(count * 0.9 * held.needed / 100) for count in (50, 6, 2, 42)]
    assert not superiority_gate("gain", *table(*fewer)).passed
    assert superiority_gate("gain", *table(50, 2, 4, 42)).needed is None


@pytest.mark.parametrize(
    ("n", "decision"), [(0, "hold"), (20, "hold"), (380, "hold"), (381, "promote"), (2000, "promote")]
)
def test_too_few_cases_for_the_margin_are_held_and_told_how_many_it_takes(n, decision):
    gate = non_inferiority_gate("regression", [True] * n, [True] * n, margin=0.01)
    assert gate.decision == decision
    assert gate.needed == (381 if 0 < n < 381 else None)
    if 0 < n < 381:
        assert "even without any change it takes 381" in explain(gate)


def test_what_is_shown_to_lose_more_than_the_margin_is_rejected():
    assert non_inferiority_gate("regression", *table(900, 3, 60, 37)).decision == "reject"
    assert non_inferiority_gate("regression", *table(900, 20, 30, 50)).decision == "hold"
    with pytest.raises(ValueError, match="allows nothing"):
        non_inferiority_gate("regression", [True], [True], margin=0)


@settings(max_examples=80)
@given(st.tuples(*[st.integers(0, 200)] * 4), st.sampled_from([0.005, 0.01, 0.05]))
def test_a_gate_decides_by_its_interval_whatever_the_table(counts, margin):
    gate = non_inferiority_gate("any", *table(*counts), margin=margin)
    assert gate.passed == (gate.n > 0 and gate.bound >= -margin)
    better, worse = (
        superiority_gate("any", *table(*one)).decision for one in (counts, [counts[i] for i in (0, 2, 1, 3)])
    )
    assert {better, worse} in ({"hold"}, {"promote", "reject"})
    if gate.decision != "hold":
        assert gate.needed is None
    elif gate.needed is not None:
        assert gate.needed > gate.n


def test_refusing_harmless_prompts_counts_as_a_loss():
    before = [False] * 1000
    assert over_refusal_gate("refusals", before, before).passed
    assert over_refusal_gate("refusals", before, [True] * 60 + [False] * 940).decision == "reject"
    assert over_refusal_gate("refusals", [True] * 60 + [False] * 940, before).passed


def test_a_share_is_decided_by_the_estimate_and_over_editing_by_the_bound():
    assert share_gate("kept", 98, 100, at_least=0.98).passed
    assert [share_gate("kept", k, 100, at_least=0.98).decision for k in (97, 80)] == ["hold", "reject"]
    decisions = {(damaged, n): over_editing_gate("edits", [True] * damaged + [False] * (n - damaged)).decision
                 for damaged, n in ((0, 100), (0, 190), (2, 1000), (19, 1000), (40, 1000))}  # fmt: skip
    assert list(decisions.values()) == ["hold", "promote", "promote", "hold", "reject"]
    assert over_editing_gate("edits", [False] * 100).needed == 189


def test_lengths_are_held_to_their_limit():
    before = [100.0, 200.0] * 50
    decisions = [
        length_ratio_gate("length", before, [factor * one for one in before]).decision for factor in (0.5, 1.15, 1.3)
    ]
    assert decisions == ["promote", "promote", "reject"]
    noisy = [one * (1.14 + 0.3 * (-1) ** (number // 2)) for number, one in enumerate(before)]
    assert length_ratio_gate("length", before, noisy).decision == "hold"
    assert length_ratio_gate("length", before[:20], before[:20]).needed == 30
    assert length_ratio_gate("length", [0.0] * 40, [3.0] * 40).decision == "hold"
    # By hand: the mean is 100, the residuals are 10 and -10 in turn, so the error is 10 * sqrt(40 / 39 / 40) / 100.
    gate = length_ratio_gate("length", [100.0] * 40, [110.0, 90.0] * 20)
    assert (gate.figure, gate.bound) == (1.0, pytest.approx(1 + 1.96 * 10 / 39**0.5 / 100))


def test_answers_may_not_collapse_either():
    """A judge of safety alone likes an upstream that says next to nothing."""
    before = [100.0, 200.0] * 50
    gates = {
        factor: length_ratio_gate("length", before, [factor * one for one in before], 1.15, 0.7)
        for factor in (0.0, 0.69, 0.7, 0.9, 1.0, 1.15, 1.16)
    }
    decisions = [gate.decision for gate in gates.values()]
    assert decisions == ["reject", "reject", "promote", "promote", "promote", "promote", "reject"]
    assert [gates[factor].threshold for factor in (0.69, 0.9, 1.0)] == [0.7, 0.7, 1.15]
    noisy = length_ratio_gate("length", [100.0] * 40, [110.0, 40.0] * 20, 1.15, 0.7)  # .75, the error .056
    assert (noisy.decision, noisy.bound) == ("hold", pytest.approx(0.75 - 1.96 * 0.35 / 39**0.5))
    assert noisy.needed == pytest.approx(40 * (1.96 * 0.35 / 39**0.5 / 0.05) ** 2, abs=1)
    assert "must lie between 0.700 and 1.150" in noisy.reason


@pytest.mark.parametrize(
    ("figure", "n", "decision"),
    [(0.4, 50, "promote"), (0.41, 50, "reject"), (None, 50, "hold"), (float("nan"), 50, "hold"), (0.1, 0, "hold")],
)
def test_a_hard_limit_must_be_measured(figure, n, decision):
    gate = limit_gate("chosen_fallen", figure, 0.4, n)
    assert gate.decision == decision
    json.dumps(asdict(gate), allow_nan=False)


def test_a_difference_of_exactly_the_limit_is_within_it():
    difference = 14 / 800 - 6 / 800
    assert difference > 0.01  # in floats
    assert limit_gate("garbled", difference, 0.01, 800).passed


def test_no_table_without_null_correctors():
    repaired, nothing = [True] * 90 + [False] * 10, [False] * 100
    gates = null_gates(repaired, {"copy": [True] * 50 + [False] * 50, "refuse": nothing, "cut": repaired})
    assert [gate.decision for gate in gates] == ["promote", "promote", "hold"]
    with pytest.raises(ValueError, match="refuse is not"):
        null_gates(repaired, {"copy": nothing})


def test_any_rejection_rejects_and_any_doubt_holds():
    good, doubt, bad = (share_gate(name, k, 100, at_least=0.98) for name, k in (("a", 100), ("b", 97), ("c", 50)))
    assert decide([good, good]).decision == "promote"
    assert decide([good, doubt]).decision == "hold"
    rejected = decide([doubt, bad, good])
    assert rejected.decision == "reject"
    assert rejected.reasons == (f"c: {bad.reason}",)
    assert decide([]).decision == "hold"


def test_the_policy_asks_for_everything_that_was_measured():
    full = replace(
        GOOD,
        criteria={"polite": table(1900, 10, 10, 80)},
        regression={"safety": table(990, 0, 0, 10)},
        preferences=Preferences(scores=[1.0, 1.0, 0.0] * 100, length_differences=[5.0, -5.0] * 150),
        damaged=[False] * 1000,
        nulls={"copy": GOOD.right[0], "refuse": [False] * 2000},
        health={"chosen_fallen": 0.1, "garbled": 0.0},
    )
    gates = candidate_gates(full, GatePolicy())
    assert [gate.name for gate in gates] == [
        "better than what is served",
        "win rate at equal length",
        "safety",
        "criterion polite",
        "harmless prompts answered",
        "length",
        "right answers not damaged",
        "Aligner against copy",
        "Aligner against refuse",
        "chosen_fallen",
        "garbled",
    ]
    assert decide(gates).decision == "promote"
    assert len(candidate_gates(GOOD, GatePolicy())) == 3


@pytest.mark.parametrize(
    ("change", "decision", "by"),
    [
        ({"right": table(1000, 60, 300, 640)}, "reject", "better than what is served"),
        ({"right": table(1300, 0, 0, 700)}, "hold", "better than what is served"),
        ({"refused": ([False] * 2000, [True] * 100 + [False] * 1900)}, "reject", "harmless prompts answered"),
        ({"refused": ([False] * 50, [False] * 50)}, "hold", "harmless prompts answered"),
        ({"lengths": ([100.0, 140.0] * 200, [160.0, 190.0] * 200)}, "reject", "length"),
        ({"criteria": {"polite": table(1800, 0, 100, 100)}}, "reject", "criterion polite"),
        ({"damaged": [True] * 50 + [False] * 950}, "reject", "right answers not damaged"),
        ({"health": {"chosen_fallen": 0.1, "garbled": None}}, "hold", "garbled"),
        ({"health": {"chosen_fallen": 0.7, "garbled": 0.0}}, "reject", "chosen_fallen"),
    ],
)
def test_one_thing_that_is_wrong_is_enough(change, decision, by):
    gates = candidate_gates(replace(GOOD, **change), GatePolicy())
    assert decide(gates).decision == decision
    assert [gate.name for gate in gates if not gate.passed] == [by]


def test_the_more_candidates_were_tested_in_vain_the_more_must_be_shown():
    evidence = replace(GOOD, right=table(1000, 65, 30, 905))
    assert candidate_gates(evidence, GatePolicy())[0].passed
    assert not candidate_gates(evidence, GatePolicy(), tests=3, promoted=0)[0].passed
    assert candidate_gates(evidence, GatePolicy(), tests=3, promoted=3)[0].passed


def test_a_gate_comes_back_from_a_ledger_and_is_explained():
    gate = superiority_gate("upstream alone", *table(50, 6, 2, 42))
    kept = json.loads(json.dumps(asdict(gate)))
    assert GateResult.of(kept) == gate
    assert (kept["passed"], kept["reason"]) == (False, gate.reason)
    assert explain(gate).splitlines() == [
        "upstream alone: hold",
        "  measured      how a share changed, served against candidate, case by case, 100 cases",
        "  found         +4.00 points over 100 cases (6 gained, 2 lost), interval -1.77 to +9.69",
        "  required      the lower 95 % bound must be above +0.00",
        "  to change it  about 200 cases in all, 100 more, if the rates stay as they are",
    ]


@pytest.mark.parametrize("text", ["\x1b[31mred", "two\nlines", "</script>"])
def test_a_name_stays_what_it_is(text):
    assert GateResult.of(asdict(limit_gate(text, 0.1, 0.4, 10))).name == text


def test_the_examples_of_the_page_run(capsys):
    page = Path(__file__).parents[2] / "docs" / "gates.md"
    run_examples(page)
    out = capsys.readouterr().out
    assert out in page.read_text(encoding="utf-8"), out
    policy = GatePolicy()
    lengths = ("length_ratio", "least_length_ratio")
    for name in ("margin", "criterion_margin", "refusal_margin", "damaged", *lengths, "most_items"):
        assert f"| `{name}` | {getattr(policy, name):g} |" in page.read_text(encoding="utf-8")
