"""A correction's changes for people: as plain text, on a terminal, in Markdown and in HTML.

`Correction.edits` are as small as they can be, as training and checks need them. A person reads phrases: here, edits
with little between them are one change. What the texts hold is data in every format: no escape sequence of theirs reaches
a terminal, no mark a Markdown page and no tag an HTML page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import takewhile

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Edit

RED, GREEN, PLAIN = "\x1b[31;9m", "\x1b[32;4m", "\x1b[0m"
"""Struck and underlined besides, for who cannot tell the colours apart and so that spaces are seen."""

_FEW = 2
"""Unchanged words between two edits up to which both may be one phrase."""
_WORD = re.compile(r"\w+")
_PHRASE_END = re.compile(r"""\n|[.!?:;…]["'”’)\]]*\s|[。！？；：]""")

# They move the cursor, change colours or turn the direction of reading.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_MARKS = re.compile(r"[\\`*_\[\]<>~|&#$]")
_LINE_START = re.compile(r"^(?:[ \t]*\d{1,9}(?=[.)])|[ \t]*(?=[-+=]))", re.MULTILINE)
_INDENT = re.compile(r"^(?: {4}| {0,3}\t)[ \t]*", re.MULTILINE)
_LETTERS = re.compile(r"[^\s!-/:-@\[-`{-~]*")
"""Whatever is neither white space nor a mark of ASCII."""


def diff(correction: Correction, form: str = "text") -> str:
    """The answer with each change in place; see `Correction.diff`. Raises `ConfigurationError` for an unknown form."""
    shown = chosen(_FORMS, form)
    return shown(correction.exchange.answer, phrases(correction.exchange.answer, correction.edits))


def chosen(forms: Mapping[str, Callable[..., str]], name: str) -> Callable[..., str]:
    """What shows something in the form of that name. Raises `ConfigurationError` where there is none."""
    if name not in forms:
        raise ConfigurationError(f"format={name!r} is unknown; use one of {', '.join(forms)}.")
    return forms[name]


def phrases(answer: str, edits: Sequence[Edit]) -> list[Edit]:
    """The edits, where those that lie within one phrase are one."""
    joined: list[Edit] = []
    for edit in edits:
        joined.append(edit)
        # A joined edit is longer, and may now reach the one before it.
        while len(joined) > 1 and _one_phrase(answer, *joined[-2:]):
            joined[-2:] = [_join(answer, *joined[-2:])]
    return [_trimmed(edit) for edit in joined]


def visible(text: str) -> str:
    """The text with its control characters spelt out, so that it cannot steer a terminal."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def in_markdown(text: str) -> str:
    """The text as Markdown that shows it, within a line: what only a line's beginning can mean is for `in_lines`."""
    return _MARKS.sub(r"\\\g<0>", visible(text))


def in_lines(markdown: str) -> str:
    """Markdown whose every line stays a line of its own, and is no list, heading or code."""
    plain = _LINE_START.sub(r"\g<0>\\", markdown)
    plain = _INDENT.sub(lambda found: "&nbsp;" * len(found[0].expandtabs(4)), plain)
    return plain.replace("\n", "  \n")


def _one_phrase(answer: str, left: Edit, right: Edit) -> bool:
    between = answer[left.end : right.start]
    words = len(_WORD.findall(between))
    # What stayed must not be longer than either change: a short change in its surroundings reads well as it is.
    short = words <= _FEW and len(between) <= min(map(_size, (left, right)))
    return not _PHRASE_END.search(between) and (short or not words)


def _size(edit: Edit) -> int:
    return max(len(edit.before), len(edit.after))


def _join(answer: str, left: Edit, right: Edit) -> Edit:
    between = answer[left.end : right.start]
    after = f"{left.after}{between}{right.after}"
    return Edit(start=left.start, end=right.end, before=answer[left.start : right.end], after=after)


def _trimmed(edit: Edit) -> Edit:
    """The edit without the white space that both of its sides begin with, or end with."""
    left = _shared_space(edit.before, edit.after)
    before, after = edit.before[left:], edit.after[left:]
    right = _shared_space(before[::-1], after[::-1])
    before, after = before[: len(before) - right], after[: len(after) - right]
    return Edit(start=edit.start + left, end=edit.end - right, before=before, after=after)


def _shared_space(one: str, other: str) -> int:
    pairs = takewhile(lambda pair: pair[0] == pair[1] and pair[0].isspace(), zip(one, other, strict=False))
    return sum(1 for _ in pairs)


def _filled(answer: str, edits: Sequence[Edit], same: Callable[[str], str], changed: Callable[[Edit], str]) -> str:
    parts, position = [], 0
    for edit in edits:
        parts += [same(answer[position : edit.start]), changed(edit)]
        position = edit.end
    return "".join([*parts, same(answer[position:])])


def _text(answer: str, edits: Sequence[Edit]) -> str:
    return _filled(answer, edits, str, lambda edit: _fenced("[-", edit.before, "-]") + _fenced("{+", edit.after, "+}"))


def _html(answer: str, edits: Sequence[Edit]) -> str:
    shown = _filled(answer, edits, escape, _html_change)
    return f'<span class="aligner-diff" style="white-space: pre-wrap">{shown}</span>'


def _html_change(edit: Edit) -> str:
    return _fenced("<del>", escape(edit.before), "</del>") + _fenced("<ins>", escape(edit.after), "</ins>")


def _terminal(answer: str, edits: Sequence[Edit]) -> str:
    return _filled(answer, edits, visible, lambda edit: _painted(RED, edit.before) + _painted(GREEN, edit.after))


def _painted(colour: str, text: str) -> str:
    """The text in a colour that no line hands on to the next, since pagers drop it there; its line breaks are seen."""
    lines = visible(text).replace("\n", "↵\n").split("\n")
    return "\n".join(_fenced(colour, line, PLAIN) for line in lines)


def _markdown(answer: str, edits: Sequence[Edit]) -> str:
    return in_lines(_filled(answer, _with_neighbours(answer, edits), in_markdown, _markdown_change))


def _markdown_change(edit: Edit) -> str:
    sides = [_emphasised("~~", edit.before), _emphasised("**", edit.after)]
    told = [side for side in sides if side.strip()]
    # Two runs of marks that touch would be read as one.
    return " ".join(told) if told else edit.after


def _emphasised(mark: str, text: str) -> str:
    """Each line within marks of its own, which touch no white space: else they would be shown and not obeyed."""
    return "\n".join(_emphasised_line(mark, line) for line in in_markdown(text).split("\n"))


def _emphasised_line(mark: str, line: str) -> str:
    core = line.strip()
    before, _, after = line.partition(core) if core else (line, "", "")
    return f"{before}{_fenced(mark, core, mark)}{after}"


def _with_neighbours(answer: str, edits: Sequence[Edit]) -> list[Edit]:
    """The edits with the letters beside them where one begins or ends with a mark.

    Markdown does not see an emphasis between a letter and a mark, as in `word**,**`.
    """
    widened, taken = list[Edit](), 0
    for edit, end in zip(edits, [*(edit.start for edit in edits), len(answer)][1:], strict=True):
        left = _neighbour(answer[taken : edit.start][::-1], edit, 0)[::-1]
        right = _neighbour(answer[edit.end : end], edit, -1)
        wide = _widened(edit, left, right)
        if widened and taken == wide.start:  # the marks of both would be read as one
            wide = _after(widened.pop(), wide)
        widened.append(wide)
        taken = wide.end
    return widened


def _neighbour(beside: str, edit: Edit, edge: int) -> str:
    edges = [side[edge] for side in (edit.before, edit.after) if side]
    found = None if all(one.isalnum() or one in " \t\n" for one in edges) else _LETTERS.match(beside)
    return found[0] if found else ""


def _widened(edit: Edit, left: str, right: str) -> Edit:
    return Edit(
        start=edit.start - len(left),
        end=edit.end + len(right),
        before=f"{left}{edit.before}{right}",
        after=f"{left}{edit.after}{right}",
    )


def _after(one: Edit, other: Edit) -> Edit:
    return Edit(start=one.start, end=other.end, before=one.before + other.before, after=one.after + other.after)


def _fenced(opening: str, text: str, closing: str) -> str:
    return f"{opening}{text}{closing}" if text else ""


_FORMS: Mapping[str, Callable[[str, Sequence[Edit]], str]] = {
    "text": _text,
    "terminal": _terminal,
    "markdown": _markdown,
    "html": _html,
}
