"""One `train-aligner`: a file of rows and a base model in, an Aligner's folder out, resumable, on one device or many."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aligner_chain.checkpoint import read_metadata, write_metadata
from aligner_chain.engines.loading import local_folder
from aligner_chain.errors import ConfigurationError
from aligner_chain.templates import get_template
from bootstrap.aligner_training import AlignerTrainingSettings, aligner_rows
from bootstrap.pairs import read_triples
from bootstrap.sft import TrainingSettings, device_batch, quiet_network
from bootstrap.training import Launcher, TrainingJob, join_job, run_job
from bootstrap.training.estimating import UTILISATION, Estimate, estimate_aligner, matrix_speed
from bootstrap.training.presets import preset
from bootstrap.training.worker import aligner_tokenizer
from bootstrap.upstream import LORA
from bootstrap.upstream.loading import window

_EPOCHS, _BATCH, _RATE = 3.0, 32, 2e-5


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What to train on, from what, to where, and on how many devices."""

    data: Path
    base: str
    out: Path
    settings: AlignerTrainingSettings
    launcher: Launcher = field(default_factory=Launcher.here)
    name: str = "aligner"
    licence: str = ""
    resume: bool = False

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> TrainingRun:
        """The run that the command line describes.

        Raises:
            ConfigurationError: there is no such preset or configuration, or the settings do not go together.
        """
        launcher = _launcher(arguments)
        given = {name: getattr(arguments, name) for name in ("data", "base", "out", "name", "licence", "resume")}
        return cls(settings=_settings(arguments, launcher), launcher=launcher, **given)

    def run(self, *, say: Callable[[str], None], progress: bool = False) -> Mapping[str, Any]:
        """Trains and saves; returns the figures of the training.

        Raises:
            TrainingDataError: the data cannot be trained on.
            TrainingFailedError: the training crashed, was killed, or ran out of memory.
            ConfigurationError: `out` is not empty, or what is resumed was started with other settings or data.
        """
        self._require_place()
        for line in self.plan():
            say(line)
        figures = run_job(self._job(), self.launcher, progress=progress)
        made = read_metadata(self.out)
        write_metadata(self.out, replace(made, name=self.name, base_model=self.base, licence=self.licence))
        return figures

    def join(self, machine: int) -> None:
        """Takes part, as the machine of this rank, in the same run on the machine of rank 0; see `join_job`."""
        join_job(self._work, self.launcher, machine)

    def plan(self) -> Iterator[str]:
        """What would be trained, on what, and what it is estimated to take; nothing is written.

        Raises:
            TrainingDataError: the data cannot be trained on.
            ConfigurationError: the rows of a step cannot be divided among the processes.
        """
        quiet_network()
        import torch

        get_template(self.settings.template)
        triples, base, cuda = read_triples(self.data), self._base(), torch.cuda.is_available()
        together = self.launcher.count()
        rows = aligner_rows(aligner_tokenizer(base, self.settings), triples, window(base), self.settings)
        yield f"{len(triples)} rows from {self.data}, base {self.base}"
        for name, stage in self.settings.stages.items():
            yield f"{name}: {_stage_line(stage, device_batch(stage, together), together)}"
        yield f"trained: {_method_line(self.settings)}; {dropped_line(rows.dropped)}"
        shards = together if self.launcher.divides() else 1
        found = estimate_aligner(base, rows, self.settings, cuda=cuda, shards=shards, together=together)
        yield f"memory of each device, estimated: {found.memory}"
        yield _time_line(found, matrix_speed(cuda=cuda), together, cuda=cuda)

    @property
    def _work(self) -> Path:
        return self.out.with_name(f"{self.out.name}.work")

    def _base(self) -> Path:
        return local_folder(self.base)

    def _job(self) -> TrainingJob:
        return TrainingJob(
            kind="aligner", base=self._base(), data=self.data, work=self._work, out=self.out, settings=self.settings
        )

    def _require_place(self) -> None:
        """Refuses to overwrite; a run that is to go on finds the work folder of the one before."""
        if self.out.is_dir() and not any(self.out.iterdir()):
            self.out.rmdir()
        if not self.resume and (found := [path for path in (self.out, self._work) if path.exists()]):
            raise ConfigurationError(
                f"{found[0]} is there already. Name a new folder with --out, or go on with --resume."
            )


def _launcher(arguments: argparse.Namespace) -> Launcher:
    """In this process where nothing is named and there is no GPU: starting another takes longer than tiny models do."""
    import torch

    named = {"processes": arguments.processes, "config": arguments.accelerate, "main_address": arguments.main_address}
    if any(value is not None for value in named.values()) or torch.cuda.is_available():
        return Launcher(**named)
    return Launcher.here()


def _settings(arguments: argparse.Namespace, launcher: Launcher) -> AlignerTrainingSettings:
    """The preset's, where there is one, with what was typed in the place of its values."""
    typed = {
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "accumulate": arguments.accumulate,
    }
    shared = {name: value for name, value in typed.items() if value is not None}
    shared |= {"steps": arguments.steps, "seed": arguments.seed, "save_every": arguments.save_every}
    if arguments.preset:
        found = preset(arguments.preset).settings(processes=launcher.count(), **shared)
    else:
        stage = TrainingSettings(**{"epochs": _EPOCHS, "batch": _BATCH, "learning_rate": _RATE, **shared})
        found = AlignerTrainingSettings(correction=stage, warm_up=stage)
    warm, rank = arguments.warm_up_epochs, arguments.lora
    adapters = {**(found.lora or LORA), "r": rank, "lora_alpha": 2 * rank} if rank else found.lora
    return replace(
        found,
        warm_up=replace(found.correction, epochs=warm) if warm else None,
        template=arguments.template,
        keep_share=tuple(arguments.keep_share),
        asked_share=arguments.asked_share,
        lora=adapters,
        seed=arguments.seed,
    )


def _stage_line(stage: TrainingSettings, at_once: int, together: int) -> str:
    passes = f"{stage.steps} steps" if stage.steps > 0 else f"{stage.epochs:g} passes"
    divided = f" ({together} processes, {stage.accumulate} times {at_once} rows each)" if at_once < stage.batch else ""
    extra = "".join(f", {name} {value}" for name, value in stage.extra.items())
    return f"{passes} of {stage.batch} rows a step{divided}, rate {stage.learning_rate:g}{extra}"


def _method_line(settings: AlignerTrainingSettings) -> str:
    if not settings.lora:
        return "all weights, in fp32"
    base = "in four bits" if settings.quantized else "as it is stored"
    return f"adapters {dict(settings.lora)}, the base {base}"


def dropped_line(dropped: Mapping[str, int]) -> str:
    """How many rows were left out, and why; of those that were dropped for the balance also how to keep them."""
    told = [f"{number} {reason}" for reason, number in dropped.items() if number]
    keeping = " (--keep-share 0 1 keeps them)" if dropped.get("to balance") else ""
    return f"dropped: {', '.join(told) or 'none'}{keeping}"


def _time_line(found: Estimate, speed: float, together: int, *, cuda: bool) -> str:
    """A CPU is shared by the processes, and a GPU is not."""
    seconds = found.seconds(speed * (together if cuda else 1))
    return (
        f"time, estimated: {_duration(seconds)} for {sum(found.steps.values())} steps and {found.tokens:,} tokens, if each "
        f"{'GPU' if cuda else 'CPU'} is like this one, which multiplies matrices at {speed / 1e12:.2g} TFLOP/s, and "
        f"training reaches {UTILISATION:.0%} of that"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
