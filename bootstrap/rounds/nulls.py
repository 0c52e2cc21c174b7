"""Correctors that need no model: one that does no better than these is not worth its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aligner_chain.exchange import Exchange

REFUSAL = "I am sorry, but I cannot help with that."
"""What the null corrector that always refuses serves."""


def copy_corrector(exchanges: Sequence[Exchange]) -> list[str]:
    """The null corrector that changes nothing."""
    return [exchange.answer for exchange in exchanges]


def refuse_corrector(exchanges: Sequence[Exchange]) -> list[str]:
    """The null corrector that refuses everything."""
    return [REFUSAL for _ in exchanges]


NULLS: Mapping[str, Callable[[Sequence[Exchange]], Sequence[str]]] = {
    "copy": copy_corrector,
    "refuse": refuse_corrector,
}
