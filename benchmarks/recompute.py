"""What computes each stored file of results, and how long it takes.

    python benchmarks/recompute.py                                  # lists the files
    python benchmarks/recompute.py gates                            # computes benchmarks/results/gates.json anew
    python benchmarks/recompute.py harm_gsm8k --data FOLDER

FOLDER has a folder for each set of recorded pairs (`paradetox`, `gsm8k_solutions`, `debugbench_python`, `aligner2b_recorded`), each
with `train.jsonl` and `dev.jsonl`. Commands run in the repository's folder, with this Python and OMP_NUM_THREADS=1. What they
read besides, a demo or an environment with vLLM, is not made here: where it is missing the command that makes it is named. What
was trained before, in bank-work, harm-work and real-work, is not trained again unless these folders are removed.
`make tables` then brings the new figures into the docs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO, QUICK, QUICK_RAG = "demo-out/home", "demo-quick/home", "demo-quick-rag/home"
VLLM, PARADETOX = ".venv-vllm/bin/python", "harm-work/paradetox"
MADE_BY = {
    DEMO: "aligner-bootstrap demo --seed 10 --out demo-out",
    QUICK: "aligner-bootstrap demo --quick --seed 10 --out demo-quick",
    QUICK_RAG: "aligner-bootstrap demo --quick --rag --seed 10 --out demo-quick-rag",
    VLLM: "make vllm-env",
    PARADETOX: "python benchmarks/recompute.py harm_paradetox --data FOLDER",
}
"""What is read besides recorded pairs, and what makes it."""
DATA = "FOLDER"
"""Stands in a command for the folder of recorded pairs."""


@dataclass(frozen=True)
class Recipe:
    """What computes one stored file: commands, the minutes that they take on two cores where that is known, and what they read."""

    commands: Sequence[str]
    minutes: int | None = None
    reads: Sequence[str] = ()

    @property
    def data(self) -> bool:
        """Whether it reads recorded pairs."""
        return any(DATA in command for command in self.commands)


def _harm(what: str, minutes: int, *reads: str) -> Recipe:
    return Recipe([f"python benchmarks/harm {what}"], minutes, reads)


RECIPES = {
    "ablations": Recipe(["python benchmarks/ablations.py --work ablations-work"], 60),
    "bank": Recipe(["python benchmarks/bank --work bank-work"]),
    "checks": Recipe([f"python benchmarks/checks.py --data {DATA}"], 1),
    "collect": Recipe(["python benchmarks/collect.py"]),
    "decode_100m_float32": Recipe(
        [
            "python benchmarks/decode.py --model 100m --dtype float32 --pairs 15 --workload copy_128 edits_3 copy_128_verdict"
        ],
        10,
    ),
    "decode_tiny_float32": Recipe(
        [
            f"python benchmarks/decode.py --dtype float32 --data {DATA} --pairs 15",
            "python benchmarks/decode.py --dtype float32 --workload rewrite --pairs 31",
        ],
        30,
    ),
    "demo_rag": Recipe(["python benchmarks/demo_rag.py --seeds 1 2"], 9),
    "draft_replay": Recipe([f"python benchmarks/draft_replay.py --data {DATA}"]),
    "gates": Recipe(["python benchmarks/gates.py"]),
    "harm_desk": _harm("desk", 3, DEMO),
    "harm_gate_0.05": _harm("gate --alpha 0.05", 10, DEMO),
    "harm_gate_0.1": _harm("gate --alpha 0.1", 8, DEMO),
    "harm_gsm8k": _harm(f"gsm8k --data {DATA}/gsm8k_solutions", 15),
    "harm_paradetox": _harm(f"paradetox --data {DATA}/paradetox", 19),
    "harm_strength": _harm("strength", 2, DEMO),
    "harm_strength_paradetox": _harm(f"strength_paradetox --data {DATA}/paradetox", 1, PARADETOX),
    "injection": Recipe(
        [
            "python benchmarks/injection.py --aligner demo-quick/home/aligner/1 --desk small --cases 100",
            "python benchmarks/injection.py --aligner demo-quick-rag/home/aligner/1 --desk rag --cases 60",
        ],
        20,
        [QUICK, QUICK_RAG],
    ),
    "langchain_overhead": Recipe(["python benchmarks/langchain_overhead.py"]),
    "memory": Recipe(["python benchmarks/memory.py"], 2),
    "overlap_100m_float32": Recipe(["python benchmarks/overlap.py --model 100m --dtype float32 --answers 50"]),
    "overlap_tiny_float32": Recipe(["python benchmarks/overlap.py --dtype float32 --answers 50"]),
    "peers": Recipe(
        [f"python benchmarks/peers/run.py --aligner demo-quick/home/aligner/1 --vllm-python {VLLM}"], 10, [QUICK, VLLM]
    ),
    "proxy": Recipe(["python benchmarks/proxy.py"]),
    "real_debugbench": Recipe([f"python benchmarks/real debugbench --data {DATA}/debugbench_python"], 3),
    "real_loop": Recipe([f"python benchmarks/real loop --data {DATA}/paradetox"]),
    "real_paradetox": Recipe([f"python benchmarks/real paradetox --data {DATA}/paradetox"], 65),
    "redaction": Recipe(["python benchmarks/redaction.py"]),
    # It goes on with what stands in the file, and after a stop with the second command alone.
    "rounds": Recipe(["rm -f benchmarks/results/rounds.json", "python benchmarks/rounds.py"], 171),
    "same_training": Recipe(["python benchmarks/same_training.py"], 1),
    "vllm_drafter": Recipe(
        [
            f"python benchmarks/peers/vllm_drafter.py --aligner demo-quick/home/aligner/1 --vllm-python {VLLM} --items 48"
        ],
        20,
        [QUICK, VLLM],
    ),
    "warming": Recipe(["python benchmarks/warming.py --answers 3"], None, [VLLM]),
}
"""By the name of the stored file, without its suffix."""


def listed() -> Iterator[str]:
    for name, recipe in RECIPES.items():
        took = "" if recipe.minutes is None else f"  ({recipe.minutes} minutes)"
        yield f"\n{name}{took}"
        yield from (f"  first, if {path} is not there:  {MADE_BY[path]}" for path in recipe.reads)
        yield from (f"  {command}" for command in recipe.commands)


def recompute(recipe: Recipe, data: Path | None, root: Path = ROOT) -> None:
    """Runs the commands in `root`, and ends with the exit status of the first that fails."""
    for path in recipe.reads:
        if not (root / path).exists():
            sys.exit(f"{path} is not there. Make it with:  {MADE_BY[path]}")
    for command in recipe.commands:
        print(command, flush=True)
        done = subprocess.run(typed(command, data), cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode:
            sys.exit(done.returncode)


def typed(command: str, data: Path | None) -> list[str]:
    """The command's words, with this Python, and the folder of data in its place."""
    words = [word.replace(DATA, str(data.resolve())) if data else word for word in shlex.split(command)]
    return [sys.executable if word == "python" else word for word in words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "name", nargs="?", choices=RECIPES, metavar="NAME", help="a stored file; without it all are listed"
    )
    parser.add_argument("--data", type=Path, metavar=DATA, help="the folder of recorded pairs")
    given = parser.parse_args()
    if given.name is None:
        print("\n".join(listed()))
    elif RECIPES[given.name].data and given.data is None:
        parser.error(f"{given.name} needs --data {DATA}, the folder that has a folder for each set of recorded pairs")
    else:
        recompute(RECIPES[given.name], given.data)


if __name__ == "__main__":
    main()
