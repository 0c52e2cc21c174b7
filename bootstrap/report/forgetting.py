"""Deletion beyond the store: the texts that ended rounds kept in the registry's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bootstrap.files import sync
from bootstrap.pairs.manifests import MANIFEST, stale

if TYPE_CHECKING:
    from bootstrap.store import CorrectionStore

_TEXTS = ("*-answers.jsonl", "*-corrections.jsonl", "*.html")


def forget_examples(home: Path) -> int:
    """Removes the examples of all rounds, and all pages, and returns how many files that were.

    An example does not say whose it is, so to remove all of them is what is certain. The pages can be written again,
    without examples.
    """
    folder = home / "reports"
    files = [path for pattern in _TEXTS for path in folder.glob(pattern)]
    for path in files:
        path.unlink(missing_ok=True)
    if files:
        sync(folder)
    return len(files)


def forget_exports(home: Path, store: CorrectionStore) -> tuple[str, ...]:
    """Removes the folders of pairs for a provider that hold a row deleted from the store, and returns their names."""
    folder = home / "exports"
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}") if any(stale(path, store)))
    for path in found:
        shutil.rmtree(path)
    return tuple(path.name for path in found)


def open_rounds(home: Path) -> tuple[str, ...]:
    """The numbers of the rounds that are not ended, whose folders hold copies of what was in the store."""
    folder = home / "rounds"
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()
