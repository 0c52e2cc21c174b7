"""The tables of docs/real_data.md, from the stored files alone, as they stand there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cells import between, measured, percent
from cells import lines as _lines
from stored import RESULTS, Figures, read

POLITE = {
    "rude_left": "rude words left",
    "f1": "word F1",
    "f1_above_deletion": "above deletion",
    "lost": "lost a word",
    "f1_above_deletion_if_none_lost": "above deletion, if none lost",
    "neutral_kept": "neutral, kept",
    "neutral_small_kept": "neutral in small letters, kept",
}
ENDINGS = {
    "rude": "rude",
    "content": "F1 with the start's",
    "people": "F1 with people's",
    "unknown_words": "unknown words",
    "short": "a word or none",
    "length": "length",
    "no_mark": "no mark at the end",
    "distinct": "different endings",
    "changed": "changed by the Aligner",
    "lost": "lost a word",
}
LIKELIHOODS = {"rude": "rude endings", "deleted": "the same without rude words", "people": "people's rewrites of them"}
PROGRAMS = {
    "right_kept": "accepted, kept",
    "wrong_changed": "buggy, changed",
    "wrong_fixed": "buggy, now the accepted one",
    "right_stops_parsing": "accepted, parses no more",
    "wrong_stops_parsing": "buggy, parses no more",
}
SOLUTIONS = {"right_kept": "right, kept", "wrong_changed": "wrong, changed", "wrong_fixed": "wrong, now right"}


def show() -> None:
    """Prints every table, and says which stored file is missing."""
    for name, lines in TABLES.items():
        path = RESULTS / f"{name}.json"
        found = lines(read(name)) if path.exists() else [f"{path.name} is not there; see --help for what writes it."]
        print("\n".join(["", name, "", *found]))


def paradetox(found: Figures) -> list[str]:
    """All of dev, its first 200 sentences, and the Aligners by the length of their training."""
    rows = list(_correctors(found))
    beginning = {name: POLITE[name] for name in ("rude_left", "f1")}
    return [
        *_table("all", POLITE, rows),
        "",
        *_table("first 200", beginning, [(name, one["first_200"]) for name, one in rows if "first_200" in one]),
        "",
        *_curve(found),
    ]


def _correctors(found: Figures) -> Iterator[tuple[str, Figures]]:
    """The Aligner that was chosen on the tuning part, under both policies, then what needs no training."""
    name = found["chosen"]
    yield from ((f"Aligner, {name}, {policy}", one) for policy, one in found["models"][name]["rows"].items())
    yield from found["baselines"].items()


def _curve(found: Figures) -> list[str]:
    columns = {name: POLITE[name] for name in ("rude_left", "f1", "lost", "neutral_kept")}
    head = ["Aligner, checks off", "parameters", "rows", "CPU s", "F1 on the tuning part", *columns.values()]
    rows = [
        [
            name,
            *(f"{one['training'][of]:,}" for of in ("parameters", "rows", "cpu_s")),
            *_cells(["f1"], one["tuned"]),
            *_cells(columns, one["rows"]["checks off"]),
        ]
        for name, one in found["models"].items()
    ]
    return _lines(head, rows)


def debugbench(found: Figures) -> list[str]:
    return _table("DebugBench", PROGRAMS, found["dev"].items())


def gsm8k(found: Figures) -> list[str]:
    return _table("GSM8K", SOLUTIONS, found["dev"].items())


def loop(found: Figures) -> list[str]:
    """The most likely endings, drawn ones, how likely what was really said is, and how the rounds ended."""
    return [
        *_table("most likely endings", ENDINGS, found["greedy"].items()),
        "",
        *_table("drawn endings", ENDINGS, found["drawn"].items()),
        "",
        *_table("nats per token", LIKELIHOODS, found["likelihoods"].items()),
        "",
        *_lines(
            ["round", "ended", "pairs", "corrections confirmed", "Aligner's rows", "gates that did not promote"],
            [_round(one) for one in found["rounds"]],
        ),
    ]


def _round(one: Figures) -> list[str]:
    refused = [f"{gate['name']}: {gate['decision']}" for gate in one["gates"] if gate["decision"] != "promote"]
    confirmed = f"{one['confirmed']} of {one['confirmed'] + one['refused']}" if one["confirmed"] is not None else "-"
    rows = "-" if one["aligner_rows"] is None else f"{one['aligner_rows']:,}"
    return [str(one["round"]), one["status"], f"{one['pairs']:,}", confirmed, rows, "; ".join(refused) or "none"]


def _table(title: str, columns: dict[str, str], rows: Iterable[tuple[str, Figures]]) -> list[str]:
    return _lines([title, *columns.values()], [[name, *_cells(columns, one)] for name, one in rows])


def _cells(columns: Iterable[str], one: Figures) -> list[str]:
    return [_cell(one[name]) if name in one else "-" for name in columns]


def _cell(one: Figures | float) -> str:
    if isinstance(one, float):
        return percent(one)
    return f"{one['ratio']:.3f} {between(one['interval_95'], digits=3)}" if "ratio" in one else measured(one)


TABLES: dict[str, Callable[[Figures], list[str]]] = {
    "real_paradetox": paradetox,
    "real_loop": loop,
    "real_debugbench": debugbench,
    "harm_gsm8k": gsm8k,
}
