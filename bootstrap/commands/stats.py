"""`aligner-bootstrap stats`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrap.commands.base import add_command, existing_store, say, say_to_stderr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bootstrap.stats.figures import Group, Opinions, Quantiles, Statistics, Tally

MOST_PERIODS = 31
"""Periods that a terminal shows, the last ones."""
MOST_ROWS = 15
BAR = 30
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


def add(commands: Any) -> None:
    """Adds `stats`."""
    example = "aligner-bootstrap stats --store corrections.db --since 30d --html stats.html"
    stats = add_command(commands, "stats", "what was collected, corrected and said about it", example, _stats)
    stats.add_argument("--store", required=True, metavar="URL", help="a store's URL or file")
    stats.add_argument(
        "--since", metavar="TIME", help="only from then on: 12h, 30d, 8w, or a date like 2026-11-01 (UTC)"
    )
    stats.add_argument("--by", choices=("day", "week", "month"), help="length of a period (default: what fits)")
    stats.add_argument("--json", action="store_true", help="print all figures as one JSON object")
    stats.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts")
    stats.add_argument("--progress", action="store_true", help="show progress also where there is no terminal")


def _stats(arguments: argparse.Namespace) -> int:
    from bootstrap.stats.figures import statistics

    store = existing_store(arguments.store)
    shown = arguments.progress or sys.stderr.isatty()
    found = statistics(
        store,
        since_ms=since_ms(arguments.since),
        by=arguments.by,
        on_step=lambda step: say_to_stderr(f"counting {step} ...") if shown else None,
    )
    if arguments.json:
        say(json.dumps(found.as_dict(), indent=2))
    elif not found.total.stored:
        say(_nothing(arguments))
    else:
        encoding = sys.stdout.encoding or "ascii"
        text = as_text(found, plain=not encoding.lower().replace("-", "").startswith("utf"))
        say(text.encode(encoding, "replace").decode(encoding))
    if arguments.html is not None and found.total.stored:
        _write_page(found, arguments)
    return 0


def since_ms(text: str | None) -> int | None:
    """Milliseconds since the epoch of `30d` (12h, 8w) before now, or of the begin of a day in UTC.

    Raises:
        ConfigurationError: it is neither.
    """
    from aligner_chain.errors import ConfigurationError

    if text is None:
        return None
    if span := re.fullmatch(r"(\d{1,6})([hdw])", text):
        return int((time.time() - int(span[1]) * _SECONDS[span[2]]) * 1000)
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"--since {text!r} is no time. Write a span before now, like 12h, 30d or 8w, or a date, like 2026-11-01"
        ) from error
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _nothing(arguments: argparse.Namespace) -> str:
    if arguments.since is not None:
        return f"{arguments.store} holds no records since {arguments.since}. Leave out --since to see all of it."
    return (
        f"{arguments.store} holds no records yet. Collect some:\n"
        "  AlignerCorrector(on_correction=Collector(store).submit)"
    )


def _write_page(found: Statistics, arguments: argparse.Namespace) -> None:
    from aligner_chain.errors import ConfigurationError
    from bootstrap.stats.page import render

    page: Path = arguments.html
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render(found, _without_password(arguments.store)), encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigurationError(f"{page} cannot be written: {error}. Name another file with --html.") from error
    say_to_stderr(f"The page: {page}")


def _without_password(url: str) -> str:
    return re.sub(r"://[^/@]*@", "://", url) if "://" in url else Path(url).name


# --- as text ----------------------------------------------------------------------------------------------------


def as_text(found: Statistics, *, plain: bool = False) -> str:
    """All figures as aligned text; `plain` draws in ASCII."""
    from bootstrap.stats.page import OUTCOMES

    total = found.total
    parts = [
        _summary(total),
        _table(
            ("outcome", "stored", "estimated", "share", ""),
            [
                _share_row(meaning, total.outcomes[outcome], total.estimated, plain)
                for outcome, _, meaning in OUTCOMES
                if outcome in total.outcomes
            ],
        ),
        _over_time(found, plain),
        _criteria(found, plain),
        _groups("upstream", found.upstreams),
        _groups("Aligner", found.aligners),
        _groups("split", found.splits),
        _cost(found),
        _said(found.feedback),
    ]
    return "\n\n".join(filter(None, parts))


def _summary(total: Group) -> str:
    return (
        f"{total.stored:,} records stored, standing for about {total.estimated:,.0f} answers; "
        f"{_percent(total.changed_share)} of these were corrected."
    )


def sparkline(values: Sequence[float], *, plain: bool = False) -> str:
    """One character for each value, the higher the greater it is."""
    steps = " .:-=+*#" if plain else "▁▂▃▄▅▆▇█"
    most = max(values, default=0.0) or 1.0
    return "".join(steps[min(len(steps) - 1, int(value / most * len(steps)))] for value in values)


def bar(share: float, *, plain: bool = False) -> str:
    """A bar of up to `BAR` characters for a share; one at least for what is there."""
    full = max(round(share * BAR), int(share > 0))
    return ("#" if plain else "█") * full


def _over_time(found: Statistics, plain: bool) -> str:
    from bootstrap.stats.page import label

    shown = list(found.periods.items())[-MOST_PERIODS:]
    most = max(group.estimated for _, group in shown) or 1.0
    rows = [
        (
            label(start, found.by),
            f"{group.stored:,}",
            f"{group.estimated:,.0f}",
            _percent(group.changed_share),
            bar(group.estimated / most, plain=plain),
        )
        for start, group in shown
    ]
    left_out = len(found.periods) - len(shown)
    note = f"\n({left_out:,} before these are not shown: --by week, --by month, or --html)" if left_out else ""
    line = sparkline([group.changed_share or 0.0 for _, group in shown], plain=plain)
    trend = f"\ncorrected over time: {line}" if len(shown) > 1 else ""
    return _table((f"{found.by} (UTC)", "stored", "estimated", "corrected", ""), rows) + note + trend


def _criteria(found: Statistics, plain: bool) -> str:
    corrected = found.total.estimated_of("corrected") or 1.0
    rows = [_share_row(name, tally, corrected, plain) for name, tally in list(found.criteria.items())[:MOST_ROWS]]
    return _table(("criterion broken", "stored", "estimated", "of corrected", ""), rows) if rows else ""


def _groups(kind: str, groups: Mapping[str, Group]) -> str:
    rows = [
        (_printable(name), f"{group.stored:,}", f"{group.estimated:,.0f}", _percent(group.changed_share))
        for name, group in list(groups.items())[:MOST_ROWS]
    ]
    return _table((kind, "stored", "estimated", "corrected"), rows)


def _cost(found: Statistics) -> str:
    from bootstrap.markup import in_seconds

    def row(name: str, one: Quantiles | None, shown: Any) -> list[tuple[str, ...]]:
        return [] if one is None else [(name, shown(one.median), shown(one.p95), f"{one.stored:,}")]

    rows = [
        *row("latency", found.latency_s, in_seconds),
        *row("tokens read", found.tokens_read, "{:,.0f}".format),
        *row("tokens written", found.tokens_written, "{:,.0f}".format),
        *([] if found.mean_edits is None else [("edits, mean", f"{found.mean_edits:.2f}", "", "")]),
    ]
    return _table(("the Aligner took", "median", "95 % below", "records"), rows) if rows else ""


def _said(said: Opinions) -> str:
    if not said.total:
        return ""
    rows = [
        ("thumbs up", f"{said.up:,}", _percent(said.up_share)),
        ("thumbs down", f"{said.down:,}", ""),
        ("reviews that accept", f"{said.accepted:,}", _percent(said.accepted_share)),
        ("reviews that reject", f"{said.rejected:,}", ""),
        ("corrections by people", f"{said.edits:,}", ""),
        ("comments", f"{said.comments:,}", ""),
        ("scores", f"{said.scores:,}", "" if said.mean_score is None else f"mean {said.mean_score:.2f}"),
    ]
    return _table(("people said", "count", "share"), rows)


def _share_row(name: str, tally: Tally, whole: float, plain: bool) -> tuple[str, ...]:
    share = tally.estimated / whole if whole else 0.0
    figures = (f"{tally.stored:,}", f"{tally.estimated:,.0f}", _percent(share))
    return _printable(name), *figures, bar(min(share, 1.0), plain=plain)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: names to the left, figures to the right, a bar as it is."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    shown = [
        "  ".join(
            cell.ljust(width) if column == 0 or header[column] == "" else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(shown)


def _printable(name: str, most: int = 40) -> str:
    """A name as a terminal can show it on one line: nothing in it can play an escape sequence."""
    clean = "".join(one if one.isprintable() else "�" for one in name)
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
