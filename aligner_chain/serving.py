"""What is served now: the upstream and the Aligner that a registry promoted together.

`bootstrap.registry` writes `$ALIGNER_HOME/served.json` with one atomic rename; this module only reads it:

    {"schema": 1, "pair": "3",
     "upstream": {"identity": "upstream@3", "path": "upstream/3"},
     "aligner": {"identity": "aligner@3", "path": "aligner/3"}}

Paths are relative to the home unless absolute; `upstream` may be null. An Aligner that runs on servers says so beside its
path, of which only the small files are read then:

     "server": {"urls": ["http://gpu1:8000/v1", "http://gpu2:8000/v1"], "model": "aligner@3"}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

import platformdirs

from aligner_chain.errors import AlignerNotConfiguredError, ConfigurationError

SCHEMA = 1
FILE_NAME = "served.json"

Kind = Literal["upstream", "aligner"]
"""The two models of a pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelServers:
    """The servers that run a promoted model, and its name there."""

    urls: tuple[str, ...]
    model: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """One promoted model: its `name@version`, its folder, absolute, and its servers; None: each application loads it."""

    identity: str
    path: Path
    server: ModelServers | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The promoted pair. `upstream` is None where only an Aligner is served."""

    pair: str
    upstream: ServedModel | None
    aligner: ServedModel

    def model(self, kind: Kind) -> ServedModel | None:
        """The upstream or the Aligner of the pair."""
        return self.upstream if kind == "upstream" else self.aligner

    def mismatches(self, upstream: str | None) -> bool:
        """Whether an answer is of another upstream than the one that was promoted with this Aligner, as far as is known."""
        return upstream is not None and self.upstream is not None and upstream != self.upstream.identity


def home() -> Path:
    """The registry's folder: `$ALIGNER_HOME`, else the platform's data folder of this user. It may not exist yet."""
    configured = os.environ.get("ALIGNER_HOME")
    if configured:
        return Path(configured).expanduser().absolute()
    return platformdirs.user_data_path("aligner-chain", appauthor=False)


def read_served(home: Path | None = None) -> Served | None:
    """The pair that `home` serves, or None where it has never served one.

    Args:
        home: the registry's folder. Default: `home()`.

    Raises:
        ConfigurationError: the file cannot be read as a pair, or its schema is not one this version knows.
    """
    folder = _default_home() if home is None else Path(home).absolute()
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        message = f"{folder} is a file, and the folder of a registry is meant:  export ALIGNER_HOME=folder"
        raise ConfigurationError(message) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    try:
        content = json.loads(text)
        _check_schema(content, path)
        return _served(content, folder)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise _unreadable(path, error) from error


def resolve_aligner() -> str:
    """The Aligner to use where none was given, as a folder or hub id: `ALIGNER_MODEL`, else the served one.

    Raises:
        AlignerNotConfiguredError: there is neither; the message lists the ways to one.
        ConfigurationError: a pair is served but its Aligner's folder is gone, or the record is broken.
    """
    configured = os.environ.get("ALIGNER_MODEL")
    if configured:
        return configured
    return str(served_model("aligner").path)


def served_model(kind: Kind, folder: Path | None = None, served: Served | None = None) -> ServedModel:
    """The upstream or Aligner that is served, whose folder is there.

    Args:
        kind: which of them.
        folder: the registry's folder. Default: `home()`.
        served: the pair that was read from there. Default: it is read.

    Raises:
        AlignerNotConfiguredError: no Aligner is served; the message lists the ways to one.
        ConfigurationError: no upstream is served, the model's folder is gone, or the record is broken.
    """
    folder = folder or home()
    served = served or read_served(folder)
    model = served.model(kind) if served else None
    if model is None:
        raise not_served(kind, folder)
    if not model.path.is_dir():
        raise ConfigurationError(
            f"{folder / FILE_NAME} serves {model.identity}, but its folder {model.path} is not there.\n"
            "Put the folder back, or serve the pair before it:  aligner-bootstrap rollback"
        )
    return model


def not_served(kind: Kind, folder: Path) -> ConfigurationError:
    """The error for a registry that serves no such model, with the ways to one."""
    return (
        AlignerNotConfiguredError(_no_aligner(folder))
        if kind == "aligner"
        else ConfigurationError(_no_upstream(folder))
    )


# `read_served` has a parameter named like the function it falls back to.
_default_home = home


def _check_schema(content: Mapping[str, object], path: Path) -> None:
    if content["schema"] != SCHEMA:
        raise ConfigurationError(
            f"{path} has schema {content['schema']!r}; this version of aligner-chain reads schema {SCHEMA}.\n"
            "Upgrade:  pip install --upgrade aligner-chain"
        )


def _served(content: Mapping[str, object], folder: Path) -> Served:
    aligner = _model(content["aligner"], folder)
    if aligner is None:
        raise TypeError("it names no Aligner")
    return Served(pair=str(content["pair"]), upstream=_model(content["upstream"], folder), aligner=aligner)


def _model(entry: object, folder: Path) -> ServedModel | None:
    if entry is None:
        return None
    if not isinstance(entry, Mapping):
        raise TypeError(f"a model is written as {type(entry).__name__}, not as an object")
    return ServedModel(
        identity=str(entry["identity"]), path=folder / str(entry["path"]), server=_servers(entry.get("server"))
    )


def _servers(entry: object) -> ModelServers | None:
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or not isinstance(entry["urls"], list) or not entry["urls"]:
        raise TypeError("a model's servers are not written as an object with a list of urls")
    return ModelServers(urls=tuple(map(str, entry["urls"])), model=str(entry["model"]))


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{path} does not say which pair is served ({type(error).__name__}: {error}).\n"
        "See what the registry holds:  aligner-bootstrap registry list\n"
        "Write the file anew by serving the pair before:  aligner-bootstrap rollback\n"
        "Or name an Aligner without the registry:  export ALIGNER_MODEL=path-or-hub-id"
    )


def _no_aligner(folder: Path) -> str:
    missing = "" if folder.exists() else " (there is no such folder)"
    return (
        f"No Aligner was given, ALIGNER_MODEL is not set and {folder} serves none{missing}. Ways to one:\n{_below(folder)}"
        "- correct with a chat model at hand, no training: give  Aligner.from_chat_model(chat_model)  as the Aligner\n"
        "- name a folder or hub id:  export ALIGNER_MODEL=path-or-hub-id\n"
        "- have a strong chat model make a first training set:  aligner-bootstrap annotate --help\n"
        "- train one on your own corrections:  aligner-bootstrap train-aligner --help\n"
        "- see a trained pair at work first:  aligner-bootstrap demo --out demo-out  "
        "and then  export ALIGNER_HOME=$PWD/demo-out/home"
    )


def _below(folder: Path) -> str:
    """The way out for whoever named the folder of a demo, which has the registry in its folder `home`."""
    home = folder / "home"
    return (
        f"- the folder below it serves one:  export ALIGNER_HOME={quote(str(home))}\n"
        if (home / FILE_NAME).is_file()
        else ""
    )


def _no_upstream(folder: Path) -> str:
    return (
        f"{folder} serves no upstream. Ways out:\n"
        '- name the model to run:  LocalChatModel("path-or-hub-id")\n'
        "- see what the registry holds:  aligner-bootstrap registry list\n"
        "- name another registry:  export ALIGNER_HOME=folder\n"
        "- make one with a trained pair:  aligner-bootstrap demo --out demo-out  "
        "and then  export ALIGNER_HOME=$PWD/demo-out/home"
    )
