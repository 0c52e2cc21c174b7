"""What a training notes of its steps: attempts, what was done again, and half lines."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from bootstrap.journal import STEPS, Attempt, attempts, done_again, keep_steps
from bootstrap.rounds import StageRun
from bootstrap.rounds.progress import training_lines


class Trainer:
    """What a trainer is to its callbacks: steps of nothing."""

    def __init__(self) -> None:
        self.callbacks = []

    def add_callback(self, callback: object) -> None:
        self.callbacks.append(callback)

    def steps(self, begun: int, reached: int) -> None:
        arguments, control = TrainingArguments(output_dir="unused", use_cpu=True), TrainerControl()
        state = TrainerState(global_step=begun, max_steps=120, is_world_process_zero=True)
        (callback,) = self.callbacks
        callback.on_train_begin(arguments, state, control)
        for state.global_step in range(begun + 1, reached + 1):
            callback.on_step_end(arguments, state, control)


def write(path: Path) -> None:
    """Killed after step 57, amidst noting step 63, and then at work."""
    for begun, reached in ((0, 57), (40, 62)):
        trainer = Trainer()
        keep_steps(trainer, path)
        trainer.steps(begun, reached)
    with path.open("a") as file:
        file.write('{"fr')
    trainer = Trainer()
    keep_steps(trainer, path)
    trainer.steps(60, 61)


def test_attempts_are_told_apart_and_what_they_did_again_is_counted(tmp_path: Path) -> None:
    write(tmp_path / STEPS)
    found = attempts(tmp_path / STEPS)
    assert found == [
        Attempt(begun=0, reached=57, steps=120),
        Attempt(begun=40, reached=62, steps=120),
        Attempt(begun=60, reached=61, steps=120),
    ]
    assert done_again(found) == [17, 2]
    assert (attempts(tmp_path / "none"), done_again([])) == ([], [])
    assert json.loads((tmp_path / STEPS).read_text().splitlines()[-1]) == 61


def test_the_status_of_a_stage_says_what_its_training_was_resumed_at(tmp_path: Path) -> None:
    write(tmp_path / "rounds" / "3" / "train_upstream.work" / "dpo" / STEPS)
    told = "resumed at step 40, 60 of 120, 19 steps done again"
    assert list(training_lines(tmp_path, 3, run("running", {}))) == [f"dpo: step 61 of 120, {told}"]
    done = {"trainings": {"dpo": {"steps": 120, "resumed_at": [40, 60], "again": [17, 2]}}}
    assert list(training_lines(tmp_path, 3, run("done", done))) == [f"dpo: {told}"]
    assert list(training_lines(tmp_path, 4, run("running", {}))) == []


def run(status: str, result: dict) -> StageRun:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    values = {"stage": "train_upstream", "attempt": 3, "sha256": "", "error": "", "started": now, "ended": None}
    return StageRun(**values, status=status, result=result)
