"""How many words and marks differ between two texts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

_TOKENS = re.compile(r"\w+|[^\w\s]")


def tokens(text: str) -> list[str]:
    """The words and marks of a text, without white space."""
    return _TOKENS.findall(text)


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest tokens to insert, delete or replace that make the one into the other (Levenshtein).

    A column of the table of distances is held as bits of two integers, so one step of Python does a whole column
    (H. Hyyrö 2003, "A bit-vector algorithm for computing Levenshtein and Damerau edit distances", Nordic J. Computing 10).
    """
    if not one:
        return len(other)
    places = defaultdict[str, int](int)
    for place, token in enumerate(one):
        places[token] |= 1 << place
    every, last, found = (1 << len(one)) - 1, 1 << (len(one) - 1), len(one)
    down, up = every, 0  # rows at which the column grows by one, and at which it shrinks
    for token in other:
        equal = places.get(token, 0)
        diagonal = (((equal & down) + down) ^ down) | equal
        right, left = up | ~(diagonal | down), down & diagonal
        found += bool(right & last) - bool(left & last)
        right, left, still = right << 1 | 1, left << 1, equal | up
        down, up = (left | ~(still | right)) & every, right & still & every
    return found
