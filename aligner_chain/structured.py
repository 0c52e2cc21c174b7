"""Answers that are JSON: telling them apart, and whether a correction still fits what reads them."""

from __future__ import annotations

import json
from typing import Any

_FIRST = ("{", "[", "`")


def is_structured(text: str) -> bool:
    """Whether a text is a JSON object or array, bare or fenced."""
    return text.lstrip()[:1] in _FIRST and same_shape(text, text)


def same_shape(answer: str, correction: str) -> bool:
    """Whether both are JSON objects or arrays (bare or fenced) with the same keys and kinds of values in them."""
    try:
        return bool(_shape(_json(answer)) == _shape(_json(correction)))
    except (ValueError, RecursionError):
        return False


def _json(text: str) -> Any:
    """The object or array that a text consists of. Raises `ValueError` where it is anything else."""
    bare = _unfenced(text.strip())
    if not bare.startswith(("{", "[")):
        raise ValueError("neither an object nor an array")
    return json.loads(bare)


def _unfenced(text: str) -> str:
    """What stands in a fence of Markdown, or the text itself. Not by a pattern, which a hostile text can make slow."""
    first, _, rest = text.partition("\n")
    if first.strip().lower() not in ("```", "```json") or not rest.endswith("```"):
        return text
    return rest.removesuffix("```").strip()


def _shape(value: Any) -> Any:
    """What a parser of the value relies on: keys and kinds, but neither the values nor how many a list has."""
    if isinstance(value, dict):
        return {key: _shape(held) for key, held in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(_shape(held), sort_keys=True) for held in value})
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
