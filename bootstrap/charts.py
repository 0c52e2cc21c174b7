"""Charts as inline SVG: shares as lines over rounds, dots with intervals, dots of two states; counts as columns over time.

Every chart has a title, its own on the page, and a description for readers who do not see it, and labels at the marks,
so that colour is never the only key. Colours come from the page's style through class names; lengths are in SVG units.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 880
LEFT, RIGHT, TOP, BOTTOM = 52, 200, 14, 34
"""Margins of a line chart; the right one holds the labels of the lines."""
COLUMNS_RIGHT = 20
"""The right margin of columns, which have no labels at their ends."""
WIDEST_COLUMN = 48
LINES_HEIGHT = 300
LABEL_GAP = 18
ROW_HEIGHT = 30
NAMES = 190
"""Width that the names of rows take."""
VALUES = 140
"""Width that the figures at the right of the rows take."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line: a share (0 to 1) per tick, None where there is none; `style` is its class name."""

    name: str
    style: str
    values: Sequence[float | None]
    intervals: Sequence[Interval | None] = field(default=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """A share at its place in a row. `hollow` marks a state that is past."""

    value: float
    style: str
    hollow: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A named row of dots on a common scale, with an interval drawn as a bar, and a figure in words at its end."""

    name: str
    dots: Sequence[Dot]
    interval: Interval | None = None
    figure: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of stacked columns: a count per tick; `style` is its class name."""

    name: str
    style: str
    values: Sequence[float]


def line_chart(title: str, description: str, ticks: Sequence[str], lines: Sequence[Line]) -> str:
    """Shares over rounds, each line labelled at its end, intervals as whiskers."""
    places = [_place(index, len(ticks)) for index in range(len(ticks))]
    parts = [*_horizontal_grid(), *_ticks(ticks, places)]
    for index, line in enumerate(lines):
        shift = 7 * (index - (len(lines) - 1) / 2)  # so that neighbours do not hide each other's intervals
        parts += _line(line, [place + shift for place in places])
    parts += _end_labels([line for line in lines if _last(line) is not None])
    return _svg(title, description, LINES_HEIGHT, parts)


def row_chart(title: str, description: str, rows: Sequence[Row]) -> str:
    """Rows of dots on one scale from 0 to 100 %."""
    height = ROW_HEIGHT * len(rows) + 30
    parts = _vertical_grid(height - 24)
    for index, row in enumerate(rows):
        parts += _row(row, 16 + ROW_HEIGHT * index)
    return _svg(title, description, height, parts)


def column_chart(title: str, description: str, ticks: Sequence[str], layers: Sequence[Layer]) -> str:
    """Counts over time as columns, the layers stacked from the first at the bottom; a key in words belongs beside it."""
    heights = [sum(values) for values in zip(*(layer.values for layer in layers), strict=True)]
    step = _round_step(max(heights, default=0.0))
    top = step * max(1, math.ceil(max(heights, default=0.0) / step))
    parts = [*_count_grid(step, top), *_column_ticks(ticks)]
    base = [0.0] * len(ticks)
    for layer in layers:
        parts += _columns(layer, base, top)
        base = [below + value for below, value in zip(base, layer.values, strict=True)]
    return _svg(title, description, LINES_HEIGHT, parts)


def thinned(ticks: Sequence[str], most: int = 8) -> list[str]:
    """The labels with so many left out, at equal distances, that at most so many are written; the others are empty."""
    every = max(1, math.ceil(len(ticks) / most))
    return [tick if index % every == 0 else "" for index, tick in enumerate(ticks)]


def percent(share: float, digits: int = 0) -> str:
    """A share as text: 0.934 is "93 %"."""
    return f"{100 * share:.{digits}f} %".replace("-", "−")


def _svg(title: str, description: str, height: float, parts: Iterable[str]) -> str:
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _place(index: int, ticks: int) -> float:
    """Where a tick stands; the first and last keep off the edges."""
    inner = WIDTH - LEFT - RIGHT
    return LEFT + inner / 2 if ticks == 1 else LEFT + 30 + (inner - 60) * index / (ticks - 1)


def _height(share: float) -> float:
    return TOP + (LINES_HEIGHT - TOP - BOTTOM) * (1 - share)


def _across(share: float) -> float:
    return NAMES + (WIDTH - NAMES - VALUES) * share


def _horizontal_grid() -> list[str]:
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_height(share):g}" y2="{_height(share):g}"/>'
        f'<text class="axis" x="{LEFT - 8}" y="{_height(share) + 4:g}" text-anchor="end">{percent(share)}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]


def _round_step(most: float) -> float:
    """The step of an axis of counts: 1, 2 or 5 times a power of ten, so that there are at most five."""
    power = 10.0 ** math.floor(math.log10(max(most, 1.0) / 5))
    fitting = (power * step for step in (1, 2, 5, 10) if power * step * 5 >= most)
    return max(1.0, next(fitting, power * 10))


def _count_grid(step: float, top: float) -> list[str]:
    lines = []
    for index in range(round(top / step) + 1):
        y = _height(index * step / top)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - COLUMNS_RIGHT}" y1="{y:g}" y2="{y:g}"/>'
            f'<text class="axis" x="{LEFT - 8}" y="{y + 4:g}" text-anchor="end">{index * step:,.0f}</text>'
        )
    return lines


def _slot(ticks: int) -> float:
    return (WIDTH - LEFT - COLUMNS_RIGHT) / max(ticks, 1)


def _column_ticks(ticks: Sequence[str]) -> list[str]:
    slot = _slot(len(ticks))
    return [
        f'<text class="axis" x="{LEFT + slot * (index + 0.5):g}" y="{LINES_HEIGHT - 10}" text-anchor="middle">'
        f"{escape(tick)}</text>"
        for index, tick in enumerate(ticks)
        if tick
    ]


def _columns(layer: Layer, base: Sequence[float], top: float) -> list[str]:
    slot = _slot(len(base))
    width = min(slot * 0.8, WIDEST_COLUMN)
    columns = []
    for index, (below, value) in enumerate(zip(base, layer.values, strict=True)):
        y, bottom = _height((below + value) / top), _height(below / top)
        if value:
            columns.append(
                f'<rect class="column {layer.style}" x="{LEFT + slot * (index + 0.5) - width / 2:g}" y="{y:g}" '
                f'width="{width:g}" height="{bottom - y:g}"/>'
            )
    return columns


def _vertical_grid(height: float) -> list[str]:
    return [
        f'<line class="grid" x1="{_across(share):g}" x2="{_across(share):g}" y1="0" y2="{height:g}"/>'
        f'<text class="axis" x="{_across(share):g}" y="{height + 16:g}" text-anchor="middle">{percent(share)}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]


def _ticks(ticks: Sequence[str], places: Sequence[float]) -> list[str]:
    return [
        f'<text class="axis" x="{place:g}" y="{LINES_HEIGHT - 10}" text-anchor="middle">{escape(tick)}</text>'
        for tick, place in zip(ticks, places, strict=True)
    ]


def _line(line: Line, places: Sequence[float]) -> list[str]:
    points = [(x, _height(value)) for x, value in zip(places, line.values, strict=True) if value is not None]
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    whiskers = [
        _whisker(
            line.style,
            f"M{x:g} {_height(low):g}V{_height(high):g}",
            f"M{x - 5:g} {_height(low):g}h10",
            f"M{x - 5:g} {_height(high):g}h10",
        )
        for x, (low, high) in _present(places, line.intervals)
    ]
    dots = [f'<circle class="dot {line.style}" cx="{x:g}" cy="{y:g}" r="3.5"/>' for x, y in points]
    return [*whiskers, f'<polyline class="line {line.style}" points="{path}"/>', *dots]


def _whisker(style: str, *strokes: str) -> str:
    return f'<path class="whisker {style}" d="{"".join(strokes)}"/>'


def _present(places: Sequence[float], intervals: Sequence[Interval | None]) -> list[tuple[float, Interval]]:
    return [(x, interval) for x, interval in zip(places, intervals, strict=False) if interval is not None]


def _last(line: Line) -> float | None:
    return next((value for value in reversed(line.values) if value is not None), None)


def _end_labels(lines: Sequence[Line]) -> list[str]:
    """The names at the ends of the lines, moved apart where two lines end close together."""
    ends = sorted(((_last(line) or 0.0, line) for line in lines), key=lambda end: -end[0])
    heights = _apart([_height(value) for value, _ in ends])
    return [
        f'<text class="label {line.style}" x="{WIDTH - RIGHT + 6}" y="{y + 5:g}">{escape(line.name)} {percent(value, 1)}</text>'
        for (value, line), y in zip(ends, heights, strict=True)
    ]


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights in ascending order, at least `LABEL_GAP` apart and none below the axis."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + LABEL_GAP) if moved else height)
    limit = _height(0)
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - LABEL_GAP
    return moved


def _row(row: Row, y: float) -> list[str]:
    parts = [f'<text class="name" x="{NAMES - 12}" y="{y + 5:g}" text-anchor="end">{escape(row.name)}</text>']
    if row.interval is not None:
        low, high = (_across(end) for end in row.interval)
        bar = (f"M{low:g} {y:g}H{high:g}", f"M{low:g} {y - 5:g}v10", f"M{high:g} {y - 5:g}v10")
        parts.append(_whisker(row.dots[-1].style, *bar))
    for style in dict.fromkeys(dot.style for dot in row.dots):
        places = [_across(dot.value) for dot in row.dots if dot.style == style]
        if len(places) > 1:
            ends = f'x1="{places[0]:g}" x2="{places[-1]:g}"'
            parts.append(f'<line class="move {style}" {ends} y1="{y:g}" y2="{y:g}"/>')
    parts += [_dot(dot, y) for dot in row.dots]
    parts.append(f'<text class="figure" x="{WIDTH - VALUES + 14}" y="{y + 5:g}">{escape(row.figure)}</text>')
    return parts


def _dot(dot: Dot, y: float) -> str:
    style = f"dot {dot.style}{' hollow' if dot.hollow else ''}"
    return f'<circle class="{style}" cx="{_across(dot.value):g}" cy="{y:g}" r="5"/>'
