"""A round's settings from a TOML file: paths, the three callables by name, and the settings of the trainers."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from aligner_chain.engines.base import Sampling
from aligner_chain.errors import ConfigurationError
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.answering import Answering
from bootstrap.errors import JudgeError
from bootstrap.evaluation import GatePolicy
from bootstrap.judges import load_callable
from bootstrap.measures import Yardstick
from bootstrap.pairs import read_triples
from bootstrap.rounds import RoundConfig
from bootstrap.sft import TrainingSettings
from bootstrap.training import Launcher
from bootstrap.upstream import DPOSettings

Settings = TypeVar("Settings")

EXAMPLE = """\
store = "corrections.db"          # what AlignerCorrector(on_correction=Collector(...).submit) filled
base_upstream = "models/upstream" # every round's candidates start from these two folders
base_aligner = "models/aligner"
judge = "my_desk:judge"           # exchanges -> for each, {criterion: met}
verifier = "my_desk:verify"       # corrections -> for each, fit to learn from? Must not be the judge.
annotator = "my_desk:annotate"    # optional: exchanges -> Annotation(text, criteria)
# preference = "my_desk:better"   # a PreferenceJudge: which of two answers is better, for the gate
gold = "gold.jsonl"               # optional: rows that are in every training set of the Aligner
least_pairs = 50
annotations = 200

[answering]
temperature = 1.0
seed = 0
max_new = 512

[dpo]
epochs = 1
learning_rate = 5e-6
batch = 32
lora = {r = 16, lora_alpha = 32, target_modules = "all-linear", task_type = "CAUSAL_LM"}

[policy]
alpha = 0.05                      # of all promotions over the rounds, the share that may be no improvement
criterion_margin = 0.02           # so much may each criterion lose, as a share

[launcher]
timeout_s = 86400                 # optional: after so long a training is ended
# processes = 4                   # one for each GPU
# config = "fsdp.yaml"            # of `accelerate config`: FSDP or DeepSpeed

[aligner.warm_up]
epochs = 1

[aligner.correction]
epochs = 3
learning_rate = 2e-5
"""

_PATHS = ("base_upstream", "base_aligner", "home")
_DATABASES = ("store", "registry")
_NAMES = ("judge", "verifier", "annotator", "preference")
_NUMBERS = ("least_pairs", "annotations", "regenerate", "margin", "pair_margin", "examples", "tries", "seed")
_TABLES = ("gold", "answering", "dpo", "launcher", "policy", "aligner")


def read_config(path: Path) -> RoundConfig:
    """The round that a TOML file describes; relative paths are relative to the file.

    Raises:
        ConfigurationError: the file cannot be read, lacks a key or has one that is not known.
    """
    values = _read(path)
    _refuse_unknown(values, {*_PATHS, *_DATABASES, *_NAMES, *_NUMBERS, *_TABLES}, str(path))
    missing = [name for name in ("store", *_PATHS[:2], *_NAMES[:2]) if name not in values]
    if missing:
        message = f"{path} lacks {', '.join(missing)}. A whole file looks like this:\n\n{EXAMPLE}"
        raise ConfigurationError(message)
    _require_types(values, path)
    loaded = {name: load_callable(values[name]) for name in _NAMES if name in values}
    try:
        return _config(values, loaded, path.absolute().parent)
    except JudgeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _config(values: Mapping[str, Any], loaded: Mapping[str, Any], folder: Path) -> RoundConfig:
    return RoundConfig(
        **{name: folder / values[name] for name in _PATHS if name in values},
        store=_url_or_path(folder, values["store"]),
        registry=_url_or_path(folder, values["registry"]) if "registry" in values else None,
        **{name: values[name] for name in _NUMBERS if name in values},
        yardstick=Yardstick(judge=loaded["judge"]),
        verifier=loaded["verifier"],
        annotator=loaded.get("annotator"),
        preference=loaded.get("preference"),
        gold=tuple(read_triples(folder / values["gold"])) if "gold" in values else (),
        answering=_answering(values.get("answering", {})),
        dpo=_settings(DPOSettings, values.get("dpo", {}), "[dpo]"),
        aligner=_aligner(values.get("aligner", {})),
        policy=_settings(GatePolicy, values.get("policy", {}), "[policy]"),
        launcher=_launcher(folder, values.get("launcher", {})),
    )


def _require_types(values: Mapping[str, Any], path: Path) -> None:
    wanted: dict[str, tuple[Any, str]] = dict.fromkeys((*_PATHS, *_DATABASES, *_NAMES, "gold"), (str, "text"))
    wanted |= dict.fromkeys(_NUMBERS, (int | float, "a number"))
    for name, (kind, word) in wanted.items():
        if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
            raise ConfigurationError(f"In {path} {name} is {values[name]!r} and must be {word}.")


def _url_or_path(folder: Path, value: str) -> str:
    return value if "://" in value else str(folder / value)


def _launcher(folder: Path, values: Mapping[str, Any]) -> Launcher:
    """How trainings are started; a relative path is relative to the file."""
    known = {**values, "config": folder / values["config"]} if "config" in values else values
    return _settings(Launcher, known, "[launcher]")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"There is no file {path}. A round is described like this:\n\n{EXAMPLE}"
        raise ConfigurationError(message) from None
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read as TOML: {error}"
        raise ConfigurationError(message) from error


def _answering(values: Mapping[str, Any]) -> Answering:
    _refuse_unknown(values, {"temperature", "seed", "max_new"}, "[answering]")
    sampling = Sampling(temperature=values.get("temperature", 1.0), seed=values.get("seed", 0))
    return Answering(sampling=sampling, max_new=values.get("max_new", 512))


def _aligner(values: Mapping[str, Any]) -> AlignerTrainingSettings:
    stages = {
        name: _settings(TrainingSettings, values[name], f"[aligner.{name}]")
        for name in ("warm_up", "correction")
        if name in values
    }
    return _settings(AlignerTrainingSettings, {**values, **stages}, "[aligner]")


def _settings(make: Callable[..., Settings], values: Mapping[str, Any], where: str) -> Settings:
    _refuse_unknown(values, {field.name for field in fields(make)}, where)  # type: ignore[arg-type]
    return make(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _refuse_unknown(values: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(values.keys() - known)
    if unknown:
        message = f"{where} has {', '.join(unknown)}, which is not known. Known are {', '.join(sorted(known))}."
        raise ConfigurationError(message)
