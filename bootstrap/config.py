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
from bootstrap.errors import JudgeError, TrainingDataError
from bootstrap.evaluation import GatePolicy
from bootstrap.judges import load_callable
from bootstrap.measures import Yardstick
from bootstrap.pairs import read_triples
from bootstrap.pairs.reading import read_answered
from bootstrap.rounds import RoundConfig
from bootstrap.sft import TrainingSettings
from bootstrap.training import CONFIGURATIONS, Launcher
from bootstrap.training.presets import preset
from bootstrap.upstream import DPOSettings

Settings = TypeVar("Settings")

EXAMPLE = """\
store = "corrections.db"          # what AlignerCorrector(on_correction=Collector(...).submit) filled
base_upstream = "models/upstream" # every round's candidates start from these two folders; leave this one out
base_aligner = "models/aligner"   # where the upstream is a provider's and cannot be trained here
judge = "my_desk:judge"           # exchanges -> for each, {criterion: met}
verifier = "my_desk:verify"       # corrections -> for each, fit to learn from? Must not be the judge.
annotator = "my_desk:annotate"    # optional: exchanges -> Annotation(text, criteria)
# preference = "my_desk:better"   # a PreferenceJudge: which of two answers is better, for the gate
gold = "gold.jsonl"               # optional: rows that are in every training set of the Aligner
# known_right = "right.jsonl"     # answers of which 98 % must be kept: {"question": "...", "answer": "..."}
# unrelated = "unrelated.jsonl"   # the same of other things, to see what else a training changed
# aligner_alone = false           # end the round where the candidate upstream is refused
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
# lora = false                    # train all weights

[policy]
alpha = 0.05                      # of all promotions over the rounds, the share that may be no improvement
criterion_margin = 0.02           # so much may each criterion lose, as a share

[launcher]
timeout_s = 86400                 # optional: after so long a training is ended
# processes = 4                   # one for each GPU
# config = "fsdp2"                # or ddp, zero3, two_nodes, or a file of `accelerate config`

[aligner]
# preset = "7b-lora"              # in the place of the tables below: 0.5b, 2b, 3b, 7b, 13b and full, lora or qlora

[aligner.warm_up]
epochs = 1

[aligner.correction]
epochs = 3
learning_rate = 2e-5
"""

_PATHS = ("base_upstream", "base_aligner", "home")
_DATABASES = ("store", "registry")
_NAMES = ("judge", "verifier", "annotator", "preference", "minimal", "garbled")
_NUMBERS = ("least_pairs", "annotations", "regenerate", "margin", "pair_margin", "examples", "tries", "seed")
_FLAGS = ("aligner_alone",)
_ROWS: Mapping[str, Callable[[Path], list[Any]]] = {
    "gold": read_triples,
    "known_right": read_answered,
    "unrelated": read_answered,
}
"""The files of JSON lines, and what reads each."""
_OFF = {"lora": "a table", "warm_up": "a table", "length_ratio": "a number", "least_length_ratio": "a number"}
"""What `false` leaves out, which TOML has no other word for, and what else it can be."""
_TABLES = ("answering", "dpo", "launcher", "policy", "aligner")


def read_config(path: Path) -> RoundConfig:
    """The round that a TOML file describes; relative paths are relative to the file.

    Raises:
        ConfigurationError: the file cannot be read, lacks a key or has one that is not known.
    """
    values = _read(path)
    _refuse_unknown(values, {*_PATHS, *_DATABASES, *_NAMES, *_NUMBERS, *_FLAGS, *_ROWS, *_TABLES}, str(path))
    missing = [name for name in ("store", "base_aligner", *_NAMES[:2]) if name not in values]
    if missing:
        message = f"{path} lacks {', '.join(missing)}. A whole file looks like this:\n\n{EXAMPLE}"
        raise ConfigurationError(message)
    _require_types(values, path)
    loaded = {name: _loaded(name, values[name]) for name in _NAMES if name in values}
    try:
        return _config(values, loaded, path.absolute().parent, _rows(values, path))
    except (ConfigurationError, JudgeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _loaded(name: str, reference: str) -> Any:
    """What a key names: a function or another object that can be called, and of `preference` a judge of it."""
    found = load_callable(reference)
    if name == "preference" and not hasattr(found, "prefer"):
        raise ConfigurationError(f"{name} is {reference!r}, which has no method prefer. See docs/judges.md.")
    if name != "preference" and not callable(found):
        raise ConfigurationError(f"{name} is {reference!r}, which is {found!r} and cannot be called. Name a function.")
    return found


def _rows(values: Mapping[str, Any], path: Path) -> dict[str, tuple[Any, ...]]:
    """What the files of JSON lines hold, by the key that names the file."""
    found = {}
    for name, read in _ROWS.items():
        if name in values:
            try:
                found[name] = tuple(read(_path(path.absolute().parent, values[name])))
            except TrainingDataError as error:
                raise ConfigurationError(f"In {path} {name} is {values[name]!r}: {error}") from error
    return found


def _config(values: Mapping[str, Any], loaded: Mapping[str, Any], folder: Path, rows: Mapping[str, Any]) -> RoundConfig:
    launcher = _launcher(folder, values.get("launcher", {}))
    paths: dict[str, Any] = {name: _path(folder, values[name]) for name in _PATHS if name in values}
    return RoundConfig(
        **paths,
        store=_url_or_path(folder, values["store"]),
        registry=_url_or_path(folder, values["registry"]) if "registry" in values else None,
        **{name: values[name] for name in (*_NUMBERS, *_FLAGS) if name in values},
        **rows,
        yardstick=Yardstick(**{name: loaded[name] for name in ("judge", "minimal", "garbled") if name in loaded}),
        verifier=loaded["verifier"],
        annotator=loaded.get("annotator"),
        preference=loaded.get("preference"),
        answering=_answering(values.get("answering", {})),
        dpo=_settings(DPOSettings, values.get("dpo", {}), "[dpo]"),
        aligner=_aligner(values.get("aligner", {}), launcher),
        policy=_settings(GatePolicy, values.get("policy", {}), "[policy]"),
        launcher=launcher,
    )


def _require_types(values: Mapping[str, Any], path: Path) -> None:
    wanted: dict[str, tuple[Any, str]] = dict.fromkeys((*_PATHS, *_DATABASES, *_NAMES, *_ROWS), (str, "text"))
    wanted |= dict.fromkeys(_NUMBERS, (int | float, "a number"))
    for name, (kind, word) in wanted.items():
        if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
            raise ConfigurationError(f"In {path} {name} is {values[name]!r} and must be {word}.")
    for name in _FLAGS:
        if not isinstance(values.get(name, True), bool):
            raise ConfigurationError(f"In {path} {name} is {values[name]!r} and must be true or false.")
    for name in _TABLES:
        if not isinstance(values.get(name, {}), Mapping):
            raise ConfigurationError(f"In {path} {name} is {values[name]!r} and must be a table:  [{name}]")


def _url_or_path(folder: Path, value: str) -> str:
    return value if "://" in value else str(_path(folder, value))


def _path(folder: Path, value: str) -> Path:
    """A path as a shell would read it from this folder; `~` is the user's home."""
    return folder / (Path(value).expanduser() if value.startswith("~/") else value)


def _launcher(folder: Path, values: Mapping[str, Any]) -> Launcher:
    """How trainings are started; a configuration is one of ours by its name, or a path relative to the file."""
    named = values.get("config", "")
    ours = not isinstance(named, str) or named in ("", *CONFIGURATIONS)
    known = values if ours else {**values, "config": _path(folder, named)}
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
    try:
        return Answering(sampling=sampling, max_new=values.get("max_new", 512))
    except ConfigurationError as error:
        raise ConfigurationError(f"In [answering] {error}") from None


def _aligner(values: Mapping[str, Any], launcher: Launcher) -> AlignerTrainingSettings:
    """The settings of the table, in the place of those of the preset that it may name."""
    stages = {
        name: _settings(TrainingSettings, values[name], f"[aligner.{name}]")
        for name in ("warm_up", "correction")
        if isinstance(values.get(name), Mapping)
    }
    given = {**values, **stages}
    if "preset" not in given:
        return _settings(AlignerTrainingSettings, given, "[aligner]")
    named = preset(str(given.pop("preset"))).settings(processes=launcher.count())
    known = {one.name: getattr(named, one.name) for one in fields(named)}
    return _settings(AlignerTrainingSettings, {**known, **given}, "[aligner]")


def _settings(make: Callable[..., Settings], values: Mapping[str, Any], where: str) -> Settings:
    _refuse_unknown(values, {field.name for field in fields(make)}, where)  # type: ignore[arg-type]
    given = {name: _setting(name, value, where) for name, value in values.items()}
    try:
        return make(**given)
    except ConfigurationError as error:
        raise ConfigurationError(f"In {where} {error}") from None


def _setting(name: str, value: Any, where: str) -> Any:
    """A value as the settings have it: a list is a tuple, and `false` is None where there is something to leave out."""
    if name in _OFF and isinstance(value, bool | str):
        if value is not False:
            raise ConfigurationError(f"In {where} {name} is {value!r}; it is {_OFF[name]}, or false to do without.")
        return None
    return tuple(value) if isinstance(value, list) else value


def _refuse_unknown(values: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(values.keys() - known)
    if unknown:
        message = f"{where} has {', '.join(unknown)}, which is not known. Known are {', '.join(sorted(known))}."
        raise ConfigurationError(message)
