"""`aligner-chain check --audit`: any corrector over the same answers, beside those that understand nothing."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aligner_chain import Aligner, ConfigurationError, Exchange, Turn
from aligner_chain.audit import Audit, Corrector, Row, audit, corrector
from aligner_chain.audit.correctors import REFUSAL
from aligner_chain.audit.distance import distance, tokens
from aligner_chain.audit.figures import Mean, Share, figures
from aligner_chain.audit.page import page
from aligner_chain.audit.results import Result
from aligner_chain.audit.rows import read
from aligner_chain.calibration import wilson
from aligner_chain.cli import main
from aligner_chain.exchange import Correction, Usage

LINK = "See https://example.com/returns for all the rules of returning it."


def row(answer: str, right: str | None = None, ok: bool | None = None, question: str = "q") -> Row:
    return Row(exchange=Exchange.of(question, answer), right=right, ok=ok)


def writing(*texts: str) -> Corrector:
    """A corrector that writes the texts, one per row."""
    waiting = iter(texts)
    return lambda exchanges: [next(waiting) for _ in exchanges]


ROWS = [
    row("It is free.", "It is free."),
    row(LINK, ok=True),
    row("You have 30 days.", "You have 14 days."),
    row("Red and blue.", "Green and blue!"),
    row("Bad.", ok=False),
    row("Who knows."),
]
WRITTEN = (
    "It is free.",
    "See the page of rules for all of it.",
    "You have  14 days.",
    "Green and blue.",
    "Good.",
    "Who knows.",
)


# --- figures by hand ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Audit:
    return audit({"ours": writing(*WRITTEN)}, ROWS)


def test_rows_are_counted_by_what_is_known_of_them(found: Audit) -> None:
    assert (found.total, found.rows_ok, found.rows_wrong) == (6, 2, 3)
    assert list(found.correctors) == ["ours", "copy", "refuse"]


def test_harm_is_what_happens_to_answers_that_need_nothing(found: Audit) -> None:
    harm = found.correctors["ours"].harm
    low, high = wilson(1, 2)
    assert harm.kept == Share(count=1, n=2, share=0.5, low=low, high=high)
    assert harm.changed.count == 1
    assert (harm.damage.any.count, harm.damage.by_check["links"].count, harm.damage.by_check["code"].count) == (1, 1, 0)


def test_fix_is_how_far_the_others_came(found: Audit) -> None:
    fix = found.correctors["ours"].fix
    assert (fix.changed.count, fix.changed.n) == (3, 3)
    assert (fix.fixed.count, fix.fixed.n) == (1, 2), "white space aside, one is the right answer"
    assert fix.closer.mean == pytest.approx((1 + 0.5) / 2), "all of one word, and one of two"
    assert fix.worse.count == 0


def test_how_much_is_changed_is_told_of_all_answers(found: Audit) -> None:
    edits = found.correctors["ours"].edits
    assert (edits.copied.count, edits.copied.n) == (2, 6)
    assert edits.rewritten.count == 0
    assert edits.over_needed == pytest.approx((1 / 1 + 1 / 2) / 2)
    ratios = sorted(
        len(after) / len(one.exchange.answer)
        for one, after in zip(ROWS, WRITTEN, strict=True)
        if after != one.exchange.answer
    )
    assert edits.length_ratio == pytest.approx((ratios[1] + ratios[2]) / 2)
    assert edits.edit_ratio == pytest.approx((1 / 4 + 1 / 2) / 2), "of 1/5, 1/4, 1/2 and the link's"


def test_a_rewrite_is_no_edit() -> None:
    one = audit({"x": writing("one two three")}, [row("four five six seven")]).correctors["x"]
    assert (one.edits.rewritten.count, one.edits.edit_ratio) == (1, 1.0)


def test_copying_keeps_everything_and_fixes_nothing(found: Audit) -> None:
    copy = found.correctors["copy"]
    assert copy.harm.kept.share == copy.edits.copied.share == 1
    assert (copy.fix.fixed.count, copy.fix.changed.count, copy.fix.closer.mean) == (0, 0, 0)
    assert copy.harm.damage.any.count == copy.edits.damage.any.count == 0
    assert copy.edits.edit_ratio is None


def test_copying_fixes_nothing_where_only_white_space_is_wrong() -> None:
    found = audit({"ours": writing("a b")}, [row("a  b", "a b")])
    assert [one.fix.fixed.count for one in found.correctors.values()] == [1, 0, 0]
    assert found.correctors["copy"].fix.closer == Mean(n=0, mean=None, low=None, high=None)


def test_refusing_keeps_nothing_and_leads_away(found: Audit) -> None:
    refuse = found.correctors["refuse"]
    assert (refuse.harm.kept.share, refuse.harm.changed.share, refuse.fix.fixed.share) == (0, 1, 0)
    assert refuse.harm.damage.by_check["refusal"].share == refuse.harm.damage.any.share == 1
    assert (refuse.fix.closer.mean, refuse.fix.worse.share) == (-1, 1)
    assert found.results["refuse"][0].text == REFUSAL


def test_figures_over_rows_that_are_not_there_are_none() -> None:
    one = audit({}, [row("a")]).correctors["copy"]
    assert one.harm.kept == Share(count=0, n=0, share=None, low=None, high=None)
    assert one.fix.closer.mean is one.edits.over_needed is None


def test_the_mean_has_an_interval_where_its_numbers_scatter() -> None:
    found = Mean.of([0.0, 0.5])  # a standard deviation of half the root of 1/2, and of 1/4 the mean's
    assert (found.n, found.mean) == (2, 0.25)
    assert (found.low, found.high) == (pytest.approx(0.25 - 1.96 * 0.25), pytest.approx(0.25 + 1.96 * 0.25))
    assert Mean.of([0.0, 1.0]).high == 1, "no part of the way is more than all of it"
    assert Mean.of([1.0, 1.0]) == Mean(n=2, mean=1.0, low=None, high=None)


def test_the_first_call_is_apart_from_the_other_times() -> None:
    seconds = [9.0, *range(1, 21)]
    latency = figures([Result(row=row("a"), text="a", seconds=one) for one in seconds]).latency
    assert (latency.n, latency.first_s, latency.median_s, latency.p95_s) == (21, 9.0, 10.5, 19)
    alone = figures([Result(row=row("a"), text="a", seconds=2.0)]).latency
    assert (alone.first_s, alone.median_s, alone.p95_s) == (2.0, 2.0, 2.0)


def test_forwards_are_those_of_all_answers_where_a_corrector_tells_of_any() -> None:
    def told(exchanges: Sequence[Exchange]) -> list[Correction]:
        [one] = exchanges
        forwards = {"a": 3, "b": 0}[one.answer]
        return [Correction(exchange=one, text=one.answer, outcome="approved", usage=Usage(forwards=forwards))]

    found = audit({"ours": told}, [row("a"), row("b")])
    assert {name: one.forwards for name, one in found.correctors.items()} == {"ours": 1.5, "copy": None, "refuse": None}


def plain_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """The textbook's table, row by row."""
    above = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        here = [i]
        for j, right in enumerate(other, 1):
            here.append(min(above[j] + 1, here[j - 1] + 1, above[j - 1] + (left != right)))
        above = here
    return above[-1]


def test_the_distance_is_that_of_the_textbook() -> None:
    dice = random.Random(1)
    for _ in range(300):
        one, other = (dice.choices("abc", k=dice.randrange(90)) for _ in range(2))
        assert distance(one, other) == plain_distance(one, other)


def test_tokens_are_words_and_marks() -> None:
    assert tokens("Well,  it's\n5.") == ["Well", ",", "it", "'", "s", "5", "."]


# --- rows --------------------------------------------------------------------------------------------------------


def test_a_refusal_that_became_the_right_answer_is_no_damage() -> None:
    rows = [row("I cannot help with that.", "It is in Rome.")] * 2
    found = audit({"ours": writing("It is in Rome.", "It is in Pisa.")}, rows).correctors["ours"]
    assert found.edits.damage.by_check["refusal"].count == found.edits.damage.any.count == 1


@pytest.mark.parametrize(
    ("known", "needs_nothing"),
    [
        ({}, None),
        ({"ok": True}, True),
        ({"ok": False}, False),
        ({"correction": "a"}, True),
        ({"correction": "b", "ok": False}, False),
    ],
)
def test_a_row_needs_nothing_where_it_says_so(known: dict[str, Any], needs_nothing: bool | None) -> None:
    turns = [{"role": "user", "text": "q"}]
    one = read({"turns": turns, "answer": "a", "context": ["p"], **known})
    assert one.needs_nothing is needs_nothing
    assert (one.exchange.turns, one.exchange.context) == ((Turn(role="user", text="q"),), ("p",))


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"ok": "yes"}, '"ok" is not true or false'),
        ({"correction": 1}, '"correction" is not a text'),
        ({"ok": True, "correction": "b"}, '"ok" is true, but the correction is another text'),
        ({"ok": False, "correction": "a"}, '"ok" is false, but the correction is the answer'),
        ({"label": 1}, "unknown key 'label'"),
    ],
)
def test_a_row_that_cannot_be_is_refused(known: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        read({"question": "q", "answer": "a", **known})


# --- correctors --------------------------------------------------------------------------------------------------


class Method:
    def of_two(self, question: str, answer: str, style: str = "plain") -> str:
        return f"{question}+{answer}"

    def __call__(self, exchange: Exchange) -> str:
        return f"{exchange.question}+{exchange.answer}"


@pytest.mark.parametrize(
    "value",
    [
        lambda question, answer: f"{question}+{answer}",
        lambda *both: "+".join(both),
        lambda exchange, again=False: f"{exchange.question}+{exchange.answer}",
        Method().of_two,
        Method(),
        Aligner.scripted(Method()),
        SimpleNamespace(invoke=lambda given: SimpleNamespace(text=f"{given['question']}+{given['answer']}")),
    ],
)
def test_whatever_corrects_is_a_corrector(value: object) -> None:
    served = corrector(value)([Exchange.of("q", "a"), Exchange.of("r", "b")])
    assert [getattr(one, "text", one) for one in served] == ["q+a", "r+b"]


async def later(question: str, answer: str) -> str:
    return answer


@pytest.mark.parametrize(
    ("value", "said"),
    [(3, "3 is no corrector"), (later, "coroutine"), (lambda: "", "other arguments"), (lambda a, b, c: a, "other")],
)
def test_what_cannot_correct_is_refused_with_what_can(value: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s){said}.*A corrector is an Aligner, a function"):
        corrector(value)


def test_an_aligner_counts_with_what_it_serves() -> None:
    """Its checks put the link back; without them it were lost."""
    ours = Aligner.scripted(lambda exchange: exchange.answer.replace("https://example.com/returns", "the page"))
    assert audit({"ours": corrector(ours)}, [row(LINK, ok=True)]).correctors["ours"].harm.kept.count == 1


def broken(question: str, answer: str) -> str:
    if question == "hard":
        raise KeyError("no such thing")
    return answer.replace("wrong", "right")


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        (corrector(broken), "KeyError"),
        (corrector(lambda exchange: None if exchange.question == "hard" else "right"), "TypeError"),
        (lambda exchanges: [] if exchanges[0].question == "hard" else ["right"], "TypeError"),
        (lambda exchanges: "x" if exchanges[0].question == "hard" else ["right"], "TypeError"),
        (corrector(Aligner.scripted(lambda one: broken(one.question, one.answer))), "EngineError"),
    ],
)
def test_a_corrector_that_fails_on_an_answer_goes_on_with_the_next(failing: Corrector, error: str) -> None:
    rows = [row("wrong", "right", question="hard"), row("wrong", "right"), row("fine", ok=True, question="hard")]
    one = audit({"failing": failing}, rows).correctors["failing"]
    assert one.failures == {error: 2}
    assert (one.fix.fixed.count, one.fix.fixed.n, one.fix.closer.mean) == (1, 2, 0.5)
    assert (one.harm.kept.count, one.harm.changed.count, one.harm.kept.n) == (0, 0, 1)
    assert one.latency.n == 1


def test_an_audit_needs_rows_and_names_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match="no answer"):
        audit({}, [])
    with pytest.raises(ConfigurationError, match="'copy' is the name of a null corrector"):
        audit({"copy": writing()}, ROWS)


# --- the page ----------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'</style>&amp;"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = list[tuple[str, dict[str, str | None]]]()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


def test_the_page_escapes_hostile_texts_and_loads_nothing() -> None:
    rows = [row(f"{HOSTILE} yes", ok=True, question=HOSTILE)]
    fails = type(HOSTILE, (Exception,), {})

    def failing(exchanges: Sequence[Exchange]) -> list[str]:
        raise fails

    shown = parsed(page(audit({HOSTILE: writing(f"{HOSTILE} no {HOSTILE}"), "fails": failing}, rows)))
    assert not {tag for tag, _ in shown.found} & {"script", "img", "link", "iframe"}
    assert not {name for _, attributes in shown.found for name in attributes} & {"src", "href", "onerror"}
    assert shown.text.count(HOSTILE) >= 4, "the corrector's name, the question, the answer and the error's class"


def test_the_page_can_be_written_and_no_text_in_it_turns_the_direction() -> None:
    rows = [row("half \ud800 \u202eturned yes", ok=True)]
    text = page(audit({"ours": writing("half \ud800 \u202eturned no")}, rows))
    assert "half ? \\u202eturned" in text.encode().decode()


def test_the_page_holds_the_figures_and_up_to_so_many_examples(found: Audit) -> None:
    shown = page(audit({"ours": corrector(lambda one: f"{one.answer}!")}, [row(str(n), ok=True) for n in range(9)]))
    assert "ours: 9 answers" in shown
    assert shown.count("<article>") == 3, "and none of the null correctors"
    assert "<ins>!</ins>" in shown
    text = parsed(page(found)).text
    for said in ("50.0 %", "part of the way there", "links: a link is lost", "2 need nothing, 3 need something, of 1 "):
        assert said in text
    assert "Answers that need something" not in page(audit({}, [row("a", ok=True)]))


# --- the command -------------------------------------------------------------------------------------------------

MODULE = """\
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from aligner_chain import Aligner

def rule(question, answer):
    return answer.replace("30", "14")

def fragile(question, answer):
    raise RuntimeError("down\\nfor today")

def loud(question, answer):
    raise RuntimeError("\\x1b[31mdown")

def _said(given):
    return AIMessage(rule(**given) + " Anything else?")

chain = RunnableLambda(_said)
aligner = Aligner.scripted(lambda exchange: rule(exchange.question, exchange.answer))
NUMBER = 3
"""
LINES: Sequence[object] = [
    {"question": "q", "answer": "You have 30 days.", "correction": "You have 14 days."},
    {"question": "q", "answer": "It is free.", "ok": True},
    {"question": "q", "answer": "Who knows."},
]


@pytest.fixture
def traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of rows in a folder that holds a module, with nothing served."""
    name = f"correctors_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    path = tmp_path / "traffic.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)), encoding="utf-8")
    return path


@pytest.fixture
def module(traffic: Path) -> str:
    return next(traffic.parent.glob("correctors_*.py")).stem


def test_the_command_compares_correctors_from_a_module(
    traffic: Path, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"aligner={module}:aligner", f"rule={module}:rule", f"chain={module}:chain", f"down={module}:fragile"]
    options = ["--corrector", *given[:2], "--corrector", *given[2:], "--page", "audit.html", "--json"]
    assert main(["check", "--audit", str(traffic), *options]) == 0
    told, errors = capsys.readouterr()
    shown = json.loads(told)
    assert (shown["total"], shown["rows_ok"], shown["rows_wrong"]) == (3, 1, 1)
    assert list(shown["correctors"]) == ["aligner", "rule", "chain", "down", "copy", "refuse"]
    fixed = {name: one["fix"]["fixed"]["count"] for name, one in shown["correctors"].items()}
    kept = {name: one["harm"]["kept"]["count"] for name, one in shown["correctors"].items()}
    assert fixed == {"aligner": 1, "rule": 1, "chain": 0, "down": 0, "copy": 0, "refuse": 0}
    assert kept == {"aligner": 1, "rule": 1, "chain": 0, "down": 0, "copy": 1, "refuse": 0}
    assert shown["correctors"]["down"]["failures"] == {"RuntimeError": 3}
    assert shown["correctors"]["rule"]["latency"]["n"] == 3
    assert errors == "aligner-chain: down failed on 3 of 3 answers, first with RuntimeError: down\n"
    assert "Audit of 3 answers" in Path("audit.html").read_text(encoding="utf-8")


def test_without_json_it_is_a_table(traffic: Path, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--audit", str(traffic), "--corrector", f"rule={module}:rule"]) == 0
    told, errors = capsys.readouterr()
    lines = [line.split() for line in told.splitlines()]
    assert lines[0] == ["rule", "copy", "refuse"]
    assert ["now", "equal", "to", "the", "right", "one", "100.0", "%", "0.0", "%", "0.0", "%"] in lines
    assert "no Aligner is served, so none but those named takes part" in errors


def test_an_error_of_others_steers_no_terminal(traffic: Path, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--audit", str(traffic), "--corrector", f"aligner={module}:loud"]) == 0
    assert capsys.readouterr().err.endswith(r"first with RuntimeError: \x1b[31mdown" + "\n")


def test_what_failed_is_counted_by_error_and_no_column_grows(
    traffic: Path, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"rule={module}:rule", f"down={module}:fragile", "--page", "audit.html"]
    assert main(["check", "--audit", str(traffic), "--corrector", *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Answers that failed, by error")
    assert lines[at + 1].split() == ["RuntimeError", "0", "3", "0", "0"]
    assert len({len(line) for line in lines if line.startswith("  ")}) == 1
    assert "RuntimeError" in Path("audit.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (lambda name: ["--corrector", "x=no_such_module:f"], "module 'no_such_module' cannot be imported"),
        (lambda name: ["--corrector", f"x={name}:nothing"], "has no 'nothing'. It holds AIMessage"),
        (lambda name: ["--corrector", f"x={name}:NUMBER"], "3 is no corrector"),
        (lambda name: ["--corrector", f"{name}:rule"], "is not NAME=TARGET"),
        (lambda name: ["--corrector", f"copy={name}:rule"], "other than copy and refuse"),
        (lambda name: ["--corrector", f"x={name}:rule", f"x={name}:chain"], "a name of its own"),
        (lambda name: [], "No Aligner was given"),
        (lambda name: ["--corrector", f"x={name}:rule", "--page", "none/a.html"], "cannot be written"),
        (lambda name: ["--set", "links=off"], "--set is for --replay"),
    ],
)
def test_wrong_usage_is_said(
    options: Callable[[str], list[str]], said: str, traffic: Path, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--audit", str(traffic), *options(module)]) == 2
    assert said in capsys.readouterr().err


def test_a_broken_line_is_named_before_anything_is_loaded(traffic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traffic.write_text('{"question": "q", "answer": "a", "ok": 1}', encoding="utf-8")
    assert main(["check", "--audit", str(traffic), "--corrector", "x=no_such_module:f"]) == 2
    assert 'traffic.jsonl, line 1: "ok" is not true or false. `aligner-chain check --help`' in capsys.readouterr().err


def test_it_goes_with_neither_a_replay_nor_its_options(traffic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--audit", str(traffic), "--replay", str(traffic)])
    assert main(["check", "--replay", str(traffic), "--page", "a.html"]) == 2
    assert "--corrector and --page are for --audit" in capsys.readouterr().err


def test_a_module_of_the_folder_takes_the_place_of_no_other(
    traffic: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (traffic.parent / "colorsys.py").write_text("foreign = 1", encoding="utf-8")
    assert main(["check", "--audit", str(traffic), "--corrector", "x=colorsys:nothing"]) == 2
    assert "rgb_to_yiq" in capsys.readouterr().err, "the standard library's own"
