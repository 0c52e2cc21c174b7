"""One run of the benchmark: which workloads, which decoders, on which model."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain import __version__
from aligner_chain.bench import report
from aligner_chain.bench.measure import measure, sample
from aligner_chain.bench.replays import REPLAYS, find, replay
from aligner_chain.bench.workloads import SYNTHETIC, Workload, synthetic
from aligner_chain.errors import MissingExtraError

if TYPE_CHECKING:
    from aligner_chain.bench.decoders import Decoder, Generate

ALL = (*SYNTHETIC, *REPLAYS)
QUICK = ("copy_128", "edits_3", "refusal")
"""A copy, light edits, and an answer that has nothing of the correction."""
QUICK_PAIRS = 2

_GRID = tuple(product((10, 32, 64), (2, 3)))
"""Tokens looked up and longest n-gram, of which prompt lookup gets the best pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """`data` holds the folders of recorded pairs; without it no replay is run."""

    workloads: Sequence[str] = ALL
    model: str = "tiny"
    dtype: str = "auto"
    pairs: int = 20
    threads: int = 1
    seed: int = 0
    data: Path | None = None


def run(settings: Settings, progress: Callable[[str], None], notice: Callable[[str], None]) -> Iterator[report.Figures]:
    """Yields an object for each workload and decoder. `progress` hears what runs, `notice` what is left out.

    Raises `MissingExtraError` without torch or transformers.
    """
    try:
        from aligner_chain.bench.models import new_model, new_tokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "local") from error
    with _threads(settings.threads):
        model, tokenizer = new_model(settings.model, settings.dtype, settings.seed), new_tokenizer()
        for workload in _workloads(settings, notice):
            for figures in _measured(workload, model, tokenizer, settings, progress):
                yield {**figures, **_setting(model, settings)}


def _workloads(settings: Settings, notice: Callable[[str], None]) -> Iterator[Workload]:
    for name in settings.workloads:
        if name in SYNTHETIC:
            yield synthetic(name, settings.pairs, settings.seed)
        elif (folder := find(name, settings.data)) is not None:
            yield replay(name, folder, settings.seed)
        else:
            notice(f"{name} is left out: it replays recorded pairs; --data names the folder that has them.")


def _measured(
    workload: Workload, model: Any, tokenizer: Any, settings: Settings, progress: Callable[[str], None]
) -> list[report.Figures]:
    from aligner_chain.bench.drafting import drafting_ms

    decoders = _decoders(workload, model, tokenizer, settings, progress)
    try:
        samples = measure(workload, decoders, settings.pairs, progress)
        drafting = next(drafting_ms(one, workload.cases[0]) for one in decoders if one.name == report.OURS)
    finally:
        for decoder in decoders:
            decoder.close()
    return list(report.described(workload, decoders, samples, drafting))


def _decoders(
    workload: Workload, model: Any, tokenizer: Any, settings: Settings, progress: Callable[[str], None]
) -> list[Decoder]:
    """Those that can decode as many rows; the baseline first, and what replays our forwards behind ours."""
    from aligner_chain.bench.decoders import BareForwards, ContinuousBatching, Generate, GenerateBatch, Ours

    def ours(name: str, *, draft: bool) -> Ours:
        known = workload.tokenizer or tokenizer
        return Ours(name, model, known, draft=draft, verdict=workload.verdict, callers=workload.callers)

    generate, drafted = Generate(report.BASELINE, model), ours(report.OURS, draft=True)
    plain = ours("aligner_chain_plain", draft=False)
    if workload.rows > 1:
        batched = GenerateBatch("hf_batch", model)
        return [generate, batched, ContinuousBatching("hf_generate_batch", model), drafted, plain]
    lookup = Generate("hf_prompt_lookup", model, prompt_lookup_num_tokens=10)
    best = _best_lookup(workload, model, max(1, settings.pairs // 5), progress)
    return [generate, lookup, best, drafted, BareForwards(drafted, model), plain]


def _best_lookup(workload: Workload, model: Any, cases: int, progress: Callable[[str], None]) -> Generate:
    """Prompt lookup with the settings that took the least CPU time on the first cases of the workload."""
    from aligner_chain.bench.decoders import Generate

    name = "hf_prompt_lookup_best"
    candidates = [Generate(name, model, prompt_lookup_num_tokens=k, max_matching_ngram_size=n) for k, n in _GRID]

    def seconds(candidate: Generate) -> float:
        progress(f"{workload.name}: prompt lookup is tuned, {candidate.settings}")
        return sum(sample(candidate, case).cpu_s for case in workload.cases[:cases])

    return min(candidates, key=seconds)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _setting(model: Any, settings: Settings) -> report.Figures:
    from aligner_chain.bench.models import processor

    packages = ("torch", "transformers", "tokenizers")
    name = processor().get("cpu_name") or platform.processor() or platform.machine()
    return {
        "model": settings.model,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": settings.threads,
        "seed": settings.seed,
        "machine": {"processor": name, "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            "aligner_chain": __version__,
            **{package: metadata.version(package) for package in packages},
        },
    }
