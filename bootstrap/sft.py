"""Supervised fine-tuning on token ids: rows of prompt and output in, trained weights out, loss on the output only.

Both the Aligner (Ji et al. 2024, arXiv 2402.02416, eq. 4) and, in the demo, the models that start from nothing are
trained here with TRL's `SFTTrainer`. Rows arrive as ids, since the Aligner's template renders ids and not text.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aligner_chain.errors import ConfigurationError
from bootstrap.checkpoints import newest_checkpoint
from bootstrap.errors import TrainingDataError
from bootstrap.fields import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, SHARE, require_fields
from bootstrap.journal import JOURNAL, STEPS, keep_journal, keep_steps

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What the model is given and what it should write, as token ids."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """How long and how fast to train. `extra` goes to TRL's config as it is and wins over everything here.

    `batch` is rows per optimiser step, over all processes; `accumulate` of its parts follow each other, so that fewer rows
    are in memory at once. `warmup` is the share of the steps until the peak of `learning_rate`, which then
    falls along a cosine to a twentieth of it; `save_every` counts steps between checkpoints (0: none). `bucketed` lets
    rows with prompts of like length share a batch, which saves padding; it is for supervised training only. `threads`
    is how many CPU threads train (None: as many as PyTorch uses).

    Raises:
        ConfigurationError: a field is of another type, or out of range.
    """

    epochs: float = 3.0
    steps: int = -1
    batch: int = 32
    accumulate: int = 1
    learning_rate: float = 2e-5
    warmup: float = 0.03
    seed: int = 0
    save_every: int = 200
    bucketed: bool = False
    threads: int | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        require_fields(
            self,
            epochs=POSITIVE,
            batch=AT_LEAST_ONE,
            accumulate=AT_LEAST_ONE,
            learning_rate=POSITIVE,
            warmup=SHARE,
            seed=NOT_NEGATIVE,
            save_every=NOT_NEGATIVE,
            threads=AT_LEAST_ONE,
        )


def train_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    workdir: Path,
    settings: TrainingSettings,
    *,
    peft_config: PeftConfig | None = None,
    resume: bool = False,
    progress: bool = False,
) -> PreTrainedModel:
    """Trains `model` on `rows` and returns it, adapters merged; see `tune_rows`."""
    return merged(
        tune_rows(model, tokenizer, rows, workdir, settings, peft_config=peft_config, resume=resume, progress=progress)
    )


def tune_rows(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    workdir: Path,
    settings: TrainingSettings,
    *,
    peft_config: PeftConfig | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Any:
    """Trains `model` on `rows` and returns it, with its adapters where it has any or `peft_config` makes them.

    A model that FSDP or DeepSpeed divides comes back whole.

    Args:
        workdir: where checkpoints go; with `resume` the newest of them is taken up again.
        progress: shows a bar on the terminal.

    Raises:
        TrainingDataError: there are no rows.
    """
    quiet_network()
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    if not rows:
        message = (
            "No rows to train on. Check the counts of dropped rows, or raise the context length of the base model."
        )
        raise TrainingDataError(message)
    own: dict[str, Any] = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    if settings.bucketed:
        rows = bucketed(rows, settings.batch, random.Random(settings.seed))
        own["train_sampling_strategy"] = "sequential"
    columns = {
        "input_ids": [[*row.prompt, *row.output] for row in rows],
        "labels": [[*[-100] * len(row.prompt), *row.output] for row in rows],
    }
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**{**trainer_arguments(workdir, settings), **own, **settings.extra}),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    run_trainer(trainer, workdir, settings, resume=resume, progress=progress)
    return _unpatched(_whole(trainer, workdir))


def run_trainer(trainer: Any, workdir: Path, settings: TrainingSettings, *, resume: bool, progress: bool) -> Any:
    """Trains, from the newest whole checkpoint in `workdir` on where `resume` is set, and returns the trainer's model.

    Each loss is written to `progress.jsonl` in `workdir`, each step to `steps.jsonl`.

    Raises:
        TrainingFailedError: the loss is no number any more.
    """
    checkpoint = newest_checkpoint(workdir, processes()) if resume else None
    show_progress(trainer, progress)
    keep_journal(trainer, workdir / JOURNAL)
    keep_steps(trainer, workdir / STEPS)
    with cpu_threads(settings.threads):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return trainer.model


def processes() -> int:
    """How many processes train together, as their launcher says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def shards() -> int:
    """Over how many processes the weights are divided: all of them under FSDP and DeepSpeed, else each has its own."""
    divided = any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED"))
    return processes() if divided else 1


def gathered(trainer: Any) -> Mapping[str, Any] | None:
    """The whole weights of a model that FSDP or DeepSpeed divided; None where the model holds them itself.

    Every process must call it. On all but the first one the weights may be missing.
    """
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    weights: Mapping[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def device_batch(settings: TrainingSettings, together: int | None = None) -> int:
    """How many rows one process has in memory at once, of `together` processes (None: of those that train now).

    Raises:
        ConfigurationError: the rows of a step cannot be divided evenly.
    """
    together = together or processes()
    parts = settings.accumulate * together
    if parts < 1 or settings.batch % parts or settings.batch < parts:
        message = (
            f"batch is {settings.batch} and cannot be divided into {settings.accumulate} parts (accumulate) for each of "
            f"{together} processes. Make batch a multiple of {max(1, parts)}."
        )
        raise ConfigurationError(message)
    return settings.batch // parts


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[int]:
    """Lets PyTorch use `number` CPU threads (None: as many as before) and yields how many it used before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def bucketed(rows: Sequence[Row], batch: int, rng: random.Random) -> list[Row]:
    """The rows in an order in which those with prompts of like length share a batch, the batches in random order."""
    shuffled = rng.sample(rows, len(rows) // batch * batch) if len(rows) > batch else list(rows)
    shuffled.sort(key=lambda row: len(row.prompt) // 16)
    batches = [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    rng.shuffle(batches)
    return [row for one in batches for row in one]


def trainer_arguments(workdir: Path, settings: TrainingSettings) -> dict[str, Any]:
    """The arguments that SFT and DPO share, for the device at hand.

    On the CPU they are fp32 without gradient checkpointing: bit-stable from a seed, and TRL's default of bf16 fails
    there.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(workdir),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.steps,
        "per_device_train_batch_size": device_batch(settings),
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
        "seed": settings.seed,
        "use_cpu": not cuda,
        "bf16": cuda,
        "gradient_checkpointing": cuda,
        "save_strategy": "steps" if settings.save_every else "no",
        "save_steps": settings.save_every or 500,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
        # A NaN loss is otherwise logged as 0.0.
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": cuda,
    }


def merged(model: Any) -> PreTrainedModel:
    """The plain model: adapters merged into the weights, if there are any."""
    plain: PreTrainedModel = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    _unpatched(plain)
    return plain.eval()


def _unpatched(model: Any) -> Any:
    """The model without what trainers put in the place of its `forward`, on the instance, where it outlives them."""
    inner = model.get_base_model() if hasattr(model, "merge_and_unload") else model
    for one in (model, inner):
        one.__dict__.pop("forward", None)
    return model


def _whole(trainer: Any, workdir: Path) -> Any:
    """The trained model. Where it is divided, its parts are put together on the disk, from which each process reads it."""
    weights = gathered(trainer)
    if weights is None:
        return trainer.model
    model, folder = trainer.accelerator.unwrap_model(trainer.model), workdir / "whole"
    if trainer.is_world_process_zero():
        model.save_pretrained(folder, state_dict=weights)
    trainer.accelerator.wait_for_everyone()
    return type(model).from_pretrained(folder)


def quiet_network() -> None:
    """Keeps the trainers from looking up a host: each construction phones home unless told not to."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def show_progress(trainer: Any, shown: bool) -> None:
    """Replaces the printer of a trainer by one line on the terminal: step, loss, seconds left; or by nothing."""
    from transformers import PrinterCallback, TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started, self.begun = time.monotonic(), state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                spent = time.monotonic() - self.started
                left = spent / max(1, state.global_step - self.begun) * (state.max_steps - state.global_step)
                overwrite(progress_line(state.global_step, state.max_steps, float(logs["loss"]), left))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            overwrite(f"{'':<62}\r")

    trainer.remove_callback(PrinterCallback)
    if shown and sys.stderr.isatty():
        trainer.add_callback(Progress())


def progress_line(step: int, steps: int, loss: float, left_s: float) -> str:
    """Where a training is, as wide as the line that is to be overwritten."""
    line = f"step {step}/{steps}  loss {loss:.3f}  {left_s:.0f} s left"
    return f"  {line:<60}"


def overwrite(line: str) -> None:
    """Puts a line in the place of the terminal's last one."""
    sys.stderr.write(f"\r{line}")
    sys.stderr.flush()
