"""How much memory and time a training takes, against what is estimated before it starts: on the CPU, for models of random weights.

    python benchmarks/memory.py [--sizes 3m 30m 100m] [--threads 1]
    python benchmarks/memory.py --show

Each case is the correction stage of an Aligner, two steps of two rows, in a process of its own, whose peak of resident memory the
kernel tells when it ends. Time is that of the second step. Writes benchmarks/results/memory.json after each case; all of them take
two minutes of processor time.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stored import Figures, read, write

from aligner_chain import __version__
from aligner_chain.exchange import Turn
from bootstrap.aligner_training import AlignerTrainingSettings, aligner_rows
from bootstrap.demo.models import new_tokenizer
from bootstrap.journal import read_lines
from bootstrap.pairs import Triple, write_triples
from bootstrap.sft import TrainingSettings, cpu_threads
from bootstrap.training import TrainingJob
from bootstrap.training.estimating import Estimate, estimate_aligner, matrix_speed
from bootstrap.training.worker import aligner_tokenizer
from bootstrap.upstream import LORA
from bootstrap.upstream.loading import window

FACTOR = 1.3
"""An estimate is good where neither it nor what was measured is more than this many times the other."""
BATCH = 2
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "nrst"]
PROGRAM = (
    "import datasets, bootstrap.training.worker; from trl import DPOTrainer, SFTTrainer; from peft import PeftModel"
)


@dataclass(frozen=True)
class Size:
    hidden: int
    inner: int
    layers: int
    vocabulary: int
    lengths: tuple[int, ...]


SIZES = {
    "3m": Size(hidden=192, inner=512, layers=4, vocabulary=4000, lengths=(128, 512)),
    "30m": Size(hidden=512, inner=1365, layers=7, vocabulary=8000, lengths=(128, 512)),
    "100m": Size(hidden=768, inner=2048, layers=12, vocabulary=16000, lengths=(128,)),
}
METHODS: dict[str, dict[str, Any] | None] = {"full": None, "lora": dict(LORA)}


def write_base(size: Size, folder: Path) -> int:
    """A Llama of this size and a tokenizer of few words; returns how many weights it has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = new_tokenizer(WORDS)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        vocab_size=size.vocabulary,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def write_rows(path: Path, length: int, tokenizer: Any) -> None:
    """Rows of about so many tokens, half of them the answer and half the correction, all alike long."""
    rng, rows = random.Random(0), []
    each = len(tokenizer(" ".join(WORDS[:50]), add_special_tokens=False).input_ids) / 50
    for _ in range(8):
        words = rng.choices(WORDS, k=round((length - 12) / 2 / each))
        fixed = " ".join([*words[:-1], "tan"])
        turns = (Turn(role="user", text=words[0]),)
        rows.append(Triple(turns=turns, answer=" ".join(words), correction=fixed))
    write_triples(path, rows)


def peak(command: list[str], threads: int, log: Path) -> int:
    """Runs a command, and returns the most bytes of memory that it held."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(log.read_text(encoding="utf-8", errors="replace")[-4000:])
    return usage.ru_maxrss * 1024


def measure(base: Path, method: str, length: int, threads: int, speed: float, folder: Path) -> Figures:
    """One training beside its estimate."""
    stage = TrainingSettings(
        steps=2, batch=BATCH, learning_rate=1e-4, save_every=0, threads=threads, extra={"logging_steps": 1}
    )
    settings = AlignerTrainingSettings(warm_up=None, correction=stage, lora=METHODS[method], memory_check=False)
    tokenizer = aligner_tokenizer(base, settings)
    data = folder / "rows.jsonl"
    write_rows(data, length, tokenizer)
    job = TrainingJob(kind="aligner", base=base, data=data, work=folder / "work", out=folder / "out", settings=settings)
    job.work.mkdir()
    rows = aligner_rows(tokenizer, _triples(data), window(base), settings)
    told = estimate_aligner(base, rows, settings, cuda=False)
    command = [sys.executable, "-m", "bootstrap.training.worker", str(job.write())]
    measured = peak(command, threads, folder / "log")
    lines = [line for line in read_lines(job.work / "correction" / "progress.jsonl") if "loss" in line]
    step_s = (lines[1]["at_ms"] - lines[0]["at_ms"]) / 1000
    return {
        "method": method,
        "length": max(len(row.prompt) + len(row.output) for row in rows.stages["correction"]),
        "measured_mib": round(measured / 2**20),
        "estimated_mib": round(told.memory.total / 2**20),
        "ratio": round(told.memory.total / measured, 3),
        "parts_mib": {name: round(value / 2**20, 1) for name, value in asdict(told.memory).items()},
        "step_s": step_s,
        "utilisation": round(_utilisation(told, step_s, speed), 3),
    }


def _triples(path: Path) -> Any:
    from bootstrap.pairs import read_triples

    return read_triples(path)


def _utilisation(told: Estimate, step_s: float, speed: float) -> float:
    """What a step reached of the speed of a matrix product."""
    return told.flops / told.steps["correction"] / (step_s * speed)


def run(sizes: list[str], threads: int) -> None:
    with cpu_threads(threads):
        speed = matrix_speed(cuda=False)
    with tempfile.TemporaryDirectory() as folder:
        program = peak([sys.executable, "-c", PROGRAM], threads, Path(folder) / "log")
    told: Figures = {
        "aligner_chain": __version__,
        "machine": platform.platform(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "threads": threads,
        "matrix_gflops": round(speed / 1e9, 1),
        "program_mib": round(program / 2**20),
        "cases": [],
    }
    for name in sizes:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            weights = write_base(SIZES[name], base)
            for method in METHODS:
                for length in SIZES[name].lengths:
                    work = Path(folder) / f"{method}-{length}"
                    work.mkdir()
                    one = measure(base, method, length, threads, speed, work)
                    told["cases"].append({"size": name, "weights": weights, **one})
                    write("memory", told)


def show() -> None:
    """Prints what is stored, and which estimates are off."""
    told = read("memory")
    print(
        f"program alone {told['program_mib']} MiB, matrix product {told['matrix_gflops']} GFLOP/s, {told['threads']} threads"
    )
    print(
        f"{'size':<6}{'method':<8}{'tokens':>7}{'measured':>10}{'estimated':>11}{'ratio':>7}{'step s':>8}{'of matrix':>11}"
    )
    for one in told["cases"]:
        good = 1 / FACTOR <= one["ratio"] <= FACTOR
        print(
            f"{one['size']:<6}{one['method']:<8}{one['length']:>7}{one['measured_mib']:>10}{one['estimated_mib']:>11}"
            f"{one['ratio']:>7.2f}{one['step_s']:>8.2f}{one['utilisation']:>11.0%}{'' if good else '   OFF'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print what is stored")
    given = parser.parse_args()
    if not given.show:
        run(given.sizes, given.threads)
    show()


if __name__ == "__main__":
    main()
