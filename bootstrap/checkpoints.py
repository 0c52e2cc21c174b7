"""Checkpoints that can be gone on from. A trainer takes the newest without a look, and a killed one leaves half of one."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

_NAME = re.compile(r"checkpoint-(\d+)")


def newest_checkpoint(workdir: Path, processes: int = 1) -> Path | None:
    """The newest whole checkpoint of so many processes in a trainer's folder that is not its end, None without one.

    Broken ones that are newer are deleted. One at the end is passed over: a trainer that goes on from it makes a step more.
    """
    for folder in sorted(_checkpoints(workdir), key=_step, reverse=True):
        if checkpoint_problem(folder, processes) is None:
            if _is_at_end(folder):
                continue
            return folder
        # Processes that train together all come by here, and one of them is first.
        shutil.rmtree(folder, ignore_errors=True)
    return None


def checkpoint_problem(folder: Path, processes: int = 1) -> str | None:
    """What is wrong with a checkpoint, None where it is whole: state, weights, optimiser, schedule and random numbers."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"trainer_state.json cannot be read: {error}"
    if not isinstance(state, dict) or state.get("global_step") != _step(folder):
        return "trainer_state.json is of another step"
    return _weights_problem(folder) or _files_problem(folder, processes)


def _is_at_end(folder: Path) -> bool:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state.get("max_steps", 0) and state["global_step"] >= state["max_steps"])


def _weights_problem(folder: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    files = list(folder.rglob("*.safetensors"))
    # FSDP and DeepSpeed keep each process's part in folders of their own instead.
    if not files and not [*folder.glob("pytorch_model_fsdp_*"), *folder.glob("global_step*")]:
        return "there are no weights"
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except (OSError, SafetensorError) as error:
            return f"{file.name} cannot be opened: {error}"
    return None


def _files_problem(folder: Path, processes: int) -> str | None:
    divided = bool([*folder.glob("optimizer_*"), *folder.glob("global_step*")])
    for pattern in ("scheduler.pt", "rng_state*.pth", *(() if divided else ("optimizer.*",))):
        files = list(folder.glob(pattern))
        if not files:
            return f"there is no {pattern}"
        # PyTorch writes zip archives, whose directory comes last.
        if broken := [file.name for file in files if not zipfile.is_zipfile(file)]:
            return f"{broken[0]} is cut short"
    # Each process writes its own, and none waits for the others.
    if (found := len([*folder.glob("rng_state*.pth")])) != processes:
        return f"it has random numbers of {found} processes, not of {processes}"
    return None


def _checkpoints(workdir: Path) -> list[Path]:
    return [path for path in workdir.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
