"""Which characters of an answer became which of its correction, and what leaving out an edit puts back.

Everything is told by the edits between the two texts. To restore a span is to leave out the edits that damaged it: so
what stands there again is the original byte for byte, and all that was changed elsewhere stays.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from aligner_chain.exchange import Edit

Range = tuple[int, int]
"""Characters of a text: from the first, up to the second without it."""

NEIGHBOURHOOD = 80
"""Characters before and behind a damaged span that tell where it goes: about a sentence."""
_COPIED = 0.5
"""Share of a correction that must come from the answer; of one that is written anew, nothing has a place in it."""
_SURVIVING = 2 / 3
"""Share of a neighbourhood that must stand unchanged, so that the place is known."""


class Alignment:
    """An answer, and the edits that make its correction of it: in order, without overlap."""

    def __init__(self, answer: str, edits: Sequence[Edit]) -> None:
        self.answer, self.edits = answer, tuple(edits)
        self._starts = [edit.start for edit in edits]
        self._ends = [edit.end for edit in edits]
        self._removed = [0, *accumulate(edit.end - edit.start for edit in edits)]
        self._shifts = [0, *accumulate(len(edit.after) - (edit.end - edit.start) for edit in edits)]

    def touching(self, start: int, end: int) -> Sequence[Edit]:
        """The edits that change characters in the range or insert some inside of it."""
        return self.edits[slice(*self._touching(start, end))]

    def image(self, start: int, end: int) -> Range:
        """The characters of the correction that the range became; what an edit changed counts as a whole."""
        first, last = self._touching(start, end)
        left = min([start, *self._starts[first : first + 1]]) if first < last else start
        right = max([end, *self._ends[last - 1 : last]]) if first < last else end
        return left + self._shifts[first], right + self._shifts[last]

    def survival(self, start: int, end: int) -> float:
        """The share of the range's characters that stand unchanged in the correction; 1 for an empty range."""
        start, end = max(start, 0), min(end, len(self.answer))
        if start >= end:
            return 1.0
        first, last = self._touching(start, end)
        removed = self._removed[last] - self._removed[first]
        if first < last:  # of the outermost edits, only what lies in the range
            removed -= max(start - self._starts[first], 0) + max(self._ends[last - 1] - end, 0)
        return 1 - removed / (end - start)

    def place(self, start: int, end: int, unit: Range) -> Range | None:
        """What of the answer to put back for the span to stand again, or None where its place is not well defined.

        Of a plain deletion only the part in `unit` comes back: the sentence of a link, say, with the white space on the
        side where the deletion took it. A replacement comes back as a whole, if it reaches no further than a
        neighbourhood.
        """
        touching = self.touching(start, end)
        if not touching or self._copied < _COPIED:
            return None
        first, last = touching[0], touching[-1]
        if not self._surrounded((min(start, first.start), max(end, last.end)), unit):
            return None
        opens = first.start if first.after else self._opens(first, unit[0])
        closes = last.end if last.after else self._closes(last, unit[1])
        near = all(edit.after == "" or self._near(edit, start, end) for edit in (first, last))
        return (min(start, opens), max(end, closes)) if near else None

    def restored(self, places: Iterable[Range]) -> tuple[Edit, ...]:
        """The edits without those that touch one of the places; a plain deletion goes on around them."""
        merged = _merged(places)
        starts, ends = [start for start, _ in merged], [end for _, end in merged]
        left = list[Edit]()
        for edit in self.edits:
            hit = merged[bisect_right(ends, edit.start) : bisect_left(starts, edit.end)]
            left += [edit] if not hit else [] if edit.after else _around(edit, hit)
        return tuple(left)

    @property
    def _copied(self) -> float:
        copied = len(self.answer) - self._removed[-1]
        return copied / max(len(self.answer) + self._shifts[-1], 1)

    def _touching(self, start: int, end: int) -> Range:
        first = bisect_right(self._ends, start)
        return first, max(bisect_left(self._starts, end), first)

    def _opens(self, deletion: Edit, start: int) -> int:
        if deletion.before[:1].isspace():
            start = deletion.start + len(self.answer[deletion.start : start].rstrip())
        return max(deletion.start, start)

    def _closes(self, deletion: Edit, end: int) -> int:
        if deletion.before[-1:].isspace():
            end = deletion.end - len(self.answer[end : deletion.end].lstrip())
        return min(deletion.end, end)

    def _near(self, edit: Edit, start: int, end: int) -> bool:
        return edit.start >= start - NEIGHBOURHOOD and edit.end <= end + NEIGHBOURHOOD

    def _surrounded(self, gone: Range, unit: Range) -> bool:
        """Whether what stands around survived: on both sides, and what is left of the sentence."""
        start, end = gone
        rest = (min(unit[0], start), start), (end, max(unit[1], end))
        length = sum(close - open_ for open_, close in rest)
        standing = sum(self.survival(*side) * (side[1] - side[0]) for side in rest)
        sides = self.survival(start - NEIGHBOURHOOD, start), self.survival(end, end + NEIGHBOURHOOD)
        return min(*sides, standing / length if length else 1.0) >= _SURVIVING


def applied(answer: str, edits: Iterable[Edit]) -> str:
    """The text that the edits make of the answer."""
    parts, position = list[str](), 0
    for edit in edits:
        parts += [answer[position : edit.start], edit.after]
        position = edit.end
    return "".join([*parts, answer[position:]])


def _merged(places: Iterable[Range]) -> list[Range]:
    merged = list[Range]()
    for start, end in sorted(places):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _around(edit: Edit, places: Sequence[Range]) -> list[Edit]:
    """What is left of a deletion when the places in it are put back."""
    borders = [edit.start, *(border for place in places for border in place), edit.end]
    return [
        Edit(start=start, end=end, before=edit.before[start - edit.start : end - edit.start], after="")
        for start, end in zip(borders[::2], borders[1::2], strict=True)
        if start < end
    ]
