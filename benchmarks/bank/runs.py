"""What a process of the bank does with one candidate: make it, measure it, send it through the gates many times."""

from __future__ import annotations

import random
from collections.abc import Sequence

from candidates import BANK, Candidate, Shop
from measuring import judged, likelihoods, made, measured
from report import Figures, row, truth

from bootstrap.evaluation import GatePolicy

PROMPTS = 2000
"""Of one gate run."""


def made_and_measured(number: int, shop: Shop, prompts: int) -> str:
    folder = made(BANK[number], shop)
    measured(folder, shop, prompts)
    likelihoods(folder, shop)
    return BANK[number].name


def judged_often(number: int, shop: Shop, prompts: int, runs: int) -> Figures:
    """One candidate's truth, and its gate runs."""
    candidate, folder = BANK[number], shop.folder(BANK[number].name)
    before, after = measured(shop.served, shop, prompts), measured(folder, shop, prompts)
    changed, policy = likelihoods(folder, shop), GatePolicy()
    gates = [
        judged(before, after, changed, _drawn(shop, candidate, run, prompts), seed=run, policy=policy)
        for run in range(runs)
    ]
    return row(candidate, truth(before, after, changed), gates)


def _drawn(shop: Shop, candidate: Candidate, run: int, prompts: int) -> Sequence[int]:
    return random.Random(f"{shop.seed} {candidate.name} {run}").sample(range(prompts), PROMPTS)
