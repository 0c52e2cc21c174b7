"""The figures of an audit as rows of cells, once for both the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from aligner_chain.audit import Audit
from aligner_chain.audit.figures import Figures, Mean, Share
from aligner_chain.checks import CHECKS

WIDTH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A figure in words and, for a share or a mean, what it is: the interval goes beside it."""

    text: str
    of: Share | Mean | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One figure of every corrector, in their order."""

    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Figures over the same answers."""

    title: str
    lines: Sequence[Line]


def groups(audit: Audit) -> Iterator[Group]:
    """The figures in groups; those over answers that are not there are left out."""
    if audit.rows_ok:
        yield _group(audit, f"Answers that need nothing ({audit.rows_ok})", _HARM)
    if audit.rows_wrong:
        yield _group(audit, f"Answers that need something ({audit.rows_wrong})", _FIX)
    yield _group(audit, f"All answers ({audit.total})", _EDITS)
    yield _group(audit, "Time per answer, on this machine", _LATENCY)
    if lines := errors(audit):
        yield Group(title="Answers that failed, by error", lines=lines)


def errors(audit: Audit) -> list[Line]:
    """For each class of error how many answers failed with it."""
    names = dict.fromkeys(name for one in audit.correctors.values() for name in one.failures)
    return [_line(audit, name, _by_error(name)) for name in names]


def damage(audit: Audit) -> list[Line]:
    """For each check that found something how many answers it found it in."""
    lines = [_line(audit, name, _by_check(name)) for name in CHECKS]
    return [line for line in lines if any(cell.text != "0" for cell in line.cells)]


def table(audit: Audit) -> Iterator[str]:
    """The figures as lines for a terminal."""
    yield from columns(audit.correctors, every_group(audit))
    yield "Shares with their 95 % intervals: --json or --page FILE."


def every_group(audit: Audit) -> Iterator[Group]:
    """The groups, and last the damage by check."""
    yield from groups(audit)
    yield Group(title="Answers damaged, by check", lines=damage(audit))


def columns(names: Iterable[str], groups: Iterable[Group]) -> Iterator[str]:
    """Groups as lines for a terminal, under the names of the correctors."""
    yield f"{'':30}" + "".join(f"{name[: WIDTH - 2]:>{WIDTH}}" for name in names)
    for group in groups:
        if group.lines:
            yield group.title
        for line in group.lines:
            yield f"  {line.name:28}" + "".join(f"{cell.text:>{WIDTH}}" for cell in line.cells)


def percent(share: float | None) -> str:
    """0.934 as "93.4 %"."""
    return "–" if share is None else f"{100 * share:.1f} %".replace("-", "−")


def _group(audit: Audit, title: str, lines: Sequence[tuple[str, Callable[[Figures], Cell]]]) -> Group:
    return Group(title=title, lines=[_line(audit, name, cell) for name, cell in lines])


def _line(audit: Audit, name: str, cell: Callable[[Figures], Cell]) -> Line:
    return Line(name=name, cells=[cell(one) for one in audit.correctors.values()])


def _share(share: Share) -> Cell:
    return Cell(text=percent(share.share), of=share)


def _ratio(number: float | None) -> Cell:
    return Cell(text="–" if number is None else f"{number:.2f} ×")


def _time(seconds: float | None) -> Cell:
    if seconds is None:
        return Cell(text="–")
    if seconds < 0.0001:
        return Cell(text="< 0.1 ms")
    return Cell(text=f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms")


def _by_check(name: str) -> Callable[[Figures], Cell]:
    def cell(figures: Figures) -> Cell:
        share = figures.edits.damage.by_check[name]
        return Cell(text=str(share.count), of=share)

    return cell


def _by_error(name: str) -> Callable[[Figures], Cell]:
    return lambda figures: Cell(text=str(figures.failures.get(name, 0)))


_HARM: Sequence[tuple[str, Callable[[Figures], Cell]]] = (
    ("left byte for byte", lambda one: _share(one.harm.kept)),
    ("changed", lambda one: _share(one.harm.changed)),
    ("damaged, say the checks", lambda one: _share(one.harm.damage.any)),
)
_FIX: Sequence[tuple[str, Callable[[Figures], Cell]]] = (
    ("changed", lambda one: _share(one.fix.changed)),
    ("now equal to the right one", lambda one: _share(one.fix.fixed)),
    ("part of the way there", lambda one: Cell(text=percent(one.fix.closer.mean), of=one.fix.closer)),
    ("further away than before", lambda one: _share(one.fix.worse)),
)
_EDITS: Sequence[tuple[str, Callable[[Figures], Cell]]] = (
    ("left byte for byte", lambda one: _share(one.edits.copied)),
    ("rewritten", lambda one: _share(one.edits.rewritten)),
    ("words changed", lambda one: Cell(text=percent(one.edits.edit_ratio))),
    ("edit to the needed one", lambda one: _ratio(one.edits.over_needed)),
    ("length to the answer's", lambda one: _ratio(one.edits.length_ratio)),
    ("damaged, say the checks", lambda one: _share(one.edits.damage.any)),
)
_LATENCY: Sequence[tuple[str, Callable[[Figures], Cell]]] = (
    ("median", lambda one: _time(one.latency.median_s)),
    ("95th percentile", lambda one: _time(one.latency.p95_s)),
    ("first call", lambda one: _time(one.latency.first_s)),
    ("forwards, mean", lambda one: Cell(text="–" if one.forwards is None else f"{one.forwards:.1f}")),
)
