"""The demo with passages in full, on seeds that nothing was tuned on: six to seven minutes each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("seed", [1, 2])
def test_contradictions_are_repaired_and_right_answers_kept(seed: int, tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "aligner-bootstrap", "demo", "--rag", "--seed", str(seed)]
    subprocess.run([*command, "--out", tmp_path / "out"], check=True, timeout=1800)
    figures = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))
    for group in ("all products", "known products", "unseen products"):
        assert figures[group]["repaired"]["share"] >= 0.90
    assert figures["right answers"]["n"] == 500
    assert figures["right answers"]["share"] >= 0.98
