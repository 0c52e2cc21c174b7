"""The page of a round: complete, self-contained and safe to open."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from aligner_chain.exchange import Correction, Exchange, edits_between
from bootstrap.charts import LABEL_GAP, Dot, Line, Row, line_chart, row_chart
from bootstrap.report import render, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}


def state(fully_right: float, **criteria: float) -> dict[str, Any]:
    return {
        "fully_right": fully_right,
        "interval": [fully_right - 0.03, fully_right + 0.03],
        "criteria": {"courteous": fully_right, "true": fully_right, **criteria},
    }


def a_round(number: int, alone: float, corrected: float, **more: object) -> dict[str, Any]:
    return {
        "round": number,
        "upstream_alone": state(alone),
        "with_aligner": state(corrected),
        "changed_share": 1 - alone,
        "wrong_left_share": 0.021,
        "garbled_share": 0.004,
        "right_kept_share": 0.991,
        "edit_ratio_vs_minimal": 1.04,
        "unchanged_sentences_kept_share": 0.985,
        "gates": [],
        **more,
    }


GATE = {
    "name": "better",
    "passed": False,
    "figure": -0.004,
    "bound": -0.021,
    "threshold": 0.0,
    "n": 612,
    "reason": "no gain",
}
FIGURES: dict[str, Any] = {
    "seed": 10,
    "held_out": 640,
    "rounds": [
        a_round(0, 0.17, 0.93),
        a_round(1, 0.58, 0.95, pairs=2380, criteria_paired_interval={"true": [0.251, -0.013]}, gates=[GATE]),
    ],
    "nulls": {
        "copy": {"fully_right": 0.58, "interval": [0.54, 0.62]},
        "refuse": {"fully_right": 0.0, "interval": [0, 0.006]},
    },
    "unseen_products": {"upstream_alone": state(0.391), "with_aligner": state(0.82), "n": 220},
    "verifier": {"precision": 0.912, "recall": 0.884, "n": 1200},
}


def a_correction(answer: str, text: str, question: str = "May I?") -> Correction:
    edits = edits_between(answer, text)
    return Correction(exchange=Exchange.of(question, answer), text=text, outcome="corrected", edits=edits)


class Page(HTMLParser):
    """Collects what a browser would see, and that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_every_figure_is_on_the_page() -> None:
    text = Page(render(FIGURES, examples=[a_correction("No.", "Yes.")])).text
    for shown in ("seed 10", "held out: 640 answers", "17 % → 58 %", "93 % → 95 %", "99.1 %", "1.04 ×", "2,380"):
        assert shown in text
    for shown in ("14.0 to 20.0", "+25.1 to −1.3 points", "refuse", "39.1 %", "91.2 %", "88.4 %", "1,200"):
        assert shown in text
    for shown in ("✗ refused", "−0.4 %", "−2.1 %", "no gain", "612"):
        assert shown in text


def test_a_refused_round_is_told_under_the_headline() -> None:
    assert "Round 1 changed nothing: refused at better." in Page(render(FIGURES)).text
    passed = {**FIGURES, "rounds": [a_round(0, 0.17, 0.93), a_round(1, 0.58, 0.95, gates=[{**GATE, "passed": True}])]}
    assert "changed nothing" not in Page(render(passed)).text


def test_the_page_is_whole_and_loads_nothing() -> None:
    html = render(FIGURES, examples=[a_correction("No.", "Yes.")])
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert "://" not in html
    assert "default-src 'none'" in html
    assert "url(" not in html
    assert "@import" not in html


def test_ids_are_unique_and_every_chart_is_told_in_words() -> None:
    html = render(FIGURES)
    ids = [value for name, value in Page(html).attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-labelledby"].split() == [root[0].attrib["id"], root[1].attrib["id"]]
        assert root[1].text


def test_both_colour_schemes_style_the_page() -> None:
    html = render(FIGURES)
    assert "color-scheme: light dark" in html
    assert "prefers-color-scheme: dark" in html


HOSTILE = "</p><script>alert('x')</script>\"&"


def poisoned(value: Any) -> Any:
    """The figures with every text in them, keys of mappings of names included, made hostile."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        named = {"courteous", "true", "copy", "refuse"}
        return {(key + HOSTILE if key in named else key): poisoned(item) for key, item in value.items()}
    return value


def test_hostile_texts_stay_texts() -> None:
    examples = [
        replace(a_correction(HOSTILE, HOSTILE, question=HOSTILE), criteria=(HOSTILE,)),
        a_correction(f"Hello {HOSTILE}", "Hello"),
        a_correction(f"{HOSTILE} Hello", f"{HOSTILE} Hello {HOSTILE}"),
    ]
    figures = {**poisoned(FIGURES), "held_out": {HOSTILE: 640}}
    figures["rounds"][1]["round"] = HOSTILE
    page = Page(render(figures, examples=examples))
    assert page.open == []
    assert "script" not in page.tags
    assert page.text.count("alert('x')") > 10


def test_a_diff_marks_what_went_and_what_came() -> None:
    html = render(FIGURES, examples=[a_correction("It takes 10 days.", "It takes 30 days, Ana.")])
    assert "It takes <del>10</del><ins>30</ins> days<ins>, Ana</ins>." in html


def test_an_unchanged_answer_is_shown_without_marks() -> None:
    html = render(FIGURES, examples=[a_correction("Fine as it is.", "Fine as it is.")])
    assert ">Fine as it is.</span></p>" in html


@pytest.mark.parametrize(
    ("key", "heading"),
    [
        ("nulls", "Against null correctors"),
        ("unseen_products", "Products never seen in training"),
        ("verifier", "The verifier"),
    ],
)
def test_a_missing_section_is_left_out(key: str, heading: str) -> None:
    assert heading in render(FIGURES)
    assert heading not in render({name: value for name, value in FIGURES.items() if name != key})


def test_seed_and_rounds_are_enough() -> None:
    page = Page(render({"seed": 1, "rounds": [{"round": 0}]}))
    assert page.open == []
    assert "Bootstrap: the start" in page.text
    for heading in ("Live corrections", "Criterion by criterion", "Gates", "The verifier"):
        assert heading not in page.text


@pytest.mark.parametrize("missing", sorted(FIGURES["rounds"][1]))
def test_no_key_of_a_round_is_needed(missing: str) -> None:
    figures = copy.deepcopy(FIGURES)
    del figures["rounds"][1][missing]
    assert Page(render(figures)).open == []


def test_figures_that_a_demo_adds_have_their_rows() -> None:
    figures = copy.deepcopy(FIGURES)
    wordings = {"n": 128, "upstream_alone": state(0.513), "with_aligner": state(0.888)}
    figures["rounds"][1] |= {"held_out_wordings": wordings, "chosen_only": state(0.497)}
    text = Page(render({**figures, "held_out": {"gate": 600, "report": 700, "note": None}})).text
    assert "held out: 600 gate, 700 report." in text
    assert "in wordings never seen – 51.3 % 48.3 to 54.3" in text
    assert "in wordings never seen – 88.8 % 85.8 to 91.8" in text
    assert "SFT on the chosen answers, alone – 49.7 %" in text
    assert "in wordings never seen" not in Page(render(FIGURES)).text


def test_what_is_no_number_is_a_dash() -> None:
    figures = copy.deepcopy(FIGURES)
    figures["rounds"][1]["edit_ratio_vs_minimal"] = float("nan")
    figures["rounds"][1]["right_kept_share"] = None
    page = Page(render(figures))
    assert "nan" not in page.text
    assert "Right answers kept to the byte –" in page.text


def test_the_same_figures_give_the_same_page() -> None:
    assert render(FIGURES) == render(FIGURES)


def test_the_file_is_written_into_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(FIGURES, path)
    assert path.read_text(encoding="utf-8") == render(FIGURES)


def heights(chart: str, element: str, attribute: str) -> list[float]:
    root = ElementTree.fromstring(chart)
    return [float(part.attrib[attribute]) for part in root if part.tag == element and "class" in part.attrib]


def test_a_higher_share_stands_higher_and_labels_keep_their_distance() -> None:
    lines = [
        Line(name=name, style="other", values=[value])
        for name, value in (("a", 0.9), ("b", 0.01), ("c", 0.0), ("d", 0.0))
    ]
    chart = line_chart("shares", "told", ["start"], lines)
    dots = heights(chart, "circle", "cy")
    assert dots[0] < dots[1] < dots[2] == dots[3]
    labels = sorted(
        float(part.attrib["y"]) for part in ElementTree.fromstring(chart) if "label" in part.attrib.get("class", "")
    )
    gaps = [lower - upper for upper, lower in pairwise(labels)]
    assert min(gaps) >= LABEL_GAP


def test_a_row_shows_its_interval_around_its_dot() -> None:
    row = Row(name="copy", dots=[Dot(value=0.5, style="other")], interval=(0.4, 0.6), figure="50 %")
    root = ElementTree.fromstring(row_chart("rows", "told", [row]))
    [dot] = [part for part in root if part.tag == "circle"]
    [whisker] = [part for part in root if part.tag == "path"]
    low, high = (float(x) for x in re.findall(r"M([\d.]+) [\d.]+v", whisker.attrib["d"]))
    assert low < float(dot.attrib["cx"]) < high
