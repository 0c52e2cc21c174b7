"""Writes every table of figures in README.md and docs/*.md anew, from the stored files in benchmarks/results alone.

    make tables                             # or: python benchmarks/tables
    python benchmarks/tables --check        # changes nothing; prints what would change, and fails if anything would

A table stands between two comments in its page (see places.py); what stands there is never typed by hand. What computes the
stored files is told by `python benchmarks/recompute.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "real")]
import ablation_tables  # noqa: E402
import collecting  # noqa: E402
import decoding  # noqa: E402
import gates  # noqa: E402
import harm  # noqa: E402
import listing  # noqa: E402
import others  # noqa: E402
import places  # noqa: E402
import rounds  # noqa: E402
import tables as real  # noqa: E402
from stored import read  # noqa: E402

Made = tuple[Callable[..., list[str]], Sequence[str]]
"""What makes the lines of a table, from the figures of so many stored files."""

TABLES: dict[str, Made] = {
    "ablations.together": (ablation_tables.together, ["ablations"]),
    "ablations.by_source": (ablation_tables.by_source, ["ablations"]),
    "bank.kinds": (gates.kinds, ["bank"]),
    "bank.candidates": (gates.candidates, ["bank"]),
    "checks.recorded": (harm.checked, ["checks"]),
    "checks.repairs": (harm.repairs, ["checks"]),
    "collect.submit": (collecting.submit, ["collect"]),
    "collect.records": (collecting.records, ["collect"]),
    "decode.one_row": (decoding.one_row, ["decode_tiny_float32"]),
    "decode.many_rows": (decoding.many_rows, ["decode_tiny_float32"]),
    "decode.100m": (decoding.large, ["decode_100m_float32"]),
    "demo_rag": (others.demo_rag, ["demo_rag"]),
    "draft_replay": (decoding.replayed, ["draft_replay"]),
    "gates.sequential": (gates.sequential, ["gates"]),
    "gates.rounds": (gates.rounds, ["gates"]),
    "gates.simulated": (gates.simulated, ["gates"]),
    "harm.desk": (harm.desk, ["harm_desk"]),
    "harm.gate": (harm.gate, ["harm_gate_0.1"]),
    "harm.real": (harm.real, ["harm_paradetox", "harm_gsm8k"]),
    "harm.strength": (harm.strength, ["harm_strength", "harm_strength_paradetox"]),
    "memory": (others.memory, ["memory"]),
    "overlap": (decoding.overlapped, ["overlap_tiny_float32", "overlap_100m_float32"]),
    "peers": (decoding.beside_vllm, ["peers"]),
    "proxy": (others.proxy, ["proxy"]),
    "redaction": (others.redaction, ["redaction"]),
    "rounds.short": (rounds.short, ["rounds"]),
    "rounds.seeds": (rounds.seeds, ["rounds"]),
    "rounds.arms": (rounds.arms, ["rounds"]),
    "same_training": (others.same_training, ["same_training"]),
    "vllm_drafter": (decoding.drafts_on_vllm, ["vllm_drafter"]),
    "warming": (decoding.warmed, ["warming"]),
    **{name: (lines, [name]) for name, lines in real.TABLES.items()},
}


LISTS = ("figures.tables", "figures.stored")
"""What docs/figures.md lists."""


def made(on: Mapping[str, Path]) -> dict[str, list[str]]:
    """The lines of every table; `on` is the page of each."""
    known = {name: lines(*map(read, files)) for name, (lines, files) in TABLES.items()}
    files = {name: files for name, (_, files) in TABLES.items()}
    return known | dict(zip(LISTS, (listing.by_table(files, on), listing.by_file()), strict=True))


def stale(on: Mapping[str, Path]) -> Iterator[tuple[Path, str, str]]:
    """Each page that the stored files have other tables for: as it is, and as it should be."""
    tables = made(on)
    for page in sorted(set(on.values())):
        before = page.read_text(encoding="utf-8")
        after = places.filled(before, tables)
        if after != before:
            yield page, before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, and fail where a page says other")
    given = parser.parse_args()
    found = list(stale(places.pages_of([*TABLES, *LISTS])))
    for page, before, after in found:
        if given.check:
            print("\n".join(places.difference(page, before, after)))
        else:
            page.write_text(after, encoding="utf-8")
            print(f"written: {page.name}")
    if given.check and found:
        sys.exit("The stored files say other than these pages.  make tables  writes their tables anew.")


if __name__ == "__main__":
    main()
