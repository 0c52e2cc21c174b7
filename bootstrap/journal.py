"""What a training notes while it runs: its losses, and each step of each attempt, so that it is known what a kill cost.

Both files are only ever appended to. A process that is killed may leave half a line, which is passed over.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.errors import TrainingFailedError

JOURNAL = "progress.jsonl"
"""The file beside the checkpoints with the losses: step, steps, loss, learning rate and more on each line."""
STEPS = "steps.jsonl"
"""The file beside it with the attempts: a line with `from` and `steps` for each, and then the number of each step done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One process's part of a training: it went on after the step `begun` (0: from the start) and came to `reached`.

    `steps` is how many the whole training has.
    """

    begun: int
    reached: int
    steps: int


def keep_journal(trainer: Any, path: Path) -> None:
    """Lets a trainer write what it logs to a file of JSON lines, and stop where the loss is no number.

    Steps after a checkpoint that was resumed stand there twice; the later line counts.
    """
    from transformers import TrainerCallback

    class Journal(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or not state.is_world_process_zero:
                return
            figures = {name: value for name, value in logs.items() if isinstance(value, int | float)}
            broken = sorted(name for name in ("loss", "grad_norm") if not math.isfinite(figures.get(name, 0.0)))
            if broken:
                message = (
                    f"At step {state.global_step} of {state.max_steps} the {' and the '.join(broken)} became "
                    f"{figures[broken[0]]}. Lower the learning rate (it is {args.learning_rate}), or look for rows that "
                    "are empty."
                )
                raise TrainingFailedError(message)
            at_ms = time.time_ns() // 1_000_000
            append_line(path, {"step": state.global_step, "steps": state.max_steps, **figures, "at_ms": at_ms})

    trainer.add_callback(Journal())


def keep_steps(trainer: Any, path: Path) -> None:
    """Lets a trainer note where it begins, and each step when it is done."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                append_line(path, {"from": state.global_step, "steps": state.max_steps})

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                append_line(path, state.global_step)

    trainer.add_callback(Steps())


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a file of JSON lines; what a killed process left half written is passed over."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").split("\n"):  # a text may hold other ends of lines
        try:
            yield json.loads(line)
        except ValueError:
            continue


def attempts(path: Path) -> list[Attempt]:
    """The attempts of a training, oldest first, from its `steps.jsonl`; none where there is no such file."""
    found: list[Attempt] = []
    for line in read_lines(path):
        if isinstance(line, dict):
            found.append(Attempt(begun=line["from"], reached=line["from"], steps=line["steps"]))
        elif found:
            found[-1] = Attempt(begun=found[-1].begun, reached=line, steps=found[-1].steps)
    return found


def done_again(found: Sequence[Attempt]) -> list[int]:
    """For each attempt after the first, how many steps it did that the one before had done already."""
    return [max(0, before.reached - after.begun) for before, after in itertools.pairwise(found)]


def append_line(path: Path, value: object) -> None:
    """Appends a line in one write, on a line of its own whatever an earlier process left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, 2) and not _ends_with_newline(file):
            file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")
