"""What run.py found: ratios of time, item by item, and whether all wrote the same."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from aligner_chain.bench.measure import ratio
from aligner_chain.bench.workloads import distance

BASELINE, OURS = "hf_generate", "aligner_chain"
Figures = dict[str, Any]


class Item(NamedTuple):
    """A question with its answer as the Aligner gets it: token ids, and the answer's characters for each of its own."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    max_new: int


Case = tuple[Item, ...]


@dataclass(frozen=True)
class Ends:
    """The token that ends every output, and the two verdicts, of which `keep` ends it too."""

    eos: int
    keep: int
    fix: int
    broken: int

    def cut(self, ids: Sequence[int]) -> list[int]:
        """What was written up to its end; without EOS, which not every decoder tells of."""
        ends = [at for at, token in enumerate(ids) if token in (self.eos, self.keep)]
        return list(ids[: ends[0] + (ids[ends[0]] == self.keep)] if ends else ids)

    def correction(self, output: Sequence[int]) -> list[int]:
        """The text between the verdict and the criteria that were broken."""
        text = list(output[1:])
        return text[: text.index(self.broken)] if self.broken in text else text


@dataclass(frozen=True, eq=False)
class Decoder:
    """One way to decode: the child that does it, and settings of each call or `told` to the child at its start.

    Those of the same name differ in settings, the default first.
    """

    name: str
    child: str
    settings: Mapping[str, int] = field(default_factory=dict)
    told: Mapping[str, int] = field(default_factory=dict)


class Taken(NamedTuple):
    outputs: list[list[int]]
    wall_s: float
    cpu_s: float
    forwards: int


Column = Sequence[Taken]
"""What one decoder took for each case."""


def described(
    workload: str,
    decoders: Sequence[Decoder],
    columns: Sequence[Column],
    cases: Sequence[Case],
    ends: Ends,
    begins: int | None = None,
) -> Figures:
    """Figures of all cases, or of those whose output of the baseline begins with the token `begins`."""
    wanted = [at for at, one in enumerate(columns[0]) if begins is None or one.outputs[0][:1] == [begins]]
    columns = [[column[at] for at in wanted] for column in columns]
    if not wanted:
        return {"workload": workload, "cases": 0, "decoders": [], "raw": []}
    known = list(zip(decoders, columns, strict=True))
    [ours] = [column for decoder, column in known if decoder.name == OURS]
    return {
        "workload": workload,
        **_about([cases[at] for at in wanted], columns[0], ends),
        "decoders": [
            {"decoder": name, "settings": {**one.settings, **one.told}, **_compared(column, columns[0], ours, wanted)}
            for name, one, column in _chosen(known)
        ],
        "items": wanted,
        "raw": [_raw(*one) for one in known],
    }


def _about(cases: Sequence[Case], baseline: Column, ends: Ends) -> Figures:
    items = [item for case in cases for item in case]
    outputs = [output for one in baseline for output in one.outputs]
    # An approved answer is served as it is.
    served = [
        list(item.answer) if output[:1] == [ends.keep] else ends.correction(output)
        for item, output in zip(items, outputs, strict=True)
    ]
    edits = sum(distance(item.answer, text) for item, text in zip(items, served, strict=True))
    return {
        "cases": len(cases),
        "rows": len(cases[0]),
        "edit_ratio": edits / sum(max(len(item.answer), len(text)) for item, text in zip(items, served, strict=True)),
        "prompt_tokens": statistics.mean(len(item.prompt) for item in items),
        "answer_tokens": statistics.mean(len(item.answer) for item in items),
        "output_tokens": statistics.mean(map(len, outputs)),
    }


def _chosen(known: Sequence[tuple[Decoder, Column]]) -> Iterator[tuple[str, Decoder, Column]]:
    """Each decoder with its default settings, and with those that took the least processor time."""
    for name in dict.fromkeys(decoder.name for decoder, _ in known):
        alike = [(decoder, column) for decoder, column in known if decoder.name == name]
        yield name, *alike[0]
        if len(alike) > 1:
            yield f"{name}_best", *min(alike, key=lambda one: sum(taken.cpu_s for taken in one[1]))


def _compared(column: Column, baseline: Column, ours: Column, numbers: Sequence[int]) -> Figures:
    wall, cpu = ([getattr(one, key) for one in column] for key in ("wall_s", "cpu_s"))
    forwards = sum(one.forwards for one in column)
    differing = [
        number for number, one, other in zip(numbers, column, baseline, strict=True) if one.outputs != other.outputs
    ]
    return {
        "wall": asdict(ratio([one.wall_s for one in baseline], wall)),
        "cpu": asdict(ratio([one.cpu_s for one in baseline], cpu)),
        "ours_faster_wall": asdict(ratio(wall, [one.wall_s for one in ours])),
        "ours_faster_cpu": asdict(ratio(cpu, [one.cpu_s for one in ours])),
        "wall_s": statistics.median(wall),
        "cpu_s": statistics.median(cpu),
        "forwards": forwards / len(column),
        "tokens_per_forward": _tokens(column) / forwards if forwards else None,
        "identical_share": 1 - len(differing) / len(column),
        "differing_items": differing,
    }


def _tokens(column: Column) -> int:
    """Tokens that were written; the last one of each output, be it EOS or KEEP, counts."""
    return sum(len(output) + (len(output) > 1) for one in column for output in one.outputs)


def _raw(decoder: Decoder, column: Column) -> Figures:
    return {
        "decoder": decoder.name,
        "settings": {**decoder.settings, **decoder.told},
        "wall_s": " ".join(f"{one.wall_s:.6f}" for one in column),
        "cpu_s": " ".join(f"{one.cpu_s:.6f}" for one in column),
        "forwards": " ".join(str(one.forwards) for one in column),
    }


def table(workloads: Iterable[Figures]) -> Iterator[str]:
    """Lines for each workload; ratios are of time over `generate`, by the clock and by the processor."""
    for one in workloads:
        if not one["cases"]:
            continue
        yield (
            f"\n{one['workload']}: {one['cases']} cases of {one['rows']}, {one['edit_ratio']:.0%} edited, "
            f"{one['prompt_tokens']:.0f} tokens in, {one['output_tokens']:.0f} out"
        )
        yield f"{'decoder':<23}{'ms':>7}{'clock':>7}  {'95 %':<13}{'cpu':>6}  {'95 %':<13}{'tok/fwd':>8}{'same':>6}  ours against it, clock"
        yield from map(_line, one["decoders"])


def _line(one: Figures) -> str:
    per_forward = "-" if one["tokens_per_forward"] is None else f"{one['tokens_per_forward']:.2f}"
    return (
        f"{one['decoder']:<23}{1000 * one['wall_s']:>7.1f}{one['wall']['median']:>7.2f}  {_interval(one['wall']):<13}"
        f"{one['cpu']['median']:>6.2f}  {_interval(one['cpu']):<13}{per_forward:>8}{one['identical_share']:>6.0%}  "
        f"{one['ours_faster_wall']['median']:.2f} {_interval(one['ours_faster_wall'])}"
        f"  {' '.join(f'{key}={value}' for key, value in one['settings'].items())}"
    )


def _interval(found: Figures) -> str:
    return "-" if found["interval_95"] is None else "{:.2f}-{:.2f}".format(*found["interval_95"])
