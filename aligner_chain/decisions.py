"""The decision line: one JSON object per correction, logged at INFO to `aligner_chain.decisions`.

    logging.getLogger("aligner_chain.decisions").setLevel(logging.INFO)

The message is the object; a formatter that writes records itself finds the same object as `record.decision`. It holds names,
numbers and outcomes, and no text of a question, an answer or a correction. `ALIGNER_LOG_TEXTS=1` in the environment asks
for the texts too, in every line of the process: only who runs it can.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aligner_chain import __version__
from aligner_chain.exchange import Correction, Finding

VARIABLE = "ALIGNER_LOG_TEXTS"
OTHER = "other"
"""In place of a criterion that nobody defined: the Aligner wrote that name, and may have taken it from a text."""

_LOG = logging.getLogger(__name__)


def tell(corrections: Sequence[Correction], *criteria: Collection[str] | None) -> None:
    """Logs a line for each correction. Nothing is computed where INFO is off.

    Args:
        corrections: What became of the exchanges.
        criteria: The names that may be told: those that the Aligner was trained for, those it was asked to judge by.
    """
    if not _LOG.isEnabledFor(logging.INFO):
        return
    known, with_texts = {name for names in criteria for name in names or ()}, texts_wanted()
    for correction in corrections:
        decision = _decision(correction, known) | (_texts(correction) if with_texts else {})
        # One name of a record and not twenty: those of an application's own record factory must not be overwritten.
        _LOG.info(json.dumps(decision, default=str), extra={"decision": decision})


def texts_wanted() -> bool:
    """Whether `ALIGNER_LOG_TEXTS` asks for texts: "1", "true", "yes" or "on"."""
    return os.environ.get(VARIABLE, "").strip().lower() in {"1", "true", "yes", "on"}


def _decision(correction: Correction, criteria: Collection[str]) -> dict[str, Any]:
    """The same keys in every line, so that a table can be made of them."""
    exchange, error = correction.exchange, correction.error
    return {
        "event": "correction",
        "id": correction.id,
        "outcome": correction.outcome,
        # A failure's reason begins its error's message, which can quote what a model or a provider wrote.
        "reason": "" if error is not None else correction.reason,
        "error": None if error is None else type(error).__name__,
        "scores": _numbers(correction.scores),
        "thresholds": _numbers(correction.thresholds),
        "criteria": [name if name in criteria else OTHER for name in correction.criteria],
        "edits": len(correction.edits),
        "findings": [_finding(one) for one in correction.findings],
        "aligner": correction.aligner,
        "template": correction.template,
        "upstream": exchange.upstream,
        "pair": correction.pair,
        "mismatched": correction.mismatched,
        "message_id": exchange.message_id,
        "run_id": exchange.run_id,
        "tenant": exchange.tenant,
        "usage": asdict(correction.usage),
        "version": __version__,
    }


def _texts(correction: Correction) -> dict[str, Any]:
    return {
        "question": correction.exchange.question,
        "answer": correction.exchange.answer,
        "text": correction.text,
        "reason": correction.reason,
        "criteria": list(correction.criteria),
        "error_message": None if correction.error is None else str(correction.error),
    }


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values; null where one is no number, which JSON cannot say."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def _finding(finding: Finding) -> dict[str, str]:
    return {"check": finding.check, "action": finding.action, "message": finding.message}
