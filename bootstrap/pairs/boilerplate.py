"""What an Aligner adds to answer after answer, whatever was asked: DPO would spend itself on it and learn little else."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable

from bootstrap.pairs.filters import Candidate, Filters

_SENTENCE = re.compile(r"\S.*?(?:[.!?…。！？](?=\s|$)|[。！？]|(?=\n)|$)")
_MOST_COUNTED = 10_000


def find_boilerplate(candidates: Iterable[Candidate], filters: Filters) -> frozenset[str]:
    """The sentences that stand in so many chosen texts where the rejected ones had none in their place.

    A sentence that takes another's place is a correction, however often it is needed, and is not counted. The counts take
    bounded memory: of more than 10,000 sentences the rarer half is forgotten.
    """
    counts: Counter[str] = Counter()
    total = 0
    for pair in candidates:
        total += 1
        counts.update(set(_added(pair.rejected, pair.chosen)))
        if len(counts) > _MOST_COUNTED:
            counts = Counter(dict(counts.most_common(_MOST_COUNTED // 2)))
    least, share = filters.boilerplate_least, filters.boilerplate_share * total
    return frozenset(sentence for sentence, count in counts.items() if count >= least and count > share)


def stripped(rejected: str, chosen: str, boilerplate: frozenset[str]) -> str:
    """The chosen text without the boilerplate that the rejected one does not have."""
    had = set(sentences(rejected))
    text = chosen
    for match in reversed(list(_SENTENCE.finditer(chosen))):
        if match[0] in boilerplate and match[0] not in had:
            text = text[: match.start()].rstrip(" ") + _after(text, match.start(), match.end())
    return text if text == chosen else text.strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line's end ends a sentence too."""
    return _SENTENCE.findall(text)


def _after(text: str, start: int, end: int) -> str:
    """What follows a sentence that is taken out, with one space where it would now touch what is before."""
    rest = text[end:].lstrip(" ")
    return f" {rest}" if start and rest and not rest.startswith("\n") and text[start - 1] != "\n" else rest


def _added(rejected: str, chosen: str) -> list[str]:
    """The sentences of the chosen text that stand in the place of none."""
    old, new = sentences(rejected), sentences(chosen)
    if set(new) <= set(old):
        return []
    found: list[str] = []
    for tag, i, k, j, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag in ("insert", "replace"):
            found += new[min(j + (k - i), m) : m]
    return found
