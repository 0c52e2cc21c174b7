"""A checkpoint's tokenizer where there is no transformers: what the templates ask of one, over `tokenizers` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.engines.loading import existing_folder
from aligner_chain.errors import CheckpointError, MissingExtraError, TemplateError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
CHAT = "chat_template.jinja"
WANTED = ("aligner.json", FILE, SETTINGS, "generation_config.json", "config.json", CHAT)
"""What of a checkpoint is read here; no weights."""


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """The folder at `checkpoint`, or that of a hub id in the local cache; nothing is downloaded.

    Raises `CheckpointError` where there is neither.
    """
    folder = existing_folder(checkpoint)
    if folder is not None:
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "server") from error
    try:
        return Path(snapshot_download(str(checkpoint), local_files_only=True))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        files = " ".join(f"--include {name}" for name in WANTED)
        raise CheckpointError(
            f"{checkpoint} is neither a folder nor in the local cache of the hub. Only its small files are needed:  "
            f"hf download {checkpoint} {files}"
        ) from error


class FastTokenizer:
    """The tokenizer of a checkpoint's folder, with those methods of a tokenizer of transformers that templates call.

    It is no general tokenizer: text becomes ids in `aligner_chain.templates`, where none of it becomes a special token.
    """

    def __init__(self, backend: Backend, settings: Mapping[str, Any], chat_template: str | None = None) -> None:
        self.backend_tokenizer = backend
        self._settings, self._chat_template = settings, chat_template
        self.bos_token, self.bos_token_id = self._special("bos_token")
        self.eos_token, self.eos_token_id = self._special("eos_token")
        self.unk_token, self.unk_token_id = self._special("unk_token")

    @classmethod
    def from_folder(cls, folder: Path) -> FastTokenizer:
        """Reads `tokenizer.json` and, where they are there, `tokenizer_config.json` and `chat_template.jinja`.

        Raises `CheckpointError` where it cannot be read, and `MissingExtraError` without `tokenizers`.
        """
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise MissingExtraError("tokenizers", "server") from error
        text = _text(folder / FILE)
        if text is None:
            raise CheckpointError(
                f"{folder} holds no {FILE}, which is all that is read of a tokenizer here. Copy it from where the server "
                'loads the model; for a model that has none, write it once with transformers:  python -c "from '
                f"transformers import AutoTokenizer as A; A.from_pretrained('{folder}').save_pretrained('{folder}')\""
            )
        try:
            backend = Backend.from_str(text)
        except Exception as error:  # tokenizers raises nothing finer than Exception
            raise CheckpointError(f"{folder / FILE} cannot be read: {error}. Put back the file.") from error
        settings = _settings(folder / SETTINGS)
        told = settings.get("chat_template")
        return cls(backend, settings, _text(folder / CHAT) or (told if isinstance(told, str) else None))

    @property
    def added_tokens_decoder(self) -> Mapping[int, object]:
        """The added tokens by their ids."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    @property
    def chat_template(self) -> str | None:
        """The chat template, which only a template that is put into it asks for."""
        if self._chat_template is not None:
            _require_jinja()
        return self._chat_template

    def __call__(self, text: str) -> dict[str, list[int]]:
        """The ids of a text between what the tokenizer itself puts around one."""
        if "add_bos_token" in self._settings or self.backend_tokenizer.post_processor is None:
            bos = [self.bos_token_id] if self._settings.get("add_bos_token") and self.bos_token_id is not None else []
            return {"input_ids": [*bos, *self.backend_tokenizer.encode(text, add_special_tokens=False).ids]}
        return {"input_ids": self.backend_tokenizer.encode(text).ids}

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab())

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        return [self.backend_tokenizer.id_to_token(token) for token in ids]

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text. Raises `TemplateError` for `tokenize`, which templates do by themselves."""
        if tokenize:
            raise TemplateError("A FastTokenizer gives a conversation as text alone: pass tokenize=False.")
        names = {"bos_token": self.bos_token, "eos_token": self.eos_token, "unk_token": self.unk_token}
        given = {name: token for name, token in names.items() if token is not None}
        pad, _ = self._special("pad_token")
        given |= {"pad_token": pad} if pad is not None else {}
        return str(self._compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **given))

    @cached_property
    def _compiled(self) -> Any:
        from jinja2.exceptions import TemplateError as JinjaError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise JinjaError(message)

        # As transformers renders chat templates.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
        return environment.from_string(self._chat_template or "")

    def _special(self, name: str) -> tuple[str | None, int | None]:
        """A named special token and its id; nothing where the vocabulary does not hold it."""
        told = self._settings.get(name)
        token = told.get("content") if isinstance(told, dict) else told
        number = self.backend_tokenizer.token_to_id(token) if isinstance(token, str) else None
        return (token, number) if number is not None else (None, None)


def end_ids(folder: Path, tokenizer: FastTokenizer) -> frozenset[int]:
    """The ids that end an output, as the checkpoint's configuration and its tokenizer name them."""
    told = [_settings(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    several = [token for one in told for token in (one if isinstance(one, list) else [one])]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)


def longest(folder: Path) -> int | None:
    """The window that the model's configuration names, in tokens of prompt and output together."""
    window = _settings(folder / "config.json").get("max_position_embeddings")
    return window if isinstance(window, int) else None


def _require_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise TemplateError(
            "This template is put into the model's chat template, which jinja2 renders:  pip install jinja2"
        ) from error


def _settings(path: Path) -> dict[str, Any]:
    """What a file of settings says; nothing where it is not there."""
    try:
        values = json.loads(_text(path) or "{}")
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Put back the file.") from error
    return values if isinstance(values, dict) else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
