"""A million corrections: statistics, building pairs and exporting them stay under 500 MB, and show where they are."""

from __future__ import annotations

import json
from pathlib import Path

import million
import pytest

NUMBER = 1_000_000
MOST_MB = 500


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("million") / "corrections.db"
    million.fill(path, NUMBER)
    return path


@pytest.mark.soak
def test_statistics(store: Path, tmp_path: Path) -> None:
    page = tmp_path / "stats.html"
    ran = million.run("stats", "--store", store, "--html", page, "--progress")
    assert f"{NUMBER:,} records stored" in ran.out
    assert "thumbs up" in ran.out
    assert "<svg" in page.read_text(encoding="utf-8")
    assert ran.err.count("counting ") == 4
    assert ran.peak_mb < MOST_MB


@pytest.mark.soak
def test_counting_pairs(store: Path) -> None:
    ran = million.run("pairs", "--store", store, "--json", "--progress")
    told = json.loads(ran.out)
    assert told["read"] == told["rows"] + sum(told["dropped"].values())
    assert {"unchanged", "duplicate", "near-duplicate"} <= told["dropped"].keys()
    assert ran.err.count("\r") > 10
    assert ran.peak_mb < MOST_MB


@pytest.mark.soak
def test_exporting(store: Path, tmp_path: Path) -> None:
    export_and_check(store, tmp_path / "out", NUMBER, form="preference", kind="jsonl")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("form", "kind"), [("preference", "parquet"), ("prompt-completion", "jsonl"), ("prompt-completion", "parquet")]
)
def test_other_forms_of_a_tenth(tmp_path: Path, form: str, kind: str) -> None:
    number = NUMBER // 10
    million.fill(tmp_path / "corrections.db", number)
    export_and_check(tmp_path / "corrections.db", tmp_path / "out", number, form=form, kind=kind)


def export_and_check(store: Path, out: Path, number: int, *, form: str, kind: str) -> None:
    ran = million.run("export", "--store", store, "--out", out, "--form", form, "--format", kind, "--progress")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows"] > number / 2
    assert manifest["boilerplate"] == ["I hope this helps!"]
    assert ran.err.count("\r") > 10
    assert ran.peak_mb < MOST_MB
    assert million.run("export", "--store", store, "--check", out).peak_mb < MOST_MB
