"""A correction's account for people: what became of the answer, why, what it rests on, what it cost and what changed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from aligner_chain.exchange import Correction, Edit, TokenScore
from aligner_chain.showing import PLAIN, chosen, diff, in_markdown, visible

BOLD, DIM = "\x1b[1m", "\x1b[2m"
LONGEST = 40
"""Characters from which on what stands between white space is no word: a link, or a script without spaces."""
DOUBTS = 3
"""Words left unchanged that are told because the Aligner thought least of them."""

# Translucent, so that they can be read on a light page and on a dark one.
STYLE = """\
<style>
.aligner-explanation dl { display: grid; grid-template-columns: max-content auto; gap: .1em 1em }
.aligner-explanation dd { margin: 0 }
.aligner-explanation del { background: rgb(220 60 50 / .2) }
.aligner-explanation ins { background: rgb(40 160 80 / .25); text-decoration: none }
</style>"""

Facts = Sequence[tuple[str, str]]


def explain(correction: Correction, form: str = "text") -> str:
    """The account; see `Correction.explain`. Raises `ConfigurationError` for an unknown form."""
    return chosen(_FORMS, form)(correction)


def headline(correction: Correction) -> str:
    """One line: the outcome, why, and how much changed."""
    why = ", ".join(correction.criteria) or correction.reason
    size = f", {len(correction.edits)} edit{'s' * (len(correction.edits) != 1)}" if correction.edits else ""
    score = next(
        (f", {name} {correction.scores[name]:.2f}" for name in ("leave", "keep") if name in correction.scores), ""
    )
    return f"{correction.outcome}{f' ({why})' if why else ''}{size}{score}"


def doubted(correction: Correction) -> list[tuple[str, float]]:
    """The words left unchanged that the Aligner thought least likely, each with its probability, the least first."""
    told = dict[str, float]()
    for token in sorted(correction.tokens, key=lambda token: token.logprob):
        if not any(_touches(edit, token) for edit in correction.edits):
            told.setdefault(_word_at(correction.exchange.answer, token), math.exp(token.logprob))
        told.pop("", None)
        if len(told) == DOUBTS:
            break
    return list(told.items())


def _facts(correction: Correction) -> Facts:
    """What there is to tell, by name; nothing of what is not known."""
    facts = (
        ("outcome", correction.outcome),
        ("reason", correction.reason),
        ("error", f"{type(correction.error).__name__}: {correction.error}" if correction.error else ""),
        ("scores", ", ".join(_scores(correction))),
        ("criteria", ", ".join(correction.criteria)),
        *(("check", finding) for finding in _findings(correction)),
        ("least likely of what stayed", ", ".join(f"“{word}” {_share(p)}" for word, p in doubted(correction))),
        ("usage", _usage(correction)),
        ("versions", ", ".join(_versions(correction))),
        ("id", correction.id),
    )
    return [(name, " ".join(told.split())) for name, told in facts if told]


def _scores(correction: Correction) -> Iterator[str]:
    for name, score in correction.scores.items():
        threshold = correction.thresholds.get(name)
        yield f"{name} {score:.2f}" + ("" if threshold is None else f" (threshold {threshold:.2f})")


def _findings(correction: Correction) -> Iterator[str]:
    for finding in correction.findings:
        yield f"{finding.check}: {finding.message} ({finding.action})"


def _word_at(answer: str, token: TokenScore) -> str:
    """What stands around a token up to the next white space, the token alone where that is long, "" where it has no text."""
    piece = answer[token.start : token.end].strip()
    first = answer.index(piece, token.start)
    before = re.findall(r"\S*\Z", answer[max(0, first - LONGEST) : first])[0]
    after = re.findall(r"\A\S*", answer[first : first + LONGEST])[0]
    word = f"{before}{after}"
    return word if piece and len(word) < LONGEST else piece


def _touches(edit: Edit, token: TokenScore) -> bool:
    """Whether the token was changed, or what was put in stands in it or before it."""
    inside = token.start < edit.end and edit.start < token.end
    return inside or (edit.start == edit.end and token.start <= edit.start < token.end)


def _share(probability: float) -> str:
    return "under 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"


def _usage(correction: Correction) -> str:
    usage = correction.usage
    if not (usage.forwards or usage.prompt_tokens or usage.latency_s):
        return ""
    tokens = f"{usage.prompt_tokens} tokens read, {usage.new_tokens} written"
    if not usage.forwards:  # of a chat model somewhere else no more is known
        return tokens
    return f"{tokens}, {usage.accepted_draft_tokens} of them from the draft, {usage.forwards} forwards, {usage.latency_s:.3f} s"


def _versions(correction: Correction) -> Iterator[str]:
    named = {"": correction.aligner, "template ": correction.template, "upstream ": correction.exchange.upstream}
    yield from (f"{what}{name}" for what, name in named.items() if name)


def _terminal(correction: Correction) -> str:
    facts = _facts(correction)
    width = max(len(name) for name, _ in facts)
    rows = [f"  {DIM}{name:<{width}}{PLAIN}  {visible(told)}" for name, told in facts]
    head = f"{BOLD}{visible(headline(correction))}{PLAIN}"
    return "\n".join([head, *rows, "", diff(correction, "terminal")])


def _markdown(correction: Correction) -> str:
    rows = [f"- {name}: {in_markdown(told)}" for name, told in _facts(correction)]
    quoted = "\n".join(f"> {line}" for line in diff(correction, "markdown").split("\n"))
    head = in_markdown(" ".join(headline(correction).split()))
    return "\n".join([f"**{head}**", "", *rows, "", quoted])


def _html(correction: Correction) -> str:
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(told)}</dd>" for name, told in _facts(correction))
    return (
        f'<div class="aligner-explanation">\n{STYLE}\n<p><strong>{escape(headline(correction))}</strong></p>\n'
        f"<dl>\n{rows}\n</dl>\n<p>{diff(correction, 'html')}</p>\n</div>"
    )


_FORMS: Mapping[str, Callable[[Correction], str]] = {
    "text": headline,
    "terminal": _terminal,
    "markdown": _markdown,
    "html": _html,
}
