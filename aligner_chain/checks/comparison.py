"""A correction beside its answer, with what several checks look at read once."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from aligner_chain.checks import markup
from aligner_chain.checks.alignment import Alignment, Range, applied
from aligner_chain.checks.markup import Block, Span
from aligner_chain.exchange import Edit, Exchange, edits_between

_WORDS = re.compile(r"\w+")
SURVIVED = 0.5
"""Share of a sentence's characters from which on it is the same sentence, changed."""
MOST_CANDIDATES = 50
"""Spans of the correction that are looked at for one of the answer, where an edit is so large that it holds many."""

S = TypeVar("S", bound=Span)


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One thing that a check found, with the characters of the answer that it is about, where there are some.

    The message never holds text of the answer: it goes into logs. `unit` is what comes back with the span where all
    around it was deleted; None: its sentence. A `mild` one is never more than a warning.
    """

    message: str
    span: Range | None = None
    unit: Range | None = None
    mild: bool = False


class Side:
    """One of the two texts, and what is in it."""

    def __init__(self, text: str, *, passages: bool) -> None:
        self.text, self._passages = text, passages

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return markup.code_blocks(self.text)

    @cached_property
    def prose(self) -> str:
        """The text without its code blocks, in the same places."""
        return markup.masked(self.text, self.blocks)

    @cached_property
    def inline_code(self) -> tuple[Span, ...]:
        return markup.inline_code(self.prose)

    @cached_property
    def plain(self) -> str:
        """The text without any code, in the same places."""
        return markup.masked(self.prose, self.inline_code, " ")

    @cached_property
    def words(self) -> Counter[str]:
        return Counter(words(self.text))

    @cached_property
    def links(self) -> tuple[Span, ...]:
        return markup.links(self.text)

    @cached_property
    def citations(self) -> tuple[Span, ...]:
        return markup.citations(self.plain, passages=self._passages)

    @cached_property
    def borders(self) -> list[int]:
        return markup.sentence_borders(self.text)

    def sentence(self, start: int, end: int) -> Range:
        """The same without the white space around them."""
        start, end = self.sentences(start, end)
        text = self.text[start:end]
        return end - len(text.lstrip()), start + len(text.rstrip())

    def sentences(self, start: int, end: int) -> Range:
        """The characters of the sentences that the range lies in."""
        first = bisect_right(self.borders, start) - 1
        last = max(bisect_left(self.borders, end), first + 1)
        return self.borders[max(first, 0)], self.borders[min(last, len(self.borders) - 1)]


class Comparison:
    """The exchange, the correction's text and the edits that lead to it."""

    def __init__(self, exchange: Exchange, text: str, edits: Sequence[Edit]) -> None:
        if applied(exchange.answer, edits) != text:
            edits = edits_between(exchange.answer, text)
        self.exchange = exchange
        self.answer = Side(exchange.answer, passages=bool(exchange.context))
        self.correction = Side(text, passages=bool(exchange.context))
        self.alignment = Alignment(exchange.answer, edits)

    @cached_property
    def sources(self) -> str:
        """What the answer was made from: the conversation and the passages."""
        return "\n".join([*(turn.text for turn in self.exchange.turns), *self.exchange.context])

    @cached_property
    def blocks(self) -> tuple[tuple[Block, Block | None], ...]:
        """Each code block of the answer, and the one that stands for it in the correction."""
        return tuple(zip(self.answer.blocks, self.partners(self.answer.blocks, self.correction.blocks), strict=True))

    def place(self, damage: Damage) -> Range | None:
        """What of the answer to put back to undo the damage, or None where that is not well defined."""
        if damage.span is None:
            return None
        return self.alignment.place(*damage.span, damage.unit or self.answer.sentence(*damage.span))

    def survived(self, start: int, end: int) -> bool:
        """Whether a sentence of the answer is still there, changed or not."""
        return self.alignment.survival(start, end) >= SURVIVED

    def in_place_of(self, span: Range, candidates: Sequence[S]) -> Sequence[S]:
        """Those of the correction's spans, which are in order, that stand where the answer had this one."""
        start, end = self.alignment.image(*span)
        first = bisect_right(candidates, start, key=lambda one: one.end)
        last = bisect_left(candidates, end, key=lambda one: one.start)
        return candidates[first : min(last, first + MOST_CANDIDATES)]

    def partners(self, before: Sequence[S], after: Sequence[S]) -> list[S | None]:
        """For each of the answer's blocks the one that stands for it: an equal one, else by its place, else in order."""
        free = {other.start: other for other in after}
        equal = dict[str, deque[S]]()
        for other in after:
            equal.setdefault(other.text.strip(), deque()).append(other)

        def same(one: S) -> S | None:
            waiting = equal.get(one.text.strip())
            return free.pop(waiting.popleft().start) if waiting else None

        def near(one: S) -> S | None:
            places = (other.start for other in self.in_place_of((one.start, one.end), after))
            return next((free.pop(place) for place in places if place in free), None)

        found = [same(one) for one in before]
        found = [other or near(one) for one, other in zip(before, found, strict=True)]
        rest = iter([*free.values()])
        return [other or next(rest, None) for other in found]


def words(text: str) -> list[str]:
    """The words of a text, numbers and identifiers included."""
    return _WORDS.findall(text)


def kept_share(before: str, after: str) -> float:
    """The share of the words of one text that the other has, too; 1 where the first has none."""
    had = Counter(words(before))
    return (had & Counter(words(after))).total() / had.total() if had else 1.0
