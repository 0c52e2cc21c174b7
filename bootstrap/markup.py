"""Tables and figures of the report as markup.

Text is escaped here, once; `Html` is what already is. A figure that is missing, or is no number, is shown as "–".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from bootstrap.charts import Interval, percent


class Html(str):
    """Markup that is already escaped; every other text is escaped where it is put on the page."""

    __slots__ = ()


class Prose(Html):
    """A cell of words, set to the left and broken into lines."""

    __slots__ = ()


_WORDS = ' class="words"'


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """A whole page that needs no other file. `subtitle` and `sections` are markup."""
    style = files("bootstrap").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>\n{subtitle}</header>\n"
        f"<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the rows."""
    head = "".join(_head(name) for name in header)
    body = "\n".join(
        f'<tr><th scope="row">{markup(row[0])}</th>{"".join(_data(cell) for cell in row[1:])}</tr>' for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'


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
