"""What the decoder of this package saves: every workload, every decoder, and whether each claim holds.

    python benchmarks/decode.py --data folder-with-recorded-pairs
    python benchmarks/decode.py --model 100m --pairs 15

Takes half an hour with the tiny model. Writes the raw figures to results/decode_<model>_<dtype>.json after each of them,
so that a run that is stopped leaves what it had, and a run of some workloads keeps those of the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from stored import RESULTS, read, write

from aligner_chain.bench.report import OURS, Figures, table
from aligner_chain.bench.run import ALL, Settings, run

# The workload, the decoder compared with, and how many times less CPU time ours takes at least, prefill included: with the
# tiny model in float32, with the model of 100 million parameters in bfloat16 on a processor that multiplies it, and in
# float32 on one that does not (None: no claim).
CLAIMS = [
    ("copy_128", "hf_generate", 12, 25, 10),
    ("copy_128", "hf_prompt_lookup", 1.7, 1.7, 1.7),
    ("copy_128", "hf_prompt_lookup_best", 1.05, 1.05, 1.05),
    ("edits_3", "hf_generate", 5, 8, None),
    ("edits_3", "hf_prompt_lookup", 1.4, 1.4, 1.4),
    ("edits_3", "hf_prompt_lookup_best", 1.05, 1.05, 1.05),
    ("batch_8_light", "hf_batch", 2.5, 2.5, 2.5),
    ("callers_32_light", "hf_generate_batch", 2, 2, 2),
]
REWRITE = 0.95
"""A rewrite takes at most the time of plain decoding divided by this: the lower bound of the 95 % interval."""
MEASURED_ON = (("tiny", "float32"), ("100m", "bfloat16"), ("100m", "float32"))


def claims(figures: Sequence[Figures]) -> Iterator[Figures]:
    """Each claim about this model and type of numbers, with what came of it."""
    ours = {one["workload"]: one for one in figures if one["decoder"] == OURS}
    for workload, other, *least in CLAIMS:
        one = ours.get(workload)
        wanted = least[MEASURED_ON.index((one["model"], one["dtype"]))] if one is not None else None
        if one is not None and wanted is not None:
            ratio = one["speedup_vs"][other]
            yield {"workload": workload, "vs": other, "at_least": wanted, "ratio": ratio, "met": ratio >= wanted}
    if (one := ours.get("rewrite")) is not None and one["cpu"]["interval_95"]:
        low = one["cpu"]["interval_95"][0]
        yield {"workload": "rewrite", "vs": "hf_generate", "at_least": REWRITE, "ratio": low, "met": low >= REWRITE}


def kept(settings: Settings, figures: list[Figures]) -> Iterator[Figures]:
    """Writes the figures as they come; those of workloads that are not run again stay."""
    for one in run(settings, lambda text: None, lambda text: print(text, file=sys.stderr)):
        name = f"decode_{one['model']}_{one['dtype']}"
        if not figures and (RESULTS / f"{name}.json").exists():
            before = read(name)["figures"]
            figures += [other for other in before if other["workload"] not in settings.workloads]
        figures.append(one)
        write(name, {"claims": list(claims(figures)), "figures": figures})
        yield one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "100m"), default="tiny")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--workload", nargs="+", choices=ALL, default=ALL, metavar="NAME")
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    figures: list[Figures] = []
    settings = Settings(
        workloads=arguments.workload,
        model=arguments.model,
        dtype=arguments.dtype,
        pairs=arguments.pairs,
        data=arguments.data,
    )
    for line in table(kept(settings, figures)):
        print(line, flush=True)
    for claim in claims(figures):
        verdict = "met" if claim["met"] else "NOT MET"
        print(
            f"{claim['workload']:<18} {claim['ratio']:6.2f} times {claim['vs']}, at least {claim['at_least']}: {verdict}"
        )


if __name__ == "__main__":
    main()
