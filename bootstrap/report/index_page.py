"""The index over all rounds: what is served, how much the Aligner still changes, and what became of each round."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

from bootstrap.charts import Line
from bootstrap.markup import (
    Html,
    as_interval,
    as_number,
    in_percent,
    in_seconds,
    in_tenths,
    line_figure,
    note,
    page,
    prose,
    section,
    short,
    table,
    tiles,
    with_interval,
)
from bootstrap.registry import Event
from bootstrap.report.figures import file_name, fired_by, moment, pairs_of, sentence, served_after, status
from bootstrap.report.parts import Figures, dig
from bootstrap.rounds import Round

LONGEST_REASON, LONGEST_KEY = 300, 24


def render_index(rounds: Sequence[Round], *, history: Sequence[Event] = (), linked: Collection[int] = ()) -> str:
    """The page as text.

    Args:
        rounds: all rounds, oldest first.
        history: of what was served, oldest first.
        linked: the numbers of the rounds that have a page beside this one.
    """
    sections = (
        _headline(rounds, history),
        _progress(rounds),
        _rounds(rounds, linked),
        _history(history, linked),
    )
    return page("Bootstrap rounds", _subtitle(history), sections)


def _subtitle(history: Sequence[Event]) -> str:
    if not history:
        return note("No pair is served yet.")
    pair = history[-1].pair
    with_ = f"{pair.upstream.identity} with {pair.aligner.identity}" if pair.upstream else pair.aligner.identity
    return note(f"Served since {moment(history[-1].time)}: pair {pair.number}, {with_}.")


def _headline(rounds: Sequence[Round], history: Sequence[Event]) -> str:
    if not rounds:
        return note(Html("No round was begun yet. <code>aligner-bootstrap round run --help</code> says how."))
    now = history[-1].pair.figures if history else {}  # what it was promoted on
    shown = [
        ("Rounds that promoted a pair", "", f"{sum(one.status == 'promoted' for one in rounds)} of {len(rounds)}"),
        ("Rolled back", "", str(sum(event.action == "rollback" for event in history))),
        ("Served pair, fully right", "aligner", in_percent(dig(now, "with_aligner", "fully_right"))),
        ("Of its answers changed", "", in_percent(now.get("changed_share"))),
    ]
    return tiles(shown)


def _progress(rounds: Sequence[Round]) -> str:
    """The curves. Their first point is what was served before the first round that measured it."""
    measured = [one for one in rounds if served_after(one)]
    if not measured:
        return ""
    ticks = ["start", *(f"round {one.number}" for one in measured)]
    states = [pairs_of(measured[0]).served_on_old, *map(served_after, measured)]
    about = (
        "After each round that came far enough to measure pairs: the pair that was served from then on. Every round "
        "measures on the held-out prompts that there are by then."
    )
    return section(
        "Round by round",
        note(about),
        line_figure(
            "Shares of held-out answers: changed by the Aligner, and wrong but left as they were.",
            ticks,
            [
                _line("Changed", "aligner", states, "changed_share"),
                _line("Wrong, left", "upstream", states, "wrong_left_share"),
            ],
        ),
        line_figure(
            "Answers that are fully right. The whiskers are 95 % intervals.",
            ticks,
            [
                _line("With the Aligner", "aligner", states, "with_aligner", "fully_right"),
                _line("Upstream alone", "upstream", states, "upstream_alone", "fully_right"),
            ],
        ),
    )


def _line(name: str, style: str, states: Sequence[Figures], *keys: str) -> Line:
    intervals = [as_interval(dig(state, *keys[:-1], "interval")) for state in states] if len(keys) > 1 else []
    return Line(name=name, style=style, values=[as_number(dig(state, *keys)) for state in states], intervals=intervals)


def _rounds(rounds: Sequence[Round], linked: Collection[int]) -> str:
    header = ["", "status", prose("what happened"), "alone", "with the Aligner", "changed", "begun"]
    rows = [_row(one, linked) for one in reversed(rounds)]
    about = "The newest first. Shares are those of the round's candidate, on held-out prompts."
    return section("Rounds", note(about), table(header, rows)) if rows else ""


def _row(one: Round, linked: Collection[int]) -> list[str]:
    alone, candidate = one.result("evaluate_upstream"), pairs_of(one).candidate_on_new
    return [
        _link(one.number, linked),
        status(one),
        prose(short(sentence(one), LONGEST_REASON)),
        with_interval(dig(alone, "after", "fully_right"), dig(alone, "after", "interval")),
        with_interval(dig(candidate, "with_aligner", "fully_right"), dig(candidate, "with_aligner", "interval")),
        in_tenths(candidate.get("changed_share")),
        _begun(one),
    ]


def _begun(one: Round) -> Html:
    """When and by what it was begun, and how long it took."""
    took = f"{in_seconds((one.ended - one.created).total_seconds())}, " if one.ended else ""
    told = f"{took}by {short(fired_by(one), LONGEST_KEY)}"
    return Html(f'{moment(one.created)} <span class="range">{escape(told)}</span>')


def _link(number: int, linked: Collection[int]) -> str:
    name = f"round {number}"
    return Html(f'<a href="{file_name(number)}">{name}</a>') if number in linked else name


def _history(history: Sequence[Event], linked: Collection[int]) -> str:
    rows = [
        [
            event.action,
            str(event.pair.number),
            event.pair.upstream.identity if event.pair.upstream else "–",
            event.pair.aligner.identity,
            _made_by(event, linked),
            moment(event.time),
        ]
        for event in reversed(history)
    ]
    header = ["", "pair", "upstream", "Aligner", "made by", "when"]
    return (
        section("What was served", note("Promotions and rollbacks, the newest first."), table(header, rows))
        if rows
        else ""
    )


def _made_by(event: Event, linked: Collection[int]) -> str:
    number = event.pair.figures.get("round")
    return _link(number, linked) if isinstance(number, int) else "–"
