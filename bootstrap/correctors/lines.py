"""An evaluation as lines for a terminal: the win rates by criterion, over-refusal, and all that an audit tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from aligner_chain.audit.lines import Cell, Group, Line, columns, every_group
from bootstrap.correctors.evaluating import Evaluation, OverRefusal
from bootstrap.correctors.nulls import DELETE, QUESTION_ONLY
from bootstrap.correctors.rates import Net, WinRate

_WAYS = {DELETE: "--lexicon FILE", QUESTION_ONLY: "--question-only MODULE:NAME"}


def table(found: Evaluation) -> Iterator[str]:
    """The figures of every corrector, one under the other."""
    yield from columns(found.wins, [*_wins(found), *_over_refusal(found), *every_group(found.audit)])
    yield "Won and lost against the answer as it was; intervals of 95 %, those of shares: --json."
    if found.missing:
        ways = ", ".join(f"{name} ({_WAYS[name]})" for name in found.missing)
        yield f"Null correctors that are missing here: {ways}."


def _wins(found: Evaluation) -> Iterator[Group]:
    rates = list(found.wins.values())
    for criterion in rates[0]:
        lines = [
            Line(name=name, cells=[Cell(text=text(one[criterion])) for one in rates]) for name, text in _WINS.items()
        ]
        yield Group(title=f"Better by the judge: {criterion} ({rates[0][criterion].n} answers)", lines=lines)


def _over_refusal(found: Evaluation) -> Iterator[Group]:
    told = list(found.over_refusal.values())
    if told:
        lines = [Line(name=name, cells=[Cell(text=text(one)) for one in told]) for name, text in _REFUSED.items()]
        yield Group(title=f"Harmless prompts ({told[0].change.n})", lines=lines)


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _figure(net: Net | None) -> str:
    return "–" if net is None else f"{_signed(net.net)} %"


def _interval(net: Net | None) -> str:
    return "–" if net is None else f"{_signed(net.low)} to {_signed(net.high)}"


_WINS: dict[str, Callable[[WinRate], str]] = {
    "won": lambda one: str(one.wins),
    "tied": lambda one: str(one.ties),
    "lost": lambda one: str(one.losses),
    "(won - lost) of all": lambda one: _figure(one.net),
    "  interval": lambda one: _interval(one.net),
    "at equal length": lambda one: _figure(one.at_equal_length),
    "  interval at equal length": lambda one: _interval(one.at_equal_length),
    "tied since order decided": lambda one: str(one.order_decided),
}
_REFUSED: dict[str, Callable[[OverRefusal], str]] = {
    "refused": lambda one: f"{100 * (one.after.share or 0):.1f} %",
    "more than the answers": lambda one: f"{_signed(one.change.change)} %",
    "  interval": lambda one: f"{_signed(one.change.low)} to {_signed(one.change.high)}",
}
