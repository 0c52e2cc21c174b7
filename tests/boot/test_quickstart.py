"""The recorded session of `docs/quickstart.md`: what its commands print before anything is trained is what they print today."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from pages import examples

import aligner_chain.cli
import bootstrap.cli
from aligner_chain.serving import home

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
PROGRAMS = {"aligner-chain": aligner_chain.cli.main, "aligner-bootstrap": bootstrap.cli.main}
BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def a_new_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody who has an Aligner already."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ALIGNER_HOME", "ALIGNER_MODEL", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def recorded() -> dict[str, str]:
    """What each command of the page printed; of those that stand there twice, the second."""
    session = "".join(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
    return dict(re.findall(r"^\$ ([^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", session, re.MULTILINE))


def test_the_first_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(examples(PAGE)[0], str(PAGE), "exec"), {})
    [text] = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    "typed",
    [
        'aligner-chain correct --question "Can I return my kettle?" --answer "Yes, at any time."',
        "aligner-bootstrap demo --quick",
    ],
    ids=["no Aligner", "no extra"],
)
def test_a_command_that_comes_too_early_says_what_the_page_says(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    program, *arguments = shlex.split(typed)
    assert PROGRAMS[program](arguments) == 2
    told = capsys.readouterr().err.replace(str(home()), "~/.local/share/aligner-chain")
    assert told == recorded()[typed]


def test_the_recorded_session_names_nothing_of_a_machine() -> None:
    for typed, shown in recorded().items():
        assert not re.search(r"/(tmp|root|work)/", f"{typed}\n{shown}")
