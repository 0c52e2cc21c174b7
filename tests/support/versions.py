"""Calls that older versions of LangChain do not know in full."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def known_to(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that the function takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in settings.items() if name in known}
