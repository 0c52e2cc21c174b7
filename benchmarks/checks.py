"""What the checks make of recorded corrections, and of right ones, which they must serve as they were written.

    python benchmarks/checks.py --data FOLDER

FOLDER has `aligner2b_recorded` (what the published Aligner-2B wrote) and `debugbench_python` (fixes of programs), each with
train.jsonl and dev.jsonl, all rows of which go through the default checks, as with `aligner-chain check --replay`; after them go
generated repairs of the support desk's answers: without passages, with them, and with citation marks besides. No model runs.
Takes half a minute of processor time, prints the table of each set and writes counts and no text to benchmarks/results/checks.json.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from stored import commit, write

from aligner_chain import Correction, __version__
from aligner_chain.checks import Checks
from aligner_chain.checks.replay import recorded, replay

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import desk_repairs

RECORDED = ("aligner2b_recorded", "debugbench_python")
PARTS = ("train", "dev")
DRAWN, SEED = 1000, 0
"""Answers that are drawn of each kind of the desk's; those with passages are repaired only where they contradict them."""


def sets(data: Path) -> Iterator[tuple[str, Iterator[Correction]]]:
    """Corrections as they were written, by the name of their set."""
    for name in RECORDED:
        files = [data / name / f"{part}.jsonl" for part in PARTS]
        yield name, chain.from_iterable(map(recorded, files))
    yield "desk", desk_repairs.plain(DRAWN, SEED)
    yield "desk, passages", desk_repairs.with_passages(DRAWN, SEED, cited=False)
    yield "desk, citation marks", desk_repairs.with_passages(DRAWN, SEED, cited=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the folder of recorded pairs")
    given = parser.parse_args()
    reports = {name: replay(corrections, Checks()) for name, corrections in sets(given.data)}
    told = {
        "aligner_chain": __version__,
        "commit": commit(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "cpu_s": round(time.process_time(), 1),
        "sets": {name: report.as_json() for name, report in reports.items()},
    }
    write("checks", told)
    for name, report in reports.items():
        print("\n".join(["", name, *report.table()]))


if __name__ == "__main__":
    main()
