"""What people see of a correction: phrases and not scraps of them, in every format the texts as they are, and no more."""

from __future__ import annotations

import dataclasses
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aligner_chain.errors import ConfigurationError, EngineError
from aligner_chain.exchange import Correction, Exchange, Finding, Format, TokenScore, Turn, Usage, edits_between
from aligner_chain.explaining import doubted
from aligner_chain.showing import GREEN, PLAIN, RED, phrases, visible

texts = (
    st.text(alphabet="ab .,\n*", max_size=40)
    | st.text(alphabet="a1 .-+=#>~*_`[]<&|\\\n\t", max_size=40)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
)
UNLIKE_MARKS = st.text(alphabet="ab .,;\n\t<&*~ü", max_size=40)
HOSTILE = "</ins></span><script>alert(1)</script>\x1b[2J **x** ~~y~~ <!--"


def correction(before: str, after: str, **fields: Any) -> Correction:
    values: dict[str, Any] = {"outcome": "corrected", "edits": edits_between(before, after), **fields}
    return Correction(exchange=Exchange.of("q", before), text=after, **values)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("Ugh, read the rules.", "Happy to help.", "[-Ugh, read the rules-]{+Happy to help+}."),
        ("in 14 days", "in 30 weeks", "in [-14 days-]{+30 weeks+}"),
        ("It takes 3.5 l", "It takes 4.7 l", "It takes [-3.5-]{+4.7+} l"),
        ("so you can send it back.", "so it is too late.", "so [-you can send it back-]{+it is too late+}."),
        ("It is a cat.", "It was a dog.", "It [-is a cat-]{+was a dog+}."),
        # what lies between is longer than what changed
        ("a 14 day return window", "a 30 day return period", "a [-14-]{+30+} day return [-window-]{+period+}"),
        ("a b c", "a x c d", "a [-b-]{+x+} c{+ d+}"),
        # another sentence, another line
        ("Wrong. No", "Right. Yes", "[-Wrong-]{+Right+}. [-No-]{+Yes+}"),
        ("wrong\nno", "right\nyes", "[-wrong-]{+right+}\n[-no-]{+yes+}"),
    ],
)
def test_what_a_person_reads_as_one_change_is_one(before: str, after: str, shown: str) -> None:
    assert correction(before, after).diff() == shown


def test_a_joined_change_may_reach_the_one_before_it() -> None:
    """The first two have too much between them, until the second has grown by the third."""
    before, after = "aaaaaaaa has bbbb in cccccccc", "xxxxxxxx has y in zzzzzzzz"
    assert correction(before, after).diff() == f"[-{before}-]{{+{after}+}}"


def test_the_edits_themselves_stay_small() -> None:
    made = correction("Ugh, read the rules.", "Happy to help.")
    made.diff()
    assert len(made.edits) == len(edits_between("Ugh, read the rules.", "Happy to help.")) > 1


@given(texts, texts)
def test_phrases_turn_the_one_text_into_the_other(before: str, after: str) -> None:
    parts, position = [], 0
    for edit in phrases(before, edits_between(before, after)):
        assert before[edit.start : edit.end] == edit.before
        assert position <= edit.start
        parts += [before[position : edit.start], edit.after]
        position = edit.end
    assert "".join([*parts, before[position:]]) == after


def sides(shown: str, before: str, after: str) -> tuple[str, str]:
    """What is left without the parts that came, and without those that went; the patterns match one part each."""
    return re.sub(after, "", re.sub(before, r"\1", shown)), re.sub(before, "", re.sub(after, r"\1", shown))


@given(UNLIKE_MARKS, UNLIKE_MARKS)
def test_as_text_both_sides_are_there(before: str, after: str) -> None:
    shown = correction(before, after).diff()
    assert sides(shown, r"\[-([^]]*)-\]", r"\{\+([^}]*)\+\}") == (before, after)


@given(texts, texts)
@example(HOSTILE, f"{HOSTILE}!")
@example("a\r\nb\n", "a\n\nc")
def test_on_a_terminal_both_sides_are_there_and_steer_nothing(before: str, after: str) -> None:
    shown = correction(before, after).diff("terminal")
    part = rf"{{}}([^\x1b]*){re.escape(PLAIN)}"
    went, came = (part.format(re.escape(colour)) for colour in (RED, GREEN))
    newlines = shown.replace(f"↵{PLAIN}\n", f"\n{PLAIN}")
    if "↵" not in before + after:
        assert sides(newlines, went, came) == (visible(before), visible(after))
    assert "\x1b" not in re.sub("|".join(map(re.escape, (RED, GREEN, PLAIN))), "", shown)


class Seen(HTMLParser):
    """What a browser makes of a diff: both texts, and all tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.before, self.after, self.tags = "", "", list[str]()
        self.inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.before += data if self.inside != "ins" else ""
        self.after += data if self.inside != "del" else ""


@given(texts, texts)
@example(HOSTILE, f"x{HOSTILE}")
@example("a  b\n\n c", "&lt;b>&amp;")
def test_in_html_both_sides_are_there_and_no_tag_of_theirs(before: str, after: str) -> None:
    seen = Seen(correction(before, after).diff("html"))
    assert (seen.before, seen.after) == (before, after)
    assert set(seen.tags) <= {"span", "del", "ins"}


def read(markdown: str) -> tuple[str, str, set[str]]:
    """What a reader of Markdown sees of both texts, as words, and the names of all marks."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["strikethrough", "table"])
    before, after, inside, names = "", "", "", set()
    for block in parser.parse(markdown):
        names.add(block.type)
        for token in block.children or []:
            names.add(token.type)
            inside = token.tag if token.nesting == 1 else "" if token.nesting == -1 else inside
            text = "\n" if token.type.endswith("break") else token.content
            before += text if inside != "strong" else ""
            after += text if inside != "s" else ""
        before, after = f"{before}\n", f"{after}\n"
    return before, after, names


HARMLESS = {
    *("paragraph_open", "paragraph_close", "inline", "text", "text_special", "hardbreak", "softbreak"),
    *("s_open", "s_close", "strong_open", "strong_close"),
}


@given(texts, texts)
@example("a\n\nb c", "a\n\nd e\nf")
@example("    code\n- item\n1. one\n# head\n> quote\n| a | b |\n|---|---|", "    code\n+ item\n2) two\n===\n---")
@example("word, word", "word; word")
@example("3,b", "3b")
@example(".aa", "aa<")
@example(HOSTILE, f"x{HOSTILE}")
def test_in_markdown_both_sides_are_there_and_no_mark_of_theirs(before: str, after: str) -> None:
    shown_before, shown_after, names = read(correction(before, after).diff("markdown"))
    assert ["".join(shown_before.split()), "".join(shown_after.split())] == [
        "".join(visible(text).split()) for text in (before, after)
    ]
    assert names <= HARMLESS


def test_markdown_keeps_lines_and_words_apart() -> None:
    made = correction("Wait 3 days.\nThen, call.\n\n- no", "Wait 5 days.\nThen; call.\n\n- yes")
    assert made.diff("markdown") == (
        "Wait ~~3~~ **5** days.  \n~~Then,~~ **Then;** call.  \n  \n\\- ~~no~~ **yes**"
    )  # fmt: skip


def test_a_format_that_there_is_not_is_refused() -> None:
    made: Any = correction("a", "b")
    for show in (made.diff, made.explain):
        with pytest.raises(ConfigurationError, match="use one of text, terminal, markdown, html"):
            show("pdf")
    assert all(made.diff(name) and made.explain(name) for name in get_args(Format))


ANSWER = "You may send it back within 90 days, for free."


def token(word: str, logprob: float) -> TokenScore:
    return TokenScore(start=ANSWER.index(word), end=ANSWER.index(word) + len(word), logprob=logprob)


def rich() -> Correction:
    tokens = (
        token("90", -9),
        token(" fre", -3),
        token("days", -2),
        token(" back", -1),
        token("You", -0.1),
        token(" ", -8),
    )
    return dataclasses.replace(
        correction(ANSWER, ANSWER.replace("90", "30"), criteria=("true",), tokens=tokens),
        exchange=Exchange(turns=(Turn(role="user", text="q"),), answer=ANSWER, upstream="desk@3"),
        scores={"keep": 0.031},
        thresholds={"keep": 0.62},
        aligner="tiny@7",
        template="aligner-chain/1",
        usage=Usage(prompt_tokens=40, new_tokens=9, forwards=2, accepted_draft_tokens=7, latency_s=0.02),
        reason="seen <b>late</b>",
    )


def test_the_words_left_that_the_aligner_doubts_are_told() -> None:
    assert [word for word, _ in doubted(rich())] == ["free.", "days,", "back"]
    inserted = correction("a c", "a b c", tokens=(TokenScore(start=1, end=3, logprob=-4.0),))
    assert doubted(inserted) == []  # what is improbable there is that nothing stands before it


@given(st.text(max_size=30), st.data())
def test_any_tokens_can_be_told_of(answer: str, data: st.DataObject) -> None:
    spans = data.draw(st.lists(st.tuples(st.integers(0, len(answer)), st.integers(0, 9)), max_size=5))
    tokens = tuple(TokenScore(start=a, end=min(a + n, len(answer)), logprob=-1.0) for a, n in spans)
    words = [word for word, _ in doubted(correction(answer, answer, tokens=tokens))]
    assert all(word and word in answer for word in words)


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_a_block_tells_all_that_is_known(name: Format) -> None:
    told = re.sub(r"[\\~*>]|\x1b\[[\d;]*m|</?(dt|dd)", "", unescape(rich().explain(name)))
    told = re.sub(r"\s+", " ", told)
    for fact in (
        "corrected (true), 1 edit, keep 0.03",
        "keep 0.03 (threshold 0.62)",
        "desk@3",
        "tiny@7",
        rich().template,
    ):
        assert fact in told
    for fact in ("“free.” 5.0 %", "40 tokens read, 9 written", "2 forwards", "90", "30"):
        assert fact in told
    assert "<b>" not in rich().explain(name) if name == "html" else "late" in told


def test_a_failure_is_told_with_its_error_and_nothing_that_is_not_known() -> None:
    told = correction("a", "a", outcome="failed", error=EngineError("it\nbroke"), reason="it broke").explain("markdown")
    assert "- error: EngineError: it broke" in told
    assert not {"- scores", "- usage", "- versions", "- criteria"} & {
        line.partition(":")[0] for line in told.split("\n")
    }


def test_findings_of_checks_are_told() -> None:
    found = Finding(check="numbers", action="warn", message="a number changed")
    made = Correction(exchange=Exchange.of("q", "a"), text="a", outcome="approved", findings=(found,))
    assert "- check: numbers: a number changed (warn)" in made.explain("markdown")
