"""One self-contained HTML page of a round's figures: curves, tables, gates and the diffs of live corrections.

The page loads nothing: style and charts are in it. Every text that comes from the figures or from a correction is
escaped. A section whose figures are missing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aligner_chain.exchange import Correction
from bootstrap.charts import Dot, Line, Row, line_chart, row_chart
from bootstrap.markup import (
    Html,
    as_count,
    as_interval,
    as_number,
    as_ratio,
    in_percent,
    in_points,
    in_tenths,
    page,
    prose,
    table,
)

Figures = Mapping[str, Any]

STATES: Sequence[tuple[tuple[str, ...], str]] = (
    (("upstream_alone",), "upstream alone, fully right"),
    (("with_aligner",), "with the Aligner, fully right"),
    (("held_out_wordings", "upstream_alone"), "upstream alone, in wordings never seen"),
    (("held_out_wordings", "with_aligner"), "with the Aligner, in wordings never seen"),
    (("chosen_only",), "instead of DPO: SFT on the chosen answers, alone"),
)
MEASURES: Sequence[tuple[str, str, Callable[[object], str]]] = (
    ("changed_share", "changed by the Aligner", in_tenths),
    ("wrong_left_share", "wrong and left as they were", in_tenths),
    ("garbled_share", "garbled", in_tenths),
    ("right_kept_share", "right answers kept to the byte", in_tenths),
    ("unchanged_sentences_kept_share", "sentences not at fault kept to the byte", in_tenths),
    ("edit_ratio_vs_minimal", "median edit against the smallest one", as_ratio),
    ("pairs", "pairs the upstream was trained on", as_count),
    ("annotated", "rows annotated", as_count),
)


def write_report(figures: Figures, path: Path, *, examples: Sequence[Correction] = ()) -> None:
    """Writes the page.

    Args:
        figures: the content of `figures.json`. `seed` and `rounds` must be there; shares are between 0 and 1.
        path: the HTML file; its folder is made where it is missing.
        examples: live corrections to show as diffs, in order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(figures, examples=examples), encoding="utf-8")


def render(figures: Figures, *, examples: Sequence[Correction] = ()) -> str:
    """The page as text; see `write_report`."""
    sections = (
        _headline(figures["rounds"]),
        _progress(figures["rounds"]),
        _corrections(examples),
        _criteria(figures["rounds"]),
        _comparison(figures),
        _gates(figures["rounds"]),
        _unseen(figures.get("unseen_products")),
        _verifier(figures.get("verifier")),
    )
    return page(_title(figures["rounds"]), _subtitle(figures), sections)


def _title(rounds: Sequence[Figures]) -> str:
    done = len(rounds) - 1
    return f"Bootstrap: {'the start' if done < 1 else '1 round' if done == 1 else f'{done} rounds'}"


def _subtitle(figures: Figures) -> str:
    held_out = figures.get("held_out")
    sizes = held_out if isinstance(held_out, Mapping) else {"answers": held_out}
    told = ", ".join(f"{as_count(size)} {name}" for name, size in sizes.items() if as_number(size) is not None)
    parts = [f"seed {figures['seed']}", *([f"held out: {told}"] if told else [])]
    return (
        f'<p class="soft">{escape(" · ".join(parts))}. All figures are of held-out questions that no decision has seen; '
        "ranges are 95 % intervals.</p>\n"
    )


def _headline(rounds: Sequence[Figures]) -> str:
    first, last = rounds[0], rounds[-1]
    tiles = [
        ("Upstream alone, fully right", "upstream", _change(first, last, "upstream_alone")),
        ("With the Aligner, fully right", "aligner", _change(first, last, "with_aligner")),
        ("Right answers kept to the byte", "", in_tenths(last.get("right_kept_share"))),
        ("Median edit against the smallest", "", as_ratio(last.get("edit_ratio_vs_minimal"))),
    ]
    shown = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="{style}">{escape(value)}</dd></div>\n' for name, style, value in tiles
    )
    return f'<dl class="tiles">\n{shown}</dl>\n{"".join(map(_refusal, rounds))}'


def _refusal(figures: Figures) -> str:
    """Says which gate refused a round: its figures are those of the pair that was served before and stays."""
    gates = [str(gate.get("name")) for gate in figures.get("gates", ()) if not gate.get("passed")]
    if not gates:
        return ""
    told = f"{_round_name(figures).capitalize()} changed nothing: refused at {', '.join(gates)}."
    return f'<p class="refused">{escape(told)} The pair before it is still served.</p>\n'


def _change(first: Figures, last: Figures, key: str) -> str:
    before, after = (in_percent(_dig(figures, key, "fully_right")) for figures in (first, last))
    return after if first is last else f"{before} → {after}"


def _progress(rounds: Sequence[Figures]) -> str:
    ticks = [_round_name(figures) for figures in rounds]
    right = [
        _line(rounds, "With the Aligner", "aligner", "with_aligner", "fully_right"),
        _line(rounds, "Upstream alone", "upstream", "upstream_alone", "fully_right"),
    ]
    work = [
        _line(rounds, "Changed", "aligner", "changed_share"),
        _line(rounds, "Wrong, left", "upstream", "wrong_left_share"),
        _line(rounds, "Garbled", "third", "garbled_share"),
    ]
    charts = (
        _figure("Answers that are fully right. The whiskers are 95 % intervals.", line_chart, ticks, right),
        _figure("What the Aligner still has to do, as shares of all answers.", line_chart, ticks, work),
    )
    return f"<section>\n<h2>Round by round</h2>\n{''.join(charts)}{_round_table(rounds)}</section>\n"


def _line(rounds: Sequence[Figures], name: str, style: str, *keys: str) -> Line:
    intervals = [as_interval(_dig(figures, *keys[:-1], "interval")) for figures in rounds] if len(keys) > 1 else []
    return Line(
        name=name, style=style, values=[as_number(_dig(figures, *keys)) for figures in rounds], intervals=intervals
    )


def _figure(
    caption: str,
    chart: Callable[[str, str, Sequence[str], Sequence[Line]], str],
    ticks: Sequence[str],
    lines: list[Line],
) -> str:
    told = [line for line in lines if any(value is not None for value in line.values)]
    if not told:
        return ""
    description = ". ".join(f"{line.name}: {_series_in_words(ticks, line)}" for line in told)
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart(caption, description, ticks, told)}</figure>\n"


def _series_in_words(ticks: Sequence[str], line: Line) -> str:
    return ", ".join(f"{tick} {in_percent(value)}" for tick, value in zip(ticks, line.values, strict=True))


def _round_table(rounds: Sequence[Figures]) -> str:
    rows = [
        [name, *(_with_interval(_dig(figures, *keys)) for figures in rounds)]
        for keys, name in STATES
        if any(_dig(figures, *keys) is not None for figures in rounds)
    ]
    rows += [
        [name, *(shown(figures.get(key)) for figures in rounds)]
        for key, name, shown in MEASURES
        if any(figures.get(key) is not None for figures in rounds)
    ]
    return table(["", *(_round_name(figures) for figures in rounds)], rows)


def _corrections(examples: Sequence[Correction]) -> str:
    if not examples:
        return ""
    shown = "".join(_example(correction) for correction in examples)
    return (
        "<section>\n<h2>Live corrections</h2>\n"
        '<p class="soft">What the upstream answered, and in it what the Aligner <del>took out</del> and '
        f"<ins>put in</ins>.</p>\n{shown}</section>\n"
    )


def _example(correction: Correction) -> str:
    return (
        f'<article class="example">\n<p class="question">{escape(correction.exchange.question)}</p>\n'
        f"<p>{correction.diff('html')}</p>\n"
        f'<p class="why">{escape(correction.explain())}</p>\n</article>\n'
    )


def _criteria(rounds: Sequence[Figures]) -> str:
    first, last = rounds[0], rounds[-1]
    names = list(_dig(last, "upstream_alone", "criteria") or _dig(last, "with_aligner", "criteria") or {})
    if not names:
        return ""
    caption = "Answers that keep each criterion."
    description = ". ".join(f"{name}: {_criterion_in_words(first, last, name)}" for name in names)
    chart = row_chart(caption, description, [_criterion_row(first, last, name) for name in names])
    key = (
        '<ul class="key"><li class="upstream hollow">upstream alone at the start</li>'
        '<li class="upstream">upstream alone now</li><li class="aligner">with the Aligner now</li></ul>'
    )
    return (
        f"<section>\n<h2>Criterion by criterion</h2>\n<figure><figcaption>{escape(caption)}</figcaption>{key}{chart}"
        f"</figure>\n{_criteria_table(first, last, names)}</section>\n"
    )


def _criterion_row(first: Figures, last: Figures, name: str) -> Row:
    states = [
        (_criterion(first, "upstream_alone", name), "upstream", first is not last),
        (_criterion(last, "upstream_alone", name), "upstream", False),
        (_criterion(last, "with_aligner", name), "aligner", False),
    ]
    dots = [Dot(value=value, style=style, hollow=hollow) for value, style, hollow in states if value is not None]
    return Row(name=name, dots=dots, figure=_arrow(states[0][0], states[1][0], first is last))


def _arrow(before: float | None, after: float | None, same: bool) -> str:
    return in_percent(after) if same else f"{in_percent(before)} → {in_percent(after)}"


def _criterion_in_words(first: Figures, last: Figures, name: str) -> str:
    start, now = (in_percent(_criterion(figures, "upstream_alone", name)) for figures in (first, last))
    return f"upstream alone {start} at the start, {now} now, {in_percent(_criterion(last, 'with_aligner', name))} with the Aligner"


def _criteria_table(first: Figures, last: Figures, names: Sequence[str]) -> str:
    if first is last:
        header = ["", "alone", "with the Aligner"]
        return table(header, [[name, *(_both_states(last, name))] for name in names])
    paired = last.get("criteria_paired_interval") or {}
    rows = [
        [
            name,
            in_tenths(_criterion(first, "upstream_alone", name)),
            *_both_states(last, name),
            in_points(paired.get(name)),
        ]
        for name in names
    ]
    return table(["", "alone, start", "alone, now", "with the Aligner", "change alone, 95 % paired"], rows)


def _both_states(figures: Figures, name: str) -> list[str]:
    return [in_tenths(_criterion(figures, state, name)) for state in ("upstream_alone", "with_aligner")]


def _criterion(figures: Figures, state: str, name: str) -> float | None:
    return as_number(_dig(figures, state, "criteria", name))


def _comparison(figures: Figures) -> str:
    nulls = figures.get("nulls")
    if not nulls:
        return ""
    last = figures["rounds"][-1]
    ours = {**last, **(last.get("with_aligner") or {})}
    entries = [("upstream alone", last.get("upstream_alone") or {}, "upstream"), ("with the Aligner", ours, "aligner")]
    entries += [(name, null, "other") for name, null in nulls.items()]
    caption = "Fully right answers with the Aligner, and with correctors that understand nothing."
    rows = [
        _comparison_row(name, entry, style)
        for name, entry, style in entries
        if as_number(entry.get("fully_right")) is not None
    ]
    description = ". ".join(f"{row.name}: {row.figure}" for row in rows)
    return (
        f"<section>\n<h2>Against null correctors</h2>\n<figure><figcaption>{escape(caption)}</figcaption>"
        f"{row_chart(caption, description, rows)}</figure>\n{_comparison_table(entries)}</section>\n"
    )


def _comparison_row(name: str, entry: Figures, style: str) -> Row:
    value = as_number(entry["fully_right"]) or 0.0
    return Row(
        name=name,
        dots=[Dot(value=value, style=style)],
        interval=as_interval(entry.get("interval")),
        figure=in_tenths(value),
    )


def _comparison_table(entries: Iterable[tuple[str, Figures, str]]) -> str:
    rows = [
        [
            name,
            _with_interval(entry),
            in_percent(entry.get("changed_share")),
            in_tenths(entry.get("right_kept_share")),
            in_tenths(entry.get("unchanged_sentences_kept_share")),
            as_ratio(entry.get("edit_ratio_vs_minimal")),
        ]
        for name, entry, _ in entries
    ]
    return table(["", "fully right", "changed", "right kept", "sentences kept", "edit / smallest"], rows)


def _gates(rounds: Sequence[Figures]) -> str:
    gates = [(figures, gate) for figures in rounds for gate in figures.get("gates") or ()]
    if not gates:
        return ""
    header = ["", prose("gate"), "verdict", "figure", "lower bound", "needed", "answers", prose("reason")]
    rows = [_gate_row(figures, gate) for figures, gate in gates]
    return (
        "<section>\n<h2>Gates</h2>\n"
        '<p class="soft">Nothing serves before its gates are passed. They decide on held-out questions of their own, not '
        "on those of the figures above.</p>\n"
        f"{table(header, rows)}</section>\n"
    )


def _gate_row(figures: Figures, gate: Figures) -> list[str]:
    passed = bool(gate.get("passed"))
    return [
        _round_name(figures),
        prose(gate.get("name")),
        Html(f'<span class="{"passed" if passed else "refused"}">{"✓ passed" if passed else "✗ refused"}</span>'),
        *(in_tenths(gate.get(key)) for key in ("figure", "bound", "threshold")),
        as_count(gate.get("n")),
        prose(gate.get("reason")),
    ]


def _unseen(unseen: Figures | None) -> str:
    if not unseen:
        return ""
    states = [("upstream alone", unseen.get("upstream_alone")), ("with the Aligner", unseen.get("with_aligner"))]
    names = list(dict.fromkeys(name for _, state in states for name in (state or {}).get("criteria") or {}))
    rows: list[list[str]] = [
        [label, _with_interval(state), *(in_percent(_dig(state or {}, "criteria", name)) for name in names)]
        for label, state in states
    ]
    answers = f"{as_count(unseen['n'])} answers about products" if unseen.get("n") is not None else "Products"
    return (
        f'<section>\n<h2>Products never seen in training</h2>\n<p class="soft">{answers} that training never saw, '
        f"with their policy line given as a passage.</p>\n{table(['', 'fully right', *names], rows)}</section>\n"
    )


def _verifier(verifier: Figures | None) -> str:
    if not verifier:
        return ""
    return (
        "<section>\n<h2>The verifier</h2>\n<p>It chose what the models were trained on and did not score any figure here. "
        f"Of what it let through {in_tenths(verifier.get('precision'))} was right (precision), and of what was right "
        f"it let {in_tenths(verifier.get('recall'))} through (recall), on {as_count(verifier.get('n'))} "
        "answers.</p>\n</section>\n"
    )


def _round_name(figures: Figures) -> str:
    return "start" if figures.get("round") == 0 else f"round {figures.get('round')}"


def _with_interval(entry: Figures | None) -> str:
    share = in_tenths((entry or {}).get("fully_right"))
    interval = as_interval((entry or {}).get("interval"))
    if interval is None:
        return share
    low, high = (f"{100 * end:.1f}" for end in interval)
    return Html(f'{share} <span class="range">{low} to {high}</span>')


def _dig(figures: Figures, *keys: str) -> Any:
    """The value under a path of keys, None where a part of it is missing."""
    value: Any = figures
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
