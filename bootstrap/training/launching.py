"""Starting a job's process and waiting for it, whatever becomes of it or of us."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import bootstrap
from aligner_chain.errors import AlignerError, ConfigurationError
from bootstrap.training.failures import failed_here, failed_process, out_of_time
from bootstrap.training.jobs import ERROR, FIGURES, LIFELINE, LOG, TrainingJob
from bootstrap.training.plans import claim, fingerprint

_WORKER = "bootstrap.training.worker"

LOCK_WAIT_S = 10.0
"""How long a job waits for its folder: what a killed caller leaves behind ends at once, but not in no time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launcher:
    """How a training's process is started: `python -m accelerate.commands.launch ... -m bootstrap.training.worker job.json`.

    Args:
        processes: how many train together, normally one for each GPU; None takes the number in `config`, or 1.
        config: a file of `accelerate config`, through which FSDP and DeepSpeed are chosen.
        arguments: more arguments of `accelerate launch`, as they are.
        environment: variables that the process gets beside those of this one.
        timeout_s: after so many seconds the training is ended; None waits for ever.
        in_process: trains in this process instead; see `Launcher.here`.

    Raises:
        ConfigurationError: the file is not there, or a number is out of range.
    """

    processes: int | None = None
    config: Path | None = None
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    timeout_s: float | None = None
    in_process: bool = False

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise ConfigurationError(f"processes is {self.processes} and must be at least 1.")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ConfigurationError(f"timeout_s is {self.timeout_s} and must be above 0.")
        if self.config is not None and not self.config.is_file():
            raise ConfigurationError(
                f"There is no file {self.config}. Write one:  accelerate config --config_file {self.config}"
            )

    @classmethod
    def here(cls) -> Launcher:
        """Trains in this process: for tiny models, whose training takes less than starting a process."""
        return cls(in_process=True)

    def command(self, job: Path) -> list[str]:
        """The command line that trains what the file `job` describes."""
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        if self.config is not None:
            command += ["--config_file", str(self.config.absolute())]
        else:
            # What accelerate would take anyway; unnamed, it prints a page about each.
            command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        if self.processes is not None or self.config is None:
            command += ["--num_processes", str(self.processes or 1)]
            if (self.processes or 1) > 1 and not _has_gpu():
                command.append("--cpu")  # several processes are taken for several GPUs
        return [*command, *self.arguments, "-m", _WORKER, str(job)]

    def plan(self) -> dict[str, Any]:
        """What of it changes the numbers that come out."""
        config = None if self.config is None else fingerprint(self.config)
        return {"processes": self.processes or 1, "config": config, "arguments": self.arguments}


def run_job(job: TrainingJob, launcher: Launcher | None = None) -> Mapping[str, Any]:
    """Trains, and returns the figures of it; a job that is done returns them at once.

    A job that was stopped goes on from its newest whole checkpoint, with `settings.save_every` set.

    Args:
        job: what to train.
        launcher: how; None starts one process with `accelerate launch`.

    Raises:
        TrainingFailedError: the training crashed, was killed, or ran out of memory or time.
        TrainingDataError: what is to be read is not there.
        ConfigurationError: the work folder belongs to another job or is in use, or something else is at `job.out`.
    """
    launcher = launcher or Launcher()
    job.work.mkdir(parents=True, exist_ok=True)
    with _locked(job.work) as lock:
        claim(job.work, {**job.plan(), "launcher": launcher.plan()})
        if (done := _done(job)) is not None:
            return done
        path = job.write()
        (job.work / ERROR).unlink(missing_ok=True)
        if launcher.in_process:
            return _train_here(job)
        status = _launch(job, launcher, path, lock)
        if status != 0 or (done := _done(job)) is None:
            raise failed_process(job, status)
        return done


def _done(job: TrainingJob) -> Mapping[str, Any] | None:
    if not job.out.exists():
        return None
    try:
        figures: Mapping[str, Any] = json.loads((job.work / FIGURES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = (
            f"{job.out} is there already, and is not of this job. Name a new folder, or remove it:  rm -r {job.out}"
        )
        raise ConfigurationError(message) from None
    return figures


def _train_here(job: TrainingJob) -> Mapping[str, Any]:
    from bootstrap.training.worker import train

    try:
        return train(job)
    except AlignerError:
        raise  # it says what to do
    except Exception as error:  # a trainer's own errors are of any kind
        raise failed_here(job, error) from error


def _launch(job: TrainingJob, launcher: Launcher, path: Path, lock: IO[bytes]) -> int:
    """Runs the worker to its end and returns the exit status."""
    with (job.work / LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            launcher.command(path),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(launcher),
            # The launcher keeps the folder locked as long as it waits for its workers, even where we are gone.
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )
        try:
            return process.wait(launcher.timeout_s)
        except subprocess.TimeoutExpired:
            raise out_of_time(job, launcher.timeout_s or 0.0) from None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends whatever is left of a launcher and its workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _environment(launcher: Launcher) -> dict[str, str]:
    # The worker runs the code that we do, and nothing that happens to lie in the current folder.
    source = str(Path(bootstrap.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", LIFELINE: "1"}
    return {**os.environ, **own, **launcher.environment}


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[IO[bytes]]:
    """Keeps a work folder for one job at a time; the lock goes with the processes that hold it."""
    import fcntl

    with (work / "lock").open("wb") as file:
        end = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    message = f"Another process is training in {work}. Wait for it, or give this job a work folder of its own."
                    raise ConfigurationError(message) from None
                time.sleep(0.1)
        yield file


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
