"""The demo's page: curves of all its rounds, tables, gates and the diffs of live corrections.

Every text that comes from the figures or from a correction is escaped. A section whose figures are missing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from aligner_chain.exchange import Correction
from bootstrap.charts import Dot, Line, Row
from bootstrap.markup import (
    as_count,
    as_interval,
    as_number,
    as_ratio,
    in_percent,
    in_tenths,
    line_figure,
    note,
    page,
    row_figure,
    section,
    table,
    tiles,
    with_interval,
)
from bootstrap.report.parts import Figures, State, corrections, criteria, dig, gates

STATES: Sequence[tuple[tuple[str, ...], str]] = (
    (("upstream_alone",), "upstream alone, fully right"),
    (("with_aligner",), "with the Aligner, fully right"),
    (("held_out_wordings", "upstream_alone"), "upstream alone, in wordings never seen"),
    (("held_out_wordings", "with_aligner"), "with the Aligner, in wordings never seen"),
    (("chosen_only",), "instead of DPO: SFT on the chosen answers, alone"),
)
MEASURES: Sequence[tuple[str, str, Callable[[object], str]]] = (
    ("changed_share", "changed by the Aligner", in_tenths),
    ("wrong_left_share", "wrong and left as they were", in_tenths),
    ("garbled_share", "garbled", in_tenths),
    ("right_kept_share", "right answers kept to the byte", in_tenths),
    ("unchanged_sentences_kept_share", "sentences not at fault kept to the byte", in_tenths),
    ("edit_ratio_vs_minimal", "median edit against the smallest one", as_ratio),
    ("pairs", "pairs the upstream was trained on", as_count),
    ("annotated", "rows annotated", as_count),
)


def write_report(figures: Figures, path: Path, *, examples: Sequence[Correction] = ()) -> None:
    """Writes the page.

    Args:
        figures: the content of `figures.json`. `seed` and `rounds` must be there; shares are between 0 and 1.
        path: the HTML file; its folder is made where it is missing.
        examples: live corrections to show as diffs, in order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(figures, examples=examples), encoding="utf-8")


def render(figures: Figures, *, examples: Sequence[Correction] = ()) -> str:
    """The page as text; see `write_report`."""
    sections = (
        _headline(figures["rounds"]),
        _progress(figures["rounds"]),
        corrections("Live corrections", examples),
        _criteria(figures["rounds"]),
        _comparison(figures),
        _gates(figures["rounds"]),
        _unseen(figures.get("unseen_products")),
        _verifier(figures.get("verifier")),
    )
    return page(_title(figures["rounds"]), _subtitle(figures), sections)


def _title(rounds: Sequence[Figures]) -> str:
    done = len(rounds) - 1
    return f"Bootstrap: {'the start' if done < 1 else '1 round' if done == 1 else f'{done} rounds'}"


def _subtitle(figures: Figures) -> str:
    held_out = figures.get("held_out")
    sizes = held_out if isinstance(held_out, Mapping) else {"answers": held_out}
    told = ", ".join(f"{as_count(size)} {name}" for name, size in sizes.items() if as_number(size) is not None)
    parts = [f"seed {figures['seed']}", *([f"held out: {told}"] if told else [])]
    return (
        f'<p class="soft">{escape(" · ".join(parts))}. All figures are of held-out questions that no decision has seen; '
        "ranges are 95 % intervals.</p>\n"
    )


def _headline(rounds: Sequence[Figures]) -> str:
    first, last = rounds[0], rounds[-1]
    shown = [
        ("Upstream alone, fully right", "upstream", _change(first, last, "upstream_alone")),
        ("With the Aligner, fully right", "aligner", _change(first, last, "with_aligner")),
        ("Right answers kept to the byte", "", in_tenths(last.get("right_kept_share"))),
        ("Median edit against the smallest", "", as_ratio(last.get("edit_ratio_vs_minimal"))),
    ]
    return tiles(shown) + "".join(map(_refusal, rounds))


def _refusal(figures: Figures) -> str:
    """Says which gate refused a round: its figures are those of the pair that was served before and stays."""
    refused = [str(gate.get("name")) for gate in figures.get("gates", ()) if not gate.get("passed")]
    if not refused:
        return ""
    told = f"{_round_name(figures).capitalize()} changed nothing: refused at {', '.join(refused)}."
    return f'<p class="refused">{escape(told)} The pair before it is still served.</p>\n'


def _change(first: Figures, last: Figures, key: str) -> str:
    before, after = (in_percent(dig(figures, key, "fully_right")) for figures in (first, last))
    return after if first is last else f"{before} → {after}"


def _progress(rounds: Sequence[Figures]) -> str:
    ticks = [_round_name(figures) for figures in rounds]
    right = [
        _line(rounds, "With the Aligner", "aligner", "with_aligner", "fully_right"),
        _line(rounds, "Upstream alone", "upstream", "upstream_alone", "fully_right"),
    ]
    work = [
        _line(rounds, "Changed", "aligner", "changed_share"),
        _line(rounds, "Wrong, left", "upstream", "wrong_left_share"),
        _line(rounds, "Garbled", "third", "garbled_share"),
    ]
    return section(
        "Round by round",
        line_figure("Answers that are fully right. The whiskers are 95 % intervals.", ticks, right),
        line_figure("What the Aligner still has to do, as shares of all answers.", ticks, work),
        _round_table(rounds),
    )


def _line(rounds: Sequence[Figures], name: str, style: str, *keys: str) -> Line:
    intervals = [as_interval(dig(figures, *keys[:-1], "interval")) for figures in rounds] if len(keys) > 1 else []
    return Line(
        name=name, style=style, values=[as_number(dig(figures, *keys)) for figures in rounds], intervals=intervals
    )


def _round_table(rounds: Sequence[Figures]) -> str:
    rows = [
        [name, *(_share(dig(figures, *keys)) for figures in rounds)]
        for keys, name in STATES
        if any(dig(figures, *keys) is not None for figures in rounds)
    ]
    rows += [
        [name, *(shown(figures.get(key)) for figures in rounds)]
        for key, name, shown in MEASURES
        if any(figures.get(key) is not None for figures in rounds)
    ]
    return table(["", *(_round_name(figures) for figures in rounds)], rows)


def _criteria(rounds: Sequence[Figures]) -> str:
    first, last = rounds[0], rounds[-1]
    alone, aligned = (dig(last, state) or {} for state in ("upstream_alone", "with_aligner"))
    now = [
        State(name="alone, now", style="upstream", figures=alone),
        State(name="with the Aligner", style="aligner", figures=aligned),
    ]
    if first is last:
        return criteria(now)
    start = State(name="alone, start", style="upstream", figures=dig(first, "upstream_alone") or {}, hollow=True)
    return criteria([start, *now], changes=last.get("criteria_paired_interval") or {})


def _comparison(figures: Figures) -> str:
    nulls = figures.get("nulls")
    if not nulls:
        return ""
    last = figures["rounds"][-1]
    ours = {**last, **(last.get("with_aligner") or {})}
    entries = [("upstream alone", last.get("upstream_alone") or {}, "upstream"), ("with the Aligner", ours, "aligner")]
    entries += [(name, null, "other") for name, null in nulls.items()]
    caption = "Fully right answers with the Aligner, and with correctors that understand nothing."
    rows = [
        _comparison_row(name, entry, style)
        for name, entry, style in entries
        if as_number(entry.get("fully_right")) is not None
    ]
    return section("Against null correctors", row_figure(caption, rows), _comparison_table(entries))


def _comparison_row(name: str, entry: Figures, style: str) -> Row:
    value = as_number(entry["fully_right"]) or 0.0
    return Row(
        name=name,
        dots=[Dot(value=value, style=style)],
        interval=as_interval(entry.get("interval")),
        figure=in_tenths(value),
    )


def _comparison_table(entries: Iterable[tuple[str, Figures, str]]) -> str:
    rows = [
        [
            name,
            _share(entry),
            in_percent(entry.get("changed_share")),
            in_tenths(entry.get("right_kept_share")),
            in_tenths(entry.get("unchanged_sentences_kept_share")),
            as_ratio(entry.get("edit_ratio_vs_minimal")),
        ]
        for name, entry, _ in entries
    ]
    return table(["", "fully right", "changed", "right kept", "sentences kept", "edit / smallest"], rows)


def _gates(rounds: Sequence[Figures]) -> str:
    decided = [(_round_name(figures), gate) for figures in rounds for gate in figures.get("gates") or ()]
    names = [name for name, _ in decided]
    about = (
        "Nothing serves before its gates are passed. They decide on held-out questions of their own, not on those of the "
        "figures above."
    )
    return gates([gate for _, gate in decided], about, rounds=names)


def _unseen(unseen: Figures | None) -> str:
    if not unseen:
        return ""
    states = [("upstream alone", unseen.get("upstream_alone")), ("with the Aligner", unseen.get("with_aligner"))]
    names = list(dict.fromkeys(name for _, state in states for name in (state or {}).get("criteria") or {}))
    rows: list[list[str]] = [
        [label, _share(state), *(in_percent(dig(state or {}, "criteria", name)) for name in names)]
        for label, state in states
    ]
    answers = f"{as_count(unseen['n'])} answers about products" if unseen.get("n") is not None else "Products"
    about = f"{answers} that training never saw, with their policy line given as a passage."
    return section("Products never seen in training", note(about), table(["", "fully right", *names], rows))


def _verifier(verifier: Figures | None) -> str:
    if not verifier:
        return ""
    return section(
        "The verifier",
        "<p>It chose what the models were trained on and did not score any figure here. "
        f"Of what it let through {in_tenths(verifier.get('precision'))} was right (precision), and of what was right "
        f"it let {in_tenths(verifier.get('recall'))} through (recall), on {as_count(verifier.get('n'))} "
        "answers.</p>\n",
    )


def _round_name(figures: Figures) -> str:
    return "start" if figures.get("round") == 0 else f"round {figures.get('round')}"


def _share(entry: Figures | None) -> str:
    return with_interval(dig(entry, "fully_right"), dig(entry, "interval"))
