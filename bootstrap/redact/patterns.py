"""What finds personal data in a text by a rule: a regular expression, a check of what it matched, and a normal form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aligner_chain.errors import ConfigurationError

_KIND = re.compile(r"[A-Z][A-Z0-9_]{0,31}")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a text hold personal data of a kind, which is in capitals, such as "EMAIL"."""

    kind: str
    start: int
    end: int

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise ConfigurationError(
                f"{self.kind!r} names no kind of data: write capitals, digits and _, at most 32, such as ORDER."
            )


def plain(value: str) -> str:
    """A value regardless of case and of the kind and amount of white space."""
    return " ".join(value.casefold().split())


def marked(match: re.Match[str]) -> tuple[int, int]:
    """Where the value of a match stands: its group `value`, or all of it where there is no such group."""
    return match.span("value" if "value" in match.re.groupindex else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """One rule.

    Args:
        kind: what it finds, in capitals; it becomes the placeholder's name.
        regex: matches candidates. Where it has a group `value`, this alone is replaced.
        locate: where in a match the value stands, None where it is none after all.
        normal: the normal form of a value; two values with the same one share a placeholder.
        hints: a text is searched only where one of them stands in it, in small letters; () searches every text.
        digits: a text with fewer of them is not searched.
    """

    kind: str
    regex: re.Pattern[str]
    locate: Callable[[re.Match[str]], tuple[int, int] | None] = marked
    normal: Callable[[str], str] = plain
    hints: tuple[str, ...] = ()
    digits: int = 0

    def may_find(self, lowered: str, digits: int) -> bool:
        """Whether a text is worth searching, by the text in small letters and how many digits it has. It costs little."""
        return digits >= self.digits and (not self.hints or any(map(lowered.__contains__, self.hints)))

    def find(self, text: str) -> Iterator[Span]:
        """The values in a text, in order."""
        for match in self.regex.finditer(text):
            if found := self.locate(match):
                yield Span(self.kind, *found)
