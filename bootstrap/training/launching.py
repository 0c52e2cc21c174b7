"""Starting a job's process and waiting for it, whatever becomes of it or of us."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
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
from bootstrap.fields import AT_LEAST_ONE, POSITIVE, require_fields
from bootstrap.training.configurations import configuration, divides_model, process_count
from bootstrap.training.failures import failed_here, failed_process, out_of_time
from bootstrap.training.following import following
from bootstrap.training.jobs import ERROR, FIGURES, JOB, LIFELINE, LOG, PROCESSES, TrainingJob
from bootstrap.training.plans import claim, fingerprint

_WORKER = "bootstrap.training.worker"

LOCK_WAIT_S = 10.0
"""How long a job waits for its folder: what a killed caller leaves behind ends at once, but not in no time."""
END_WAIT_S = 10.0
"""How long a job that was ended waits for its workers to be gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launcher:
    """How a training's processes are started: `accelerate launch ... -m bootstrap.training.worker job.json`.

    Args:
        processes: how many train together over all machines, normally one for each GPU; None takes the number in `config`,
            or one for each GPU where `config` names none.
        config: one of `CONFIGURATIONS`, or a file of `accelerate config`; None is "one_gpu", or "ddp" for several processes.
        arguments: more arguments of `accelerate launch`, as they are.
        main_address: "host:port" by which the other machines reach this one, where there are several.
        environment: variables that the process gets beside those of this one.
        timeout_s: after so many seconds the training is ended; None waits for ever.
        in_process: trains in this process instead; see `Launcher.here`.

    Raises:
        ConfigurationError: the file is not there, or a number is out of range.
    """

    processes: int | None = None
    config: Path | str | None = None
    arguments: tuple[str, ...] = ()
    main_address: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    timeout_s: float | None = None
    in_process: bool = False

    def __post_init__(self) -> None:
        require_fields(self, processes=AT_LEAST_ONE, timeout_s=POSITIVE)
        if self.main_address is not None and not re.fullmatch(r".+:\d+", self.main_address):
            raise ConfigurationError(f"main_address is {self.main_address!r} and must be host:port.")
        self.file()

    @classmethod
    def here(cls) -> Launcher:
        """Trains in this process: for tiny models, whose training takes less than starting a process."""
        return cls(in_process=True)

    def file(self) -> Path:
        """The configuration of accelerate. One is always given: without, accelerate takes what lies in the user's home."""
        return configuration(self.config or ("ddp" if (self.processes or 1) > 1 else "one_gpu"))

    def count(self) -> int:
        """How many processes train together.

        Raises:
            ConfigurationError: neither the launcher nor its configuration says so, and there is no GPU to count.
        """
        if self.in_process:
            return 1
        return (self.processes or 1) if self.config is None else process_count(self.file(), self.processes)

    def divides(self) -> bool:
        """Whether weights, gradients and optimiser states are divided among the processes (FSDP, DeepSpeed)."""
        return self.config is not None and divides_model(self.file())

    def command(self, job: Path, machine: int = 0) -> list[str]:
        """The command line that trains what the file `job` describes, on the machine of this rank."""
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(self.file())]
        command += ["--num_processes", str(self.count())]
        if self.main_address is not None:
            host, _, port = self.main_address.rpartition(":")
            command += ["--machine_rank", str(machine), "--main_process_ip", host, "--main_process_port", port]
        return [*command, *self.arguments, "-m", _WORKER, str(job)]

    def plan(self) -> dict[str, Any]:
        """What of it changes the numbers that come out; where the machines find each other does not."""
        config = None if self.config is None else fingerprint(self.file())
        return {"processes": self.count(), "config": config, "arguments": self.arguments}


def run_job(job: TrainingJob, launcher: Launcher | None = None, *, progress: bool = False) -> Mapping[str, Any]:
    """Trains, and returns the figures of it; a job that is done returns them at once.

    A job that was stopped goes on from its newest whole checkpoint, with `settings.save_every` set.

    Args:
        job: what to train.
        launcher: how; None starts one process with `accelerate launch`.
        progress: shows a line on the terminal.

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
            return _train_here(job, progress=progress)
        with following(job.work) if progress else contextlib.nullcontext():
            status = _launch(job, launcher, launcher.command(path), job.work / LOG, lock)
        if status != 0 or (done := _done(job)) is None:
            raise failed_process(job, status, job.work / LOG)
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


def _train_here(job: TrainingJob, *, progress: bool) -> Mapping[str, Any]:
    from bootstrap.training.worker import train

    try:
        return train(job, progress=progress)
    except AlignerError:
        raise  # it says what to do
    except Exception as error:  # a trainer's own errors are of any kind
        raise failed_here(job, error) from error


def join_job(work: Path, launcher: Launcher, machine: int) -> None:
    """Takes part, as the machine of rank `machine`, in a training over several that rank 0 has started with `run_job`.

    Args:
        work: the job's work folder, on a disk that all machines see.
        launcher: the same as there, `main_address` included.
        machine: 1 or more.

    Raises:
        ConfigurationError: rank 0 has not begun, or nobody says where it is.
        TrainingFailedError: the part of this machine failed.
    """
    path = work / JOB
    if launcher.main_address is None or machine < 1:
        raise ConfigurationError("A machine that joins has a rank of 1 or more and is told main_address, host:port.")
    if not path.is_file():
        raise ConfigurationError(f"There is no {path}. Start the machine of rank 0 first; it waits for the others.")
    job = TrainingJob.read(path)
    log = work / f"worker-{machine}.log"
    with _locked(work, f"lock-{machine}") as lock:
        status = _launch(job, launcher, launcher.command(path, machine), log, lock)
    if status != 0:
        raise failed_process(job, status, log)


def _launch(job: TrainingJob, launcher: Launcher, command: list[str], log: Path, lock: IO[bytes]) -> int:
    """Runs the workers to their end and returns the exit status.

    They share an end of a socket as their standard input. It ends for them when we do, and for us when the last of them has:
    each of several workers is in a session of its own, where no signal to the launcher's reaches it.
    """
    ours, theirs = socket.socketpair()
    with ours, log.open("wb") as output:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                stdin=theirs.fileno(),
                stdout=output,
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
            _end(process, ours)


def _end(process: subprocess.Popen[bytes], lifeline: socket.socket) -> None:
    """Ends whatever is left of a launcher and its workers, and waits until nothing is."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lifeline.shutdown(socket.SHUT_WR)
    lifeline.settimeout(END_WAIT_S)
    with contextlib.suppress(TimeoutError):
        lifeline.recv(1)


def _environment(launcher: Launcher) -> dict[str, str]:
    # The worker runs the code that we do, and nothing that happens to lie in the current folder.
    source = str(Path(bootstrap.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", LIFELINE: "1"}
    own[PROCESSES] = str(launcher.count())
    if launcher.count() == 1:  # a trainer that sees more GPUs than processes refuses
        own["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {**os.environ, **own, **launcher.environment}


@contextlib.contextmanager
def _locked(work: Path, name: str = "lock") -> Iterator[IO[bytes]]:
    """Keeps a work folder for one job at a time; the lock goes with the processes that hold it."""
    import fcntl

    with (work / name).open("wb") as file:
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
