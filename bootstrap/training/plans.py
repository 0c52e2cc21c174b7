"""What a training was begun with, kept beside its checkpoints: the trainer itself would go on with anything, silently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from aligner_chain.errors import ConfigurationError
from bootstrap.files import file_sha256, replace_file, tree_sha256, write_synced

PLAN = "plan.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def claim(work: Path, wanted: Mapping[str, Any]) -> bool:
    """Writes the plan of a training into its folder `work`; returns whether the same plan was there already.

    Raises:
        ConfigurationError: the folder was begun with another plan; the message says what differs.
    """
    path = work / PLAN
    plan = json.loads(json.dumps(wanted, default=as_json))
    if path.exists():
        found = _read(path)
        if found == plan:
            return True
        differing = sorted(name for name in found.keys() | plan.keys() if found.get(name) != plan.get(name))
        message = (
            f"{work} was started with other {', '.join(differing)} than now, and its checkpoints are no use then. "
            f"Give the same as then, or start anew in another folder, or here:  rm -r {work}"
        )
        raise ConfigurationError(message)
    work.mkdir(parents=True, exist_ok=True)
    staged = work / f"{PLAN}.new"
    write_synced(staged, json.dumps(plan, indent=1))
    replace_file(path, staged)
    return False


def versions() -> dict[str, str]:
    """The versions of what trains."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, or of all files in a folder with their names."""
    return file_sha256(path) if path.is_file() else tree_sha256(path)


def as_json(value: Any) -> Any:
    """Settings are dataclasses that hold read-only mappings, which `asdict` cannot copy; paths are text."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}
