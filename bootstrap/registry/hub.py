"""The Hugging Face Hub, by the library `huggingface_hub`: loaded, and asked for anything, only where a command names it.

Who may do what is the library's own matter: its saved token (`hf auth login`), `HF_TOKEN` and `HF_ENDPOINT`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain.checkpoint import read_metadata
from aligner_chain.errors import CheckpointError, MissingExtraError, TemplateError
from aligner_chain.templates import get_template
from bootstrap.errors import RegistryError
from bootstrap.registry.cards import FILE_NAME as CARD
from bootstrap.registry.cards import is_hub_id
from bootstrap.registry.exporting import adapter_settings
from bootstrap.registry.model_files import ADAPTER, is_model_file, require_inside

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from bootstrap.registry.registry import Registry
    from bootstrap.registry.values import Kind, Version

_SETTINGS = ("config.json", "tokenizer_config.json", ADAPTER)
_CODE = "auto_map"
"""The key under which settings name code that is to be run, here or in another repository."""


def push(folder: Path, repo: str, *, private: bool = False, message: str) -> str:
    """Uploads an exported folder as one commit and returns its URL.

    Args:
        folder: what `export` wrote.
        repo: `user/name`, made if need be.
        private: make it private; refused where it is there and public.
        message: the commit's.

    Raises:
        RegistryError: the Hub, or the way to it, refuses, or it is an adapter whose base is a folder of this machine.
        MissingExtraError: huggingface_hub is not installed.
    """
    api = _api()
    _require_known_base(folder, repo)
    with _explaining(f"{repo} could not be pushed"):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise RegistryError(
                f"{repo} is there and public; nothing was pushed. Make it private in its settings, or name another one."
            )
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)


def pull(registry: Registry, kind: Kind, repo: str, revision: str | None = None) -> Version:
    """Downloads a model as the next version of its kind. It is not served; its manifest says where it came from.

    Only safetensors, settings, tokenizer and licence come along: nothing that could run code.

    Args:
        registry: where to.
        kind: "upstream" or "aligner".
        repo: `user/name`.
        revision: a branch, tag or commit (default: the main branch); the manifest holds the commit.

    Raises:
        RegistryError: the Hub, or the way to it, refuses, or it is no model of this kind, or one that asks for code of
            its own.
        MissingExtraError: huggingface_hub is not installed.
    """
    api = _api()
    with _explaining(f"{repo} could not be pulled"):
        found = api.model_info(repo, revision=revision)
    names, commit = [file.rfilename for file in found.siblings or ()], found.sha
    require_inside(names, repo)
    wanted = [escape(name) for name in names if is_model_file(name) or name == CARD]

    def download(folder: Path) -> None:
        if wanted:
            with _explaining(f"{repo} could not be pulled"):
                api.snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=wanted)
            shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes of the download
        _check_model(folder, kind, repo)
        _check_settings(folder, repo)
        if kind == "aligner":
            _check_aligner(folder, repo)

    return registry.add(kind, download, {"source": {"hub": repo, "revision": commit}})


def _check_model(folder: Path, kind: Kind, repo: str) -> None:
    missing = [] if any(folder.glob("*.safetensors")) else ["weights as safetensors"]
    if not any((folder / name).exists() for name in ("config.json", ADAPTER)):
        missing.append("config.json")
    if kind == "aligner" and not (folder / "aligner.json").exists():
        missing.append("aligner.json")
    if missing:
        raise RegistryError(
            f"{repo} is no {kind} that can be served: it has no {', no '.join(missing)}. Nothing was kept."
        )


def _check_settings(folder: Path, repo: str) -> None:
    """Raises for settings that cannot be read, or that name code: a library might ask whether to run it, or just do so."""
    for path in (folder / name for name in _SETTINGS if (folder / name).exists()):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"{path.name} of {repo} cannot be read: {error}. Nothing was kept.") from error
        if not isinstance(told, dict):
            raise RegistryError(f"{path.name} of {repo} holds no JSON object. Nothing was kept.")
        if _CODE in told:
            raise RegistryError(
                f'{path.name} of {repo} names code that is to be run with the model ("{_CODE}"), and no such code runs here. '
                "Nothing was kept. If the libraries know the model without it: download it (hf download), read what is "
                "there, take out that entry and add the folder in Python with Registry.add."
            )


def _check_aligner(folder: Path, repo: str) -> None:
    """Raises for an `aligner.json` with which `Aligner.from_pretrained` would refuse the model, or that plays with terminals."""
    try:
        metadata = read_metadata(folder)
        template = get_template(metadata.template)
    except (CheckpointError, TemplateError) as error:
        raise RegistryError(f"{repo} is no aligner that can be served: {error}\nNothing was kept.") from error
    if metadata.template_text not in ("", template.text):
        raise RegistryError(
            f"{repo} was trained with another text of the template {template.name} than this version of aligner-chain has. "
            f"Nothing was kept. Install the version that trained it: {metadata.package_version[:40]!r}"
        )
    if not all(text.isprintable() for text in (metadata.identity, metadata.licence, *metadata.criteria)):
        raise RegistryError(f"aligner.json of {repo} holds names that cannot be printed. Nothing was kept.")


def _require_known_base(folder: Path, repo: str) -> None:
    base = str(adapter_settings(folder).get("base_model_name_or_path", ""))
    if (folder / ADAPTER).exists() and not is_hub_id(base):
        raise RegistryError(
            f"The adapter needs the base {Path(base).name or 'that nobody noted'}, a folder of this machine that nobody else "
            f"has. Nothing was pushed to {repo}. Push whole weights:  --merge   or name the base as the Hub has it:  "
            "--base user/name"
        )


def _api() -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise MissingExtraError("huggingface_hub", "local") from error
    return HfApi(library_name="aligner-chain")


@contextmanager
def _explaining(problem: str) -> Iterator[None]:
    """Turns what the library and its HTTP client raise into one error with the ways out."""
    from httpx import HTTPError
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    try:
        yield
    # The library's own errors are OSErrors, ValueErrors or those of its HTTP client.
    except (OSError, HTTPError, HFValidationError, LocalTokenNotFoundError, ValueError) as error:
        raise RegistryError(
            f"{problem}: {error}\n"
            "Log in:  hf auth login   (or set HF_TOKEN). Unset HF_HUB_OFFLINE where it is set; HF_ENDPOINT names the server."
        ) from error
