"""Serving copied segments as the original's own characters."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from aligner_chain.engines.base import Draft
from aligner_chain.templates.plain import PlainText, Span


def spliced(ids: Sequence[int], plain: PlainText, draft: Draft, answer: str) -> str:
    """The text of `ids`, in which every run copied from the draft is the answer's own characters.

    A tokenizer may lose what it cannot spell (unknown characters, capitals, double spaces); a copied segment must not.
    """
    if tuple(ids) == draft.ids:
        return answer
    if plain.decode(draft.ids) == answer:
        return plain.decode(ids)
    old, new = plain.pieces(draft.ids), plain.pieces(ids)
    if old is None or new is None:
        return plain.decode(ids)
    # A token is the same only with the same text: "▁Hello" loses its space at the start of a text, and only there.
    matcher = difflib.SequenceMatcher(
        None, list(zip(draft.ids, old, strict=True)), list(zip(ids, new, strict=True)), autojunk=False
    )
    parts, position = [], 0
    for block in matcher.get_matching_blocks():
        first, start = block.a, block.b
        last = _before_half_a_character(draft.spans, first, first + block.size)
        end = start + last - first
        anchored = (first, start) == (0, 0) or (last, end) == (len(draft.ids), len(ids))
        if first < last and (anchored or not _by_chance(draft.ids[first:last], plain)):
            parts += ["".join(new[position:start]), _characters(draft, answer, first, last)]
            position = end
    return "".join([*parts, *new[position:]])


def _by_chance(run: Sequence[int], plain: PlainText) -> bool:
    """Whether a run is so short that new text can equal it by chance; a token for the unknown is never new text."""
    return len(run) < 2 and tuple(run) != (plain.unknown,)


def _before_half_a_character(spans: Sequence[Span], first: int, last: int) -> int:
    """Where the run from `first` to `last` ends, if it ended inside a character.

    It cannot begin inside one: the last token of a character carries the whole text of it, which then is the same.
    """
    while first < last < len(spans) and spans[last][0] < spans[last - 1][1]:
        last -= 1
    return last


def _characters(draft: Draft, answer: str, first: int, last: int) -> str:
    """The answer's characters of a run of the draft.

    Characters that no token stands for (spaces between words, where a tokenizer drops them) go with the token behind.
    """
    start = 0 if first == 0 else draft.spans[first - 1][1]
    end = len(answer) if last == len(draft.ids) else draft.spans[last - 1][1]
    return answer[start:end]
