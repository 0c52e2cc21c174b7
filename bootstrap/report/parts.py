"""What the report's pages have in common: criteria before and after, gates, and corrections as diffs.

Texts of models and users may be of any length; here they are cut, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from aligner_chain.exchange import Correction, Edit
from bootstrap.charts import Dot, Row
from bootstrap.markup import (
    Html,
    as_count,
    as_number,
    in_percent,
    in_points,
    in_tenths,
    note,
    prose,
    row_figure,
    section,
    short,
    table,
)

Figures = Mapping[str, Any]

LONGEST = 2000
"""Characters of a text that are shown."""
BEFORE_EDIT = 200
"""Characters of a long answer that are shown before its first change."""
MOST_CRITERIA = 30
LONGEST_NAME = 60

_DECISIONS = {"promote": ("passed", "✓ passed"), "hold": ("held", "… held"), "reject": ("refused", "✗ refused")}


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What is right in one state of the models: `figures` as `measures.share_figures` has them.

    `name` heads its column; `style` is the class name of its marks. `hollow` marks a state that is past.
    """

    name: str
    style: str
    figures: Figures
    hollow: bool = False

    def criterion(self, name: str) -> float | None:
        """The share of answers that keep a criterion."""
        return as_number(dig(self.figures, "criteria", name))


def dig(figures: object, *keys: str) -> Any:
    """The value under a path of keys, None where a part of it is missing."""
    value: Any = figures
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def criteria(states: Sequence[State], *, changes: Figures | None = None) -> str:
    """The share of answers that keeps each criterion, in each state, as a chart and a table.

    Args:
        states: the states there are; the figure beside a row tells of all that have the style of the first one, and
            where that is the first one alone, of the first and the last.
        changes: for each criterion the paired interval of its change, where that is known.
    """
    names = list(dict.fromkeys(name for state in states for name in dig(state.figures, "criteria") or {}))
    if not names:
        return ""
    shown, more = names[:MOST_CRITERIA], len(names) - MOST_CRITERIA
    words = ". ".join(_criterion_in_words(states, name) for name in shown)
    key = "".join(
        f'<li class="{state.style}{" hollow" if state.hollow else ""}">{escape(state.name)}</li>' for state in states
    )
    chart = row_figure(
        "Answers that keep each criterion.",
        [_criterion_row(states, name) for name in shown],
        words=words,
        key=f'<ul class="key">{key}</ul>',
    )
    left_out = note(f"{more:,} more criteria are not shown.") if more > 0 else ""
    return section("Criterion by criterion", chart, _criteria_table(states, shown, changes), left_out)


def _criterion_row(states: Sequence[State], name: str) -> Row:
    dots = [
        Dot(value=value, style=state.style, hollow=state.hollow)
        for state in states
        if (value := state.criterion(name)) is not None
    ]
    alike = [state for state in states if state.style == states[0].style]
    path = alike if len(alike) > 1 else states[:: max(1, len(states) - 1)]
    return Row(name=short(name), dots=dots, figure=" → ".join(in_percent(state.criterion(name)) for state in path))


def _criterion_in_words(states: Sequence[State], name: str) -> str:
    return f"{name}: " + ", ".join(f"{state.name} {in_percent(state.criterion(name))}" for state in states)


def _criteria_table(states: Sequence[State], names: Sequence[str], changes: Figures | None) -> str:
    header = ["", *(state.name for state in states)]
    rows = [[short(name, LONGEST_NAME), *(in_tenths(state.criterion(name)) for state in states)] for name in names]
    if changes is None:
        return table(header, rows)
    told = [[*row, in_points(changes.get(name))] for row, name in zip(rows, names, strict=True)]
    return table([*header, "change alone, 95 % paired"], told)


def gates(decided: Iterable[Figures], about: str, *, rounds: Sequence[str] = ()) -> str:
    """What gates decided and why. `about` says how to read it; `rounds` names the round of each where there are several."""
    cells = [_gate_cells(gate) for gate in decided]
    if not cells:
        return ""
    header = ["", "verdict", "figure", "lower bound", "needed", "answers", prose("reason")]
    if rounds:
        header.insert(1, prose("gate"))
        cells = [[name, prose(row[0]), *row[1:]] for name, row in zip(rounds, cells, strict=True)]
    return section("Gates", note(about), table(header, cells))


def _gate_cells(gate: Figures) -> list[str]:
    decision = gate.get("decision") or ("promote" if gate.get("passed") else "reject")
    style, verdict = _DECISIONS.get(str(decision), ("held", str(decision)))
    return [
        short(str(gate.get("name")), LONGEST_NAME),
        Html(f'<span class="{style}">{escape(short(verdict))}</span>'),
        *(in_tenths(gate.get(key)) for key in ("figure", "bound", "threshold")),
        as_count(gate.get("n")),
        prose(short(str(gate.get("reason") or ""), LONGEST)),
    ]


def corrections(heading: str, shown: Iterable[Correction]) -> str:
    """Corrections as diffs, each with its question and why."""
    each = "".join(_correction(one) for one in shown)
    told = Html("What the upstream answered, and in it what the Aligner <del>took out</del> and <ins>put in</ins>.")
    return section(heading, note(told), each) if each else ""


def _correction(correction: Correction) -> str:
    part, told = _part(correction)
    return (
        f'<article class="example">\n<p class="question" dir="auto">{cut(correction.exchange.question)}</p>\n'
        f'<p dir="auto">{part.diff("html")}{told}</p>\n'
        f'<p class="why" dir="auto">{cut(correction.explain())}</p>\n</article>\n'
    )


def cut(text: str, most: int = LONGEST) -> Html:
    """The text escaped, its end cut off where it is long, with a note of how much."""
    if len(text) <= most:
        return Html(escape(text))
    return Html(f"{escape(text[:most])}{_left_out(len(text) - most)}")


def _part(correction: Correction) -> tuple[Correction, Html]:
    """As much of a long correction as can be shown, from shortly before its first change on, and a note of the rest."""
    answer, edits = correction.exchange.answer, correction.edits
    if len(answer) <= LONGEST and len(correction.text) <= LONGEST:
        return correction, Html()
    start = max(0, edits[0].start - BEFORE_EDIT) if edits else 0
    end = min(start + LONGEST, len(answer))
    inside = [_moved(edit, -start, end) for edit in edits if edit.start <= end][:LONGEST]
    part = replace(
        correction, exchange=replace(correction.exchange, answer=answer[start:end]), edits=_affordable(inside)
    )
    return part, _left_out(len(answer) - (end - start), len(edits) - len(part.edits))


def _moved(edit: Edit, by: int, end: int) -> Edit:
    """The edit in a part of the answer that ends at `end`."""
    last = min(edit.end, end)
    return Edit(start=edit.start + by, end=last + by, before=edit.before[: last - edit.start], after=edit.after)


def _affordable(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits with at most `LONGEST` characters put in, in all."""
    shown, left = list[Edit](), LONGEST
    for edit in edits:
        after = edit.after if len(edit.after) <= left else f"{edit.after[:left]} […]"
        shown.append(replace(edit, after=after))
        left -= min(left, len(edit.after))
    return tuple(shown)


def _left_out(characters: int, edits: int = 0) -> Html:
    changes = f" with {edits:,} changes" if edits else ""
    told = (
        f"{characters:,} more characters{changes} are not shown"
        if characters
        else f"{edits:,} more changes are not shown"
    )
    return Html(f' <span class="cut">[{told}]</span>' if characters or edits else "")
