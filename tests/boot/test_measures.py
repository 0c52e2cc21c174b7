"""The measures, by hand on a few answers."""

from __future__ import annotations

import pytest

from aligner_chain.exchange import Exchange
from bootstrap.measures import Yardstick, criteria_changes, edit_size, share


def judge(exchanges: list[Exchange]) -> list[dict[str, bool]]:
    return [{"kind": "rude" not in one.answer, "true": "wrong" not in one.answer} for one in exchanges]


def minimal(exchanges: list[Exchange]) -> list[str]:
    return [one.answer.replace("rude", "kind").replace("wrong", "right") for one in exchanges]


YARDSTICK = Yardstick(judge=judge, minimal=minimal, garbled=lambda answer: "?" in answer)


def measured(*rows: tuple[str, str]):
    return YARDSTICK.measure([Exchange.of("q", answer) for answer, _ in rows], [text for _, text in rows])


def test_the_shares_of_four_answers() -> None:
    figures = measured(
        ("Be kind. It is right.", "Be kind. It is right."),  # right and left alone
        ("Be rude. It is right.", "Be kind. It is right."),  # repaired, and no more
        ("Be rude. It is wrong.", "Be rude. It is wrong."),  # wrong and left alone
        ("Be rude? It is wrong.", "Be kind? It is quite right."),  # repaired with a word too many
    ).figures()
    assert figures["upstream_alone"]["fully_right"] == 0.25
    assert figures["upstream_alone"]["criteria"] == {"kind": 0.25, "true": 0.5}
    assert figures["with_aligner"]["fully_right"] == 0.75
    assert figures["changed_share"] == 0.5
    assert figures["wrong_left_share"] == 0.25
    assert figures["garbled_share"] == 0.25
    # One edit of one word against one (1.0), and two edits of three words against two of two (1.5): the median is 1.25.
    assert figures["edit_ratio_vs_minimal"] == 1.25
    assert figures["unchanged_sentences_kept_share"] == 1.0


def test_a_sentence_that_needed_no_change_and_is_gone_counts_as_lost() -> None:
    rewritten = measured(("Be rude. It is right. Yours, Ann.", "Be kind. It is right. Yours, Bob."))
    assert rewritten.figures()["unchanged_sentences_kept_share"] == 0.5
    assert rewritten.right_aligned == [True]
    assert rewritten.repaired == [False]


def test_nothing_measured_is_not_a_perfect_score() -> None:
    figures = measured(("Be kind.", "Be kind.")).figures()
    assert figures["edit_ratio_vs_minimal"] is None
    assert figures["unchanged_sentences_kept_share"] is None
    assert share([]) == 0.0


@pytest.mark.parametrize(
    ("before", "after", "size"),
    [("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a c", "a b b c", 2), ("a b.", "c d.", 2)],
)
def test_an_edit_is_as_large_as_its_longer_side(before: str, after: str, size: int) -> None:
    assert edit_size(before, after) == size


def test_the_change_of_a_criterion_is_paired() -> None:
    before, after = [{"kind": False}] * 8 + [{"kind": True}] * 2, [{"kind": True}] * 9 + [{"kind": False}]
    change = criteria_changes(before, after)["kind"]
    assert (change.gained, change.lost, change.n) == (8, 1, 10)
    assert change.change == pytest.approx(0.7)
