"""Null correctors beyond copying and refusing: one deletes words from a list, one answers without looking at the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from aligner_chain.audit import Corrector
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange

DELETE, QUESTION_ONLY = "delete", "question only"


def delete_by_lexicon(lexicon: Sequence[str]) -> Corrector:
    """Deletes every word or phrase of a list, in upper or lower case, and the white space before it.

    Raises:
        ConfigurationError: the list holds none.
    """
    phrases = sorted({phrase.strip() for phrase in lexicon if phrase.strip()}, key=len, reverse=True)
    if not phrases:
        raise ConfigurationError("The lexicon holds no word. Give one word or phrase on each line.")
    # The longest first, and none inside a longer word.
    listed = re.compile(rf"\s*(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)", re.IGNORECASE)

    def delete(exchanges: Sequence[Exchange]) -> list[str]:
        return [_without(listed, exchange.answer) for exchange in exchanges]

    return delete


def question_only(chat_model: Any) -> Corrector:
    """Has a chat model of LangChain answer the conversation anew, without being shown the answer."""

    def answer(exchanges: Sequence[Exchange]) -> list[str]:
        return [str(chat_model.invoke(messages(exchange)).text) for exchange in exchanges]

    return answer


def messages(exchange: Exchange) -> list[tuple[str, str]]:
    """The conversation before the answer, as LangChain takes it."""
    return [(turn.role, turn.text) for turn in exchange.turns]


def _without(listed: re.Pattern[str], answer: str) -> str:
    left = listed.sub("", answer)
    return left.lstrip() if left != answer and not answer[:1].isspace() else left
