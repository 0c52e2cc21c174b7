"""`aligner.json`: what an Aligner's model folder says about itself beside the weights."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aligner_chain import __version__
from aligner_chain.errors import CheckpointError
from aligner_chain.templates import template_names

FILE = "aligner.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignerMetadata:
    """An Aligner's name and version, and how it was made.

    `template` is the name that `get_template` knows, `template_text` its text when the model was trained. `criteria`
    are those that the model was trained to name, `thresholds` values by name: `keep` is the
    probability from which on the verdict KEEP is believed (default 0.5). `data_sha256` is the hash of
    the training data's manifest, `package_version` the version of aligner-chain that wrote the file.
    """

    name: str
    version: str
    template: str
    template_text: str = ""
    criteria: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    base_model: str = ""
    data_sha256: str = ""
    licence: str = ""
    package_version: str = __version__

    @property
    def identity(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


def read_metadata(folder: str | Path) -> AlignerMetadata:
    """Reads `aligner.json`. Raises `CheckpointError` where it is missing, broken or of another schema."""
    path = Path(folder) / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {FILE}, so it is not known how its model was trained to be asked. If you know, say so: "
            f'Aligner.from_pretrained("{folder}", template=...) with one of {", ".join(template_names())}.'
        ) from None
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(values, dict):
        raise _broken(path, "it does not hold a JSON object")
    if values.pop("schema", None) != SCHEMA:
        raise _broken(path, f'its "schema" is not {SCHEMA}, the only one that this version of aligner-chain reads')
    return _metadata(values, path)


def write_metadata(folder: str | Path, metadata: AlignerMetadata) -> None:
    """Writes `aligner.json` beside the weights; a reader sees the old file or the new one, never a part."""
    values = {field.name: getattr(metadata, field.name) for field in fields(AlignerMetadata)}
    values["thresholds"] = dict(metadata.thresholds)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=FILE, delete=False, encoding="utf-8") as file:
        json.dump({"schema": SCHEMA, **values}, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(Path(folder) / FILE)


def _metadata(values: dict[str, Any], path: Path) -> AlignerMetadata:
    known = {field.name for field in fields(AlignerMetadata)}
    unknown, missing = sorted(values.keys() - known), sorted({"name", "version", "template"} - values.keys())
    if unknown or missing:
        raise _broken(path, f"unknown keys: {unknown}, missing keys: {missing}")
    for name in known - {"criteria", "thresholds"}:
        if not isinstance(values.get(name, ""), str):
            raise _broken(path, f'"{name}" is not a string')
    criteria, thresholds = values.get("criteria", []), values.get("thresholds", {})
    if not isinstance(criteria, list) or not all(isinstance(one, str) for one in criteria):
        raise _broken(path, '"criteria" is not a list of strings')
    if not isinstance(thresholds, dict) or not all(isinstance(one, int | float) for one in thresholds.values()):
        raise _broken(path, '"thresholds" is not an object of numbers')
    return AlignerMetadata(**{**values, "criteria": tuple(criteria), "thresholds": MappingProxyType(thresholds)})


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be used: {what}. Ways out: put back the file that was written with the weights, or pass "
        f"template= with one of {', '.join(template_names())}, which reads no {FILE}."
    )
