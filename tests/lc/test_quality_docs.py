"""The examples of docs/quality.md, one after the other, as a reader would type them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import run_examples

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(PAGE)
    assert capsys.readouterr().out.splitlines() == [
        "corrected ",
        "[('links', 'restore')]",
        "True",
        "approved it passed inspection {'brief': 1.0}",
        *["<think>", "The rule says 30 days.", "</think>", "", "It takes 30 days."],
    ]
