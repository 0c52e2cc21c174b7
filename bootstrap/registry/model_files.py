"""Which files make a model, and which of them may leave a registry or come into one."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from bootstrap.errors import RegistryError

ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
"""Files that run code when they are loaded."""
_MODEL = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", ADAPTER, "aligner.json"),
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
    ),
    *("merges.txt", "tekken.json", "*.model", "chat_template.json", "chat_template.jinja", "LICENSE*", "NOTICE*"),
)
"""Weights, settings, tokenizer and licence; no code, no pickles, and nothing that a training wrote beside them."""


def is_model_file(name: str) -> bool:
    """Whether a file of this name, in a model's folder itself, is part of the model."""
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in _MODEL)


def require_inside(names: Iterable[str], repo: str) -> None:
    """Raises `RegistryError` for names that lead out of the folder that they are written to, on any system."""
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise RegistryError(
                f"{repo} holds a file named {name!r}, which leads out of any folder. Nothing was downloaded. Who published "
                "it did so by intent or with a broken tool; take the model from somewhere else."
            )
