"""Token ids of a text that grows, without tokenising all of it each time."""

from __future__ import annotations

from collections.abc import Sequence

from aligner_chain.templates.plain import PlainText, Span

_AGREE = 8
"""Tokens in a row that must come out as before where the end is tokenised alone."""
_AGAIN = 32
"""Tokens at the end that are tokenised again."""


class GrowingText:
    """Tokenises a text that gets longer from call to call: only its end, as long as that gives the ids from before.

    A tokenizer reads a text differently where it begins, so the first ids of the end need not agree. Where those behind
    do, the rest is as good as certain to be what the whole text would give.
    """

    def __init__(self, plain: PlainText) -> None:
        self._plain = plain
        self._text = ""
        self._ids: tuple[int, ...] = ()
        self._spans: tuple[Span, ...] = ()

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of the text, which begins with that of the last call."""
        if len(self._ids) <= _AGAIN or not text.startswith(self._text) or not self._extend(text):
            self._ids, self._spans = self._plain.encode_with_spans(text)
        self._text = text
        return self._ids

    def _extend(self, text: str) -> bool:
        start, agreed = self._spans[-_AGAIN][0], len(self._ids) - _AGAIN + _AGREE
        ids, found = self._plain.encode_with_spans(text[start:])
        spans = tuple((start + first, start + end) for first, end in found)
        at = _place(spans, self._spans[agreed])
        if ids[at : at + _AGREE] != self._ids[agreed : agreed + _AGREE]:
            return False
        self._ids, self._spans = self._ids[:agreed] + ids[at:], self._spans[:agreed] + spans[at:]
        return True


def _place(spans: Sequence[Span], wanted: Span) -> int:
    return next((place for place, span in enumerate(spans) if span == wanted), len(spans))
