"""Deletion of a person reaches what rounds kept: examples, pages and the pairs for a provider."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootstrap.cli import main
from bootstrap.pairs.exports import export
from bootstrap.registry import Registry
from bootstrap.report import write_reports
from bootstrap.rounds import Ledger
from bootstrap.rounds.artifacts import write_corrections, write_rows
from bootstrap.store import CorrectionStore

SECRET = "zanzibar"


@pytest.fixture
def folder(tmp_path: Path, make_correction) -> Path:
    """Traffic of two people, and a round that ended and shows what one of them wrote."""
    store, home = CorrectionStore(tmp_path / "corrections.db"), tmp_path / "home"
    rows = [
        make_correction(f"{word} {subject} {at}?", answer=f"{word} bad", text=f"{word} good", subject=subject)
        for at in range(20)
        for subject, word in (("anna", SECRET), ("bob", "plain"))
    ]
    store.append(rows)
    ledger = Ledger(Registry(home).database)
    ledger.plan(config_hash="x", parent=1)
    ledger.end(1, "rejected", "no better")
    export(store, home / "exports" / "round-1", form="openai-preference")
    reports = home / "reports"
    reports.mkdir()
    answered = {"question": SECRET, "before": "bad", "after": "good", "right_before": False, "right_after": True}
    write_rows(reports / "1-answers.jsonl", [answered])
    write_corrections(reports / "1-corrections.jsonl", rows[:2])
    (reports / "mine.txt").write_text("kept")
    write_reports(home)
    assert SECRET in (reports / "round-1.html").read_text()
    return tmp_path


def saying(folder: Path) -> list[str]:
    """The files below `home` that hold the text."""
    files = (path for path in (folder / "home").rglob("*") if path.is_file())
    return [path.name for path in files if SECRET.encode() in path.read_bytes()]


def delete(folder: Path, *arguments: str) -> int:
    return main(["delete", "--store", str(folder / "corrections.db"), "--home", str(folder / "home"), *arguments])


def test_what_a_deleted_person_wrote_is_in_no_page_and_no_export(folder: Path, capsys) -> None:
    assert saying(folder)
    assert delete(folder, "--subject", "anna", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"deleted": 20, "reports": 4, "exports": ["round-1"], "rounds": []}
    assert saying(folder) == []
    assert (folder / "home" / "reports" / "mine.txt").exists()
    page = write_reports(folder / "home").rounds[1]
    assert SECRET not in page.read_text()
    assert delete(folder, "--subject", "anna") == 0
    assert "0 corrections are deleted" in capsys.readouterr().out


def test_an_export_without_a_deleted_row_stays_and_a_round_that_is_not_ended_is_named(folder: Path, capsys) -> None:
    (folder / "home" / "rounds" / "7").mkdir(parents=True)
    assert delete(folder, "--subject", "nobody") == 0
    said = capsys.readouterr().out
    assert "round abort 7" in said
    assert "4 files of examples and pages" in said
    assert (folder / "home" / "exports" / "round-1" / "manifest.json").exists()
    assert not list((folder / "home" / "reports").glob("*.html"))


def test_a_home_without_any_round_is_no_trouble(folder: Path, tmp_path: Path, capsys) -> None:
    store = str(folder / "corrections.db")
    assert main(["delete", "--store", store, "--home", str(tmp_path / "none"), "--subject", "bob"]) == 0
    assert capsys.readouterr().out == "20 corrections are deleted.\n"
    assert not (tmp_path / "none").exists()
