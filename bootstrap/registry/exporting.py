"""A version as a folder that stands by itself, with its model card."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner_chain.checkpoint import FILE as ALIGNER_FILE
from bootstrap.errors import RegistryError
from bootstrap.files import is_disk_error, sync, sync_tree
from bootstrap.registry.cards import FILE_NAME as CARD
from bootstrap.registry.cards import write_card
from bootstrap.registry.model_files import ADAPTER, PICKLES, is_model_file
from bootstrap.registry.publishing import UNFINISHED
from bootstrap.registry.values import PairVersion, Version

Merge = Callable[[Path, Path], object]
"""Writes the whole model of an adapter's folder (the first) into an empty folder (the second)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What became of an export: whether an adapter was `merged`, and the files that are no part of a model and stayed."""

    merged: bool
    left_out: tuple[str, ...]


def export(
    version: Version,
    out: Path,
    *,
    pair: PairVersion | None = None,
    merge: Merge | None = None,
    base: str | None = None,
    at: str | None = None,
) -> Exported:
    """Writes a version to a folder that holds all that is needed to load it but, for an adapter, its base.

    Only weights, settings, tokenizer and licence leave the registry, whatever else lies in its folder.

    Args:
        version: what to write.
        out: the folder; it may be there if it is empty.
        pair: whose figures the model card shows.
        merge: makes whole weights of an adapter. None leaves an adapter as it is, with its base's name.
        base: what an adapter that stays one says its base is, in place of a folder of this machine.
        at: what the model card has its reader load (default: the folder's name).

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
        left_out = _write(version, staged, merge if merging else None)
        if base is not None and (staged / ADAPTER).exists():
            _write_base(staged, base)
        write_card(staged, version, pair, whole=not (staged / ADAPTER).exists(), at=at or out.name)
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
    return Exported(merged=merging, left_out=left_out)


def _write(version: Version, folder: Path, merge: Merge | None) -> tuple[str, ...]:
    """Writes the files of a model, and returns those that were there beside it."""
    folder.mkdir()
    parts = [path for path in sorted(version.path.iterdir()) if path.is_file() and is_model_file(path.name)]
    if merge is not None:
        merge(version.path, folder)
        # An Aligner's description of itself is no part of what a model library writes, nor is a licence.
        parts = [path for path in parts if path.name == ALIGNER_FILE or path.name.startswith(("LICENSE", "NOTICE"))]
    for path in parts:
        shutil.copy2(path, folder)
    others = (path.name for path in version.path.iterdir() if not is_model_file(path.name) or not path.is_file())
    return tuple(sorted(name for name in others if name != CARD))


def _write_base(folder: Path, base: str) -> None:
    settings = {**adapter_settings(folder), "base_model_name_or_path": base}
    (folder / ADAPTER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def base_of(version: Version) -> str | None:
    """The name or path of the model that a version's adapter is for, None where nobody noted it."""
    noted = version.manifest.get("base") or adapter_settings(version.path).get("base_model_name_or_path")
    return str(noted) if noted else None


def adapter_settings(folder: Path) -> Mapping[str, Any]:
    """What an adapter says of itself; nothing where a folder holds none."""
    try:
        content = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
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
