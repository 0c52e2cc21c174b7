"""Correct the answers of any chat model with an Aligner: a small model that reads a question and an answer.

    from aligner_chain import Aligner, Exchange

    aligner = Aligner.from_pretrained("path-or-hub-id")
    [correction] = aligner.correct([Exchange.of("How long may I return it?", "Return it whenever you like.")])

Importing this package loads no framework; a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligner_chain.aligner import Aligner
    from aligner_chain.checks import Checks
    from aligner_chain.errors import (
        AlignerError,
        AlignerNotConfiguredError,
        CapabilityError,
        CheckpointError,
        ConfigurationError,
        ContextOverflowError,
        CorrectionError,
        CorrectionTimeoutError,
        DelimiterError,
        EngineError,
        IncompleteCorrectionError,
        InspectionError,
        MissingExtraError,
        OverloadedError,
        PromptNotFoundError,
        TemplateError,
        UnreadableCorrectionError,
    )
    from aligner_chain.exchange import Correction, Edit, Exchange, Finding, TokenScore, Turn, Usage
    from aligner_chain.policy import Policy

__version__ = "0.1.0"

_EXPORTS = {
    "aligner_chain.aligner": ("Aligner",),
    "aligner_chain.checks": ("Checks",),
    "aligner_chain.exchange": ("Correction", "Edit", "Exchange", "Finding", "TokenScore", "Turn", "Usage"),
    "aligner_chain.policy": ("Policy",),
    "aligner_chain.errors": (
        "AlignerError",
        "AlignerNotConfiguredError",
        "CapabilityError",
        "CheckpointError",
        "ConfigurationError",
        "ContextOverflowError",
        "CorrectionError",
        "CorrectionTimeoutError",
        "DelimiterError",
        "EngineError",
        "IncompleteCorrectionError",
        "InspectionError",
        "MissingExtraError",
        "OverloadedError",
        "PromptNotFoundError",
        "TemplateError",
        "UnreadableCorrectionError",
    ),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "Aligner",
    "AlignerError",
    "AlignerNotConfiguredError",
    "CapabilityError",
    "CheckpointError",
    "Checks",
    "ConfigurationError",
    "ContextOverflowError",
    "Correction",
    "CorrectionError",
    "CorrectionTimeoutError",
    "DelimiterError",
    "Edit",
    "EngineError",
    "Exchange",
    "Finding",
    "IncompleteCorrectionError",
    "InspectionError",
    "MissingExtraError",
    "OverloadedError",
    "Policy",
    "PromptNotFoundError",
    "TemplateError",
    "TokenScore",
    "Turn",
    "UnreadableCorrectionError",
    "Usage",
    "__version__",
]


_FACES = {
    "langchain": ("AlignerCorrector", "AlignedChatModel", "AlignerMiddleware", "LocalChatModel", "aligner_node"),
    "llama_index": ("AlignerResponsePostprocessor", "AlignerSynthesizer", "AlignerQueryEngine", "AlignerChatEngine"),
}


def __getattr__(name: str) -> Any:
    for face, names in _FACES.items():
        if name in names:  # Not an AttributeError, of which `from aligner_chain import ...` would not tell the text.
            raise ImportError(f"{name} is one step further:  from aligner_chain.{face} import {name}", name=__name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
