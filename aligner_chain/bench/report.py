"""What came of a measurement: an object for each workload and decoder, and a table of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aligner_chain.bench.measure import Sample, ratio
from aligner_chain.bench.workloads import Case, Workload, edit_ratio

if TYPE_CHECKING:
    from aligner_chain.bench.decoders import Decoder

BASELINE = "hf_generate"
OURS = "aligner_chain"
BARE = "bare_forwards"

Figures = dict[str, Any]


def described(
    workload: Workload, decoders: Sequence[Decoder], samples: Mapping[str, Sequence[Sample]], drafting_ms: float
) -> Iterator[Figures]:
    """An object for each decoder. Speed-ups are of CPU time unless they say wall; counts are means over the pairs.

    `drafting_ms` is what our decoder takes for drafting, per forward.
    """
    cases = workload.cases[: len(samples[BASELINE])]
    about = _about(workload, cases)
    for decoder in decoders:
        if decoder.name != BARE:
            yield {
                "workload": workload.name,
                "decoder": decoder.name,
                **_speed(decoder.name, samples),
                **_counts(samples[decoder.name], about["output_tokens"]),
                "identical_to_greedy": _written(samples[decoder.name]) == _written(samples[BASELINE]),
                **(_overhead(samples, drafting_ms) if decoder.name == OURS else {}),
                "settings": decoder.settings,
                **about,
            }


def _about(workload: Workload, cases: Sequence[Case]) -> Figures:
    rows = [row for case in cases for row in case]
    return {
        "edit_ratio": edit_ratio(tuple(rows)),
        "rows": workload.rows,
        "prompt_tokens": sum(len(row.prompt) for row in rows) / len(cases),
        "output_tokens": sum(len(row.correction) + 1 for row in rows) / len(cases),  # with EOS
        "pairs": len(cases),
        "note": workload.note,
    }


def _speed(name: str, samples: Mapping[str, Sequence[Sample]]) -> Figures:
    cpu = {other: [one.cpu_s for one in several] for other, several in samples.items()}
    wall = {other: [one.wall_s for one in several] for other, several in samples.items()}
    others = [other for other in samples if other not in (name, BARE)]
    by_cpu = ratio(cpu[BASELINE], cpu[name])
    return {
        "speedup_vs_hf_generate": by_cpu.median,
        "cpu": asdict(by_cpu),
        "wall": asdict(ratio(wall[BASELINE], wall[name])),
        "speedup_vs": {other: ratio(cpu[other], cpu[name]).median for other in others},
        "cpu_s": statistics.median(cpu[name]),
        "wall_s": statistics.median(wall[name]),
    }


def _counts(samples: Sequence[Sample], output_tokens: float) -> Figures:
    forwards = statistics.mean(one.forwards for one in samples)
    return {
        "forwards": forwards,
        "tokens_per_forward": output_tokens / forwards,
        "fed_tokens": statistics.mean(one.fed for one in samples),
    }


def _written(samples: Sequence[Sample]) -> list[tuple[tuple[int, ...], ...]]:
    return [one.written for one in samples]


def _overhead(samples: Mapping[str, Sequence[Sample]], drafting_ms: float) -> Figures:
    """What our decoder takes for drafts, and all it takes beside its forwards as a share of what those take alone."""
    drafting = {"drafting_ms_per_forward": drafting_ms}
    if BARE not in samples:
        return drafting
    ours, bare = ([one.cpu_s for one in samples[key]] for key in (OURS, BARE))
    return {**drafting, "overhead_over_bare_forwards": ratio(ours, bare).median - 1}


_HEAD = (
    f"{'workload':<18}{'decoder':<23}{'speed-up':>9}  {'95 %':<13}{'wall':>7}{'forwards':>10}"
    f"{'tok/fwd':>9}{'fed':>8}{'edits':>7}  same"
)


def table(objects: Iterable[Figures]) -> Iterator[str]:
    """Lines as they come, the head first. Speed-ups are of CPU time over hf_generate."""
    for number, one in enumerate(objects):
        if not number:
            yield _HEAD  # not before there is something to say, which may be an error
        low_high = one["cpu"]["interval_95"]
        interval = "-" if low_high is None else f"{low_high[0]:.2f}-{low_high[1]:.2f}"
        yield (
            f"{one['workload']:<18}{one['decoder']:<23}{one['speedup_vs_hf_generate']:>9.2f}  {interval:<13}"
            f"{one['wall']['median']:>7.2f}{one['forwards']:>10.1f}{one['tokens_per_forward']:>9.2f}"
            f"{one['fed_tokens']:>8.0f}{one['edit_ratio']:>7.2f}  {'yes' if one['identical_to_greedy'] else 'NO'}"
        )
