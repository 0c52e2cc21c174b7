"""The support desk on seeds that nothing was tuned on: two rounds each, and the lines that they must hold."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda seed: f"seed {seed}")
def figures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("desk")
    command = [sys.executable, "-P", "-m", "bootstrap.cli", "demo", "--rounds", "2", "--seed", str(request.param)]
    subprocess.run([*command, "--out", str(out)], check=True)
    return json.loads((Path(out) / "figures.json").read_text(encoding="utf-8"))


pytestmark = pytest.mark.soak


def test_enough_was_held_out(figures: dict[str, Any]) -> None:
    assert figures["held_out"]["report"] >= 600
    assert figures["held_out"]["right"] >= 1000
    assert [row["round"] for row in figures["rounds"]] == [0, 1, 2]


def test_with_the_aligner_answers_are_right_and_right_ones_are_kept(figures: dict[str, Any]) -> None:
    for row in figures["rounds"]:
        assert row["with_aligner"]["fully_right"] >= 0.90
        assert row["right_kept_share"] >= 0.98
        assert row["unchanged_sentences_kept_share"] >= 0.97
        assert row["edit_ratio_vs_minimal"] <= 1.3


def test_the_upstream_alone_is_much_better_and_worse_in_nothing(figures: dict[str, Any]) -> None:
    start, end = figures["rounds"][0], figures["rounds"][-1]
    assert end["upstream_alone"]["fully_right"] >= 0.70
    assert end["upstream_alone"]["fully_right"] >= 3 * start["upstream_alone"]["fully_right"]
    assert end["garbled_share"] <= 0.02
    assert all(high >= 0 for _, high in end["criteria_paired_interval"].values())


def test_the_aligner_has_less_to_do_and_does_not_overlook_more(figures: dict[str, Any]) -> None:
    changed = [row["changed_share"] for row in figures["rounds"]]
    assert changed[-1] < changed[0]
    assert figures["rounds"][-1]["wrong_left_share"] <= figures["rounds"][0]["wrong_left_share"] + 0.03


def test_every_null_corrector_is_in_the_table(figures: dict[str, Any]) -> None:
    for row in figures["rounds"]:
        assert set(row["nulls"]) == {"copy", "refuse", "question only"}
    assert statistics.fmean(row["nulls"]["copy"]["fully_right"] for row in figures["rounds"]) > 0
