"""Decoders timed in turns on the same rows, and the statistics of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

from aligner_chain.bench.workloads import Case, Workload

if TYPE_CHECKING:
    from aligner_chain.bench.decoders import Decoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One decoder on one case: seconds of the whole process's CPU and of the clock, and what the model did."""

    cpu_s: float
    wall_s: float
    forwards: int
    fed: int
    written: tuple[tuple[int, ...], ...]


def measure(
    workload: Workload, decoders: Sequence[Decoder], pairs: int, progress: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """Each decoder's samples, one per pair; fewer pairs where the workload has fewer cases.

    In every pair all decoders decode the same case, one after the other. Before that each leaves behind, on other cases, what
    is done once: of code that is written for a size of forwards the first decoder would write the most, and memory that is
    new costs more than what is used again.
    """
    for decoder in decoders:
        progress(f"{workload.name}: {decoder.name} warms up")
        for case in workload.warm_up[: decoder.warm_up]:
            sample(decoder, case)
    samples: dict[str, list[Sample]] = {decoder.name: [] for decoder in decoders}
    for number, case in enumerate(workload.cases[:pairs], 1):
        for decoder in decoders:
            progress(f"{workload.name}: pair {number} of {pairs}, {decoder.name}")
            samples[decoder.name].append(sample(decoder, case))
    return samples


def sample(decoder: Decoder, case: Case) -> Sample:
    """One decoding. What forcing took is taken off, as no decoder would have it."""
    decoder.prepare(case)
    cpu, wall = time.process_time(), time.perf_counter()
    written = decoder.decode(case)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    counts = decoder.forcing.counts
    return Sample(
        cpu_s=cpu - counts.cpu_s,
        wall_s=wall - counts.wall_s,
        forwards=counts.forwards,
        fed=counts.fed,
        written=tuple(written),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times less time a decoder takes than another: the median over the pairs and its 95 % interval.

    `pooled` is the ratio of the sums, in which long answers weigh more. With fewer than 6 pairs no interval can be
    given.
    """

    median: float
    interval_95: tuple[float, float] | None
    pooled: float


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """The ratio of seconds that were measured pair by pair."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return Ratio(median=statistics.median(ratios), interval_95=interval_95(ratios), pooled=sum(slow) / sum(fast))


def interval_95(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the median lies with at least 95 % certainty, by order statistics; None for fewer than 6 values.

    Of n values, the number below the median is binomial (n, 1/2), whatever their distribution is. So as many values
    are dropped at either end as keep the probability of each side within 2.5 %.
    """
    ordered, count = sorted(values), len(values)
    dropped, tail = 0, 1 / 2**count
    while tail <= 0.025:
        dropped += 1
        tail += comb(count, dropped) / 2**count
    return (ordered[dropped - 1], ordered[-dropped]) if dropped else None
