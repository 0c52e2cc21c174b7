"""The pages of rounds: they tell what the ledger has, whatever became of a round, and nothing in it can play markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from pages import run_examples

from aligner_chain.exchange import Correction, Edit, Exchange, edits_between
from bootstrap.cli import main
from bootstrap.evaluation import share_gate, superiority_gate, wilson
from bootstrap.registry import PairVersion, Registry
from bootstrap.report import render_index, render_round, write_reports
from bootstrap.report.parts import LONGEST, State, criteria
from bootstrap.rounds import STAGE_NAMES, Ledger, Round, RoundConfig
from bootstrap.rounds.artifacts import write_corrections, write_rows
from bootstrap.rounds.examples import Answered
from bootstrap.rounds.values import RoundStatus

HOSTILE = "</p><script>alert('x')</script>\"' onload=\"alert(1)\" \u202edlrow\u202c \x00 \ud800 &amp;"
LONG_WORD = "W" * 3000


def state(right: int, n: int = 400, names: tuple[str, ...] = ("courteous", "true")) -> dict[str, Any]:
    criteria = {name: min(1.0, (right + 12 * place) / n) for place, name in enumerate(names)}
    return {"fully_right": right / n, "interval": list(wilson(right, n)), "criteria": criteria}


def measured(alone: int, aligned: int, *, changed: float, left: float = 0.012) -> dict[str, Any]:
    return {
        "n": 400,
        "upstream_alone": state(alone),
        "with_aligner": state(aligned),
        "changed_share": changed,
        "wrong_left_share": left,
        "garbled_share": 0.0025,
    }


class Book:
    """A registry whose ledger is filled by hand, as stages would."""

    def __init__(self, home: Path) -> None:
        self.registry = Registry(home)
        self.ledger = Ledger(self.registry.database)
        self.number = 0

    def promote(self, figures: Mapping[str, Any]) -> PairVersion:
        made = [self.registry.add(kind, lambda out: (out / "weights").touch(), {}) for kind in ("upstream", "aligner")]
        return self.registry.promote(made[0], made[1], figures=figures)

    def begin(self, fire_key: str | None = None) -> int:
        served = self.registry.served()
        planned = self.ledger.plan(config_hash="c0ffee", parent=served.number if served else 0, fire_key=fire_key)
        assert planned is not None
        self.number = planned.number
        return planned.number

    def done(self, **results: Mapping[str, Any]) -> None:
        for stage, result in results.items():
            self.ledger.begin(self.number, stage)
            self.ledger.finish(self.number, stage, result, "")

    def first_half(self, before: int, after: int, name: str = "upstream alone") -> None:
        dropped = {"thumbs down": 7, "too long": 2}
        gate = asdict(superiority_gate(name, *(flags(right) for right in (before, after))))
        self.done(
            freeze={"train": 2400, "gate": 400, "vouched": 3, "pairs": {"rows": 1234, "dropped": dropped}},
            train_upstream={"pairs": 1234, "health": {"chosen_fallen_share": 0.125}},
            evaluate_upstream={"n": 400, "before": state(before), "after": state(after)},
            gate_upstream={"gates": [gate], **({} if gate["passed"] else {"ends": ["rejected", gate["reason"]]})},
        )

    def second_half(self, before: int, after: int, aligned: tuple[int, int, int], changed: tuple[float, float]) -> None:
        calibration = {
            "criterion": "leave",
            "alpha": 0.1,
            "threshold": 0.9123,
            "n_bad": 59,
            "n_good": 300,
            "kept": 0.71,
        }
        old, held, new = aligned
        self.done(
            regenerate={"answers": 2000},
            correct={"corrections": 2000},
            verify={"confirmed": 1815, "refused": 185},
            annotate={"annotated": 150},
            triples={"gold": 640, "human": 3, "verified": 1815, "annotated": 150},
            train_aligner={"rows": 2608, "keep_share": 0.431, "dropped": {}},
            calibrate={"calibrations": [calibration]},
            evaluate_pair={
                "served_on_old": measured(before, old, changed=changed[0]),
                "served_on_new": measured(after, held, changed=changed[1] + 0.02, left=0.021),
                "candidate_on_new": measured(after, new, changed=changed[1]),
                "kept": {"k": 297, "n": 300},
                "nulls": {"refuse": {"fully_right": 0.0123, "interval": [0.0, 0.03], "criteria": {}}},
            },
            gate_pair={"gates": [asdict(share_gate("right answers kept", 297, 300, 0.98))]},
        )

    def promoted(self, before: int, after: int, aligned: tuple[int, int, int], changed: tuple[float, float]) -> Round:
        self.begin(f"weekly@{self.number}")
        self.first_half(before, after)
        self.second_half(before, after, aligned, changed)
        self.ledger.begin(self.number, "promote")
        pair = self.promote({**measured(after, aligned[2], changed=changed[1]), "round": self.number})
        self.ledger.finish(self.number, "promote", {"pair": pair.number}, "")
        return self.ledger.end(self.number, "promoted", "every gate was passed", pair=pair.number)

    def examples(self, answers: list[Answered], corrections: list[Correction]) -> None:
        folder = self.registry.home / "reports"
        folder.mkdir(exist_ok=True)
        write_rows(folder / f"{self.number}-answers.jsonl", map(asdict, answers))
        write_corrections(folder / f"{self.number}-corrections.jsonl", corrections)


def flags(right: int, n: int = 400) -> list[bool]:
    return [number < right for number in range(n)]


def correction(question: str, answer: str, text: str, **more: Any) -> Correction:
    edits = more.pop("edits", None) or edits_between(answer, text)
    return Correction(exchange=Exchange.of(question, answer), text=text, outcome="corrected", edits=edits, **more)


def of_every_status(home: Path) -> Book:
    """Eight rounds, a rollback, and a last one that is not ended."""
    book = Book(home)
    book.promote({})
    book.promoted(68, 232, (371, 372, 380), (0.83, 0.44))
    answers = [
        Answered(question="Can I send it back?", before="No.", after="Yes.", right_before=False, right_after=True)
    ]
    book.examples(answers, [correction("How long?", "It takes 10 days.", "It takes 30 days, Ana.", criteria=("true",))])
    book.begin()
    book.first_half(232, 228)
    book.ledger.end(book.number, "rejected", "upstream alone: no gain")
    book.promoted(232, 300, (380, 378, 384), (0.44, 0.27))
    book.begin()
    book.ledger.end(book.number, "skipped", "12 pairs were found and 50 are needed")
    book.registry.rollback()
    book.begin("pairs>500")
    book.first_half(232, 290)
    book.second_half(232, 290, (380, 377, 379), (0.44, 0.3))
    book.ledger.end(book.number, "held", "400 prompts are too few to tell")
    book.begin()
    book.done(freeze={"train": 1})
    book.ledger.end(book.number, "aborted", "given up by a person")
    book.begin()
    book.ledger.begin(book.number, "freeze")
    return book


class Page(HTMLParser):
    """What a browser would see; every element must be closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        for table in re.findall("<table>(.*?)</table>", html, re.DOTALL):
            head, *rows = re.findall("<tr>(.*?)</tr>", table, re.DOTALL)
            assert {len(re.findall("</t[hd]>", row)) for row in rows} == {len(re.findall("</t[hd]>", head))}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def attributes(self) -> set[str]:
        return {name for _, attrs in self.tags for name in attrs}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    return of_every_status(tmp_path_factory.mktemp("registry"))


def test_the_figures_on_a_page_are_those_of_the_ledger(book: Book) -> None:
    one = book.ledger.round(1)
    page = Page(render_round(one, history=book.registry.history()))
    found = one.result("evaluate_pair")
    for name in ("served_on_old", "served_on_new", "candidate_on_new"):
        assert f"{100 * found[name]['changed_share']:.1f} %" in page.text
        low, high = (f"{100 * end:.1f}" for end in found[name]["with_aligner"]["interval"])
        assert f"{100 * found[name]['with_aligner']['fully_right']:.1f} % {low} to {high}" in page.text
    for state_ in ("before", "after"):
        for share in one.result("evaluate_upstream")[state_]["criteria"].values():
            assert f"{100 * share:.1f} %" in page.text
    for gate in one.gates:
        assert gate["name"] in page.text
        assert gate["reason"] in page.text
    assert "null: refuse 1.2 % 0.0 to 3.0" in page.text
    told = ("1,234", "left out: thumbs down 7", "1,815", "185", "rows: gold 640", "0.9123", "297 of 300")
    for shown in (*told, "chosen fallen share 12.5 %", "keep share 43.1 %", "400 held-out prompts"):
        assert shown in page.text
    assert all(stage in page.text for stage in STAGE_NAMES)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (1, "Promoted . Pair 2 took the place of pair 1: every gate was passed. Pair 2 is served now."),
        (2, "Rejected . Nothing changed, pair 2 stayed: upstream alone: no gain."),
        (3, "Pair 3 was rolled back to pair 2 on"),
        (4, "Skipped . Too little to train on, pair 3 stayed: 12 pairs were found and 50 are needed."),
        (5, "Held . Not decided yet, so nothing changed and pair 2 stayed: 400 prompts are too few to tell."),
        (6, "Aborted . Given up after freeze, pair 2 stayed: given up by a person."),
        (7, "Running . At work at freeze, or killed there and waiting to be resumed; pair 2 stays."),
    ],
)
def test_each_status_is_told_in_a_sentence(book: Book, number: int, shown: str) -> None:
    page = Page(render_round(book.ledger.round(number), history=book.registry.history()))
    assert shown in page.text
    assert "nan" not in page.text
    assert "None" not in page.text


def test_a_round_that_failed_at_its_first_stage_has_a_page(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.promote({})
    book.begin()
    book.ledger.begin(1, "freeze")
    book.ledger.fail(1, "freeze", "StoreError: the disk is full")
    text = Page(write_reports(tmp_path).rounds[1].read_text()).text
    assert (
        "Failed . Stopped at freeze, pair 1 stayed; the round waits to be resumed: freeze: StoreError: the disk" in text
    )
    assert "Gates" not in text


def test_a_gate_that_holds_is_told_as_such(book: Book) -> None:
    one = book.ledger.round(5)
    run = next(run for run in one.stages if run.stage == "gate_upstream")
    gate = {**run.result["gates"][0], "passed": False, "decision": "hold"}
    held = replace(
        one,
        stages=(*(run for run in one.stages if run.stage != "gate_upstream"), replace(run, result={"gates": [gate]})),
    )
    text = Page(render_round(held)).text
    assert "… held" in text
    assert "✗ refused" not in text


def test_the_index_has_all_rounds_the_curve_and_what_was_served(book: Book) -> None:
    history = book.registry.history()
    html = render_index(book.ledger.rounds(), history=history, linked=[1, 3])
    text = Page(html).text
    assert "Changed: start 83 %, round 1 44 %, round 3 27 %, round 5 44 %" in text
    assert "With the Aligner: start 93 %, round 1 95 %, round 3 96 %, round 5 95 %" in text
    links = [f"round-{number}.html" for number in (3, 1, 1, 3, 1)]  # of the rounds, then of what was served
    assert re.findall(r'href="([^"]*)"', html) == links
    for word in ("Promoted", "Rejected", "Skipped", "Held", "Aborted", "Running", "weekly@0", "pairs>500", "rollback"):
        assert word in text
    assert "Rounds that promoted a pair 2 of 7" in text
    assert "Served pair, fully right 95 %" in text
    assert "pair 2, upstream@2 with aligner@2" in text


def test_beside_a_criterion_stands_how_it_changed_where_the_upstream_is_not_trained_too() -> None:
    before, after = ({"criteria": {"true": share}} for share in (0.5, 1.0))
    old = State(name="alone, before", style="upstream", figures=before, hollow=True)
    new = State(name="pair, after", style="aligner", figures=after)
    assert "50 % → 100 %" in Page(criteria([old, new])).text
    assert "50 % → 50 %" in Page(criteria([old, replace(old, name="alone, after"), new])).text
    assert "→" not in Page(criteria([new])).text


def test_no_round_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--home", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"index": str(tmp_path / "reports" / "index.html"), "rounds": {}}
    assert "No round was begun yet." in Page(Path(told["index"]).read_text()).text


def test_the_command_writes_one_page_or_all(book: Book, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(book.registry.home)
    assert main(["report", "2", "--home", home, "--out", str(tmp_path)]) == 0
    assert f"The page of round 2: {tmp_path / 'round-2.html'}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "round-2.html"]
    assert set(re.findall(r'href="([^"]*)"', (tmp_path / "index.html").read_text())) == {"round-2.html"}
    assert main(["report", "--home", home, "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == 8
    assert "Can I send it back?" in (tmp_path / "round-1.html").read_text()
    assert "<del>10</del><ins>30</ins>" in (tmp_path / "round-1.html").read_text()
    assert main(["report", "99", "--home", home]) == 1
    assert "There is no round 99" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["report", "--home", home, "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_examples_that_cannot_be_read_cost_no_page(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.promote({})
    book.begin()
    book.done(freeze={"pairs": {"rows": 1234}})
    book.ledger.end(1, "aborted", "enough")
    book.examples([], [])
    (tmp_path / "reports" / "1-answers.jsonl").write_text('{"question": "torn')
    page = Page(write_reports(tmp_path, round=1).rounds[1].read_text())
    assert "The examples that were kept cannot be shown" in page.text
    assert "1,234" in page.text


def poisoned(value: Any) -> Any:
    """JSON with every text in it, and every key that is a name, made hostile."""
    if isinstance(value, str):
        return HOSTILE + LONG_WORD
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    if isinstance(value, dict):
        named = {"courteous", "true", "thumbs down", "too long"}
        return {(name + HOSTILE if name in named else name): poisoned(one) for name, one in value.items()}
    return value


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """A round with examples that are hostile, and long."""
    book = Book(tmp_path_factory.mktemp("hostile"))
    book.promote({})
    book.promoted(68, 232, (371, 372, 380), (0.83, 0.44))
    million = HOSTILE + "a b " * 250_000
    texts = [HOSTILE, LONG_WORD, million]
    answers = [Answered(question=one, before=one, after=one, right_before=False, right_after=True) for one in texts]
    late = Edit(start=len(million), end=len(million) + 5, before="wrong", after="right")
    book.examples(
        answers,
        [
            *(correction(one, one, f"{one} more", criteria=(one,), reason=one) for one in (HOSTILE, LONG_WORD)),
            correction("late", f"{million}wrong", f"{million}right", edits=(late,)),
            correction("put in", "", million, edits=(Edit(start=0, end=0, before="", after=million),)),
            correction("taken out", million, "", edits=(Edit(start=0, end=len(million), before=million, after=""),)),
        ],
    )
    return book


def poisoned_round(book: Book) -> Round:
    one = book.ledger.round(1)
    stages = tuple(replace(run, result=poisoned(run.result), error=HOSTILE + LONG_WORD) for run in one.stages)
    return replace(one, stages=stages, fire_key=HOSTILE + LONG_WORD, reason=HOSTILE + LONG_WORD)


def test_hostile_and_endless_texts_stay_texts(hostile: Book) -> None:
    kept = write_reports(hostile.registry.home).rounds[1].read_text(encoding="utf-8")
    one, history = poisoned_round(hostile), hostile.registry.history()
    for html in (kept, render_round(one, history=history), render_index([one], history=history, linked=[1])):
        page = Page(html)
        assert "script" not in {tag for tag, _ in page.tags}
        assert not {"onload", "src"} & page.attributes
        assert not re.search("[\x00\u202e\u202c\ud800]", html)
        assert "alert('x')" in page.text
        assert len(html) < 60 * LONGEST
    assert "998,0" in Page(kept).text  # characters more of a million
    assert "<del>wrong</del><ins>right</ins>" in kept


# --- docs/rounds.md ------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "rounds.md"


def test_the_examples_of_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    book = Book(tmp_path / "home")
    book.promote({})
    book.promoted(68, 232, (371, 372, 380), (0.83, 0.44))
    run_examples(DOCS)
    assert capsys.readouterr().out.splitlines() == [
        "1 promoted every gate was passed",
        "index.html",
        "['round-1.html']",
    ]


def test_the_docs_name_every_stage_in_its_order_and_every_default() -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    first = [row[0].strip().strip("`") for row in rows]
    after = first.index("stage") + 1
    assert tuple(first[after : after + len(STAGE_NAMES)]) == STAGE_NAMES
    settings = dict(zip(first, rows, strict=True))
    defaults = {one.name: one.default for one in fields(RoundConfig)}
    for name in ("annotations", "least_pairs", "regenerate", "margin", "pair_margin", "examples", "tries", "seed"):
        assert settings[name][1].strip() == str(defaults[name])
    assert f"{LONGEST:,} characters" in text
    assert f"up to `examples` ({defaults['examples']})" in text
    assert all(f"`{status}`" in text for status in get_args(RoundStatus))


# --- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    import browser as support

    if reason := support.missing():
        pytest.skip(reason)
    window = support.Browser()
    yield window
    window.close()


def test_the_pages_in_a_browser(browser: Any, hostile: Book) -> None:
    written = write_reports(hostile.registry.home)
    written.rounds[1].with_name("round-2.html").write_text(render_round(poisoned_round(hostile)), encoding="utf-8")
    browser.open(written.index.as_uri())
    browser.element('a[href="round-1.html"]').click()
    browser.until("h1", "Round 1")
    wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    for page in (written.index, written.rounds[1], written.rounds[1].with_name("round-2.html")):
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": False}
        )
        browser.driver.get(page.as_uri())
        assert browser.driver.execute_script("return window.innerWidth") == 360
        assert not browser.driver.execute_script(wide), page.name
        assert browser.driver.execute_script("return document.querySelectorAll('script').length") == 0
    assert browser.asked_for() == set()
    assert browser.complaints() == []
