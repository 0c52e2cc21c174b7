"""One training as a value: what is trained on what, from where, to where. Written to `job.json`, the worker reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from aligner_chain.errors import ConfigurationError
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.errors import TrainingDataError
from bootstrap.sft import TrainingSettings
from bootstrap.training.plans import as_json, fingerprint, versions
from bootstrap.upstream import DPOSettings

Kind = Literal["upstream", "aligner"]
Settings = TypeVar("Settings")

JOB, FIGURES, ERROR, LOG = "job.json", "figures.json", "error.json", "worker.log"
LIFELINE = "ALIGNER_TRAINING_LIFELINE"
"""Set in the worker's environment where its standard input ends when the caller does."""
PROCESSES = "ALIGNER_TRAINING_PROCESSES"
"""In the worker's environment, how many processes should be training together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One training.

    Args:
        kind: "upstream" trains by preferences on pairs, "aligner" on triples.
        base: the model folder to start from.
        data: JSON lines of `write_pairs` or `write_triples`.
        work: where plan, checkpoints, losses and `worker.log` are; the same folder resumes the same job.
        out: the folder that the trained model will be; it must not be there yet.
        settings: `DPOSettings` for an upstream, `AlignerTrainingSettings` for an Aligner.
        parent: what an upstream's training goes on from, unless it starts fresh.
        replay: JSON lines of `write_pairs` whose chosen answers an upstream's training replays.

    Raises:
        ConfigurationError: kind and settings do not belong together, or an Aligner has a parent or replay.
    """

    kind: Kind
    base: Path
    data: Path
    work: Path
    out: Path
    settings: DPOSettings | AlignerTrainingSettings
    parent: Path | None = None
    replay: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in _SETTINGS:
            raise ConfigurationError(f"A job trains an {' or an '.join(_SETTINGS)}, not {self.kind!r}.")
        if not isinstance(self.settings, _SETTINGS[self.kind]):
            found, wanted = type(self.settings).__name__, _SETTINGS[self.kind].__name__
            raise ConfigurationError(f"An {self.kind} is trained with {wanted}, not with {found}.")
        if self.kind == "aligner" and (self.parent or self.replay):
            message = "An Aligner starts from its base and has gold rows among its data: leave parent and replay out."
            raise ConfigurationError(message)

    def plan(self) -> dict[str, Any]:
        """What must be the same when the job is resumed: the content of what is read, the settings, the versions.

        Raises:
            TrainingDataError: something that is to be read is not there.
        """
        return {
            "kind": self.kind,
            **{name: self._content(name) for name in ("base", "data", "parent", "replay")},
            "settings": self.settings,
            "versions": versions(),
        }

    def _content(self, name: str) -> str | None:
        path: Path | None = getattr(self, name)
        if path is None:
            return None
        if not path.exists():
            raise TrainingDataError(f"The job's {name}, {path}, is not there. Give the path of what is to be read.")
        return fingerprint(path)

    def write(self) -> Path:
        """Writes `job.json` into the work folder, all paths absolute, and returns its path."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        absolute = {name: value.absolute() if isinstance(value, Path) else value for name, value in values.items()}
        path = self.work / JOB
        path.write_text(json.dumps(absolute, default=as_json, indent=1), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        """The job of a `job.json`."""
        values = json.loads(path.read_text(encoding="utf-8"))
        paths = {name: Path(values[name]) for name in ("base", "data", "work", "out")}
        maybe = {name: values[name] and Path(values[name]) for name in ("parent", "replay")}
        return cls(kind=values["kind"], settings=_settings(values["kind"], values["settings"]), **paths, **maybe)


_SETTINGS: Mapping[str, type[DPOSettings] | type[AlignerTrainingSettings]] = MappingProxyType(
    {"upstream": DPOSettings, "aligner": AlignerTrainingSettings}
)


def _settings(kind: Kind, values: Mapping[str, Any]) -> DPOSettings | AlignerTrainingSettings:
    if kind == "upstream":
        return _made(DPOSettings, values)
    stages = {name: values[name] and _made(TrainingSettings, values[name]) for name in ("warm_up", "correction")}
    return _made(AlignerTrainingSettings, {**values, **stages})


def _made(make: type[Settings], values: Mapping[str, Any]) -> Settings:
    return make(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
