"""The values: edits that say exactly what changed, ids in order of time, failures that can be raised."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aligner_chain.errors import EngineError
from aligner_chain.exchange import Correction, Edit, Exchange, Turn, edits_between, uuid7

texts = st.text(alphabet="ab .\nü", max_size=60) | st.text(max_size=40)


def applied(before: str, edits: tuple[Edit, ...]) -> str:
    parts, position = [], 0
    for edit in edits:
        assert before[edit.start : edit.end] == edit.before
        parts += [before[position : edit.start], edit.after]
        position = edit.end
    return "".join([*parts, before[position:]])


@given(texts, texts)
@example("the the the " * 300, "the other " * 300)
def test_the_edits_turn_the_one_text_into_the_other(before: str, after: str) -> None:
    assert applied(before, edits_between(before, after)) == after


@given(texts)
def test_the_same_text_has_no_edits(text: str) -> None:
    assert edits_between(text, text) == ()


def test_edits_are_by_words_and_as_few_as_can_be() -> None:
    edits = edits_between("It is wrong, I fear.", "It is right, I fear.")
    assert edits == (Edit(start=6, end=11, before="wrong", after="right"),)


@pytest.mark.parametrize(
    ("before", "after", "edit"),
    [
        ("今天的会议在三点开始", "今天的会议在四点开始", Edit(start=6, end=7, before="三", after="四")),
        ("送料は無料です。", "送料は有料です。", Edit(start=3, end=4, before="無", after="有")),
        ("ราคา30บาท", "ราคา90บาท", Edit(start=4, end=6, before="30", after="90")),
        ("제품은 30일 안에", "제품은 90일 안에", Edit(start=4, end=7, before="30일", after="90일")),
    ],
    ids=["Chinese", "Japanese", "Thai", "Korean"],
)
def test_where_no_spaces_part_words_edits_are_by_characters(before: str, after: str, edit: Edit) -> None:
    assert edits_between(before, after) == (edit,)


def test_a_long_chinese_text_is_compared_by_its_sentences() -> None:
    before = "".join(f"第{number}条规则在三十天内有效。" for number in range(200))
    edits = edits_between(before, before.replace("第7条规则在三十天", "第7条规则在九十天"))
    assert [(edit.before, edit.after) for edit in edits] == [("三", "九")]


@pytest.mark.parametrize(
    ("before", "after", "most"),
    [
        ("It never rains here, as you know. " * 500, "It never rains here, as you know. " * 499 + "No.", 2),
        ("word " * 40_000, "word " * 39_000 + "x " + "word " * 500, 1),
        ("a b " * 20_000, "b a " * 20_000, 1),
        ("\n".join(map(str, range(9000))), "\n".join(map(str, range(1, 9000, 2))), 9000),
    ],
    ids=["sentences", "one word", "two words", "lines"],
)
def test_long_texts_that_repeat_themselves_take_no_minutes(before: str, after: str, most: int) -> None:
    edits = edits_between(before, after)
    assert applied(before, edits) == after
    assert 0 < len(edits) <= most


def test_a_word_in_a_long_text_is_one_edit() -> None:
    before = " ".join(f"This is sentence {number}, and it is long." for number in range(400))
    after = before.replace("sentence 200,", "line 200,").replace("sentence 7,", "line 7,")
    assert [(one.before, one.after) for one in edits_between(before, after)] == [("sentence", "line")] * 2


def test_a_text_that_repeats_itself_is_compared_at_once() -> None:
    """Compared in full this takes minutes, and a looping upstream writes such texts."""
    before, after = "!" * 30_000, "[" * 10_000 + "!" * 20_000
    assert applied(before, edits_between(before, after)) == after


def correction(before: str, after: str, **fields: object) -> Correction:
    values = {"outcome": "corrected", "edits": edits_between(before, after), **fields}
    return Correction(exchange=Exchange.of("q", before), text=after, **values)  # type: ignore[arg-type]


def test_a_diff_shows_what_went_and_what_came() -> None:
    assert correction("a b c", "a x c d").diff() == "a [-b-]{+x+} c{+ d+}"


def test_an_explanation_is_one_line() -> None:
    told = correction("a b", "a c", criteria=("true", "kind"), scores={"keep": 0.125}).explain()
    assert told == "corrected (true, kind), 1 edit, keep 0.12"
    assert (
        correction("a", "a", outcome="skipped", reason="the answer is empty").explain()
        == "skipped (the answer is empty)"
    )


def test_only_a_failure_is_raised() -> None:
    good = correction("a", "b")
    assert good.raise_for_failure() is good
    failed = correction("a", "a", outcome="failed", error=EngineError("the engine broke"))
    with pytest.raises(EngineError, match="the engine broke"):
        failed.raise_for_failure()


def test_the_question_is_the_last_user_turn() -> None:
    turns = (Turn(role="user", text="one"), Turn(role="assistant", text="a"), Turn(role="user", text="two"))
    assert Exchange(turns=turns, answer="").question == "two"
    assert Exchange(turns=(Turn(role="system", text="s"),), answer="").question == ""


def test_values_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Turn(role="user", text="x").text = "y"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Turn("user", "x")  # type: ignore[misc]


def test_ids_are_version_7_and_in_order_of_time() -> None:
    ids = [uuid7() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(isinstance(one, UUID) and (one.version, one.variant) == (7, ids[0].variant) for one in ids)
    assert [one.int >> 80 for one in ids] == sorted(one.int >> 80 for one in ids)


def test_a_text_that_goes_round_in_circles_is_compared_without_its_circles() -> None:
    """To look for the best alignment of what is the same everywhere takes seconds; what is seldom is found all the same."""
    circles = "a b c " * 165
    assert len(edits_between(f"Well, {circles}", f"Good, {circles}")) == 1
    before, after = circles, "a c b " * 160
    [edit] = edits_between(before, after)
    assert f"{before[: edit.start]}{edit.after}{before[edit.end :]}" == after
    rows = [f'{{"a": {number}, "b": 2}},\n' for number in range(60)]
    changed = [row.replace("2}", "3}") if number in (7, 50) else row for number, row in enumerate(rows)]
    assert [edit.after for edit in edits_between("".join(rows), "".join(changed))] == ["3", "3"]
