"""The seam to a judge of preference: two answers to the same prompt in, which of them is better out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aligner_chain.exchange import Exchange

FIRST, TIE, SECOND = 0.0, 0.5, 1.0
"""The scores of a `Preference`: the first answer is better, neither is, the second is."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """How the second of two answers fares against the first: `score` is 1.0 (better), 0.5 (a tie) or 0.0 (worse).

    `reason` is a sentence for a person, "" where none is known. `votes` are the scores of the single looks that the
    preference was made of, None for one that could not be read; empty where there was one look and no doubt.
    """

    score: float
    reason: str = ""
    votes: tuple[float | None, ...] = ()


class PreferenceJudge(Protocol):
    """Says which of two answers is better, for many prompts at once.

    Where the two answers of a prompt change places, the score mirrors: it becomes 1 minus what it was.
    """

    def prefer(self, prompts: Sequence[Exchange], first: Sequence[str], second: Sequence[str]) -> Sequence[Preference]:
        """One preference for each prompt.

        Args:
            prompts: what was asked, with its passages. The `answer` that an exchange holds is not looked at.
            first: an answer to each prompt.
            second: another answer to each prompt.

        Raises:
            ValueError: the three are not of one length.
        """


def paired(prompts: Sequence[Exchange], first: Sequence[str], second: Sequence[str]) -> list[tuple[Exchange, str, str]]:
    """The prompts with both of their answers. Raises `ValueError` where the three are not of one length."""
    if not len(prompts) == len(first) == len(second):
        raise ValueError(f"{len(prompts)} prompts need as many answers twice, not {len(first)} and {len(second)}")
    return list(zip(prompts, first, second, strict=True))


def compared(first: float, second: float, margin: float = 0.0) -> float:
    """The score of two answers by how good each of them is: a tie where they differ by no more than `margin`."""
    if abs(second - first) <= margin:
        return TIE
    return SECOND if second > first else FIRST


def whole(text: str) -> str:
    """A text without halves of a character, which an upstream's broken JSON can hold and no model can be sent."""
    return _SURROGATE.sub("\ufffd", text)
