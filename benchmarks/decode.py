"""What the decoder of this package saves: every workload, every decoder, and whether each claim holds.

    python benchmarks/decode.py --data folder-with-recorded-pairs
    python benchmarks/decode.py --model 100m --pairs 15

Takes half an hour with the tiny model. Writes the raw figures to results/decode_<model>_<dtype>.json after each of them,
so that a run that is stopped leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from aligner_chain.bench.report import OURS, Figures, table
from aligner_chain.bench.run import ALL, Settings, run

RESULTS = Path(__file__).parent / "results"

# The workload, the decoder compared with, and how many times less CPU time ours takes at least, prefill included:
# with the tiny model in float32, and with the model of 100 million parameters on a processor that multiplies bfloat16.
CLAIMS = [
    ("copy_128", "hf_generate", 12, 30),
    ("copy_128", "hf_prompt_lookup", 3, 4),
    ("edits_3", "hf_generate", 5, 9),
    ("edits_3", "hf_prompt_lookup", 1.4, 1.5),
    ("edits_6", "hf_generate", 4.5, 8),
    ("edits_6", "hf_prompt_lookup", 1.4, 1.4),
    ("debugbench", "hf_generate", 4, 7),
    ("debugbench", "hf_prompt_lookup", 1.5, 1.5),
    ("aligner2b", "hf_generate", 1.1, 1.35),
    ("aligner2b", "hf_prompt_lookup", 1.1, 1),
    ("rewrite", "hf_generate", 0.95, 0.95),
    ("refusal", "hf_generate", 0.95, 0.95),
    ("batch_8_light", "hf_batch", 2.5, 2.5),
    ("batch_8_light", "hf_generate", 6, 6),
]
MEASURED_ON = (("tiny", "float32"), ("100m", "bfloat16"))


def claims(figures: Sequence[Figures]) -> Iterator[Figures]:
    """Each claim about this model and type of numbers, with what came of it."""
    ours = {one["workload"]: one for one in figures if one["decoder"] == OURS}
    for workload, other, *least in CLAIMS:
        one = ours.get(workload)
        if one is not None and (one["model"], one["dtype"]) in MEASURED_ON:
            wanted = least[MEASURED_ON.index((one["model"], one["dtype"]))]
            ratio = one["speedup_vs"][other]
            yield {"workload": workload, "vs": other, "at_least": wanted, "ratio": ratio, "met": ratio >= wanted}


def kept(settings: Settings, figures: list[Figures]) -> Iterator[Figures]:
    for one in run(settings, lambda text: None, lambda text: print(text, file=sys.stderr)):
        figures.append(one)
        found = {"claims": list(claims(figures)), "figures": figures}
        file = RESULTS / f"decode_{one['model']}_{one['dtype']}.json"
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        yield one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "100m"), default="tiny")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--workload", nargs="+", choices=ALL, default=ALL, metavar="NAME")
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
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
