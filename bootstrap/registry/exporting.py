"""A version as a folder that stands by itself, with its model card."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bootstrap.errors import RegistryError
from bootstrap.files import is_disk_error, sync, sync_tree
from bootstrap.registry.cards import write_card
from bootstrap.registry.publishing import UNFINISHED
from bootstrap.registry.values import PairVersion, Version

Merge = Callable[[Path, Path], object]
"""Writes the whole model of an adapter's folder (the first) into an empty folder (the second)."""

ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
"""Files that run code when they are loaded. None is exported, pushed or pulled."""


def export(version: Version, out: Path, *, pair: PairVersion | None = None, merge: Merge | None = None) -> bool:
    """Writes a version to a folder that holds all that is needed to load it but, for an adapter, its base.

    Args:
        version: what to write.
        out: the folder; it may be there if it is empty.
        pair: whose figures the model card shows.
        merge: makes whole weights of an adapter. None leaves an adapter as it is, with its base's name.

    Returns:
        Whether there was an adapter to merge.

    Raises:
        RegistryError: the folder is not empty, the weights are gone or no safetensors, or the disk is full. Nothing is
            left of it then.
    """
    _check_free(out)
    _check_source(version)
    staged = out.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    merging = merge is not None and (version.path / ADAPTER).exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(version, staged, merge if merging else None)
        write_card(staged, version, pair, whole=not (staged / ADAPTER).exists())
        sync_tree(staged)
        staged.replace(out)  # over nothing or an empty folder
        sync(out.parent)
    except Exception as error:  # Rust libraries raise a bare Exception on a full disk; the rest is passed on.
        if not is_disk_error(error):
            raise
        raise RegistryError(
            f"{version.identity} could not be exported to {out}: {error}\nNothing is left of it. Make room (df -h), or name "
            "another folder:  --out DIR"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return merging


def _write(version: Version, folder: Path, merge: Merge | None) -> None:
    if merge is None:
        shutil.copytree(version.path, folder)
        return
    folder.mkdir()
    merge(version.path, folder)
    # An Aligner's description of itself is no part of what a model library writes.
    for path in version.path.glob("aligner.json"):
        shutil.copy2(path, folder)


def base_of(version: Version) -> str | None:
    """The name or path of the model that a version's adapter is for, None where nobody noted it."""
    noted = version.manifest.get("base") or _adapter(version).get("base_model_name_or_path")
    return str(noted) if noted else None


def _adapter(version: Version) -> Mapping[str, Any]:
    try:
        content = json.loads((version.path / ADAPTER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RegistryError(
            f"{out} is there and not an empty folder; nothing was written. Name another one:  --out DIR"
        )


def _check_source(version: Version) -> None:
    if version.removed is not None or not version.path.is_dir():
        raise RegistryError(
            f"The weights of {version.identity} are gone from {version.path}.\n"
            "See what there is:  aligner-bootstrap registry list"
        )
    if pickles := [path.name for pattern in PICKLES for path in version.path.rglob(pattern)]:
        raise RegistryError(
            f"{version.identity} holds {pickles[0]}, which may run code when it is loaded; only safetensors leave the "
            "registry.\nSave the model again as safetensors and add that."
        )
