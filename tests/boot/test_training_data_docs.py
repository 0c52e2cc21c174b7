"""The examples of docs/training_data.md, one after the other, as a reader would type them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from pages import run_examples

from bootstrap.pairs.filters import FILTERS, OPTIONAL, Filters
from bootstrap.pairs.forms import FORMS

PAGE = Path(__file__).parents[2] / "docs" / "training_data.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(PAGE)
    assert capsys.readouterr().out.splitlines() == [
        "Happy to help. It is in Rome.",
        "Sorry for the wait. It is in Rome.",
        "{'thumbs down': 1}",
        "True",
        "0",
        "4 0",
        "True train ['ids.txt', 'preference.jsonl']",
        "True",
    ]


def test_every_filter_and_form_has_its_row() -> None:
    rows = re.findall(r"^\| (.*?) \|", TEXT, re.MULTILINE)
    described = {name.removesuffix(" *") for row in rows for name in row.split(", ")}
    assert {*FILTERS, *OPTIONAL} <= described
    assert {name.removesuffix(" *") for row in rows for name in [row] if row.endswith(" *")} == set(OPTIONAL)
    assert {f"`{name}`" for name in FORMS} <= set(rows)


def test_defaults_are_as_they_are_written() -> None:
    settings = dataclasses.asdict(Filters())
    for name in ("context_chars", "length_margin"):
        assert f"`{name}` ({settings[name]}" in TEXT
    assert (settings["shortest"], settings["longest"], settings["boilerplate_share"]) == (0.5, 2.0, 0.2)
