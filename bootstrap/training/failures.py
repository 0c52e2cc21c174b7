"""Why a training ended without a model, in words that name the way out."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

from bootstrap.errors import TrainingFailedError
from bootstrap.training.jobs import ERROR, LOG, TrainingJob

_LINES = 12
_SIGNAL = re.compile(r"\b(SIG[A-Z0-9]+)\b")
_NO_MEMORY = re.compile(
    r"\bMemoryError\b|OutOfMemoryError|out of memory|can't allocate memory|not enough memory|Cannot allocate memory",
    re.IGNORECASE,
)
_LESS_MEMORY = (
    "Make it smaller: accumulate = 4 (fewer rows at once), max_length, batch, adapters with a smaller r, or "
    'quantized = "4bit" on a GPU. Then start it in a new work folder.'
)
_AGAIN = "Its checkpoints are kept: run the same job again, and it goes on from the newest whole one."


def describe(error: BaseException) -> dict[str, Any]:
    """An error as an object of JSON: its kind, what it says, and whether memory was the reason."""
    kind, text = type(error).__name__, str(error)
    return {"kind": kind, "message": text, "out_of_memory": bool(_NO_MEMORY.search(f"{kind}: {text}"))}


def failed_here(job: TrainingJob, error: Exception) -> TrainingFailedError:
    """The failure of a training in this process."""
    return _failure(job, describe(error))


def failed_process(job: TrainingJob, status: int, log: Path) -> TrainingFailedError:
    """The failure of a training in processes that wrote to `log`, ended with `status`, negative for a signal."""
    tail = last_lines(log)
    try:
        found = json.loads((job.work / ERROR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None  # it had no time to say
    if found is not None:
        return _failure(job, found, status=status)
    name = _signal(status, tail)
    # The kernel takes back memory with SIGKILL, and nothing in the process can tell.
    memory = name == "SIGKILL" or bool(_NO_MEMORY.search(tail))
    what = f"its process was ended by {name}" if name else f"its process ended with exit status {status}"
    if name == "SIGKILL":
        what += ", which is what the kernel does where memory runs out, or somebody killed it (see dmesg)"
    way = f"{_AGAIN} {_LESS_MEMORY if memory else f'All it said is in {log}.'}"
    message = f"Training the {job.kind} failed: {what}.\nIts last lines:\n{_indented(tail)}\n{way}"
    return TrainingFailedError(message, status=status, signal=name, out_of_memory=memory)


def out_of_time(job: TrainingJob, timeout_s: float) -> TrainingFailedError:
    """The failure of a training that took longer than it may."""
    return TrainingFailedError(
        f"Training the {job.kind} was ended after {timeout_s:g} seconds, its launcher's timeout_s.\nIts last lines:\n"
        f"{_indented(last_lines(job.work / LOG))}\n{_AGAIN} Set save_every so that there are checkpoints, or raise timeout_s."
    )


def last_lines(path: Path, number: int = _LINES) -> str:
    """The last lines of a text file that may be long, "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-number:])


def _failure(job: TrainingJob, found: dict[str, Any], status: int | None = None) -> TrainingFailedError:
    way = _LESS_MEMORY if found["out_of_memory"] else f"What was done is in {job.work}."
    message = f"Training the {job.kind} failed: {found['kind']}: {found['message']}\n{way}"
    return TrainingFailedError(message, status=status, out_of_memory=found["out_of_memory"])


def _signal(status: int, tail: str) -> str | None:
    """The signal that ended the worker. Its launcher survives it, and only names it in what it prints."""
    number = -status if status < 0 else status - 128
    if number in {one.value for one in signal.Signals}:
        return signal.Signals(number).name
    named = _SIGNAL.findall(tail)
    return named[-1] if named else None


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()) or "  (it said nothing)"
