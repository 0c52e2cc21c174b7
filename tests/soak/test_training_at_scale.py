"""Several processes over a whole life: killed and resumed together, and on two machines that are one here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import twins

from bootstrap.checkpoints import checkpoint_problem
from bootstrap.training import Launcher, run_job

pytestmark = pytest.mark.soak
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twins.write_inputs(tmp_path_factory.mktemp("twins"))


CALLER = """
import sys
from pathlib import Path
from bootstrap.training import Launcher, TrainingJob, run_job
run_job(TrainingJob.read(Path(sys.argv[1])), Launcher(processes=2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_end_of_a_caller_is_that_of_all_processes_and_they_go_on_together(inputs: Path, tmp_path: Path) -> None:
    settings = twins.settings("upstream", accumulate=1, steps=60)
    job = twins.job("upstream", inputs, tmp_path / "killed", replace(settings, save_every=5))
    job.work.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(job.write())], env=environment)
    try:
        twins.until(lambda: (job.work / "dpo" / "checkpoint-10").exists() or caller.poll() is not None)
        assert caller.poll() is None, (job.work / "worker.log").read_text()
        assert len(twins.workers(job)) == 2
    finally:
        caller.kill()
        caller.wait()
    twins.until(lambda: not twins.workers(job))
    assert not job.out.exists()
    figures = run_job(job, Launcher(processes=2))
    (resumed_at,) = figures["trainings"]["dpo"]["resumed_at"]
    assert resumed_at >= 5
    whole = twins.job("upstream", inputs, tmp_path / "whole", replace(job.settings, accumulate=2))
    run_job(whole, Launcher.here())
    assert twins.distance(twins.weights(job.out), twins.weights(whole.out)) == pytest.approx(0.0, abs=1e-4)
    checkpoint = job.work / "dpo" / "checkpoint-60"
    assert checkpoint_problem(checkpoint, 2) is None
    (checkpoint / "rng_state_1.pth").unlink()
    assert "random numbers of 1 processes" in str(checkpoint_problem(checkpoint, 2))


def test_two_machines_train_what_one_does(inputs: Path, tmp_path: Path) -> None:
    """Each is a command as a user types it on a machine of its own; here both are this one, with one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    fixed = ["--data", str(inputs / "aligner.jsonl"), "--base", str(inputs / "base"), "--steps", "4", "--batch", "20"]
    two, one = tmp_path / "two", tmp_path / "one"
    there = ["--accelerate", "two_nodes", "--processes", "2", "--main-address", address, "--out", str(two)]
    first = _command([*fixed, *there])
    twins.until((tmp_path / "two.work" / "job.json").exists)
    second = _command([*fixed, *there, "--machine", "1"])
    assert [machine.wait(300) for machine in (first, second)] == [0, 0]
    assert _command([*fixed, "--accumulate", "2", "--out", str(one)]).wait(300) == 0
    assert twins.distance(twins.weights(two), twins.weights(one)) == pytest.approx(0.0, abs=1e-5)
    assert (tmp_path / "two.work" / "worker-1.log").exists()


def _command(arguments: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bootstrap.cli", "train-aligner", *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
