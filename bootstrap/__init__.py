"""Turns what was corrected in live traffic into a better upstream and a better Aligner, round after round.

Importing this package loads nothing else; each name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bootstrap.errors import missing_extra

if TYPE_CHECKING:
    from bootstrap.collect import Collector
    from bootstrap.registry import Registry
    from bootstrap.rounds import RoundConfig, run_round
    from bootstrap.store import CorrectionStore

__all__ = ["Collector", "CorrectionStore", "Registry", "RoundConfig", "run_round"]

_MODULES = {
    "Collector": "bootstrap.collect",
    "CorrectionStore": "bootstrap.store",
    "Registry": "bootstrap.registry",
    "RoundConfig": "bootstrap.rounds",
    "run_round": "bootstrap.rounds",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        raise missing from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
