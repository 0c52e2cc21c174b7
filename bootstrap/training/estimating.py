"""What the training of an Aligner will take: memory from its settings, time from its arithmetic and this machine's speed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootstrap.aligner_training import AlignerRows, AlignerTrainingSettings
from bootstrap.sft import TrainingSettings, device_batch
from bootstrap.upstream.memory import MemoryEstimate, estimate_memory_of, matrix_weights

UTILISATION = 0.35
"""The share of a matrix product's speed that a training is taken to reach; benchmarks/memory.py measures it on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a training takes: memory of each device, steps by stage, tokens over all steps and their arithmetic.

    `flops` are multiplications and additions of all devices together, padding left out.
    """

    memory: MemoryEstimate
    steps: Mapping[str, int]
    tokens: int
    flops: float

    def seconds(self, speed: float) -> float:
        """How long it takes on devices that multiply matrices with `speed` operations a second together."""
        return self.flops / (speed * UTILISATION)


def estimate_aligner(
    base: Path,
    rows: AlignerRows,
    settings: AlignerTrainingSettings,
    *,
    cuda: bool,
    shards: int = 1,
    together: int | None = None,
) -> Estimate:
    """What a training takes, from the base's `config.json`, the rows and the settings.

    Args:
        base: a model folder; no weight of it is read.
        rows: what is trained on.
        settings: both stages, adapters and quantisation.
        cuda: whether it trains on GPUs.
        shards: over how many devices the model is divided.
        together: how many processes divide a batch; None takes those that train now.
    """
    memories, tokens, steps, flops = [], 0, {}, 0.0
    weights = matrix_weights(base)
    for name, stage in settings.stages.items():
        checkpointed = bool(stage.extra.get("gradient_checkpointing", cuda))
        lengths = [len(row.prompt) + len(row.output) for row in rows.stages[name]]
        memory = estimate_memory_of(
            base,
            lora=settings.lora,
            quantized=bool(settings.quantized),
            tokens=device_batch(stage, together) * max(lengths),
            cuda=cuda,
            checkpointed=checkpointed,
            shards=shards,
        )
        memories.append(memory)
        steps[name] = step_count(stage, len(lengths))
        read = round(steps[name] * stage.batch * sum(lengths) / len(lengths))
        tokens += read
        # Forward; backward to what goes in and, of what is trained, to the weights; forward again where it was not kept.
        flops += 2.0 * (2 + int(not settings.lora) + int(checkpointed)) * weights * read
    heaviest = max(memories, key=lambda memory: memory.total)
    return Estimate(memory=heaviest, steps=steps, tokens=tokens, flops=flops)


def step_count(stage: TrainingSettings, rows: int) -> int:
    """How many optimiser steps a stage has on so many rows; the last step of a pass may be a small one."""
    if stage.steps > 0:
        return stage.steps
    return max(1, math.ceil(stage.epochs * math.ceil(rows / stage.batch)))


def matrix_speed(*, cuda: bool, size: int | None = None) -> float:
    """How many operations a second one device of this machine does in a product of two square matrices, warm.

    In bf16 on a GPU, in fp32 on the CPU. Takes a tenth of a second.
    """
    import torch

    size, device = size or (8192 if cuda else 1024), "cuda" if cuda else "cpu"
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    times = []
    for _ in range(5):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        one @ one
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(times)
