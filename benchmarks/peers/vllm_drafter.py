"""What the answer as a draft brings a vLLM server: plain, n-gram drafts and `aligner_chain.vllm.AnswerDrafter`.

    make vllm-env && aligner-bootstrap demo --quick --seed 10 --out demo-quick
    python benchmarks/peers/vllm_drafter.py --aligner demo-quick/home/aligner/1 --vllm-python .venv-vllm/bin/python

All serve the same checkpoint (its heads widened where vLLM knows none so narrow) in fp32 on one thread, in a process of
their own, and decode greedily the answers of the support desk that stand in support_desk.jsonl: 1, 8 or 32 at a time, in
turns whose order rotates, so many passes over all of them. The prompts of a pass are known from the one before, so that the
prefix cache spares all of them the prompt: what differs is the decoding. N-grams are those of a small grid that took the
least processor time in hindsight. Takes some twenty minutes. Writes benchmarks/results/vllm_drafter.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from report import Decoder, Ends, Figures, Item
from run import HERE, child, read_items, rotated, window
from wider_heads import widened

from aligner_chain import __version__
from aligner_chain.bench.models import processor

RESULTS = HERE.parent / "results" / "vllm_drafter.json"
PASSES, WARM_UP = 5, 2
CONCURRENCY = (1, 8, 32)
NGRAM = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}
OURS = {"method": "custom_class", "model": "aligner_chain.vllm.AnswerDrafter"}

Setting = dict[str, Any] | None
DECODERS: dict[str, Setting] = {
    "plain": None,
    **{f"ngram {tokens}": {**NGRAM, "num_speculative_tokens": tokens} for tokens in (8, 16, 32)},
    **{f"answer {tokens}": {**OURS, "num_speculative_tokens": tokens} for tokens in (16, 48)},
}


def measured(folder: Path, python: str, items: Sequence[Item], ends: Ends, rows: int) -> Iterator[tuple[str, Figures]]:
    """For each decoder what each pass took, and what was written in the last."""
    given = {"window": window(folder), "ends": [ends.eos, ends.keep], "rows": rows}
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(child(python, "vllm_child.py", folder, given | {"speculative": setting}))
            for name, setting in DECODERS.items()
        }
        cases = [tuple(items[at : at + rows]) for at in range(0, len(items), rows)]
        passes: dict[str, list[Figures]] = {name: [] for name in children}
        for number in range(WARM_UP + PASSES):
            for name in rotated([*children], number):
                told = [children[name].ask(Decoder(name, name), case) for case in cases]
                passes[name].append(summed(told, ends))
        for name, found in passes.items():
            yield name, {"about": children[name].about, "passes": found[WARM_UP:]}


def summed(told: Sequence[Mapping[str, Any]], ends: Ends) -> Figures:
    """One pass over all answers."""
    outputs = [ends.cut(ids) for one in told for ids in one["outputs"]]
    spent = {name: sum(one[name] for one in told) for name in ("wall_s", "cpu_s", "forwards")}
    return {**spent, "tokens": sum(map(len, outputs)), "outputs": outputs}


def described(found: Mapping[str, Figures]) -> Iterator[Figures]:
    """Ratios to plain decoding, pass by pass: the median, the least and the most."""
    plain = found["plain"]["passes"]
    for name, one in found.items():
        pairs = list(zip(plain, one["passes"], strict=True))
        row: Figures = {"decoder": name, "setting": DECODERS[name], **one["about"]}
        for unit in ("wall_s", "cpu_s"):
            ratios = sorted(theirs[unit] / ours[unit] for theirs, ours in pairs)
            row[f"speedup_{unit[:-2]}"] = {"median": median(ratios), "least": ratios[0], "most": ratios[-1]}
        last, beside = one["passes"][-1], plain[-1]
        row |= {name: last[name] for name in ("forwards", "tokens")}
        row["different_texts"] = sum(a != b for a, b in zip(last["outputs"], beside["outputs"], strict=True))
        row["passes"] = [{unit: each[unit] for unit in ("wall_s", "cpu_s")} for each in one["passes"]]
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aligner", type=Path, required=True, help="folder of an Aligner of aligner-chain/1")
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--items", type=int, default=96)
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(HERE.parents[1])
    workloads: list[Figures] = []
    with tempfile.TemporaryDirectory() as wide:
        items, ends = read_items(arguments.aligner)
        folder = widened(arguments.aligner, Path(wide))
        for rows in arguments.concurrency:
            found = dict(measured(folder, arguments.vllm_python, items[: arguments.items], ends, rows))
            workloads.append({"at_once": rows, "answers": arguments.items, "decoders": [*described(found)]})
            show(workloads[-1])
    machine = {"processor": processor().get("cpu_name") or platform.machine(), "cores": os.cpu_count()}
    told = {"aligner_chain": __version__, "machine": machine, "threads": 1, "passes": PASSES, "workloads": workloads}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def show(workload: Figures) -> None:
    print(f"\n{workload['at_once']} at a time, {workload['answers']} answers")
    for row in workload["decoders"]:
        cpu, wall = row["speedup_cpu"], row["speedup_wall"]
        print(
            f"  {row['decoder']:<12} CPU x {cpu['median']:.2f} ({cpu['least']:.2f} to {cpu['most']:.2f})   "
            f"wall x {wall['median']:.2f}   {row['forwards']} forwards for {row['tokens']} tokens, "
            f"{row['different_texts']} texts differ"
        )


if __name__ == "__main__":
    main()
