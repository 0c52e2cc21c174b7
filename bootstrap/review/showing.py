"""A record as markup for the review page. Whatever a user, a model or a passage wrote is shown as text, all of it seen.

Texts are escaped here, once. Characters that nobody sees, but that turn the direction of reading, hide instructions or
cannot be sent to a browser, are spelt out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html import escape

from aligner_chain.exchange import Correction, Turn, edits_between
from bootstrap.records import Feedback, Record
from bootstrap.review.queue import Progress, decided

LONGEST = 50_000
"""Characters of one turn or passage that are shown. The answer and its correction are always shown whole."""

# Controls, marks of direction, invisible operators, tags and halves of characters. The joiners that scripts and emoji
# need stay (U+200C, U+200D).
_UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_CHANGE = re.compile(r"<(del|ins)>(.*?)</\1>", re.DOTALL)


def text(value: str) -> str:
    """Any text as markup that shows it."""
    return _seen(escape(value.replace("\r\n", "\n")))


def progress(now: Progress) -> str:
    """How far the review has come, as a bar and in words."""
    share = 100 * now.decided / now.total if now.total else 100
    words = f"{now.accepted:,} accepted, {now.rejected:,} rejected, {now.edited:,} edited"
    return (
        f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="{now.total}" '
        f'aria-valuenow="{now.decided}" aria-label="Reviewed"><span style="width: {share:.1f}%"></span></div>'
        f'<p class="soft"><strong>{now.decided:,} of {now.total:,}</strong> reviewed: {words}</p>'
    )


def conversation(record: Record) -> str:
    """All turns, oldest first."""
    return _section("Question", "".join(map(_turn, record.correction.exchange.turns)) or _nothing("No turn was kept."))


def changes(record: Record) -> str:
    """The answer with what the correction changed in it."""
    correction = record.correction
    if not (correction.exchange.answer or correction.text):
        return _section("Answer", _nothing("The answer is empty, and so is the correction."))
    title = "Answer, with its correction" if correction.changed else "Answer, left as it was"
    return _section(title, f'<div class="text" dir="auto">{_diff(correction)}</div>')


def passages(record: Record) -> str:
    """The retrieved passages by number; "" where there are none."""
    context = record.correction.exchange.context
    shown = "".join(f'<li><div class="text" dir="auto">{_shortened(passage)}</div></li>' for passage in context)
    return _section("Passages", f'<ol class="passages">{shown}</ol>') if context else ""


def facts(record: Record) -> str:
    """Why it was corrected, by what, and what was said of it."""
    rows = "".join(
        f"<dt>{name}</dt><dd>{''.join(f'<div>{line}</div>' for line in lines)}</dd>" for name, lines in _facts(record)
    )
    return _section("About it", f"<dl>{rows}</dl>")


def note(words: str, kind: str = "done") -> str:
    """What came of the last button, "done" or "trouble"."""
    return f'<p class="{kind}" role="status">{text(words)}</p>'


def nothing_left(now: Progress) -> str:
    """What stands in place of a record where there is none."""
    what = "Nothing is left to review." if now.total else "There is nothing to review."
    ways = "Stop the command with Ctrl-C; start it again to look for new corrections, or with other options."
    return _section("Done", f'<p>{what}</p><p class="soft">{ways}</p>')


def _facts(record: Record) -> Iterator[tuple[str, list[str]]]:
    correction = record.correction
    told: dict[str, Iterable[str]] = {
        "Outcome": [correction.outcome],
        "Reason": [correction.reason],
        "Criteria": correction.criteria,
        "Scores": _scores(correction),
        "Findings": [f"{one.check}: {one.message} ({one.action})" for one in correction.findings],
        "Said so far": map(_said, record.feedback),
        "Aligner": [correction.aligner],
        "Upstream": [correction.exchange.upstream or ""],
        "Collected": [_time(record.at_ms)],
        "Redacted by": [record.redactor],
        "Id": [correction.id],
    }
    for name, values in told.items():
        if lines := [text(value) for value in values if value]:
            yield name, lines


def _scores(correction: Correction) -> Iterator[str]:
    for name, score in correction.scores.items():
        threshold = correction.thresholds.get(name)
        yield f"{name} {score:.2f}" + ("" if threshold is None else f" (threshold {threshold:.2f})")


def _said(feedback: Feedback) -> str:
    who = f" by {feedback.author}" if feedback.author else ""
    return f"{_WORDS[feedback.kind](feedback)}{who}, {_time(feedback.at_ms)}"


_WORDS = {
    "thumb": lambda said: f"thumb {'up' if said.value else 'down'}",
    "score": lambda said: f"score {said.value:g}",
    "comment": lambda said: f"“{said.value}”",
    "edit": decided,
    "review": decided,
}


def _time(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):  # a time that no calendar has, as an import can bring
        return f"{at_ms} ms"


def _turn(turn: Turn) -> str:
    role = turn.role if turn.role in ("system", "user", "assistant", "tool") else "other"
    return (
        f'<div class="turn {role}"><span class="role">{text(turn.role)}</span>'
        f'<div class="text" dir="auto">{_shortened(turn.text)}</div></div>'
    )


def _shortened(value: str) -> str:
    if not value:
        return _nothing("(empty)")
    more = f'<p class="soft">… and {len(value) - LONGEST:,} more characters</p>' if len(value) > LONGEST else ""
    return text(value[:LONGEST]) + more


def _diff(correction: Correction) -> str:
    # What was imported may come with no edits, or with edits that lead to another text: what is shown is the text's own.
    edits = edits_between(correction.exchange.answer, correction.text)
    return _seen(_CHANGE.sub(_with_line_ends, replace(correction, edits=edits).diff("html")))


def _with_line_ends(change: re.Match[str]) -> str:
    """A change whose line ends are seen. It is markup already: no text in it holds a "<"."""
    tag = change[1]
    return f"<{tag}>{change[2].replace(chr(10), '↵' + chr(10))}</{tag}>"


def _seen(markup: str) -> str:
    return _UNSEEN.sub(lambda found: f'<span class="sign">U+{ord(found[0]):04X}</span>', markup)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _nothing(words: str) -> str:
    return f'<p class="soft">{words}</p>'
