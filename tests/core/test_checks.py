"""The checks: for each one a case that it catches and one that it lets pass; what is put back is the original's bytes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import desk_repairs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aligner_chain.checks as room
from aligner_chain.checkpoint import AlignerMetadata, read_metadata, write_metadata
from aligner_chain.checks import CHECKS, Checks
from aligner_chain.checks.alignment import Alignment, applied
from aligner_chain.cli import main
from aligner_chain.errors import CheckpointError, ConfigurationError
from aligner_chain.exchange import Correction, Edit, Exchange, edits_between

checks = Checks()

CODE = "Use this:\n\n```python\nprint('hello')\nprint('world')\n```\n\nThat is all there is to it, really."
TABLE = "Prices are:\n\n| size | price |\n|---|---|\n| small | 5 |\n| large | 9 |\n\nAll of them include tax."
LINK = "The rules are at https://example.com/rules, so read them. A return takes ten days."
POLICY = "A kettle can be returned within 30 days of its delivery."
LONG = "The committee met on Monday and spoke about the budget of the coming year. " * 8


def written(
    answer: str, text: str, *, question: str = "Is it?", context: tuple[str, ...] = (), **rest: Any
) -> Correction:
    exchange = Exchange.of(question, answer, context=context)
    return Correction(exchange=exchange, text=text, outcome="corrected", edits=edits_between(answer, text), **rest)


def only(check: str, action: str) -> Checks:
    return dataclasses.replace(Checks.off(), **{check: action})


CAUGHT: list[tuple[str, str, str, dict[str, Any]]] = [
    ("code", CODE, "Use this: call print twice. That is all there is to it, really.", {}),
    ("code", CODE, CODE.replace("print('hello')\nprint('world')", ""), {}),
    ("code", CODE, CODE.replace("\n```\n", "\n"), {}),
    ("code", f"```\n{'old code that is left ' * 4}\n```", f"```\n{'something else to be run ' * 4}\n```", {}),
    ("code", CODE, CODE.replace("```python", "```"), {}),
    ("code", "````\n```py\nx = 1\n```\n````", "````\nx = 1\n````", {}),
    ("code", "It is so.", "It is so:\n```\nx = 1", {}),
    ("inline_code", "Run `make test` first, then push.", "Run it first, then push.", {}),
    ("links", LINK, LINK.replace(" at https://example.com/rules", ""), {}),
    ("links", LINK, LINK.replace("example.com", "docs.example.com"), {}),
    ("links", "See [the page](docs/rules.md) for it.", "See the page for it.", {}),
    ("quotes", f'It says "{POLICY[:-1]}".', f'It says "{POLICY[:-1].replace("30", "60")}".', {"context": (POLICY,)}),
    ("citations", "It is free [1]. It is blue [2].", "It is free. It is blue [2].", {"context": ("a", "b")}),
    ("citations", "It is free [1]. It is blue.", "It is blue.", {"context": ("a", "b")}),
    ("citations", "It is free [1].", "It is not free [1] [7].", {"context": ("a", "b")}),
    ("citations", "It grew fast (Smith et al., 2020).", "It grew slowly.", {}),
    ("json", '{"a": 1, "b": [2]}', 'Here it is: {"a": 1, "b": [2]}', {}),
    ("json", "[1]", '{"a": 1}', {}),
    ("json", 'Sure:\n```json\n{"a": 1}\n```\n', 'Sure:\n```json\n{"a": 2\n```\n', {}),
    ("tables", TABLE, "Prices are 5 for small and 9 for large. All of them include tax.", {}),
    (
        "tables",
        TABLE,
        TABLE.replace(" price |", "").replace("|---|---|", "|---|").replace(" 5 |", "").replace(" 9 |", ""),
        {},
    ),
    ("tables", TABLE, TABLE.replace("| large | 9 |", "| large 9 |"), {}),
    ("numbers", "It takes two weeks. The fee is 12 euros, due at once.", "It takes two weeks.", {}),
    ("numbers", "It weighs about 12 kg in all.", "It weighs about in all.", {}),
    ("names", "Ask Priya at the desk.", "Ask at the desk.", {"question": "Where is Priya today?"}),
    ("script", "It is not possible to return it.", "無法退回這個產品因為已經超過了退貨的期限請您諒解謝謝", {}),
    ("script", "Add salt and pepper.", "Add salt, и pepper.", {}),
    ("script", "Add salt and pepper.", "Add salt和pepper, please.", {}),
    ("script", "It was fine in the 1960s and 1970s.", "It was good in the 1960s и 1970s, they say.", {}),
    ("script", "Add salt and pepper.", "Add a pіnch of salt.", {}),
    ("script", "Salz und Pfeffer nach Belieben dazu.", "Salz และ Pfeffer nach Belieben dazu.", {}),
    (
        "language",
        LONG,
        "Der Rat hat nicht über das Geld und die Kosten gesprochen, und das ist nicht gut für die Stadt. " * 3,
        {},
    ),
    ("length", LONG * 3, "Yes.", {}),
    ("length", "Yes.", LONG * 3, {}),
    ("refusal", "Mix the two and stir.", "I'm sorry, but I can't help with that.", {}),
    ("refusal", "I cannot help with that.", "Mix the two and stir.", {}),
    ("leftovers", "It is free.", "Corrected answer: It is not free.", {}),
    ("leftovers", "It is free.", "It is not free. ASSISTANT:", {}),
    ("leftovers", "It is free.", "It is not free.<|im_end|>", {}),
    ("leftovers", "It is free.", "Sure! Here's the revised answer: It is not free.", {}),
    ("leftovers", "It is free.", "<think>Is it?</think>\nIt is not free.", {}),
    ("links", "详情见https://example.com/a。三十天内可退。", "三十天内可退。", {}),
    ("json", "42", "It is 42.", {}),
    ("repetition", "It is free for all.", "It is not free for anyone at all. " * 12, {}),
    ("repetition", "It is free.", "It is a" + "a" * 60, {}),
    ("ending", "It is free for all of you.", "It is not free for", {}),
]

PASSED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("code", CODE, CODE.replace("'world'", "'there'"), {}),
    ("code", CODE, f"First. {CODE.replace('python', 'py')}\n\n```\nmore\n```", {}),
    ("code", "```\nx = 1\n```", "```\ny = 2\n```", {}),
    ("inline_code", "Run `make test` first, then push.", "Run `make check` first, then push.", {}),
    ("inline_code", "Run `make test` first.", "Run the target test of make first.", {}),
    ("links", LINK, LINK.replace("The rules", "All rules").replace("ten", "five"), {}),
    ("links", LINK, LINK.replace("example.com", "a.example"), {"question": "What is https://a.example/rules?"}),
    ("quotes", f'It says "{POLICY[:-1]}".', f'There it says "{POLICY[:-1]}", no more.', {"context": (POLICY,)}),
    ("quotes", 'They said "all of this is free".', 'They said "nothing of this is free".', {"context": (POLICY,)}),
    ("quotes", f'No. It says "{POLICY}" I think.', "No.", {"context": (POLICY,)}),
    ("citations", "It is free [1]. It is blue [2].", "It is blue [2].", {"context": ("a", "b")}),
    ("citations", "It is free [1]. It is blue [2].", "It is free [2]. It is blue [2].", {"context": ("a", "b")}),
    ("citations", "nums = [1]\nreturn nums[0]", "nums = [0]\nreturn nums", {}),
    ("json", '{"a": 1, "b": [2]}', '{"a": 3, "b": []}', {}),
    ("json", "It is 5.", "It is 6.", {}),
    ("json", '"Sweet Memories at Every Scoop"', "Sweet Memories, One Scoop at a Time", {}),
    (
        "links",
        "见 https://example.com/a、https://example.com/b。",
        "见 https://example.com/b，https://example.com/a。",
        {},
    ),
    ("links", "详情见https://example.com/a。三十天。", "详情见https://example.com/a，九十天。", {}),
    ("leftovers", "It is x.", "Here is the corrected code: it is y.", {}),
    ("tables", TABLE, TABLE.replace("9", "8"), {}),
    ("tables", TABLE, TABLE.replace("| large | 9 |", "| large | 9 |\n| huge | 12 |"), {}),
    ("numbers", "The fee is 12 euros, due at once.", "The fee is 15 euros, due at once.", {}),
    ("numbers", "The fee is 12 euros, due at once.", "The fee is waived, not due at once.", {}),
    ("numbers", "1. The first.\n2. The second.", "The first. The second.", {}),
    ("names", "Ask Priya at the desk.", "Ask PRIYA at home.", {"question": "Where is Priya today?"}),
    ("names", "What a day at the desk.", "A day at the desk.", {"question": "What now?"}),
    ("script", "It is not possible to return it.", "你好 means hello to all who speak it.", {}),
    ("script", "Shuri Castle is in Naha.", "Shuri Castle (首里城) is in Naha, on Okinawa.", {}),
    ("script", "The kanji wa means peace.", "The kanji 和 (wa) means peace and harmony.", {}),
    ("script", "Say khleb i maslo for it.", "Say it in Russian: хлеб и масло, thank you.", {}),
    ("script", "The area of it is 2 * r.", "The area is πr², with Δr in μm and α for the angle.", {}),
    ("script", "Это стоит 5 евро за штуку.", "Это IT-услуга и стоит 5 евро за штуку.", {"question": "Кто это?"}),
    ("script", "Это наш ИТ-отдел, он работает.", "Это наш ITшник, он работает.", {"question": "Кто это?"}),
    ("script", "이것은 A 또는 B입니다.", "이것은 A 和 B입니다.", {}),
    ("script", "Add salt and pepper.", "Add Salt и Pepper.", {"context": ("The band is called Salt и Pepper.",)}),
    (
        "script",
        "It is not at all possible to return it.",
        "Вернуть товар уже нельзя",
        {"question": "Можно вернуть товар?"},
    ),
    ("language", LONG, LONG.replace("Monday", "Friday"), {}),
    ("length", "Yes.", "Yes, and you have thirty days to send it back to us.", {}),
    ("refusal", "Mix the two and stir.", "Mix the two, but do not stir.", {}),
    ("leftovers", "USER: hi ASSISTANT: hello", "USER: hi ASSISTANT: hello there", {}),
    ("leftovers", "One answer for each.", "Each user: one answer.", {}),
    ("repetition", "It is free. " * 40, "It is not free. " * 40, {}),
    ("ending", "It is free for all", "It is not free for all", {}),
    ("ending", "It is free.", "```\nx = 1\n```", {}),
]


@pytest.mark.parametrize(("check", "answer", "text", "rest"), CAUGHT)
def test_damage_is_caught(check: str, answer: str, text: str, rest: dict[str, Any]) -> None:
    served = only(check, "keep")(written(answer, text, **rest))
    assert (served.outcome, served.text, served.edits) == ("kept", answer, ())
    assert {(finding.check, finding.action) for finding in served.findings} == {(check, "keep")}
    assert served.reason.startswith(served.findings[0].message)


@pytest.mark.parametrize(("check", "answer", "text", "rest"), PASSED)
def test_what_is_no_damage_passes(check: str, answer: str, text: str, rest: dict[str, Any]) -> None:
    served = only(check, "keep")(written(answer, text, **rest))
    assert (served.outcome, served.text, served.findings) == ("corrected", text, ())


def test_every_check_has_both_cases() -> None:
    assert {check for check, *_ in CAUGHT} == {check for check, *_ in PASSED} == set(CHECKS)
    assert set(CHECKS) <= {field.name for field in dataclasses.fields(Checks)}


@pytest.mark.parametrize(("check", "answer", "text", "rest"), CAUGHT)
def test_each_action_does_what_it_says(check: str, answer: str, text: str, rest: dict[str, Any]) -> None:
    warned = only(check, "warn")(written(answer, text, **rest))
    assert (warned.outcome, warned.text) == ("corrected", text)
    assert {(finding.check, finding.action) for finding in warned.findings} == {(check, "warn")}
    off = Checks.off()(written(answer, text, **rest))
    assert (off.outcome, off.text, off.findings) == ("corrected", text, ())


RESTORED = [
    (LINK, LINK.replace("https://example.com/rules", "our site").replace("ten", "five"), LINK.replace("ten", "five")),
    (LINK, LINK.replace("example.com", "rules.example").replace("ten", "five"), LINK.replace("ten", "five")),
    (CODE, CODE[:10] + "\n" + CODE[62:].replace("really", "indeed"), CODE.replace("really", "indeed")),
    (CODE, CODE.replace("```python", "```").replace("world", "there"), CODE.replace("world", "there")),
    (CODE, CODE.replace("\n```\n", "\n").replace("world", "there"), CODE.replace("world", "there")),
    (TABLE, TABLE.replace("| large | 9 |", "| large 9 |").replace("tax", "VAT"), TABLE.replace("tax", "VAT")),
    ("Run `make test` first, then push.", "Run it first, then pull.", "Run `make test` first, then pull."),
    (
        "Read:\n```json\n[1]\n```\nIt is old.",
        "Read:\n```json\n[1\n```\nIt is new.",
        "Read:\n```json\n[1]\n```\nIt is new.",
    ),
]


@pytest.mark.parametrize(("answer", "text", "expected"), RESTORED)
def test_what_is_put_back_is_the_originals_bytes_and_the_rest_is_served(answer: str, text: str, expected: str) -> None:
    served = checks(written(answer, text))
    assert (served.outcome, served.text) == ("corrected", expected)
    assert {finding.action for finding in served.findings} == {"restore"}
    assert applied(answer, served.edits) == served.text
    found = served.findings[0]
    assert answer[found.start : found.end] in served.text


def test_a_deleted_citation_comes_back_with_its_space() -> None:
    served = checks(written("It is free [1]. It is blue [2].", "It is not free. It is blue [2].", context=("a", "b")))
    assert served.text == "It is not free [1]. It is blue [2]."


def test_of_a_deletion_only_the_sentence_of_the_link_comes_back() -> None:
    answer = (
        f"We are open all day. You are a fool to ask. {LINK} Goodbye, and never come again, you fool. It closes at ten."
    )
    served = checks(written(answer, "We are open all day. It closes at ten."))
    assert served.text == f"We are open all day. {LINK.partition('. ')[0]}. It closes at ten."


def test_where_the_place_is_not_known_the_original_is_served() -> None:
    served = checks(written(LINK, "Nobody knows. Perhaps somebody at the counter can tell you what holds today."))
    assert (served.outcome, served.text, served.reason) == ("kept", LINK, "a link is lost")
    assert [finding.action for finding in served.findings if finding.check == "links"] == ["keep"]


HERE = LINK.replace("at https://example.com/rules", "here")
UNPLACED = {
    "most of the correction is new": (LINK, f"{HERE} {'But nobody can say what it will be like then. ' * 4}"),
    "what stood around the link is new": (
        LONG + "Go to the page https://example.com/rules for all of it. " + LONG,
        LONG + "Ask at a desk, downstairs, about any such thing. " + LONG,
    ),
    "the words beside it are new": (
        f"{LONG}{'old1 to old2 at ' * 5}https://example.com/rules {'old3 by old4 so ' * 5}{LONG}",
        f"{LONG}{'new1 to new2 at ' * 5}{'new3 by new4 so ' * 5}{LONG}",
    ),
    "what took its place took much else": (
        f"{LONG}See https://example.com/rules now. {'It has a clause for every case. ' * 5}{LONG}",
        f"{LONG}Unavailable!{LONG.replace('Monday', 'Friday')}",
    ),
}


@pytest.mark.parametrize("case", UNPLACED)
def test_a_link_is_put_back_only_where_it_certainly_stood(case: str) -> None:
    answer, text = UNPLACED[case]
    served = only("links", "restore")(written(answer, text))
    assert (served.outcome, served.text) == ("kept", answer)


def test_a_correction_that_is_damage_alone_is_no_correction() -> None:
    served = checks(written(LINK, LINK.replace("example.com", "rules.example")))
    assert (served.outcome, served.text, served.edits) == ("kept", LINK, ())


def test_a_restored_text_is_looked_at_again() -> None:
    """What is put back holds the other half of a fence, which would swallow the rest of the answer."""
    answer = f"{LINK} That is where the rules are.\n```\nx = 1\n```\nIt is old, and it has been so for very long."
    text = f"{LINK.replace('https://example.com/rules', '```')} That is where the rules are.\n```\nx = 1\n```\nIt is new, and so on."
    served = checks(written(answer, text))
    assert served.outcome == "kept" or "https://example.com/rules" in served.text
    assert served.text.count("```") == 2


def test_reasons_count_and_messages_hold_no_text() -> None:
    answer = "Both are at https://a.example/one and at https://a.example/two, I am told."
    served = checks(written(answer, "I was not told about anything of the kind, and neither were you, so do not ask."))
    assert served.reason == "a link is lost (2 times)"
    assert not any("example" in finding.message for finding in served.findings)
    assert [answer[finding.start : finding.end] for finding in served.findings if finding.check == "links"] == [
        "https://a.example/one",
        "https://a.example/two",
    ]


def test_punctuation_of_another_script_is_a_warning() -> None:
    served = Checks()(written("Dry it, fold it and store it.", "Dry it，fold it and store it。"))
    assert served.outcome == "corrected"
    assert [(one.check, one.action) for one in served.findings] == [("script", "warn")]
    for answer, text in (
        ("请打开Word，然后保存。", "请打开Excel，然后保存。"),
        ("It is dry.", "It is dry, and 折疊。"),
    ):
        assert Checks()(written(answer, text)).findings == ()


def test_fewer_keys_of_json_are_a_warning() -> None:
    served = checks(written('{"a": 1, "b": 2}', '{"a": 1}'))
    assert served.outcome == "corrected"
    assert ("json", "warn") in {(finding.check, finding.action) for finding in served.findings}


@pytest.mark.parametrize("outcome", ["approved", "kept", "skipped", "failed"])
def test_only_what_was_corrected_is_looked_at(outcome: str) -> None:
    correction = dataclasses.replace(written(LINK, "No."), outcome=outcome, text=LINK, edits=())
    assert checks(correction) is correction


def test_edits_that_do_not_fit_are_made_anew() -> None:
    correction = dataclasses.replace(written("It is free.", "It is not free."), edits=())
    served = checks(correction)
    assert (served.text, applied("It is free.", served.edits)) == ("It is not free.", "It is not free.")


def test_a_criterion_may_delete() -> None:
    text = LINK.replace(" at https://example.com/rules", "")
    lenient = Checks(may_delete={"toxic": ("links",)}).allowing({"private": ("code",)})
    assert lenient(written(LINK, text, criteria=("toxic",))).text == text
    assert lenient(written(LINK, text, criteria=("private",))).text != text
    assert lenient(written(LINK, text)).text != text
    with pytest.raises(ConfigurationError, match=r"'liinks'.*links"):
        checks.allowing({"toxic": ("liinks",)})


def test_the_checkpoint_declares_what_a_criterion_may_delete(tmp_path: Path) -> None:
    metadata = AlignerMetadata(
        name="a", version="1", template="aligner-chain/1", may_delete={"toxic": ("links", "quotes")}
    )
    write_metadata(tmp_path, metadata)
    assert read_metadata(tmp_path).may_delete == {"toxic": ("links", "quotes")}
    values = json.loads((tmp_path / "aligner.json").read_text(encoding="utf-8"))
    for wrong, said in ({"toxic": ["spelling"]}, "no check 'spelling'.*links"), (["toxic"], "not an object of lists"):
        (tmp_path / "aligner.json").write_text(json.dumps({**values, "may_delete": wrong}), encoding="utf-8")
        with pytest.raises(CheckpointError, match=said):
            read_metadata(tmp_path)
    del values["may_delete"]
    (tmp_path / "aligner.json").write_text(json.dumps(values), encoding="utf-8")
    assert read_metadata(tmp_path).may_delete == {}


def test_an_unknown_action_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"links cannot be 'always'.*off, warn, restore, keep"):
        Checks(links="always")  # type: ignore[arg-type]


@pytest.mark.parametrize(("action", "outcome"), [("warn", "corrected"), ("restore", "kept"), ("keep", "kept")])
def test_a_check_that_fails_guards_as_it_was_set_to(action: str, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pair: object) -> Iterator[Any]:
        raise ZeroDivisionError("secret text")

    monkeypatch.setattr(room, "CHECKS", {**CHECKS, "links": broken})
    served = only("links", action)(written("It is free.", "It is not free."))
    assert served.outcome == outcome
    assert [finding.message for finding in served.findings] == ["the check links failed with ZeroDivisionError"]


# --- whatever the text -------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    ["```", "```py\n", "`", "\n", " ", "[1]", "[", "](", ")", "https://a.b/c", "|", "|-|-|\n", "| a | b |\n", '"', "“", "”",
     "> ", "word", "The", "12", "12 km", ". ", "{", '"a": 1', "}", "<|x|>", "~~~", "(Smith 2020)", "中", "я", "\r", "\x00"]
)  # fmt: skip
texts = st.text(max_size=80) | st.lists(pieces, max_size=40).map("".join)


@given(texts, texts, texts, st.booleans())
@settings(max_examples=300)
def test_no_text_makes_a_check_fail_and_what_is_served_is_intact(
    before: str, after: str, source: str, mix: bool
) -> None:
    after = before[: len(before) // 2] + after + before[len(before) // 2 :] if mix else after
    correction = written(before, after, question=source, context=(source,))
    served = checks(correction)
    assert not any("failed with" in finding.message for finding in served.findings)
    assert applied(before, served.edits) == served.text
    if served.outcome == "corrected":
        assert not any(finding.action == "keep" for finding in served.findings)
        assert all(finding.action == "warn" for finding in checks(dataclasses.replace(served, findings=())).findings)
    else:
        assert served.text == before


@given(texts, texts, st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=4))
def test_what_is_restored_stands_in_the_text_again(before: str, after: str, places: list[tuple[int, int]]) -> None:
    ranges = [(min(start, len(before)), min(start + size, len(before))) for start, size in places]
    edits = Alignment(before, edits_between(before, after)).restored(ranges)
    text = applied(before, edits)
    assert all(before[start:end] in text for start, end in ranges)


@given(texts, texts, st.integers(0, 300), st.integers(0, 100))
def test_survival_counts_what_no_edit_touches(before: str, after: str, start: int, size: int) -> None:
    edits = edits_between(before, after)
    end = min(start + size, len(before))
    removed = {position for edit in edits for position in range(edit.start, edit.end)}
    here = range(start, end)
    expected = sum(position not in removed for position in here) / len(here) if here else 1.0
    assert Alignment(before, edits).survival(start, end) == pytest.approx(expected)


def test_a_long_answer_takes_about_a_second() -> None:
    link = "https://a.example/77 "
    answer = "".join(
        f"Step {n} of all of them {'is as long as any other ' * 14}[1].\n\n```py\n{n} + 1\n```\nSee https://a.example/{n} for `x{n}`.\n"
        for n in range(480)
    )
    assert len(answer) > 190_000
    start = answer.index(link)
    edits = (
        Edit(start=0, end=4, before="Step", after="Part"),
        Edit(start=start, end=start + len(link), before=link, after=""),
    )
    exchange = Exchange.of("How?", answer, context=(answer,))
    correction = Correction(exchange=exchange, text=applied(answer, edits), outcome="corrected", edits=edits)
    started = time.process_time()
    served = checks(correction)
    took = time.process_time() - started
    assert took < 3, "it is a good second on a machine that has nothing else to do"
    assert (served.outcome, served.text) == ("corrected", applied(answer, edits[:1]))


# --- the desk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "repairs",
    [
        partial(desk_repairs.plain, 60, seed=11),
        partial(desk_repairs.with_passages, 120, seed=12, cited=False),
        partial(desk_repairs.with_passages, 120, seed=12, cited=True),
    ],
    ids=["plain", "with passages", "with citation marks"],
)
def test_the_repairs_of_the_desk_are_served_as_they_are(repairs: Callable[[], Iterator[Correction]]) -> None:
    corrections = list(repairs())
    assert len(corrections) > 70
    assert all(checks(one).text == one.text and checks(one).outcome == "corrected" for one in corrections)


# --- the command -------------------------------------------------------------------------------------------------

ROWS = [
    {"question": "q", "answer": LINK, "correction": LINK.replace("ten", "5"), "group": "x"},
    {"question": "q", "answer": LINK, "correction": LINK.replace("example.com", "other.example").replace("ten", "5")},
    {"answer": CODE, "correction": "There is no way to do it, as far as anyone of us could ever find out."},
    {"question": "q", "answer": '{"a": 1}', "correction": "The value is 1."},
    {"question": "q", "answer": "It costs 5 euros.", "correction": "It costs 6 euros."},
    {"question": "q", "answer": "Same.", "correction": "Same."},
    {"question": "q", "answer": "Same.", "correction": " "},
]


def recorded(path: Path, rows: object = ROWS) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")  # type: ignore[call-overload]
    return str(path)


def test_a_replay_counts_what_is_served_and_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path / "a.jsonl")
    assert main(["check", "--replay", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["total"] == len(ROWS)
    assert shown["outcomes"] == {"corrected": 3, "kept": 3, "approved": 1}
    assert shown["restored"] == 1
    assert shown["by_check"] == {**dict.fromkeys(CHECKS, 0), "links": 1, "code": 1, "json": 1}
    assert shown["lost_after"] == {"code": 0, "links": 0, "json": 0}
    assert shown["numbers"] == {"replaced": 1, "lost": 0}
    assert shown["policies"]["keep_all"] == {"served": 0, "lost": {"code": 0, "links": 0, "json": 0}}
    assert shown["policies"]["serve_all"] == {"served": 5, "lost": {"code": 1, "links": 1, "json": 1}}


def test_a_replay_without_json_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--replay", recorded(tmp_path / "a.jsonl"), "--set", "links=off", "code=warn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{len(ROWS)} corrections: 4 corrected")
    assert [line.split() for line in lines if line.startswith(("keep all", "checks ", "serve all"))] == [
        ["keep", "all", "0", "(0%)", "0", "0", "0"],
        ["checks", "4", "(57%)", "1", "1", "0"],
        ["serve", "all", "5", "(71%)", "1", "1", "1"],
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "not a JSON object"),
        ({"answer": "a"}, '"correction" is missing'),
        ({"answer": 1, "correction": "a"}, '"answer" is not a text'),
        ({"answer": "a", "correction": "b", "context": "c"}, '"context" is not a list of texts'),
    ],
)
def test_a_broken_row_is_named(row: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--replay", recorded(tmp_path / "a.jsonl", [ROWS[0], row])]) == 2
    error = capsys.readouterr().err
    assert f"a.jsonl, line 2: {said}" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "spelling=keep"], "no setting 'spelling'"),
        (["--set", "links=maybe"], "links cannot be 'maybe'"),
        (["--set", "longest=far"], "longest takes a number"),
    ],
)
def test_a_wrong_setting_is_named(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--replay", recorded(tmp_path / "a.jsonl"), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_rows_and_a_missing_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--replay", str(tmp_path)]) == 2
    assert "holds no *.jsonl" in capsys.readouterr().err
    assert main(["check", "--replay", str(tmp_path / "none.jsonl")]) == 2
    assert "There is no file" in capsys.readouterr().err
