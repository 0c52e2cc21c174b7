"""`aligner.json`: what an Aligner's model folder says about itself beside the weights."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aligner_chain import __version__
from aligner_chain.calibration import Calibration
from aligner_chain.checks import require_known_checks
from aligner_chain.errors import CheckpointError, ConfigurationError
from aligner_chain.templates import template_names

FILE = "aligner.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignerMetadata:
    """An Aligner's name and version, and how it was made.

    `template` is the name that `get_template` knows, `template_text` its text when the model was trained. `criteria`
    are those that the model was trained to name, `thresholds` values by name: `keep` is the probability above which the
    verdict KEEP is believed (default 0.5); with `leave` instead an answer is also left where each of its tokens is as
    likely to be written again, which reads the whole answer as a draft in the first forward (see `Aligner.inspect`).
    `calibrations` are thresholds that were measured,
    by criterion; `threshold_of` says which of them hold. `may_delete` names, for a criterion, the checks
    that only warn where the model says that it was broken (see `aligner_chain.checks`). `longest_output` is the most tokens
    of an output that it was trained on: one may be as long, however short its answer; 0 says that nobody knows.
    `data_sha256` is the hash of the training data's manifest, `package_version` the version of aligner-chain that wrote the file.
    """

    name: str
    version: str
    template: str
    template_text: str = ""
    criteria: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    calibrations: Mapping[str, Calibration] = field(default_factory=lambda: MappingProxyType({}))
    may_delete: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    longest_output: int = 0
    base_model: str = ""
    data_sha256: str = ""
    licence: str = ""
    package_version: str = __version__

    @property
    def identity(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    def threshold_of(self, criterion: str, *, upstream: str | None = None) -> float | None:
        """The score above which an answer needs no correction, or None where no calibration holds: the gate stays shut.

        A calibration holds for the version of the Aligner that it was measured on, and for its upstream, where both that
        one and `upstream` are known. So a promotion closes the gate until it is calibrated anew.
        """
        found = self.calibrations.get(criterion)
        if found is None or found.aligner != self.identity:
            return None
        other = upstream is not None and found.upstream is not None and found.upstream != upstream
        return None if other else found.threshold


def read_metadata(folder: str | Path) -> AlignerMetadata:
    """Reads `aligner.json`. Raises `CheckpointError` where it is missing, broken or of another schema."""
    path = Path(folder) / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not (Path(folder) / "config.json").exists() and not (Path(folder) / "adapter_config.json").exists():
            raise CheckpointError(
                f"{folder} holds no model: there is no {FILE} and no config.json in it. Give the folder that holds them. Where "
                "it is a registry, name that in place of the model:  export ALIGNER_HOME=folder"
            ) from None
        raise CheckpointError(
            f"{folder} has no {FILE}, so it is not known how its model was trained to be asked. If you know, say so: "
            f'Aligner.from_pretrained("{folder}", template=...) with one of {", ".join(template_names())}.'
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(values, dict):
        raise _broken(path, "it does not hold a JSON object")
    if values.pop("schema", None) != SCHEMA:
        raise _broken(path, f'its "schema" is not {SCHEMA}, the only one that this version of aligner-chain reads')
    return _metadata(values, path)


def write_metadata(folder: str | Path, metadata: AlignerMetadata) -> None:
    """Writes `aligner.json` beside the weights; a reader sees the old file or the new one, never a part."""
    values = {field.name: getattr(metadata, field.name) for field in fields(AlignerMetadata)}
    values |= {"thresholds": dict(metadata.thresholds), "may_delete": dict(metadata.may_delete)}
    values["calibrations"] = {name: one.as_json() for name, one in metadata.calibrations.items()}
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
    longest = values.get("longest_output", 0)
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 0:
        raise _broken(path, '"longest_output" is not a number of tokens')
    for name in known - {"criteria", "thresholds", "calibrations", "may_delete", "longest_output"}:
        if not isinstance(values.get(name, ""), str):
            raise _broken(path, f'"{name}" is not a string')
    criteria, thresholds = values.get("criteria", []), values.get("thresholds", {})
    if not _is_strings(criteria):
        raise _broken(path, '"criteria" is not a list of strings')
    if not isinstance(thresholds, dict) or not all(map(_is_number, thresholds.values())):
        raise _broken(path, '"thresholds" is not an object of numbers')
    read = {
        "criteria": tuple(criteria),
        "thresholds": MappingProxyType(thresholds),
        "calibrations": MappingProxyType(_calibrations(values.get("calibrations", {}), path)),
        "may_delete": _may_delete(values.get("may_delete", {}), path),
    }
    return AlignerMetadata(**{**values, **read})


def _calibrations(values: object, path: Path) -> dict[str, Calibration]:
    if not isinstance(values, dict):
        raise _broken(path, '"calibrations" is not an object')
    try:
        read = {name: Calibration.from_json(value) for name, value in values.items()}
    except ConfigurationError as error:
        raise _broken(path, str(error)) from error
    if other := [name for name, one in read.items() if one.criterion != name]:
        raise _broken(path, f'the calibration "{other[0]}" is one of "{read[other[0]].criterion}"')
    return read


def _may_delete(values: object, path: Path) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(values, dict) or not all(map(_is_strings, values.values())):
        raise _broken(path, '"may_delete" is not an object of lists of strings')
    allowed = {criterion: tuple(checks) for criterion, checks in values.items()}
    try:
        require_known_checks(allowed)
    except ConfigurationError as error:
        raise _broken(path, f'in "may_delete": {error}') from error
    return MappingProxyType(allowed)


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_number(value: object) -> bool:
    """Whether it is one that can be compared with: JSON as Python reads it may hold NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be used: {what}. Ways out: put back the file that was written with the weights, or pass "
        f"template= with one of {', '.join(template_names())}, which reads no {FILE}."
    )
