"""`aligner-bootstrap train-aligner`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bootstrap.commands.base import add_command, require, say


def add(commands: Any) -> None:
    """Adds `train-aligner`."""
    example = "aligner-bootstrap train-aligner --data corrections.jsonl --base models/llama-1b --out my-aligner"
    train = add_command(
        commands, "train-aligner", "train an Aligner on question-answer-correction rows", example, _train
    )
    train.add_argument("--data", type=Path, required=True, help='JSON lines {"question", "answer", "correction"}')
    train.add_argument("--base", required=True, help="folder or hub id of the model to start from")
    train.add_argument(
        "--out", type=Path, required=True, help="a new folder for the Aligner; checkpoints go to OUT.work"
    )
    train.add_argument("--template", default="aligner-chain/1", help="template to train for (default aligner-chain/1)")
    train.add_argument("--name", default="aligner", help="the Aligner's name (default aligner)")
    train.add_argument("--licence", default="", help="licence of the weights, kept in aligner.json")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUT.work")
    train.add_argument("--dry-run", action="store_true", help="print settings, memory and time, and train nothing")
    _add_settings(train)
    _add_devices(train)


def _add_settings(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--preset", metavar="SIZE-METHOD", help="settings for a size: 0.5b, 2b, 3b, 7b, 13b and full, lora or qlora"
    )
    train.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank and merge them")
    train.add_argument(
        "--keep-share",
        type=float,
        nargs=2,
        default=(0.3, 0.4),
        metavar=("LEAST", "MOST"),
        help="share of right answers among the rows, the surplus dropped at random; 0 1 drops none (default 0.3 0.4)",
    )
    train.add_argument(
        "--asked-share",
        type=float,
        default=0.0,
        help="share of rows whose prompt names some criteria, so that calls can choose them (default 0)",
    )
    train.add_argument("--epochs", type=float, help="passes over the corrections (default 3)")
    train.add_argument(
        "--warm-up-epochs", type=float, default=1.0, help="passes of the warm-up, 0 for none (default 1)"
    )
    train.add_argument("--steps", type=int, default=-1, help="optimiser steps of each stage, instead of passes")
    train.add_argument("--batch", type=int, help="rows per step, over all processes (default 32, or the preset's)")
    train.add_argument("--accumulate", type=int, help="parts of a step's rows that follow each other (default 1)")
    train.add_argument("--learning-rate", type=float, help="peak rate (default 2e-5, or the preset's)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--save-every", type=int, default=200, help="steps between checkpoints (default 200)")


def _add_devices(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--accelerate",
        metavar="NAME|FILE",
        help="one_gpu, ddp, fsdp2, zero3, two_nodes, or a file of `accelerate config` (default one_gpu)",
    )
    train.add_argument("--processes", type=int, help="how many train together (default as --accelerate says, else 1)")
    train.add_argument(
        "--main-address", metavar="HOST:PORT", help="of several machines, where that of rank 0 is reached"
    )
    train.add_argument("--machine", type=int, default=0, help="of several machines, the rank of this one (default 0)")


_LITTLE = 0.5
"""Where fewer tokens than this share are right, an Aligner cannot even copy, which is most of what corrections are."""


def _train(arguments: argparse.Namespace) -> int:
    require("train", "torch", "transformers", "trl", "peft", "accelerate")
    from bootstrap.training_run import TrainingRun, dropped_line

    run = TrainingRun.from_arguments(arguments)
    if arguments.dry_run:
        for line in run.plan():
            say(line)
        return 0
    if arguments.machine:
        run.join(arguments.machine)
        return 0
    trained = run.run(say=say, progress=True)
    say(
        f"{trained['rows']} rows, {trained['keep_share']:.0%} of them right answers; {dropped_line(trained['dropped'])}"
    )
    for line in _learned(trained["trainings"]["correction"].get("last_right")):
        say(line)
    say(f"The Aligner is in {arguments.out}. To use it:\n\n  export ALIGNER_MODEL={arguments.out.absolute()}\n")
    return 0


def _learned(right: float | None) -> Iterator[str]:
    """How well the last rows of the training are known, and what to change where that is badly."""
    if right is None:
        return
    yield f"In its last steps {right:.1%} of the corrections' tokens were right."
    if right < _LITTLE:
        yield (
            "So it has learned too little to be of use. Ways out: more passes (--epochs, --warm-up-epochs), a higher rate "
            "(--learning-rate 1e-3, say, for a tiny base that starts from nothing), more rows, or a base that was trained."
        )
