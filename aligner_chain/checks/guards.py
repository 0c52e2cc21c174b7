"""Checks of what others read by its form: code, links, quotes, citations, JSON and tables."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from aligner_chain.checks import markup
from aligner_chain.checks.alignment import Range
from aligner_chain.checks.comparison import Comparison, Damage, kept_share, words
from aligner_chain.checks.markup import Block, Span

STUB = 0.3
"""Share of a block's words below which another does not stand for it: it is a stub, or something else."""
FEW_WORDS = 10
"""Words from which on a block can be told from another by them."""
MOST_QUOTES = 300
"""Quotes that are looked for in the sources; the search of each takes time with the length of the sources."""


def code(pair: Comparison) -> Iterator[Damage]:
    """Code blocks may change, but neither vanish nor lose their fences, their language or nearly all that is in them."""
    for block, other in pair.blocks:
        whole = (block.start, block.end)
        if other is None:
            yield Damage(message="a code block is lost", span=whole, unit=whole)
        elif _is_stub(block, other):
            yield Damage(message="little is left of a code block", span=whole, unit=whole)
        elif block.language and not other.language:
            yield Damage(message="a code block lost its language", span=(block.start, block.head))
        elif markup.fences(block.text) > markup.fences(other.text):
            yield Damage(message="a code block in a code block is lost", span=whole, unit=whole)
        elif block.closed and not other.closed:
            yield Damage(message="a code block is left open", span=(_last_line(block), block.end))
    known = {other.start for _, other in pair.blocks if other is not None}
    if any(not other.closed and other.start not in known for other in pair.correction.blocks):
        yield Damage(message="a new code block is left open")


def inline_code(pair: Comparison) -> Iterator[Damage]:
    """What was in backticks is still in the text, or other code in backticks stands in its place."""
    after = pair.correction.inline_code
    standing = {span.text for span in after}
    for span in pair.answer.inline_code:
        parts = words(span.text)
        stands = span.text in standing or (parts and all(part in pair.correction.words for part in parts))
        if not stands and not pair.in_place_of((span.start, span.end), after):
            yield Damage(message="inline code is lost", span=(span.start, span.end))


def links(pair: Comparison) -> Iterator[Damage]:
    """Every address of the answer stands in the correction; one from the question or a passage may replace it."""
    after = pair.correction.links
    standing = {span.text for span in after}
    given: set[str] | None = None
    for span in pair.answer.links:
        if span.text not in standing:
            if given is None:
                given = {one.text for one in markup.links(pair.sources)}
            if not any(new.text in given for new in pair.in_place_of((span.start, span.end), after)):
                yield Damage(message="a link is lost", span=(span.start, span.end))


def quotes(pair: Comparison) -> Iterator[Damage]:
    """What the answer quotes word for word from the question or a passage is quoted so while its sentence stands."""
    sources, text = _spaced(pair.sources), _spaced(pair.correction.text)
    for span in islice(markup.quotes(pair.answer.plain), MOST_QUOTES):
        quoted = _spaced(span.text)
        if quoted in sources and quoted not in text and _sentence_stands(pair, span):
            yield Damage(message="a quoted passage is altered", span=(span.start, span.end))


def citations(pair: Comparison) -> Iterator[Damage]:
    """A sentence that stands keeps as many marks as it had; a mark may go with its sentence, but not the last one."""
    before = tuple(span for span in pair.answer.citations if not _beyond(pair, span))
    after, lost = pair.correction.citations, 0
    for start, end in pairwise(pair.answer.borders):
        had = _within(before, start, end)
        if had and pair.survived(start, end):
            has = {span.text for span in _sentence_after(pair, (start, end), after)}
            gone = [span for span in had if span.text not in has]
            spare = len(has - {span.text for span in had})  # other marks, that stand in place of the first ones gone
            for span in gone[spare:]:
                lost += 1
                mark = (span.start, span.end)
                yield Damage(message="a sentence lost its citation", span=mark, unit=mark)
    if before and not after and not lost:
        yield Damage(message="all citations are lost")
    if _unknown(pair):
        yield Damage(message="a passage is cited that is not there")


def json(pair: Comparison) -> Iterator[Damage]:
    """An answer, or a block in it, that is JSON stays JSON of the same kind; fewer keys are worth a warning."""
    whole = (0, len(pair.answer.text))
    yield from _json_damage(pair.answer.text, pair.correction.text, whole, "the answer", scalars=True)
    for block, other in pair.blocks:
        if block.language.lower() in ("", "json") and other is not None:
            yield from _json_damage(block.text, other.text, (block.start, block.end), "a block")


def tables(pair: Comparison) -> Iterator[Damage]:
    """Tables keep their columns and their form, and do not vanish."""
    before, after = markup.tables(pair.answer.prose), markup.tables(pair.correction.prose)
    for table, other in zip(before, pair.partners(before, after), strict=True):
        span = (table.start, table.end)
        if other is None:
            yield Damage(message="a table is lost", span=span, unit=span)
        elif _is_stub(table, other):
            yield Damage(message="little is left of a table", span=span, unit=span)
        elif other.columns < table.columns:
            yield Damage(message="a table lost a column", span=span)
        elif other.ragged and not table.ragged:
            yield Damage(message="a row of a table lost its form", span=span)


def _json_damage(before: str, after: str, span: Range, name: str, *, scalars: bool = False) -> Iterator[Damage]:
    try:
        had = markup.parsed_json(before)
    except ValueError:
        return
    # A text in quotation marks is JSON by chance: a title, a motto. A number or a truth value is read by someone.
    if isinstance(had, str) or not (scalars or isinstance(had, dict | list)):
        return
    try:
        has = markup.parsed_json(after)
    except ValueError:
        yield Damage(message=f"{name} is no longer JSON", span=span)
        return
    if _kind(had) is not _kind(has):
        yield Damage(message=f"{name} is JSON of another kind", span=span)
    elif isinstance(had, dict) and had.keys() - has.keys():
        yield Damage(message=f"{name} lost a key of its JSON", span=span, mild=True)


def _is_stub(before: Span, after: Span) -> bool:
    """Whether next to nothing of a block is in the one in its place; in a block of a few words, each may be the bug."""
    had, has = len(words(before.text)), len(words(after.text))
    return bool(had) and (not has or (had >= FEW_WORDS and kept_share(before.text, after.text) < STUB))


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _unknown(pair: Comparison) -> bool:
    """Whether the correction cites, by a number that the answer did not, more passages than there are."""
    had = {span.text for span in pair.answer.citations}
    return any(span.text not in had and _beyond(pair, span) for span in pair.correction.citations)


def _beyond(pair: Comparison, mark: Span) -> bool:
    """Whether a mark stands for a passage that there is not: in an answer, to lose it is no damage."""
    passages, numbers = len(pair.exchange.context), mark.text[1:-1].split(",")
    return bool(passages) and any(number.isdecimal() and int(number) > passages for number in numbers)


def _sentence_stands(pair: Comparison, span: Span) -> bool:
    """Whether the sentence is still there; of a sentence that is all quote, whether any of it is."""
    start, end = pair.answer.sentences(span.start, span.end)
    return pair.survived(start, end)


def _sentence_after(pair: Comparison, sentence: Range, marks: tuple[Span, ...]) -> tuple[Span, ...]:
    start, end = pair.alignment.image(*sentence)
    return _within(marks, *pair.correction.sentences(start, max(start, end - 1)))


def _within(spans: tuple[Span, ...], start: int, end: int) -> tuple[Span, ...]:
    first = bisect_left(spans, start, key=lambda span: span.start)
    return spans[first : bisect_left(spans, end, key=lambda span: span.start)]


def _last_line(block: Block) -> int:
    return block.head + 1 + len(block.text)


def _spaced(text: str) -> str:
    return " ".join(text.split())
