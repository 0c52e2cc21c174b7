"""One self-contained HTML page of what a store collected: columns over time, shares by criterion and upstream, tables.

The page loads nothing: style and charts are in it. Every text that comes from the store is escaped. A section without
figures is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from html import escape

from bootstrap.charts import Dot, Layer, Line, Row, column_chart, thinned
from bootstrap.markup import (
    as_count,
    figure,
    in_percent,
    in_seconds,
    in_tenths,
    line_figure,
    page,
    row_figure,
    short,
    table,
    tiles,
)
from bootstrap.stats.figures import By, Group, Opinions, Quantiles, Statistics

MOST_COLUMNS = 90
"""Periods that the charts show, the last ones; the table beside them has as many."""
MOST_ROWS = 20
"""Names that a chart or table shows."""
OUTCOMES: Sequence[tuple[str, str, str]] = (
    ("approved", "other", "right as they were"),
    ("corrected", "aligner", "corrected"),
    ("kept", "third", "correction refused"),
    ("skipped", "faint", "skipped"),
    ("failed", "upstream", "failed"),
)
"""The outcomes with their style and what they mean."""


def label(start: date, by: By) -> str:
    """A period by its first day, a month by its number."""
    return start.strftime("%Y-%m") if by == "month" else start.isoformat()


def render(statistics: Statistics, source: str) -> str:
    """The page as text; `source` names the store. There must be a record."""
    sections = (
        _headline(statistics),
        _over_time(statistics),
        _criteria(statistics),
        _groups("Upstreams", "Answers that were corrected, by the model that gave them.", statistics.upstreams),
        _groups("Aligners", "Answers that were corrected, by the Aligner that read them.", statistics.aligners),
        _splits(statistics),
        _cost(statistics),
        _feedback(statistics.feedback),
    )
    return page("What was collected", _subtitle(statistics, source), sections)


def _subtitle(statistics: Statistics, source: str) -> str:
    first, last = min(statistics.periods), max(statistics.periods)
    span = f"{label(first, statistics.by)} to {label(last, statistics.by)}, by {statistics.by}, UTC"
    return (
        f'<p class="soft">{escape(source)} · {span}. Estimates count a record with its weight: where unchanged answers are '
        "sampled, one stands for many.</p>\n"
    )


def _headline(statistics: Statistics) -> str:
    total, said = statistics.total, statistics.feedback
    shown = [
        ("Answers, estimated", "", as_count(total.estimated)),
        ("Records stored", "", as_count(total.stored)),
        ("Corrected", "aligner", in_tenths(total.changed_share)),
        *([("Thumbs up", "", in_percent(said.up_share))] if said.up_share is not None else []),
        *([("Reviews that agree", "", in_percent(said.accepted_share))] if said.accepted_share is not None else []),
    ]
    return tiles(shown)


def _over_time(statistics: Statistics) -> str:
    shown = dict(list(statistics.periods.items())[-MOST_COLUMNS:])
    ticks = [label(start, statistics.by) for start in shown]
    layers = [
        Layer(name=meaning, style=style, values=[group.estimated_of(outcome) for group in shown.values()])
        for outcome, style, meaning in OUTCOMES
        if statistics.total.estimated_of(outcome)
    ]
    key = "".join(f'<li class="{layer.style}">{escape(layer.name)}</li>' for layer in layers)
    caption = f"Answers by outcome, estimated, by {statistics.by}."
    words = ". ".join(f"{layer.name}: {as_count(sum(layer.values))} in all" for layer in layers)
    columns = figure(caption, column_chart(caption, words, thinned(ticks), layers), f'<ul class="key">{key}</ul>')
    left_out = len(statistics.periods) - len(shown)
    note = f'<p class="soft">The last {len(shown)}; {left_out:,} before them are not shown.</p>\n' if left_out else ""
    return f"<section>\n<h2>Over time</h2>\n{note}{columns}{_changed_over_time(ticks, shown)}{_outcomes(statistics)}</section>\n"


def _changed_over_time(ticks: Sequence[str], groups: Mapping[date, Group]) -> str:
    shares = [group.changed_share for group in groups.values()]
    if len(shares) < 2:
        return ""
    caption = "Share of answers that were corrected, estimated."
    line = Line(name="corrected", style="aligner", values=shares)
    return line_figure(caption, ticks, [line], most=6)


def _outcomes(statistics: Statistics) -> str:
    total = statistics.total
    rows = [
        [meaning, as_count(tally.stored), as_count(tally.estimated), in_tenths(tally.estimated / total.estimated)]
        for outcome, _, meaning in OUTCOMES
        if (tally := total.outcomes.get(outcome))
    ]
    return table(["", "stored", "estimated", "share"], rows)


def _criteria(statistics: Statistics) -> str:
    corrected = statistics.total.estimated_of("corrected")
    if not statistics.criteria or not corrected:
        return ""
    shown = list(statistics.criteria.items())[:MOST_ROWS]
    caption = "Corrected answers that broke each criterion, by the Aligner's own word."
    rows = [
        Row(
            name=short(name),
            dots=[Dot(value=min(1.0, tally.estimated / corrected), style="aligner")],
            figure=f"{in_percent(tally.estimated / corrected)} · {as_count(tally.estimated)}",
        )
        for name, tally in shown
    ]
    return f"<section>\n<h2>Criteria</h2>\n{row_figure(caption, rows)}</section>\n"


def _groups(heading: str, caption: str, groups: Mapping[str, Group]) -> str:
    shown = list(groups.items())[:MOST_ROWS]
    rows = [
        Row(
            name=short(name),
            dots=[Dot(value=group.changed_share or 0.0, style="aligner")],
            figure=in_tenths(group.changed_share),
        )
        for name, group in shown
    ]
    present = [outcome for outcome, _, _ in OUTCOMES if any(group.outcomes.get(outcome) for _, group in shown)]
    header = ["", "stored", "estimated", *present]
    cells = [
        [
            name,
            as_count(group.stored),
            as_count(group.estimated),
            *(_part(group, outcome) for outcome in present),
        ]
        for name, group in shown
    ]
    return f"<section>\n<h2>{heading}</h2>\n{row_figure(caption, rows)}{table(header, cells)}</section>\n"


def _splits(statistics: Statistics) -> str:
    rows = [
        [name, as_count(group.stored), as_count(group.estimated), in_tenths(group.changed_share)]
        for name, group in statistics.splits.items()
    ]
    note = '<p class="soft">Only the training split is learned from. Gates decide on one held-out split, reports tell of the other.</p>\n'
    return f"<section>\n<h2>Splits</h2>\n{note}{table(['', 'stored', 'estimated', 'corrected'], rows)}</section>\n"


def _cost(statistics: Statistics) -> str:
    known: list[tuple[str, Quantiles | None, Callable[[float], str]]] = [
        ("latency", statistics.latency_s, in_seconds),
        ("tokens read", statistics.tokens_read, as_count),
        ("tokens written", statistics.tokens_written, as_count),
    ]
    rows = [
        [name, shown(one.median), shown(one.p95), as_count(one.stored)] for name, one, shown in known if one is not None
    ]
    if statistics.mean_edits is not None:
        rows.append(["edits of a corrected answer, mean", f"{statistics.mean_edits:.2f}", "–", "–"])
    if not rows:
        return ""
    return f"<section>\n<h2>What the Aligner took</h2>\n{table(['', 'median', '95 % are below', 'records'], rows)}</section>\n"


def _feedback(said: Opinions) -> str:
    if not said.total:
        return ""
    rows = [
        ["thumbs up", as_count(said.up), in_percent(said.up_share)],
        ["thumbs down", as_count(said.down), in_percent(None if said.up_share is None else 1 - said.up_share)],
        ["reviews that accept", as_count(said.accepted), in_percent(said.accepted_share)],
        [
            "reviews that reject",
            as_count(said.rejected),
            in_percent(None if said.accepted_share is None else 1 - said.accepted_share),
        ],
        ["a person's own correction", as_count(said.edits), ""],
        ["comments", as_count(said.comments), ""],
        ["scores", as_count(said.scores), "" if said.mean_score is None else f"mean {said.mean_score:.2f}"],
    ]
    return f"<section>\n<h2>What people said</h2>\n{table(['', 'count', 'share'], rows)}</section>\n"


def _part(group: Group, outcome: str) -> str:
    return in_percent(group.estimated_of(outcome) / group.estimated) if group.estimated else "–"
