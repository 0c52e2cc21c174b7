"""Where code, links, quotes, citations and tables stand in a text. Every function takes time linear in its length.

Texts are of models and users, so no pattern here may be slow on a hostile one: each is bounded, or stops at the first
character that its beginning would match again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a text, and what in them counts."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Block(Span):
    """A fenced code block with its fences; `text` is what stands between them."""

    language: str
    head: int
    """The end of its first line."""
    closed: bool


@dataclass(frozen=True, slots=True)
class Table(Span):
    """A table of Markdown. `ragged` says whether a row has another number of cells than the head."""

    columns: int
    ragged: bool


_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*\Z")
_INLINE = re.compile(r"(?<!`)(`{1,2})(?!`)([^`\n]+)\1(?!`)")
# In Chinese and Japanese no space stands around an address: a letter may come right before it, and marks right behind.
_URL = re.compile(
    r"""(?<![a-z0-9_])(?:(?:https?|ftp)://|www\.)[^\s<>"`|\\^{}，。、；：！？（）「」『』【】《》“”]+""", re.IGNORECASE
)
_TARGET = re.compile(r"\[[^\[\]\n]{0,500}\]\(\s{0,9}<?([^\s()<>\[\]]{1,2000})")
_QUOTED = re.compile('"([^"\n]{1,1000})"|“([^“”\n]{1,1000})”|«([^«»\n]{1,1000})»|„([^„“”\n]{1,1000})[“”]')
_MARK = re.compile(r"\[(\d{1,3}(?:\s?[,;–-]\s?\d{1,3}){0,20}|\^?[\w-]{1,20})\]")
_DEFINED = re.compile(r"^[ \t]{0,9}\[(\^?[\w-]{1,20})\](?=:|[ \t]{1,9}[\w\"“«*_<])", re.MULTILINE)
_FOOTNOTE = re.compile(r"\^\d{1,3}")
_AUTHOR = re.compile(
    r"\([A-Z][\w'’-]{1,40}(?:,? (?:(?:and|&|et al\.?)|[A-Z][\w'’-]{1,40})){0,6},? (?:1[5-9]|20)\d\d[a-z]?\)"
)
_BORDER = re.compile(r"""[.!?…](?:[ ]?\[\^?\d[\d, ]{0,20}\])*["'”’)*_]{0,3}(?=\s)|[。！？]|\n""")
_CELLS = re.compile(r"(?<!\\)\|")
_DASHES = re.compile(r"\s*:?-+:?\s*")

_LONG_QUOTE = 4
"""Words from which on quoted text is a passage and not a name or a word that is talked about."""


def code_blocks(text: str) -> tuple[Block, ...]:
    """The fenced blocks; one that is never closed ends with the text."""
    blocks = list[Block]()
    opened: tuple[int, re.Match[str], int] | None = None
    for start, line in _lines(text):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened = start, fence, start + len(line)
        elif opened is not None and fence and _closes(fence, opened[1]):
            blocks.append(_block(text, opened, start, start + len(line), closed=True))
            opened = None
    if opened is not None:
        blocks.append(_block(text, opened, len(text), len(text), closed=False))
    return tuple(blocks)


def fences(text: str) -> int:
    """The lines that open or close a block. In a block of longer fences they show another block."""
    return sum(_FENCE.match(line) is not None for _, line in _lines(text))


def masked(text: str, spans: Sequence[Span], blank: str = "\n") -> str:
    """The text with its code blanked, so that what only looks like prose in it is not read as such."""
    parts, position = list[str](), 0
    for span in spans:
        parts += [text[position : span.start], blank * (span.end - span.start)]
        position = span.end
    return "".join([*parts, text[position:]])


def inline_code(prose: str) -> tuple[Span, ...]:
    """What stands between backticks in a line."""
    return tuple(Span(match.start(), match.end(), match[2].strip()) for match in _INLINE.finditer(prose))


def links(text: str) -> tuple[Span, ...]:
    """Addresses, bare or as the target of a Markdown link, wherever they stand: in code, too."""
    found = {match.start(): _address(match[0]) for match in _URL.finditer(text)}
    for match in _TARGET.finditer(text):
        if match.start(1) not in found and ("/" in match[1] or match[1].startswith(("#", "mailto:"))):
            found[match.start(1)] = match[1]
    return tuple(Span(start, start + len(address), address) for start, address in sorted(found.items()))


def quotes(prose: str) -> tuple[Span, ...]:
    """Quoted passages of a few words or more, without their quotation marks."""
    found = (Span(*match.span(match.lastindex or 0), match[match.lastindex or 0]) for match in _QUOTED.finditer(prose))
    lines = (
        Span(start + line.index(">") + 1, start + len(line), line.lstrip(" >"))
        for start, line in _lines(prose)
        if line.lstrip().startswith(">")
    )
    return tuple(span for span in (*found, *lines) if len(span.text.split()) >= _LONG_QUOTE)


def citations(prose: str, *, passages: bool) -> tuple[Span, ...]:
    """Citation marks: `[^1]`, `(Smith 2020)`, and `[1]`, `[1, 2]` or `[name]`.

    A number in brackets may be anything, an index in code above all. It is a citation where there are passages to cite,
    or where the text itself says what it stands for, in a line that begins with it.
    """
    defined = {match[1] for match in _DEFINED.finditer(prose)}
    marks = [
        Span(match.start(), match.end(), re.sub(r"\s", "", match[0]))
        for match in _MARK.finditer(prose)
        if match[1] in defined or _FOOTNOTE.fullmatch(match[1]) or (passages and "1" <= match[1][0] <= "9")
    ]
    authors = (Span(match.start(), match.end(), match[0]) for match in _AUTHOR.finditer(prose))
    return tuple(sorted((*marks, *authors), key=lambda span: span.start))


def tables(prose: str) -> tuple[Table, ...]:
    """The tables: a head, a line of dashes with as many cells, and the lines with bars that follow."""
    lines, found, row = list(_lines(prose)), list[Table](), 1
    while row < len(lines):
        head, dashes = _cells(lines[row - 1][1]), _cells(lines[row][1])
        row += 1
        if dashes and len(head) == len(dashes) and all(map(_DASHES.fullmatch, dashes)):
            first = row - 2
            while row < len(lines) and len(_cells(lines[row][1])):
                row += 1
            start, end = lines[first][0], lines[row - 1][0] + len(lines[row - 1][1])
            ragged = any(len(_cells(line)) != len(head) for _, line in lines[first + 2 : row])
            found.append(Table(start, end, prose[start:end], len(head), ragged))
    return tuple(found)


def sentence_borders(text: str) -> list[int]:
    """Where sentences and lines end, the end of the text included; a citation mark behind a full stop belongs to it."""
    return sorted({0, *(match.end() for match in _BORDER.finditer(text)), len(text)})


def parsed_json(text: str) -> Any:
    """What a text is as JSON. Raises `ValueError` where it is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    position = 0
    for line in text.split("\n"):
        yield position, line
        position += len(line) + 1


def _closes(fence: re.Match[str], opening: re.Match[str]) -> bool:
    return fence[1].startswith(opening[1]) and not fence[2] and fence.string.rstrip().endswith(fence[1])


def _block(text: str, opened: tuple[int, re.Match[str], int], stop: int, end: int, *, closed: bool) -> Block:
    start, fence, head = opened
    return Block(start, end, text[head + 1 : stop], fence[2], head, closed)


def _address(found: str) -> str:
    """An address without the bracket or punctuation that the sentence around it put behind it."""
    depth = 0
    for position, character in enumerate(found):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            found = found[:position]
            break
    return found.rstrip(".,;:!?*_~'’”]")


def _cells(line: str) -> list[str]:
    stripped = line.strip()
    if "|" not in stripped:
        return []
    cells = _CELLS.split(stripped)
    return cells[not cells[0].strip() : len(cells) - (len(cells) > 1 and not cells[-1].strip())]
