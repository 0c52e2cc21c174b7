"""Correction templates: an exchange to token ids, and the model's output back to a correction.

A checkpoint works only with the template it was trained with, so its name is part of the checkpoint (`aligner.json`).
`aligner-chain/1` is our own; the others are those of published Aligners, under the names in `template_names()`.
"""

from __future__ import annotations

from aligner_chain.errors import TemplateError
from aligner_chain.templates.base import CorrectionTemplate, Parsed, Rendered
from aligner_chain.templates.chat import chat_prompt, chat_request
from aligner_chain.templates.foreign import TEXTS, Delimiters, ForeignTemplate
from aligner_chain.templates.own import SPECIAL_TOKENS, OwnTemplate, prepare_tokenizer
from aligner_chain.templates.plain import encode, plain_text

__all__ = [
    "SPECIAL_TOKENS",
    "CorrectionTemplate",
    "Delimiters",
    "Parsed",
    "Rendered",
    "chat_prompt",
    "chat_request",
    "encode",
    "get_template",
    "plain_text",
    "prepare_tokenizer",
    "template_names",
]


def template_names() -> tuple[str, ...]:
    """The names that `get_template` knows."""
    return (OwnTemplate.name, *TEXTS)


def get_template(name: str, delimiters: Delimiters = "mark") -> CorrectionTemplate:
    """The template of that name.

    `delimiters` is what happens where the data holds a delimiter of a plain-text template: "mark", "neutralise" or
    "refuse" (see `ForeignTemplate`); our own template has delimiters that no text can spell.

    Raises `TemplateError` for an unknown name or option.
    """
    if delimiters not in ("mark", "neutralise", "refuse"):
        raise TemplateError(f'delimiters={delimiters!r} is unknown; use "mark", "neutralise" or "refuse".')
    if name == OwnTemplate.name:
        return OwnTemplate()
    if name not in TEXTS:
        raise TemplateError(f"There is no template {name!r}. Known are {', '.join(template_names())}.")
    return ForeignTemplate(name, delimiters)
