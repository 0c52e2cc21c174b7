"""What was collected, as figures: added up in the database, by outcome, split, upstream, Aligner and criterion, over time.

Unchanged answers may be sampled when they are collected. So every figure is there twice: as it is stored, and as an estimate
of the traffic, in which a record counts with its weight.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from typing import Any, Literal, TypeVar

from sqlalchemy import JSON, ColumnElement, Connection, Float, Text, case, cast, func, select, type_coerce

from bootstrap.store import CorrectionStore
from bootstrap.tables import CORRECTIONS, FEEDBACK

By = Literal["day", "week", "month"]

DAY_MS = 86_400_000
MOST_NAMES = 100
"""Upstreams, Aligners or criteria that are told apart; more than these count as `OTHERS`."""
MOST_PERIODS = 1000
"""Periods up to which those without a record are filled in."""
USAGES = ("latency_s", "prompt_tokens", "new_tokens")
OTHERS = "(others)"
UNKNOWN = "(unknown)"

T = TypeVar("T", bound="Tally")
Histogram = dict[float, tuple[int, float]]
"""How many records have a value, as they are stored and estimated."""

_C = CORRECTIONS.c
_NONE = (0, 0.0)
_SMALL = 2.0**-64
"""Scores are added up as so small a part of them, without loss: the sum of finite ones is then finite."""
_LAST_DAY = (date.max - date(1970, 1, 1)).days


@dataclass(slots=True)
class Tally:
    """Records as they are stored, and estimated: as many as there were if all had been kept."""

    stored: int = 0
    estimated: float = 0.0

    def add(self, stored: int, estimated: float) -> None:
        self.stored += stored
        self.estimated += estimated


@dataclass(slots=True)
class Group(Tally):
    """Records of one kind, by their outcome."""

    outcomes: dict[str, Tally] = field(default_factory=dict)

    def add_outcome(self, outcome: str, stored: int, estimated: float) -> None:
        self.add(stored, estimated)
        self.outcomes.setdefault(outcome, Tally()).add(stored, estimated)

    def estimated_of(self, outcome: str) -> float:
        return self.outcomes.get(outcome, Tally()).estimated

    @property
    def changed_share(self) -> float | None:
        """The estimated share of answers that were served corrected."""
        return self.estimated_of("corrected") / self.estimated if self.estimated else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiles:
    """The median and the 95th percentile of the records that tell a figure, to three digits; weights are respected."""

    median: float
    p95: float
    stored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Opinions:
    """What people said about answers: counts, and the mean of the scores."""

    up: int = 0
    down: int = 0
    accepted: int = 0
    rejected: int = 0
    edits: int = 0
    comments: int = 0
    scores: int = 0
    mean_score: float | None = None

    @property
    def up_share(self) -> float | None:
        """The share of thumbs that are up."""
        return _share(self.up, self.up + self.down)

    @property
    def accepted_share(self) -> float | None:
        """The share of reviewed corrections with which the reviewer agreed."""
        return _share(self.accepted, self.accepted + self.rejected)

    @property
    def total(self) -> int:
        return sum((self.up, self.down, self.accepted, self.rejected, self.edits, self.comments, self.scores))


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """The figures of a store. Times are in UTC; a week begins on Monday.

    `mean_edits` is that of corrected answers. `latency_s` and tokens are what the Aligner took for one answer; None where no
    record tells. `feedback` is what was given in the same time, also about older records.
    """

    by: By
    total: Group
    periods: Mapping[date, Group]
    splits: Mapping[str, Group]
    upstreams: Mapping[str, Group]
    aligners: Mapping[str, Group]
    criteria: Mapping[str, Tally]
    mean_edits: float | None
    latency_s: Quantiles | None
    tokens_read: Quantiles | None
    tokens_written: Quantiles | None
    feedback: Opinions

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        groups = {
            name: {key: _group_dict(group) for key, group in getattr(self, name).items()}
            for name in ("splits", "upstreams", "aligners")
        }
        return {
            **asdict(self),
            "total": _group_dict(self.total),
            "periods": {start.isoformat(): _group_dict(group) for start, group in self.periods.items()},
            **groups,
            "feedback": {
                **asdict(self.feedback),
                "up_share": self.feedback.up_share,
                "accepted_share": self.feedback.accepted_share,
            },
        }


def statistics(
    store: CorrectionStore,
    *,
    since_ms: int | None = None,
    by: By | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Statistics:
    """The figures of a store, in memory that does not grow with its records.

    Args:
        store: What was collected.
        since_ms: Only what was collected at this time or later, in milliseconds since the epoch.
        by: How long a period is; None: days up to two months, weeks up to a year, else months.
        on_step: Is told what is counted next.
    """
    condition = _C.at_ms >= (since_ms or 0)
    fold = _Fold()
    with store.database.read() as connection:
        on_step("records by day, outcome, split, upstream and Aligner")
        fold.take(connection, condition)
        on_step("criteria")
        criteria = _criteria(connection, condition)
        on_step("latency and tokens")
        latency, read, written = _usage(connection, condition)
        on_step("feedback")
        feedback = opinions(connection, since_ms or 0)
    by = by or _fitting(fold.days)
    return Statistics(
        by=by,
        total=fold.total,
        periods=_periods(fold.days, by),
        splits=_largest_first(fold.splits),
        upstreams=_largest_first(fold.upstreams),
        aligners=_largest_first(fold.aligners),
        criteria=criteria,
        mean_edits=_share(fold.edits, fold.total.estimated_of("corrected")),
        latency_s=latency,
        tokens_read=read,
        tokens_written=written,
        feedback=feedback,
    )


def opinions(connection: Connection, since_ms: int) -> Opinions:
    """What people said since a time, in one query."""
    columns, value = FEEDBACK.c, cast(FEEDBACK.c.value, Text)
    said = case((columns.kind.in_(("thumb", "review")), value), else_="")
    score = case((columns.kind == "score", cast(value, Float) * _SMALL), else_=0.0)
    given = select(columns.kind, said.label("said"), score.label("score")).where(columns.at_ms >= since_ms).subquery()
    names = (given.c.kind, given.c.said)
    rows = connection.execute(select(*names, func.count(), func.sum(given.c.score)).group_by(*names))
    counts, scored = Counter[tuple[str, str]](), 0.0
    for kind, answer, count, total in rows:
        counts[kind, answer] += count
        scored += total
    scores = counts["score", ""]
    return Opinions(
        up=counts["thumb", "true"],
        down=counts["thumb", "false"],
        accepted=counts["review", "true"],
        rejected=counts["review", "false"],
        edits=counts["edit", ""],
        comments=counts["comment", ""],
        scores=scores,
        mean_score=scored / scores / _SMALL if scores else None,
    )


class _Fold:
    """Sums of the database, folded into one group for each day and name."""

    def __init__(self) -> None:
        self.total = Group()
        self.edits = 0.0
        self.days: dict[int, Group] = {}
        self.splits: dict[str, Group] = {}
        self.upstreams: dict[str, Group] = {}
        self.aligners: dict[str, Group] = {}

    def take(self, connection: Connection, condition: ColumnElement[bool]) -> None:
        edits = case((_C.outcome == "corrected", func.json_array_length(_C.edits) * _C.weight), else_=0.0)
        labelled = ((_C.at_ms // DAY_MS).label("day"), _C.outcome, _C.split, _C.upstream, _C.aligner)
        # Grouped by the columns of a subquery: PostgreSQL does not see that two expressions with parameters are one.
        each = select(*labelled, _C.weight, edits.label("edited")).where(condition).subquery().c
        names = (each.day, each.outcome, each.split, each.upstream, each.aligner)
        query = select(*names, func.count(), func.sum(each.weight), func.sum(each.edited)).group_by(*names)
        rows = connection.execution_options(yield_per=1000).execute(query)
        for day, outcome, split, upstream, aligner, stored, estimated, edited in rows:
            self.edits += edited
            self.total.add_outcome(outcome, stored, estimated)
            groups = (
                self.days.setdefault(min(day, _LAST_DAY), Group()),
                self.splits.setdefault(split, Group()),
                _named(self.upstreams, upstream, Group),
                _named(self.aligners, aligner, Group),
            )
            for group in groups:
                group.add_outcome(outcome, stored, estimated)


def _criteria(connection: Connection, condition: ColumnElement[bool]) -> dict[str, Tally]:
    """What was broken. Lists of criteria are told apart by the database, as texts; there are few different ones."""
    text = cast(_C.criteria, Text)
    query = select(text, func.count(), func.sum(_C.weight)).where(condition, text != "[]").group_by(text)
    tallies: dict[str, Tally] = {}
    for names, stored, estimated in connection.execution_options(yield_per=1000).execute(query):
        for name in set(json.loads(names)):
            _named(tallies, name, Tally).add(stored, estimated)
    return _largest_first(tallies)


def _usage(connection: Connection, condition: ColumnElement[bool]) -> list[Quantiles | None]:
    """The quantiles of each of `USAGES`: the numbers are read through, since no two databases have quantiles alike."""
    histograms: list[Histogram] = [{} for _ in USAGES]
    query = select(_C.weight, *(type_coerce(_C.usage, JSON)[name].as_float() for name in USAGES)).where(condition)
    for weight, *values in connection.execution_options(yield_per=5000).execute(query):
        for histogram, value in zip(histograms, values, strict=True):
            if value:
                rounded = _to_three_digits(value)
                stored, estimated = histogram.get(rounded, _NONE)
                histogram[rounded] = stored + 1, estimated + weight
    return [_quantiles_of(histogram) for histogram in histograms]


def _to_three_digits(value: float) -> float:
    """Some thousand different values at most come of any number of records."""
    return value if 1 <= value < 1000 and value == int(value) else float(f"{value:.3g}")


def _quantiles_of(histogram: Histogram) -> Quantiles | None:
    if not histogram:
        return None
    stored = sum(count for count, _ in histogram.values())
    return Quantiles(median=_quantile(histogram, 0.5), p95=_quantile(histogram, 0.95), stored=stored)


def _quantile(histogram: Histogram, share: float) -> float:
    """The least value that is not below this share of the estimated records."""
    wanted, so_far = share * sum(estimated for _, estimated in histogram.values()), 0.0
    for value in sorted(histogram):
        so_far += histogram[value][1]
        if so_far >= wanted:
            return value
    return max(histogram)


def _named(groups: dict[str, T], name: str | None, make: Callable[[], T]) -> T:
    name = name or UNKNOWN
    if name not in groups and len(groups) >= MOST_NAMES:
        name = OTHERS
    return groups.setdefault(name, make())


def _largest_first(groups: Mapping[str, T]) -> dict[str, T]:
    return dict(sorted(groups.items(), key=lambda item: (-item[1].estimated, item[0])))


def _fitting(days: Iterable[int]) -> By:
    known = list(days)
    span = max(known, default=0) - min(known, default=0)
    return "day" if span < 62 else "week" if span < 366 else "month"


def _periods(days: Mapping[int, Group], by: By) -> dict[date, Group]:
    """The groups of days as groups of periods, in order, also of those in which nothing was collected."""
    periods: dict[date, Group] = {}
    for day, group in days.items():
        period = periods.setdefault(_start(date(1970, 1, 1) + timedelta(day), by), Group())
        for outcome, tally in group.outcomes.items():
            period.add_outcome(outcome, tally.stored, tally.estimated)
    return dict(sorted(_filled(periods, by).items()))


def _start(day: date, by: By) -> date:
    if by == "day":
        return day
    return day - timedelta(day.weekday()) if by == "week" else day.replace(day=1)


def _filled(periods: dict[date, Group], by: By) -> dict[date, Group]:
    """With the empty ones between, unless a record's clock was years off."""
    if not periods:
        return periods
    filled, start, last = dict(periods), min(periods), max(periods)
    while start < last:
        filled.setdefault(start, Group())
        start = _next(start, by)
        if len(filled) > MOST_PERIODS:
            return periods
    return filled


def _next(start: date, by: By) -> date:
    if by == "month":
        return (start + timedelta(31)).replace(day=1)
    return start + timedelta(7 if by == "week" else 1)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _group_dict(group: Group) -> dict[str, Any]:
    return {**asdict(group), "changed_share": group.changed_share}
