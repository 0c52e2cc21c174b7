"""Checks of what an answer states: its numbers with their units, and the names that the question gave."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aligner_chain.checks.alignment import Range
from aligner_chain.checks.comparison import Comparison, Damage, words
from aligner_chain.checks.markup import Span

_UNITS = (
    "%|‰|°[CF]?|[$€£¥]|(?:k|m|c|n|µ)?[mglsWV]\\b|k?B\\b|[kKMGT]i?[bB]\\b|k?Hz\\b|MHz\\b|GHz\\b|km/h\\b|kWh\\b|mph\\b|h\\b|min\\b|ft\\b|lbs?\\b|oz\\b"
    "|(?:percent|euros?|dollars?|pounds?|cents?|EUR|USD|GBP|seconds?|minutes?|hours?|days?|weeks?|months?|years?"
    "|meters?|metres?|kilometers?|kilometres?|miles?|inch(?:es)?|feet|grams?|kilograms?|tons?|lit(?:er|re)s?"
    "|million|billion|thousand|degrees?)\\b"
)
_NUMBER = re.compile(
    rf"([$€£¥]?)(?<![\w.])(\d{{1,40}}(?:[.,:/]\d{{1,40}}){{0,8}})(?!\w|[.,:/]?\d)(?:[ \u00a0-]?({_UNITS}))?"
)
_LISTED = re.compile(r"^[ \t]{0,20}(?=\d{1,4}[.)][ \t])", re.MULTILINE)
_NAME = re.compile(r"(?<![\w'’])[A-Z]\w*[\w'’-]*")
_QUOTED = re.compile(r"`([^`\n]{2,80})`|\"([^\"\n]{2,80})\"|“([^“”\n]{2,80})”")
_OPENING = re.compile(r"(?:\A|[.!?:\n\"“(])\s{0,4}\Z")


def numbers(pair: Comparison) -> Iterator[Damage]:
    """A number may be replaced, that is what corrections are for; it is lost where nothing stands in its place."""
    _, lost = fates(pair)
    for span in lost:
        yield Damage(message="a number is lost", span=(span.start, span.end))


def fates(pair: Comparison) -> tuple[list[Span], list[Span]]:
    """The answer's numbers that were replaced, and those that are lost; the others stand."""
    before, after = _numbers(pair.answer.text), _numbers(pair.correction.text)
    missing = _missing(before, after)
    replaced, lost = list[Span](), list[Span]()
    for span in before:
        place = (span.start, span.end)
        if missing.get(span.text, 0) and pair.alignment.touching(*place):
            missing[span.text] -= 1
            (replaced if pair.in_place_of(place, after) or _reworded(pair, place) else lost).append(span)
    return replaced, lost


def names(pair: Comparison) -> Iterator[Damage]:
    """A name that the question gave and the answer used is still in the correction."""
    standing = {word.casefold() for word in pair.correction.words}
    for name in dict.fromkeys(_names(pair.exchange.question)):
        parts = words(name)
        used = parts and all(part in pair.answer.words for part in parts)
        if used and not all(part.casefold() in standing for part in parts):
            yield Damage(message="a name that the question gave is lost")


def _numbers(text: str) -> list[Span]:
    """The numbers of a text with their units; those that count the points of a list are none of its facts."""
    listed = {match.end() for match in _LISTED.finditer(text)}
    found = (match for match in _NUMBER.finditer(text) if match.start() not in listed)
    return [Span(*match.span(), f"{match[2]} {match[1] or (match[3] or '').rstrip('s')}") for match in found]


def _missing(before: list[Span], after: list[Span]) -> dict[str, int]:
    missing = dict[str, int]()
    for spans, step in ((before, 1), (after, -1)):
        for span in spans:
            missing[span.text] = missing.get(span.text, 0) + step
    return {value: count for value, count in missing.items() if count > 0}


def _reworded(pair: Comparison, place: Range) -> bool:
    """Whether words took the number's place, and its sentence is still there."""
    start, end = pair.alignment.image(*place)
    return start < end and pair.survived(*pair.answer.sentences(*place))


def _names(question: str) -> Iterator[str]:
    for match in _QUOTED.finditer(question):
        yield match[match.lastindex or 0]
    for match in _NAME.finditer(question):
        if len(match[0]) > 1 and not _OPENING.search(question, max(match.start() - 6, 0), match.start()):
            yield match[0]
