"""The examples of docs/registry.md, as a reader would type them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pages import run_examples

from bootstrap.cli import _parser

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(PAGE)
    assert capsys.readouterr().out.splitlines() == ["None ['challenger']", "upstream@1 True"]


def test_the_commands_are_there() -> None:
    commands = re.findall(r"^aligner-bootstrap (.*?)(?:\s+#.*)?$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 11
    for command in commands:
        _parser().parse_args(shlex.split(command))
