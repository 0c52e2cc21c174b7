"""The page of one round: what happened and why, before and after, where the rows came from, costs and examples.

A part whose stage is not done is left out, so a round that stopped has a page as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from aligner_chain.exchange import Correction
from bootstrap.charts import Dot, Row
from bootstrap.markup import (
    Html,
    as_count,
    as_interval,
    as_number,
    as_ratio,
    beside,
    in_percent,
    in_seconds,
    in_tenths,
    note,
    page,
    prose,
    row_figure,
    section,
    short,
    table,
    tiles,
    with_interval,
)
from bootstrap.registry import Event
from bootstrap.report.figures import fired_by, moment, pairs_of, sentence, standing, status
from bootstrap.report.parts import LONGEST, LONGEST_NAME, Figures, State, corrections, criteria, cut, dig, gates
from bootstrap.rounds import STAGE_NAMES, Round
from bootstrap.rounds.examples import Answered

MEASURES: Sequence[tuple[str, str, Callable[[object], str]]] = (
    ("changed_share", "changed by the Aligner", in_tenths),
    ("wrong_left_share", "wrong and left as they were", in_tenths),
    ("garbled_share", "garbled", in_tenths),
    ("unchanged_sentences_kept_share", "sentences not at fault kept to the byte", in_tenths),
    ("edit_ratio_vs_minimal", "median edit against the smallest one", as_ratio),
)


def render_round(
    one: Round,
    *,
    history: Sequence[Event] = (),
    answers: Sequence[Answered] = (),
    examples: Sequence[Correction] = (),
    lost: str = "",
) -> str:
    """The page as text.

    Args:
        one: the round as the ledger has it.
        history: of what was served, oldest first.
        answers: examples of held-out prompts that the two upstreams answered differently.
        examples: corrections of held-out answers.
        lost: why there are no examples although some were kept.
    """
    sections = (
        _headline(one, history),
        gates(one.gates, "Nothing serves before its gates are passed."),
        _right(one),
        criteria(_states(one)),
        _aligners(one),
        note(f"The examples that were kept cannot be shown: {short(lost, LONGEST)}") if lost else "",
        _answers(answers),
        corrections("Corrections", examples),
        _rows(one),
        _training(one),
        _costs(one),
    )
    return page(f"Round {one.number}", _subtitle(one), sections)


def _subtitle(one: Round) -> str:
    ended = f" · ended {moment(one.ended)}" if one.ended else ""
    told = f"Begun {moment(one.created)} by {short(fired_by(one), LONGEST_NAME)}{ended}"
    return f'<nav><a href="index.html">All rounds</a></nav>\n<p class="soft">{escape(told)}</p>\n'


def _headline(one: Round, history: Sequence[Event]) -> str:
    pairs, alone = pairs_of(one), one.result("evaluate_upstream")
    shown = [
        ("Upstream alone, fully right", "upstream", _change(dig(alone, "before"), dig(alone, "after"))),
        (
            "With the Aligner, fully right",
            "aligner",
            _change(dig(pairs.served_on_old, "with_aligner"), dig(pairs.candidate_on_new, "with_aligner")),
        ),
        ("Changed by the Aligner", "", _change(pairs.served_on_old, pairs.candidate_on_new, "changed_share")),
        ("Wrong and left", "", _change(pairs.served_on_old, pairs.candidate_on_new, "wrong_left_share")),
    ]
    told = f'<p class="told" dir="auto">{status(one)}. {escape(sentence(one))} {escape(standing(one, history))}</p>\n'
    measured = [tile for tile in shown if tile[2]]
    return told + (tiles(measured) if measured else "")


def _change(before: object, after: object, key: str = "fully_right") -> str:
    ends = [dig(figures, key) for figures in (before, after)]
    if all(as_number(end) is None for end in ends):
        return ""
    shown = in_tenths if key == "wrong_left_share" else in_percent
    return " → ".join(map(shown, ends))


def _right(one: Round) -> str:
    """How much is fully right, by itself and with an Aligner, with intervals."""
    pairs, alone = pairs_of(one), one.result("evaluate_upstream")
    states = [
        ("upstream alone, before", "upstream", dig(alone, "before")),
        ("upstream alone, after", "upstream", dig(alone, "after")),
        ("pair, before", "aligner", dig(pairs.served_on_old, "with_aligner")),
        ("old Aligner, new upstream", "third", dig(pairs.served_on_new, "with_aligner")),
        ("pair, after", "aligner", dig(pairs.candidate_on_new, "with_aligner")),
        *(
            (f"null: {name}", "other", found)
            for name, found in (one.result("evaluate_pair").get("nulls") or {}).items()
        ),
    ]
    rows = [
        Row(
            name=name,
            dots=[Dot(value=value, style=style, hollow="before" in name)],
            interval=as_interval(dig(figures, "interval")),
            figure=in_tenths(value),
        )
        for name, style, figures in states
        if (value := as_number(dig(figures, "fully_right"))) is not None
    ]
    if not rows:
        return ""
    cells = [
        [name, with_interval(dig(found, "fully_right"), dig(found, "interval"))] for name, _, found in states if found
    ]
    caption = "Fully right answers to the held-out prompts of the gates, with 95 % intervals."
    asked = note(f"Measured on {as_count(alone.get('n'))} held-out prompts that nothing was trained on.")
    return section("Before and after", asked, row_figure(caption, rows), table(["", "fully right"], cells))


def _states(one: Round) -> list[State]:
    pairs, alone = pairs_of(one), one.result("evaluate_upstream")
    states = [
        State(name="alone, before", style="upstream", figures=dig(alone, "before") or {}, hollow=True),
        State(name="alone, after", style="upstream", figures=dig(alone, "after") or {}),
        State(
            name="pair, before", style="aligner", figures=dig(pairs.served_on_old, "with_aligner") or {}, hollow=True
        ),
        State(name="pair, after", style="aligner", figures=dig(pairs.candidate_on_new, "with_aligner") or {}),
    ]
    return [state for state in states if state.figures]


def _aligners(one: Round) -> str:
    """How much each Aligner changes, and what it wrongly leaves or breaks."""
    pairs = pairs_of(one)
    measured = [
        ("pair, before", pairs.served_on_old),
        ("old Aligner, new upstream", pairs.served_on_new),
        ("pair, after", pairs.candidate_on_new),
    ]
    rows = [
        [name, *(shown(figures.get(key)) for _, figures in measured)]
        for key, name, shown in MEASURES
        if any(figures.get(key) is not None for _, figures in measured)
    ]
    kept = one.result("evaluate_pair").get("kept") or {}
    if number := as_number(kept.get("n")):
        rows.append(
            ["right answers kept to the byte", "–", "–", f"{as_count(kept.get('k'))} of {as_count(number)}"],
        )
    if not rows:
        return ""
    about = note("Shares of all held-out answers. A better upstream leaves the Aligner less to change.")
    header = ["", *(name for name, _ in measured)]
    return section("What the Aligner does", about, table(header, rows), _calibrations(one))


def _calibrations(one: Round) -> str:
    found = one.result("calibrate").get("calibrations") or ()
    if not found:
        return ""
    rows = [
        [
            short(str(row.get("criterion")), LONGEST_NAME),
            f"{shown:.4f}" if (shown := as_number(row.get("threshold"))) is not None else "shut: too few wrong answers",
            in_percent(row.get("alpha")),
            in_tenths(row.get("kept")),
            as_count(row.get("n_bad")),
            as_count(row.get("n_good")),
        ]
        for row in found
    ]
    header = ["calibrated", "threshold", "wrong ones missed, at most", "right ones passed", "wrong", "right"]
    return table(header, rows)


def _rows(one: Round) -> str:
    """Where the rows came from that both models were trained on."""
    pairs = dig(one.result("freeze"), "pairs") or {}
    verified, triples = one.result("verify"), one.result("triples")
    dropped = [(f"left out: {name}", count) for name, count in (pairs.get("dropped") or {}).items()]
    upstream = [("pairs from live corrections", pairs.get("rows")), *dropped]
    aligner = [
        ("corrections the verifier confirmed", verified.get("confirmed")),
        ("corrections the verifier refused", verified.get("refused")),
        *((f"rows: {name}", triples.get(name)) for name in ("gold", "human", "verified", "annotated")),
    ]
    parts = [
        table([heading, "rows"], [[short(name, LONGEST_NAME), as_count(count)] for name, count in told])
        for heading, counts in (("for the upstream", upstream), ("for the Aligner", aligner))
        if (told := [(name, count) for name, count in counts if count is not None])
    ]
    return section("Where the rows came from", beside(*parts))


def _training(one: Round) -> str:
    parts = []
    for stage, name in (("train_upstream", "upstream"), ("train_aligner", "Aligner")):
        if told := list(_plain(one.result(stage))):
            parts.append(table([name, ""], told))
    return section("Training", beside(*parts))


def _plain(result: Figures, before: str = "") -> Iterator[list[str]]:
    """Every number that a stage left, whatever it is; those within a mapping after the mapping's name."""
    for name, value in result.items():
        label = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _plain(value, f"{label}: ")
        elif as_number(value) is not None and name != "since":
            yield [short(label, LONGEST_NAME), _as_plain(name, value)]


def _as_plain(name: str, value: float) -> str:
    if name.endswith("share"):
        return in_tenths(value)
    return as_count(value) if isinstance(value, int) else f"{value:.4g}"


def _costs(one: Round) -> str:
    runs = [run for name in STAGE_NAMES if (run := one.stage(name)) is not None]
    if not runs:
        return ""
    errors = any(run.error for run in runs)
    rows = [
        [
            run.stage,
            run.status,
            as_count(run.attempt),
            in_seconds(run.seconds),
            *([prose(short(run.error, LONGEST))] * errors),
        ]
        for run in runs
    ]
    total = in_seconds(sum(run.seconds or 0.0 for run in runs))
    asked = [
        (one.result("evaluate_upstream").get("n"), "held-out prompts answered by each upstream"),
        (one.result("regenerate").get("answers"), "training prompts answered anew"),
        (one.result("correct").get("corrections"), "corrections verified"),
        (one.result("annotate").get("annotated"), "answers annotated"),
    ]
    told = ", ".join(f"{as_count(count)} {what}" for count, what in asked if count is not None)
    about = f"The last attempts took {total} in all{f'; {told}' if told else ''}."
    return section("Costs", note(about), table(["", "status", "attempts", "took", *([prose("error")] * errors)], rows))


def _answers(answers: Sequence[Answered]) -> str:
    about = note(
        "Held-out prompts that the two upstreams answered differently, and what the judge says of the answers."
    )
    each = "".join(_answered(one) for one in answers)
    return section("Answers before and after", about, each) if each else ""


def _answered(one: Answered) -> str:
    sides = (("before", one.before, one.right_before), ("after", one.after, one.right_after))
    shown = "".join(
        f'<dt>{name} {_mark(right)}</dt><dd dir="auto">{cut(answer)}</dd>\n' for name, answer, right in sides
    )
    return (
        f'<article class="example">\n<p class="question" dir="auto">{cut(one.question)}</p>\n'
        f'<dl class="answers">\n{shown}</dl>\n</article>\n'
    )


def _mark(right: bool) -> Html:
    return Html(f'<span class="{"passed" if right else "refused"}">{"✓ right" if right else "✗ wrong"}</span>')
