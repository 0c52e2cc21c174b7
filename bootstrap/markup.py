"""What the HTML pages are made of: their frame, tables, tiles, and charts with their captions.

Text is escaped here, once; `Html` is what already is. A figure that is missing, or is no number, is shown as "–".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from aligner_chain.showing import visible
from bootstrap.charts import Interval, Line, Row, line_chart, percent, row_chart, thinned

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser lets a page do: show itself. Should a text ever play markup, it can neither run nor send anything."""


class Html(str):
    """Markup that is already escaped; every other text is escaped where it is put on the page."""

    __slots__ = ()


class Prose(Html):
    """A cell of words, set to the left and broken into lines."""

    __slots__ = ()


_WORDS = ' class="words"'


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """A whole page that needs no other file and can be written as UTF-8. `subtitle` and `sections` are markup.

    Characters that would steer the reader (a change of direction, NUL) are spelt out, wherever they come from.
    """
    style = files("bootstrap").joinpath("markup.css").read_text(encoding="utf-8")
    whole = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>\n{subtitle}</header>\n"
        f"<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )
    return visible(whole).encode("utf-8", "replace").decode("utf-8")


def section(heading: str, *parts: str) -> str:
    """A part of a page under its heading; nothing where there are no parts, or only empty ones. `parts` are markup."""
    shown = "".join(parts)
    return f"<section>\n<h2>{escape(heading)}</h2>\n{shown}</section>\n" if shown else ""


def note(text: str) -> str:
    """A paragraph that says how the figures beside it are to be read."""
    return f'<p class="soft">{markup(text)}</p>\n'


def tiles(shown: Iterable[tuple[str, str, str]]) -> str:
    """The few figures that matter, large: the name, the style of the figure, and the figure."""
    each = "".join(
        f'<div><dt>{markup(name)}</dt><dd class="{style}">{markup(value)}</dd></div>\n' for name, style, value in shown
    )
    return f'<dl class="tiles">\n{each}</dl>\n'


def figure(caption: str, chart: str, key: str = "") -> str:
    """A chart with its caption and, where its marks need one, a key. `chart` and `key` are markup."""
    return f'<figure tabindex="0"><figcaption>{escape(caption)}</figcaption>{key}{chart}</figure>\n'


def line_figure(caption: str, ticks: Sequence[str], lines: Iterable[Line], *, most: int = 8) -> str:
    """Lines of shares, told in words as well; those without any share are left out. At most `most` ticks are labelled."""
    told = [line for line in lines if any(value is not None for value in line.values)]
    if not told:
        return ""
    words = ". ".join(f"{line.name}: {_in_words(ticks, line)}" for line in told)
    return figure(caption, line_chart(caption, words, thinned(ticks, most), told))


def row_figure(caption: str, rows: Sequence[Row], *, words: str = "", key: str = "") -> str:
    """Rows of dots, told in words as well: by `words`, or by the figure at the end of each."""
    words = words or ". ".join(f"{row.name}: {row.figure}" for row in rows)
    return figure(caption, row_chart(caption, words, rows), key)


def beside(*parts: str) -> str:
    """Parts beside each other where the page is wide enough; nothing where there are none, or only empty ones."""
    shown = "".join(f"<div>{part}</div>\n" for part in parts if part)
    return f'<div class="beside">\n{shown}</div>\n' if shown else ""


def with_interval(share: object, interval: object) -> str:
    """A share with the ends of its interval."""
    ends = as_interval(interval)
    if ends is None:
        return in_tenths(share)
    low, high = (f"{100 * end:.1f}" for end in ends)
    return Html(f'{in_tenths(share)} <span class="range">{low} to {high}</span>')


def short(name: str, most: int = 20) -> str:
    """A name that fits where it is shown, for instance beside a chart."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the rows."""
    head = "".join(_head(name) for name in header)
    body = "\n".join(
        f'<tr><th scope="row">{markup(row[0])}</th>{"".join(_data(cell) for cell in row[1:])}</tr>' for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'


def markup(text: str) -> str:
    """The text escaped, unless it is `Html`."""
    return text if isinstance(text, Html) else escape(text)


def prose(value: object) -> Prose:
    """Any value as a cell of words."""
    return Prose(escape("" if value is None else str(value)))


def in_percent(value: object, digits: int = 0) -> str:
    """A share of 0.934 as "93 %"."""
    number = as_number(value)
    return "–" if number is None else percent(number, digits)


def in_tenths(value: object) -> str:
    """A share of 0.934 as "93.4 %"."""
    return in_percent(value, 1)


def in_points(value: object) -> str:
    """An interval of a change as percentage points, with signs."""
    interval = as_interval(value)
    if interval is None:
        return "–"
    low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in interval)
    return f"{low} to {high} points"


def as_ratio(value: object) -> str:
    """A ratio of 1.05 as "1.05 ×"."""
    number = as_number(value)
    return "–" if number is None else f"{number:.2f} ×"


def as_count(value: object) -> str:
    """A count of 12000 as "12,000"."""
    number = as_number(value)
    return "–" if number is None else f"{number:,.0f}"


def in_seconds(value: object) -> str:
    """A time in seconds as text, small ones as milliseconds, long ones as minutes or hours."""
    number = as_number(value)
    if number is None:
        return "–"
    if number < 1:
        return f"{1000 * number:.0f} ms"
    if number < 600:
        return f"{number:.2f} s" if number < 10 else f"{number:.0f} s"
    return f"{number / 60:.0f} min" if number < 7200 else f"{number / 3600:.1f} h"


def as_number(value: object) -> float | None:
    """The value where it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def as_interval(value: object) -> Interval | None:
    """The value where it is a pair of finite numbers."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    low, high = (as_number(end) for end in value)
    return None if low is None or high is None else (low, high)


def _head(name: str) -> str:
    if not name:
        return "<td></td>"
    return f'<th scope="col"{_WORDS if isinstance(name, Prose) else ""}>{markup(name)}</th>'


def _data(cell: str) -> str:
    return f"<td{_WORDS if isinstance(cell, Prose) else ''}>{markup(cell)}</td>"


def _in_words(ticks: Sequence[str], line: Line) -> str:
    told = ((tick, value) for tick, value in zip(ticks, line.values, strict=True) if value is not None)
    return ", ".join(f"{tick} {in_percent(value)}" for tick, value in told)
