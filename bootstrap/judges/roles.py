"""The three callables that a round is given, and how they are named in a file.

A judge decides what counts as right; gates and figures rest on it. A verifier confirms single corrections before the
Aligner is trained on them, and must not be the judge, or the loop would only learn to please it. An annotator, a person
or a stronger model, repairs what the verifier refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Exchange
from bootstrap.pairs import Source, Triple

Judge = Callable[[Sequence[Exchange]], Sequence[Mapping[str, bool]]]
"""For each exchange, whether its answer meets each criterion, always the same criteria in the same order."""

Verifier = Callable[[Sequence[Correction]], Sequence[bool]]
"""For each correction, whether its text (changed or not) is fit to be learned from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """An answer repaired with as few changes as possible (itself where it is right), and the criteria that it broke."""

    text: str
    criteria: tuple[str, ...] = ()

    def triple(self, exchange: Exchange, source: Source) -> Triple:
        """The row that teaches an Aligner to repair `exchange` like this, or to KEEP it where nothing changed."""
        return Triple(
            turns=exchange.turns,
            answer=exchange.answer,
            context=exchange.context,
            correction=None if self.text == exchange.answer else self.text,
            criteria=self.criteria,
            source=source,
        )


Annotator = Callable[[Sequence[Exchange]], Sequence[Annotation]]


def fully_right(verdicts: Sequence[Mapping[str, bool]]) -> list[bool]:
    """Whether each answer meets every criterion."""
    return [all(verdict.values()) for verdict in verdicts]


def load_callable(reference: str) -> Any:
    """The object that `package.module:name` names.

    Raises:
        ConfigurationError: the text has another form, or there is no such module or name.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = (
            f"{reference!r} does not name a Python object ({error}). Write it as package.module:name, and start the "
            "command where the module can be imported (PYTHONPATH)."
        )
        raise ConfigurationError(message) from error
