"""The stored results of the benchmarks: where they are, and how they are read and written."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Figures = dict[str, Any]


def read(name: str) -> Figures:
    """What `results/<name>.json` holds."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} is not there. What writes it:  python benchmarks/recompute.py {name}")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write(name: str, told: Mapping[str, Any]) -> Path:
    """Writes `results/<name>.json`, a figure on each line, so that a change of one is a change of its line."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return path


def commit() -> str:
    """The commit that is checked out; nothing where the sources are no repository."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()
