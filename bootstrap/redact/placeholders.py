"""Replaces values in several texts together: one value, one placeholder, wherever it stands."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from bootstrap.redact.patterns import Span

Value = tuple[str, str]
"""A kind and the normal form of a value of it."""

_PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]{0,31}_[0-9]{1,9}>")
_FEW = 8
_PIECES = re.compile(r"\w+|[^\w\s]")


class Names:
    """Which placeholder stands for which value; numbers that stand in the texts already are not given again."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._taken = {name for text in texts if "<" in text for name in _PLACEHOLDER.findall(text)}
        self._names: dict[Value, str] = {}
        self._numbers: dict[str, Iterator[int]] = defaultdict(lambda: count(1))

    def __getitem__(self, value: Value) -> str:
        if value not in self._names:
            kind = value[0]
            free = (name for number in self._numbers[kind] if (name := f"<{kind}_{number}>") not in self._taken)
            self._names[value] = next(free)
        return self._names[value]


class Forms:
    """The values that were found so far, each in every form in which it was written, to find them anywhere."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._lengths: dict[str, set[int]] = defaultdict(set)

    def add(self, form: str, value: Value) -> None:
        """Takes up one; where the same form was found as two kinds, the first counts."""
        if form not in self._values:
            self._values[form] = value
            self._lengths[_PIECES.match(form)[0]].add(len(form))  # type: ignore[index]  # no form begins with a space

    def __getitem__(self, form: str) -> Value:
        return self._values[form]

    def places(self, text: str) -> Iterator[tuple[int, int]]:
        """Where in a text one stands as whole words."""
        for start, end in self._few(text) if len(self._values) <= _FEW else self._many(text):
            if _parts_words(text, start) and _parts_words(text, end):
                yield start, end

    def _few(self, text: str) -> Iterator[tuple[int, int]]:
        for form in self._values:
            start = text.find(form)
            while start >= 0:
                yield start, start + len(form)
                start = text.find(form, start + 1)

    def _many(self, text: str) -> Iterator[tuple[int, int]]:
        """By the word that each begins with, so that the work does not grow with how many there are."""
        for piece in _PIECES.finditer(text):
            start = piece.start()
            for length in self._lengths.get(piece[0], ()):
                if text[start : start + length] in self._values and start + length <= len(text):
                    yield start, start + length


@dataclass(frozen=True, slots=True)
class Replacement:
    """Characters `start` to `end` of a text became characters `new_start` to `new_end` of the new one."""

    start: int
    end: int
    new_start: int
    new_end: int


def replaced(
    text: str, places: Iterable[tuple[int, int]], forms: Forms, names: Names
) -> tuple[str, tuple[Replacement, ...]]:
    """The text with a placeholder at each of the places, which do not overlap and come in order."""
    pieces, done, at, length = [], [], 0, 0
    for start, end in places:
        name = names[forms[text[start:end]]]
        pieces += [text[at:start], name]
        length += start - at
        done.append(Replacement(start, end, length, length + len(name)))
        at, length = end, length + len(name)
    return "".join([*pieces, text[at:]]), tuple(done)


def apart(text: str, places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of places that overlap the longest, and none that touches a placeholder; in order."""
    covered = bytearray(len(text))
    for match in _PLACEHOLDER.finditer(text):
        covered[match.start() : match.end()] = b"\1" * len(match[0])
    kept = []
    for start, end in sorted(set(places), key=lambda place: (place[0] - place[1], place[0])):
        if covered.find(1, start, end) < 0:
            covered[start:end] = b"\1" * (end - start)
            kept.append((start, end))
    return sorted(kept)


def moved(offset: int, replacements: Sequence[Replacement], *, to_end: bool) -> int:
    """Where an offset into the old text is in the new one; inside a replaced value it goes to the placeholder's edge."""
    shift = 0
    for one in replacements:
        if offset <= one.start:
            break
        if offset < one.end:
            return one.new_end if to_end else one.new_start
        shift = one.new_end - one.end
    return offset + shift


def form_of(text: str, span: Span) -> tuple[int, int]:
    """The span without white space at its ends."""
    form = text[span.start : span.end]
    return span.start + len(form) - len(form.lstrip()), span.end - len(form) + len(form.rstrip())


def _parts_words(text: str, at: int) -> bool:
    return not (0 < at < len(text) and _is_of_a_word(text[at - 1]) and _is_of_a_word(text[at]))


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or character == "_"
