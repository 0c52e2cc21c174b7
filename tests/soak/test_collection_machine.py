"""The machine of a collection, for many more games than a quick run has time for."""

from __future__ import annotations

from pathlib import Path

import collection_machine
import pytest


@pytest.mark.soak
def test_any_sequence_keeps_the_invariants(tmp_path: Path) -> None:
    collection_machine.run(f"sqlite:///{tmp_path / 'corrections.db'}", tmp_path, examples=400, steps=40)
