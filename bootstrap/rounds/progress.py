"""How far the trainings of a stage are, and what they were resumed at: from the ledger, or from the files while one is at work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bootstrap.journal import STEPS, attempts, done_again
from bootstrap.rounds.values import StageRun


def training_lines(home: Path, number: int, run: StageRun) -> Iterator[str]:
    """What is told of each training of a stage: of one that is not done all, of one that is done what it was resumed at.

    Args:
        home: the registry's folder.
        number: of the round.
        run: the stage.
    """
    if run.status == "done":
        for name, done in run.result.get("trainings", {}).items():
            if done.get("resumed_at"):
                yield f"{name}: {_resumed(done['resumed_at'], done['steps'], done['again'])}"
        return
    for path in sorted((home / "rounds" / str(number) / f"{run.stage}.work").glob(f"*/{STEPS}")):
        found = attempts(path)
        if found:
            at, steps = found[-1].reached, found[-1].steps
            resumed = [one.begun for one in found[1:]]
            again = f", {_resumed(resumed, steps, done_again(found))}" if resumed else ""
            yield f"{path.parent.name}: step {at} of {steps}{again}"


def _resumed(at: list[int], steps: int, again: list[int]) -> str:
    where = ", ".join(map(str, at))
    return f"resumed at step {where} of {steps}, {sum(again)} {'step' if sum(again) == 1 else 'steps'} done again"
