"""An audit as one HTML page that loads nothing and runs nothing; every text that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from aligner_chain.audit import NULLS, Audit
from aligner_chain.audit.figures import Mean, Share
from aligner_chain.audit.lines import Cell, Group, Line, damage, groups, percent
from aligner_chain.audit.results import Result
from aligner_chain.exchange import Correction, edits_between
from aligner_chain.showing import visible

EXAMPLES = 3
"""Of each corrector, changes to answers that needed none."""

NOTES = """\
<h2>How to read this</h2>
<dl class="notes">
<dt>copy, refuse</dt><dd>Null correctors: one leaves every answer as it is, the other refuses everything. A corrector is worth
something where it changes fewer of the right answers than <em>refuse</em> and mends more of the others than <em>copy</em>.</dd>
<dt>part of the way there</dt><dd>How much of the distance in words and marks to the right answer is gone: 100 % all of it,
0 % what copying does, below 0 away from it.</dd>
<dt>rewritten</dt><dd>At least 90 % of the words and marks differ.</dd>
<dt>words changed, edit, length</dt><dd>Medians of the answers that were changed. An edit above 1 × changed more than it had
to.</dd>
<dt>damaged</dt><dd>A check found that the change lost or broke something: code, links, numbers, tables and the like. A text
that became the right one is not damaged.</dd>
<dt>time</dt><dd>By the clock, one answer at a time; the first call, which often loads something, is apart.</dd>
<dt>forwards</dt><dd>Runs of the corrector's model for an answer, where it tells.</dd>
<dt>failed</dt><dd>The corrector raised an error. Such an answer counts as neither left nor changed.</dd>
</dl>
"""


def page(audit: Audit, *, examples: int = EXAMPLES) -> str:
    """The page as text, with up to `examples` of the harm that each corrector did. It can be written as UTF-8.

    Characters that would steer the reader (a change of direction, NUL) are spelt out, wherever they come from.
    """
    style = files("aligner_chain.audit").joinpath("page.css").read_text(encoding="utf-8")
    shown = "".join(_examples(name, results, examples) for name, results in audit.results.items() if name not in NULLS)
    title = f"Audit of {_counted(audit.total, 'answer')}"
    whole = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<h1>{title}</h1>\n<p class="soft">{_subtitle(audit)}</p>\n'
        f"{_table(audit, groups(audit))}{_damage(audit)}{_harm(shown)}{NOTES}</body>\n</html>\n"
    )
    return visible(whole).encode("utf-8", "replace").decode("utf-8")


def _subtitle(audit: Audit) -> str:
    unknown = audit.total - audit.rows_ok - audit.rows_wrong
    parts = [f"{audit.rows_ok} need nothing", f"{audit.rows_wrong} need something"]
    parts += [f"of {unknown} it is not known"] if unknown else []
    return f"{', '.join(parts)}. Every corrector saw the same answers. Ranges and bars are 95 % intervals."


def _table(audit: Audit, groups: Iterable[Group]) -> str:
    head = "".join(f'<th scope="col"{_null(name)}>{escape(name)}</th>' for name in audit.correctors)
    body = "".join(map(_group, groups))
    return f'<div class="scroll"><table>\n<thead><tr><td></td>{head}</tr></thead>\n{body}</table></div>\n'


def _null(name: str) -> str:
    return ' class="soft"' if name in NULLS else ""


def _group(group: Group) -> str:
    width = 1 + len(group.lines[0].cells)
    title = f'<tr><th class="group" scope="rowgroup" colspan="{width}"><span>{escape(group.title)}</span></th></tr>'
    return f"<tbody>\n{title}\n{''.join(map(_line, group.lines))}</tbody>\n"


def _line(line: Line) -> str:
    return f'<tr><th scope="row">{escape(line.name)}</th>{"".join(map(_cell, line.cells))}</tr>\n'


def _cell(cell: Cell) -> str:
    if cell.of is None or cell.of.low is None or cell.of.high is None:
        return f"<td>{escape(cell.text)}</td>"
    low, high = (f"{100 * end:.1f}".replace("-", "−") for end in (cell.of.low, cell.of.high))
    return f'<td>{escape(cell.text)}<span class="range">{low} to {high}</span>{_bar(cell.of)}</td>'


def _bar(figure: Share | Mean) -> str:
    """The figure on a scale from 0 to 100 %, or where it may be negative from -100 to 100, with its interval."""
    signed = isinstance(figure, Mean)
    value = figure.mean if isinstance(figure, Mean) else figure.share
    low, here, high = (_across(number or 0.0, signed=signed) for number in (figure.low, value, figure.high))
    zero = _across(0.0, signed=signed)
    return (
        '<svg viewBox="0 0 100 10" aria-hidden="true"><path class="scale" d="M0 5H100"/>'
        f'<path class="scale" d="M{zero:.1f} 1V9"/><path class="interval" d="M{low:.1f} 5H{high:.1f}"/>'
        f'<circle cx="{here:.1f}" cy="5" r="3"/></svg>'
    )


def _across(number: float, *, signed: bool) -> float:
    share = (number + 1) / 2 if signed else number
    return 3 + 94 * min(max(share, 0.0), 1.0)


def _damage(audit: Audit) -> str:
    lines = damage(audit)
    if not lines:
        return ""
    title = f"Of {_counted(audit.total, 'answer')}, those in which the check found damage"
    return f"<h2>Damage, check by check</h2>\n{_table(audit, [Group(title=title, lines=_counts(lines))])}"


def _counts(lines: Sequence[Line]) -> list[Line]:
    return [Line(name=line.name, cells=[Cell(text=cell.text) for cell in line.cells]) for line in lines]


def _harm(shown: str) -> str:
    if not shown:
        return ""
    told = "Answers that needed nothing, with what was <del>taken out</del> and <ins>put in</ins>; damaged ones first."
    return f'<h2>Harm done</h2>\n<p class="soft">{told}</p>\n{shown}'


def _examples(name: str, results: Sequence[Result], most: int) -> str:
    harm = sorted((one for one in results if one.row.needs_nothing and one.changed), key=lambda one: -len(one.findings))
    shown = "".join(map(_example, harm[:most]))
    return f"<h3>{escape(name)}: {_counted(len(harm), 'answer')}</h3>\n{shown}" if shown else ""


def _example(result: Result) -> str:
    exchange, text = result.row.exchange, result.text or ""
    edits = edits_between(exchange.answer, text)
    shown = Correction(exchange=exchange, text=text, outcome="corrected", edits=edits).diff("html")
    found = "; ".join(dict.fromkeys(f"{one.check}: {one.message}" for one in result.findings))
    why = f"{percent(result.edit_ratio)} of the words changed" + (f". {found}" if found else "")
    return (
        f'<article>\n<p class="soft">{escape(exchange.question)}</p>\n<p>{shown}</p>\n'
        f'<p class="why">{escape(why)}</p>\n</article>\n'
    )


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
