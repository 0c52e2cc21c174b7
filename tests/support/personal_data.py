"""Reads personal_data.txt: sentences, and where personal data stands in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_suffix(".txt")
_MARK = re.compile(r"\{\{([A-Z]+)\|(.+?)\}\}")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text and what should be found in it: kind, start and end."""

    part: str
    language: str
    text: str
    marks: tuple[tuple[str, int, int], ...]


def sentences() -> list[Sentence]:
    part, read = "", []
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            part = line[3:]
        elif line and not line.startswith("#"):
            language, marked = line.split("\t")
            read.append(_sentence(part, language, marked.replace("¦", "")))
    return read


def _sentence(part: str, language: str, marked: str) -> Sentence:
    text, at, marks = "", 0, []
    for mark in _MARK.finditer(marked):
        text += marked[at : mark.start()]
        marks.append((mark[1], len(text), len(text) + len(mark[2])))
        text, at = text + mark[2], mark.end()
    return Sentence(part, language, text + marked[at:], tuple(marks))


def _repeated(piece: str) -> Callable[[int], str]:
    return lambda size: (piece * (size // len(piece) + 1))[:size]


def _numbered(form: str) -> Callable[[int], str]:
    return lambda size: "".join(form.format(number) for number in range(size // len(form.format(1000))))


# Texts of a given size, made to be hard for expressions that look back and forth, or full of values.
HARD: Mapping[str, Callable[[int], str]] = {
    **{
        f"repeated {piece!r:.24}": _repeated(piece)
        for piece in (
            "a", "a.", "a@", "@", "1", "1 ", "1-", "0 0", "00", "+1", "(1", "(12)", ":", "a:", "1:", "://a:", "DE00 ",
            "password=", "password: ", "token='", "-----BEGIN PRIVATE KEY-----", "eyJaaaaaaaaaaa", "sk-", "AKIA", "1.1.1.",
            "4111 ", "Bearer ", "<EMAIL_1>", "\ud800", "call 123 ",
        )
    },
    "many addresses": _numbered("anna{0}@example.org, "),
    "many numbers": _numbered("+49 30 1{0:07}; "),
    "many passwords": _numbered("password=a{0}x "),
}  # fmt: skip
