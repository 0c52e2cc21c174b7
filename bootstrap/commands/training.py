"""`aligner-bootstrap train-aligner`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bootstrap.commands.base import add_command, say


def add(commands: Any) -> None:
    """Adds `train-aligner`."""
    example = "aligner-bootstrap train-aligner --data corrections.jsonl --base models/llama-1b --out my-aligner"
    train = add_command(
        commands, "train-aligner", "train an Aligner on question-answer-correction rows", example, _train
    )
    train.add_argument("--data", type=Path, required=True, help='JSON lines {"question", "answer", "correction"}')
    train.add_argument("--base", required=True, help="folder or hub id of the model to start from")
    train.add_argument("--out", type=Path, required=True, help="a new folder for the Aligner")
    train.add_argument("--template", default="aligner-chain/1", help="template to train for (default aligner-chain/1)")
    train.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank and merge them")
    train.add_argument(
        "--asked-share",
        type=float,
        default=0.0,
        help="share of rows whose prompt names some criteria, so that calls can choose them (default 0)",
    )
    train.add_argument("--epochs", type=float, default=3.0, help="passes over the corrections (default 3)")
    train.add_argument(
        "--warm-up-epochs", type=float, default=1.0, help="passes of the warm-up, 0 for none (default 1)"
    )
    train.add_argument("--steps", type=int, default=-1, help="optimiser steps of each stage, instead of passes")
    train.add_argument("--batch", type=int, default=32, help="rows per step (default 32)")
    train.add_argument("--learning-rate", type=float, default=2e-5, help="peak rate (default 2e-5)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--save-every", type=int, default=200, help="steps between checkpoints (default 200)")
    train.add_argument("--name", default="aligner", help="the Aligner's name (default aligner)")
    train.add_argument("--licence", default="", help="licence of the weights, kept in aligner.json")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")


def _train(arguments: argparse.Namespace) -> int:
    from bootstrap.training_run import TrainingRun

    trained = TrainingRun.from_arguments(arguments).run(say=say, progress=True)
    say(f"{trained.rows} rows, {trained.keep_share:.0%} of them right answers; dropped: {trained.dropped}")
    say(f"The Aligner is in {arguments.out}. To use it:\n\n  export ALIGNER_MODEL={arguments.out.absolute()}\n")
    return 0
