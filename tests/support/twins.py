"""The same training by one process and by two, with the micro-batches of both alike, and how far apart they come out."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import micro
import torch
from safetensors.torch import load_file

from aligner_chain.exchange import Exchange
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.pairs import Pair, Triple, write_pairs, write_triples
from bootstrap.sft import TrainingSettings
from bootstrap.training import Launcher, TrainingJob, run_job
from bootstrap.upstream import DPOSettings

Kind = Literal["aligner", "upstream"]
Weights = dict[str, torch.Tensor]
# Every checkpoint is kept: the optimiser's state after the first step holds the first gradient, which is not clipped then.
EXACT: dict[str, Any] = {"save_total_limit": None, "max_grad_norm": 0.0, "logging_steps": 1}
# Both data sets are a multiple of it: the last step of a pass would else have fewer rows in one process and, in several, rows
# of the beginning once more.
BATCH = 20
STEPS = 20
ALLOWED = {"gradient": 1e-5, "weights": 0.01, "losses": 0.01}
"""Of the first gradient's norm, of the norm of the whole update, and of the loss of any step."""


@dataclass(frozen=True)
class Run:
    """What came of one training."""

    before: Weights
    after: Weights
    gradient: list[torch.Tensor]
    losses: list[float]


def write_inputs(folder: Path) -> Path:
    """A base model, and rows of very different lengths: the processes must not weigh their tokens alike by chance."""
    tokenizer = micro.tokenizer()
    micro.new_model(tokenizer, seed=0, hidden=32, layers=2).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_triples(folder / "aligner.jsonl", [_longer(number, row) for number, row in enumerate(micro.triples())])
    write_pairs(folder / "upstream.jsonl", [_pair(number, q) for number, q in enumerate(micro.questions()[:120])])
    return folder


def settings(kind: Kind, **changes: Any) -> Any:
    """Settings under which two trainings can be compared number by number."""
    stage = {"learning_rate": 1e-3, "warmup": 0.0, "steps": STEPS, "extra": EXACT, "batch": BATCH, "save_every": 1}
    stage |= {"threads": 1, **changes}
    if kind == "upstream":
        return DPOSettings(lora=None, beta=1.0, **stage)
    return AlignerTrainingSettings(warm_up=None, correction=TrainingSettings(**stage))


def job(kind: Kind, inputs: Path, folder: Path, settings: Any) -> TrainingJob:
    """A training on what `write_inputs` wrote, with all it leaves in `folder`."""
    data = inputs / f"{kind}.jsonl"
    return TrainingJob(
        kind=kind, base=inputs / "base", data=data, work=folder / "work", out=folder / "out", settings=settings
    )


def train(kind: Kind, inputs: Path, folder: Path, launcher: Launcher, **changes: Any) -> Run:
    """Trains, and reads what came of it."""
    one = job(kind, inputs, folder, settings(kind, **changes))
    run_job(one, launcher)
    return _read(one, "correction" if kind == "aligner" else "dpo")


def differences(kind: Kind, inputs: Path, folder: Path) -> dict[str, float]:
    """How far two processes come out from one that accumulates the same rows in two parts; each relative, see `ALLOWED`.

    Raises:
        AssertionError: one of them did not train all steps.
    """
    one = train(kind, inputs, folder / "one", Launcher.here(), accumulate=2)
    two = train(kind, inputs, folder / "two", Launcher(processes=2), accumulate=1)
    assert len(one.losses) == len(two.losses) == STEPS
    return {
        "gradient": distance(one.gradient, two.gradient) / norm(one.gradient),
        "weights": distance(one.after, two.after) / distance(one.after, one.before),
        "losses": max(abs(a - b) / a for a, b in zip(one.losses, two.losses, strict=True)),
    }


def distance(one: Weights | list[torch.Tensor], other: Weights | list[torch.Tensor]) -> float:
    """The norm of the difference."""
    return float((flat(one) - flat(other)).norm())


def norm(tensors: Weights | list[torch.Tensor]) -> float:
    """The norm of all numbers."""
    return float(flat(tensors).norm())


def weights(folder: Path) -> Weights:
    """The weights of a model folder."""
    return load_file(folder / "model.safetensors")


def flat(tensors: Weights | list[torch.Tensor]) -> torch.Tensor:
    """All numbers in one vector."""
    values = tensors if isinstance(tensors, list) else [tensors[name] for name in sorted(tensors)]
    return torch.cat([value.double().flatten() for value in values])


def until(held: Callable[[], Any], seconds: float = 110) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not held():
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.05)


def _processes(job: TrainingJob) -> dict[int, list[bytes]]:
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes().split(b"\0")
            if str(job.work / "job.json").encode() in line:
                found[int(path.name)] = line
    return found


def workers(job: TrainingJob) -> list[int]:
    """The processes of a job that train."""
    return [
        one for one, line in _processes(job).items() if b"accelerate.commands.launch" not in line and b"-c" not in line
    ]


def launchers(job: TrainingJob) -> list[int]:
    """Those that wait for them."""
    return [one for one, line in _processes(job).items() if b"accelerate.commands.launch" in line]


def _read(job: TrainingJob, stage: str) -> Run:
    state = torch.load(job.work / stage / "checkpoint-1" / "optimizer.pt", weights_only=True)["state"]
    lines = [json.loads(line) for line in (job.work / stage / "progress.jsonl").read_text().splitlines()]
    after, before = weights(job.out), weights(job.base)
    same = [name for name in before if before[name].shape == after[name].shape]  # an Aligner's embeddings have grown
    return Run(
        before={name: before[name] for name in same},
        after={name: after[name] for name in same},
        # After one step Adam's first moment is a tenth of the gradient: 1 - 0.9.
        gradient=[10 * state[number]["exp_avg"] for number in sorted(state)],
        losses=[line["loss"] for line in lines if "loss" in line],
    )


def _longer(number: int, row: Triple) -> Triple:
    """The same row with an answer of up to six sentences."""
    times = 1 + number * number % 6
    correction = row.correction and " ".join([row.correction] * times)
    return Triple(turns=row.turns, answer=" ".join([row.answer] * times), correction=correction, criteria=row.criteria)


def _pair(number: int, question: str) -> Pair:
    times = 1 + number * number % 6
    chosen, rejected = (" ".join([micro.answer(question, verdict)] * times) for verdict in ("good", "bad"))
    return Pair(turns=Exchange.of(question, "").turns, chosen=chosen, rejected=rejected, correction_id=str(number))
