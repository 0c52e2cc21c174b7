"""The Hugging Face Hub, by the library `huggingface_hub`: loaded, and asked for anything, only where a command names it.

Who may do what is the library's own matter: its saved token (`hf auth login`), `HF_TOKEN` and `HF_ENDPOINT`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain.errors import MissingExtraError
from bootstrap.errors import RegistryError
from bootstrap.registry.exporting import ADAPTER, PICKLES

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from bootstrap.registry.registry import Registry
    from bootstrap.registry.values import Kind, Version

_CODE = ("*.py", "*.h5", "*.msgpack", "*.onnx", "*.gguf")  # code, and the same weights for other libraries


def push(folder: Path, repo: str, *, private: bool = False, message: str) -> str:
    """Uploads an exported folder as one commit and returns its URL.

    Args:
        folder: what `export` wrote.
        repo: `user/name`, made if need be.
        private: make it private; refused where it is there and public.
        message: the commit's.

    Raises:
        RegistryError: the Hub, or the way to it, refuses.
        MissingExtraError: huggingface_hub is not installed.
    """
    api = _api()
    with _explaining(f"{repo} could not be pushed"):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise RegistryError(
                f"{repo} is there and public; nothing was pushed. Make it private in its settings, or name another one."
            )
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)


def pull(registry: Registry, kind: Kind, repo: str, revision: str | None = None) -> Version:
    """Downloads a model as the next version of its kind. It is not served; its manifest says where it came from.

    Only safetensors, settings and tokenizer come along: nothing that could run code.

    Args:
        registry: where to.
        kind: "upstream" or "aligner".
        repo: `user/name`.
        revision: a branch, tag or commit (default: the main branch); the manifest holds the commit.

    Raises:
        RegistryError: the Hub, or the way to it, refuses, or it is no model of this kind.
        MissingExtraError: huggingface_hub is not installed.
    """
    api = _api()
    with _explaining(f"{repo} could not be pulled"):
        commit = api.model_info(repo, revision=revision).sha

    def download(folder: Path) -> None:
        with _explaining(f"{repo} could not be pulled"):
            api.snapshot_download(repo, revision=commit, local_dir=folder, ignore_patterns=[*PICKLES, *_CODE])
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes of the download
        _check_model(folder, kind, repo)

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
