"""The demo with passages on seeds that nothing was tuned on: contradictions that it repairs, right answers that it keeps.

    python benchmarks/demo_rag.py [--seeds 1 2] [--work demo-rag-work]
    python benchmarks/demo_rag.py --show

Runs `aligner-bootstrap demo --rag --seed N` in a folder of --work for each seed, some five minutes on two cores; a seed whose
figures.json is there is not run again. When all are there it writes benchmarks/results/demo_rag.json and prints the table.
`--quick` is the quick demo, a minute and a half, to see that this runs; it stores nothing. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stored import Figures, commit, read, write

from aligner_chain import __version__
from bootstrap.demo.scale import RAG_FULL, RAG_QUICK, RagScale

sys.path.append(str(Path(__file__).parent / "tables"))
import others

KEPT = (
    "all products",
    "known products",
    "unseen products",
    "right answers",
    "seconds",
    "peak_memory_gib",
    "machine",
    "versions",
)
"""What is stored of a demo's figures."""


def demo(out: Path, seed: int, scale: RagScale) -> Figures:
    """What is stored of a seed; the demo is run where its folder has no figures yet."""
    if not (out / "figures.json").exists():
        command = [sys.executable, "-P", "-m", "bootstrap.cli", "demo", "--rag", "--seed", str(seed), "--out", str(out)]
        quick = ["--quick"] if scale is RAG_QUICK else []
        if code := subprocess.run([*command, *quick], check=False).returncode:
            sys.exit(code)  # the demo has said why
        (out / "commit").write_text(commit(), encoding="utf-8")
    return kept(out, seed, scale)


def kept(out: Path, seed: int, scale: RagScale) -> Figures:
    """What is stored of the figures in a demo's folder; those of another demo end the program.

    The commit is that of the sources that ran, and None where the demo was not started from here.
    """
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    if (figures["seed"], _sizes(figures["scale"])) != (seed, _sizes(asdict(scale))):
        sys.exit(f"{out} has another demo: not seed {seed}, or not of this size. Name another --work, or remove it.")
    ran = out / "commit"
    return {
        "commit": ran.read_text(encoding="utf-8") if ran.exists() else None,
        "threads": figures["scale"]["threads"],
        **{name: figures[name] for name in KEPT},
    }


def _sizes(scale: Mapping[str, Any]) -> dict[str, Any]:
    """Without the number of threads, which the machine decides."""
    return {name: value for name, value in scale.items() if name != "threads"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", type=Path, default=Path("demo-rag-work"), help="has a folder for each seed")
    parser.add_argument("--quick", action="store_true", help="the quick demo; stores nothing")
    parser.add_argument("--show", action="store_true", help="print what is stored")
    given = parser.parse_args()
    if given.show:
        told = read("demo_rag")
    else:
        scale, name = (RAG_QUICK, "quick-seed") if given.quick else (RAG_FULL, "seed")
        runs = {str(seed): demo(given.work / f"{name}-{seed}", seed, scale) for seed in given.seeds}
        told = {"aligner_chain": __version__, "runs": runs}
        if not given.quick:
            write("demo_rag", told)
    print("\n".join(others.demo_rag(told)))


if __name__ == "__main__":
    main()
