"""Thousands of cases of the packed decoder against `generate`: any draft, batch and family, rows that join and leave."""

from __future__ import annotations

import random
import sys

import exactness
import pytest
import torch
from exactness import Case, Vocabulary, divergences, random_cases, random_model

from aligner_chain.engines.huggingface import HuggingFaceEngine

pytestmark = pytest.mark.soak

CASES = 140
BATCHES = (1, 3, 8, 32)


def run(family: str, dtype: torch.dtype, seed: int) -> tuple[int, list[float]]:
    """How many cases came to their end, and the gap between the two best tokens where each other text left the greedy one."""
    model, done, gaps = random_model(family, dtype=dtype, seed=seed), 0, []
    for max_batch in BATCHES:
        source = random.Random(f"{family}, {max_batch}, {seed}")
        cases = random_cases(model, CASES, source)
        engine = HuggingFaceEngine(model, Vocabulary(), max_batch=max_batch)
        ended, wrong = divergences(engine, cases, source)
        engine.close()
        done += ended
        gaps += [gap(model, case, ids) for case, ids in wrong]
    sys.stdout.write(f"\n{family}, {dtype}: {done} cases, {len(gaps)} differ, gaps {sorted(gaps)}\n")  # seen with -s
    return done, gaps


@torch.no_grad()
def gap(model: object, case: Case, ids: tuple[int, ...]) -> float:
    """How much better the model itself finds its best token than the second, where `ids` leave the greedy output."""
    pairs = zip((*case.output, -1), (*ids, -1), strict=False)
    same = next(at for at, (one, other) in enumerate(pairs) if one != other)
    logits = model(torch.tensor([[*case.request.prompt, *case.output[:same]]])).logits[0, -1]  # type: ignore[operator]
    best, second = logits.double().topk(2).values.tolist()
    return float(best - second)


@pytest.mark.parametrize("family", exactness.FAMILIES)
def test_in_fp64_the_text_is_the_greedy_one(family: str) -> None:
    done, gaps = run(family, torch.float64, seed=1)
    assert done > CASES * len(BATCHES) * 4 // 5
    assert gaps == []


@pytest.mark.parametrize("family", exactness.FAMILIES)
def test_in_fp32_it_differs_only_where_two_tokens_are_as_good(family: str) -> None:
    done, gaps = run(family, torch.float32, seed=2)
    assert done > CASES * len(BATCHES) * 4 // 5
    assert all(one < 1e-4 for one in gaps)


@pytest.mark.parametrize("family", exactness.FAMILIES)
def test_in_bf16_it_differs_only_where_two_tokens_are_nearly_as_good(family: str) -> None:
    """A rounding step of bf16 is 1/256 of a logit's size, which is below 16 here."""
    _, gaps = run(family, torch.bfloat16, seed=3)
    assert all(one < 0.5 for one in gaps)
