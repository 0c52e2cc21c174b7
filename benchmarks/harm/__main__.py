"""Whether correcting does harm: right answers and wrong ones side by side, what a gate saves, and what strength does.

    aligner-bootstrap demo --seed 10 --out demo-out
    python benchmarks/harm desk --demo demo-out
    python benchmarks/harm gate --demo demo-out
    python benchmarks/harm strength --demo demo-out
    python benchmarks/harm paradetox --data folder-with-train-and-dev
    python benchmarks/harm gsm8k --data folder-with-train-and-dev
    python benchmarks/harm strength_paradetox --data folder-with-train-and-dev

The first three take the support desk's models from the folder of a demo and its exact judge; the answers are those of the
upstream of its start to held-out questions. The others train a small Aligner from nothing on a folder's train.jsonl and
measure on its dev.jsonl; strength_paradetox takes the one that paradetox trained. Models are kept in --work and not
trained again. Prints tables and writes results/harm_*.json.
Set OMP_NUM_THREADS=1: models as small as these get no faster with more.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import desk
import gate
import real
import side_by_side
import strength
from report import Figures, write

from aligner_chain import Aligner
from aligner_chain.calibration import needed

SIZES = {
    "paradetox": real.Size(words=4000, hidden=128, window=384, warm_up=0.5, epochs=1.5, batch=32),
    "gsm8k": real.Size(words=3000, hidden=128, window=1024, warm_up=0.5, epochs=1.2, batch=8),
}


def run_desk(options: argparse.Namespace) -> Figures:
    asked = _asked(options, options.answers * 5)
    aligner = desk.local_aligner(desk.served(options.demo))
    said = desk.upstream_answers(options.demo, asked, options.seed)
    made = desk.generated(asked[: 2 * options.answers], random.Random(options.seed))
    figures = {}
    for name, one in (("upstream", said), ("generated", made)):
        right, wrong = one.right[: options.answers], one.wrong[: options.answers]
        figures[name] = side_by_side.measure(aligner, right, wrong, desk.is_right)
        side_by_side.show(
            f"support desk, answers of the {name}" if name == "upstream" else f"support desk, {name}", figures[name]
        )
    return {"aligner_thresholds": dict(aligner.metadata.thresholds), **figures}


def run_gate(options: argparse.Namespace) -> Figures:
    answers = desk.upstream_answers(options.demo, _asked(options, options.answers * 5), options.seed)
    known_bad, fresh = answers.wrong[: options.bad], desk.Answers(answers.right, answers.wrong[options.bad :])
    chosen = gate.mixed(fresh, options.answers, random.Random(options.seed))
    found = gate.ways(options.demo, options.work, known_bad, options.seed, options.alpha)
    figures = gate.measure(found, chosen, options.alpha)
    gate.show(figures)
    return {"known_bad": len(known_bad), "needed": needed(options.alpha, gate.DELTA), **figures}


def run_strength(options: argparse.Namespace) -> Figures:
    answers = desk.upstream_answers(options.demo, _asked(options, options.answers * 5), options.seed)
    chosen = gate.mixed(answers, options.answers, random.Random(options.seed))
    figures = strength.measure(desk.local_aligner(desk.served(options.demo)), chosen, desk.is_right, options.seed)
    strength.show(figures)
    return figures


def run_strength_paradetox(options: argparse.Namespace) -> Figures:
    """Strength where the Aligner is often wrong: the one that `paradetox` trained, on the dev part."""
    dev = real.paradetox(real.rows_of(options.data, "dev"))
    chosen = gate.mixed(desk.Answers(dev.right, dev.wrong), options.answers, random.Random(options.seed))
    aligner = Aligner.from_pretrained(options.work / "paradetox")
    figures = strength.measure(aligner, chosen, lambda one, text: real.same_text(dev, one, text), options.seed)
    strength.show(figures)
    return figures


def run_real(options: argparse.Namespace) -> Figures:
    reads, judge = (real.gsm8k, real.same_number) if options.what == "gsm8k" else (real.paradetox, real.same_text)
    train, dev = (reads(real.rows_of(options.data, part)) for part in ("train", "dev"))
    size = SIZES[options.what]
    aligner, training = real.trained(options.work, options.what, real.triples_of(train), size, options.seed)
    figures = real.measure(aligner, dev, judge)
    closeness = figures.pop("closeness")
    side_by_side.show(f"{options.what}, dev part", figures)
    print(f"likeness of the wrong ones to an accepted text: {closeness}\ntraining: {training}")
    return {"size": vars(size), "training": training, "closeness": closeness, "dev": figures}


def _asked(options: argparse.Namespace, count: int) -> list[real.Exchange]:
    """Questions of the report set, by which the demo decides nothing; each benchmark draws its own."""
    some = desk.prompts(random.Random(f"{options.seed} harm {options.what}"), desk.held_out, "report")
    return [next(some) for _ in range(count)]


RUNS = {
    "desk": run_desk,
    "gate": run_gate,
    "strength": run_strength,
    "strength_paradetox": run_strength_paradetox,
    "paradetox": run_real,
    "gsm8k": run_real,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder of a full demo")
    parser.add_argument("--data", type=Path, help="the folder with train.jsonl and dev.jsonl")
    parser.add_argument("--work", type=Path, default=Path("harm-work"), help="where trained models are kept")
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--bad", type=int, default=800, help="known-bad answers to calibrate on")
    parser.add_argument("--alpha", type=float, default=0.05, help="share of bad answers that a gate may miss")
    parser.add_argument("--seed", type=int, default=10)
    options = parser.parse_args()
    if options.what in ("paradetox", "gsm8k", "strength_paradetox") and options.data is None:
        parser.error(f"{options.what} needs --data")
    started = time.monotonic()
    name = f"gate_{options.alpha:g}" if options.what == "gate" else options.what
    print(write(name, options.seed, started, RUNS[options.what](options)))


if __name__ == "__main__":
    main()
