"""How often a round's gates are wrong about real weights: a bank of candidates whose truth is measured, in many gate runs.

    python benchmarks/bank --work bank-work

The served upstream is one of the support desk's whole world (0.6 million weights, 900 steps of the base and 400 on answers of
flawed staff). Every candidate is made of it: by DPO of several lengths, on swapped pairs, at 30 times the rate, by noise on the
weights, by mixing weights, by supervised training on answers that refuse, pad, break off, insult or tell secrets. Each
answers a pool of held-out prompts once, greedily, and the desk's exact policy judges every answer, so what is true of it is
known. A name says what a candidate was trained for; what it counts as is what was measured.

Then each goes through the gates of a round many times, with the default `GatePolicy`: each run draws 2,000 prompts of the
pool without replacement and in random order, and takes the answers of both to them. What a run measures is made by the
functions that a round calls; as in the demo's rounds there are no unrelated answers, so drift is not asked.
Weights and answers are kept in --work, and what is there is not made again.

Prints a table and writes benchmarks/results/bank.json. Set OMP_NUM_THREADS=1: models as small as these get no faster with more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import desk
from candidates import BANK, Shop
from measuring import measured
from report import Figures, claims, table
from runs import PROMPTS, judged_often, made_and_measured

from aligner_chain import __version__
from bootstrap.demo.show import machine_figures

sys.path.append(str(Path(__file__).parents[1]))
from stored import commit, write


def make_all(shop: Shop, prompts: int, workers: Executor) -> None:
    """Weights, answers and likelihoods of all candidates; those that are mixed of others come after these."""
    desk.served(shop.work, shop.seed), desk.sampled(shop.work, shop.seed), desk.probe(shop.work, shop.seed)
    measured(shop.served, shop, prompts)
    for mixed in (False, True):
        numbers = [number for number, one in enumerate(BANK) if bool(one.needs) == mixed]
        for name in workers.map(made_and_measured, numbers, repeat(shop), repeat(prompts)):
            print(f"made and measured: {name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for weights and answers")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--pool", type=int, default=6000, help="held-out prompts that every candidate answers")
    parser.add_argument("--runs", type=int, default=200, help="gate runs of each candidate")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    started, prompts = time.monotonic(), arguments.pool
    shop = Shop(work=arguments.work.resolve(), seed=arguments.seed)
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as workers:
        make_all(shop, prompts, workers)
        numbers = range(len(BANK))
        rows = list(workers.map(judged_often, numbers, repeat(shop), repeat(prompts), repeat(arguments.runs)))
    result = {**_described(shop, prompts, started), "claims": claims(rows), "rows": rows}
    write("bank", result)
    print("\n".join(table(result)))


def _described(shop: Shop, prompts: int, started: float) -> Figures:
    """How the figures came about."""
    run, served = machine_figures(started), measured(shop.served, shop, prompts)
    run["versions"]["aligner_chain"] = __version__
    return {
        "seed": shop.seed,
        **run,
        "commit": commit(),
        "pool": prompts,
        "prompts_of_a_run": PROMPTS,
        "served": {
            "right": sum(served.right) / prompts,
            "criteria": {name: sum(one[name] for one in served.verdicts) / prompts for name in served.verdicts[0]},
            "answers_per_second": prompts / served.seconds,
        },
    }


if __name__ == "__main__":
    main()
