"""What an upstream thought, where its server leaves that in the text of the answer: `<think> ... </think>`, then the answer."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TypeVar

from aligner_chain.exchange import Correction, Edit, Exchange, Finding, TokenScore, edits_between

_OPENED = re.compile(r"\s*(?:<(think|thinking|thought)>.*?</\1>|\[THINK\].*?\[/THINK\])\s*", re.DOTALL)
_CLOSED = re.compile(r".*?^</think>[ \t]*(?:\r?\n\s*|\Z)", re.DOTALL | re.MULTILINE)
"""The mark that opens them is often the end of the prompt, and so no part of the text. The other one stands alone on its line."""
_OPENING = re.compile(r"\s*(?:<(?:think|thinking|thought)>|\[THINK\])")
_CLOSING = ("</think", "</thought>", "[/THINK]")

_Place = TypeVar("_Place", Edit, TokenScore, Finding)


def thoughts(answer: str) -> str:
    """What an answer begins with that it does not say, with the white space behind it; "" where there is none.

    Thoughts that do not end are none: what nobody closed, anybody may be shown.
    """
    if not any(mark in answer for mark in _CLOSING):  # Patterns take a hundred times as long over a text that has none.
        return ""
    found = _OPENED.match(answer) or (None if _OPENING.match(answer) else _CLOSED.match(answer))
    return found.group() if found else ""


def behind(answer: str) -> str:
    """What an answer says, without its thoughts."""
    return answer[len(thoughts(answer)) :]


def said(answer: str) -> str:
    """What an answer that is still being written says so far: nothing, while its thoughts go on."""
    begin = len(thoughts(answer))
    return "" if not begin and _OPENING.match(answer) else answer[begin:]


def spoken(exchange: Exchange) -> Exchange:
    """The exchange without its thoughts."""
    answer = behind(exchange.answer)
    return exchange if answer == exchange.answer else replace(exchange, answer=answer)


def whole(correction: Correction, exchange: Exchange) -> Correction:
    """The correction of `spoken(exchange)` as one of the exchange: behind the same thoughts.

    A refusal text stands alone, since thoughts may tell what it refuses to.
    """
    begin = len(exchange.answer) - len(correction.exchange.answer)
    if not begin:
        return correction
    if correction.outcome == "kept" and correction.changed:
        return replace(correction, exchange=exchange, edits=edits_between(exchange.answer, correction.text))
    return replace(
        correction,
        exchange=exchange,
        text=exchange.answer[:begin] + correction.text,
        edits=tuple(_behind(begin, one) for one in correction.edits),
        tokens=tuple(_behind(begin, one) for one in correction.tokens),
        findings=tuple(_behind(begin, one) for one in correction.findings),
    )


def _behind(begin: int, place: _Place) -> _Place:
    moved = {name: at + begin for name in ("start", "end") if (at := getattr(place, name)) is not None}
    return replace(place, **moved)
