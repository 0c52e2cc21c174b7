"""Training in a process of its own: what a crash leaves, and what comes of going on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import micro
import pytest
import torch

from aligner_chain.checkpoint import read_metadata
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.checkpoints import checkpoint_problem, newest_checkpoint
from bootstrap.config import read_config
from bootstrap.errors import TrainingDataError, TrainingFailedError
from bootstrap.pairs import Pair, write_pairs, write_triples
from bootstrap.sft import TrainingSettings
from bootstrap.training import Launcher, TrainingJob, fingerprint, launching, run_job
from bootstrap.training.failures import describe
from bootstrap.upstream import DPOSettings

SETTINGS = DPOSettings(
    lora=None, steps=60, batch=8, learning_rate=1e-3, save_every=5, threads=1, extra={"logging_steps": 1}
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and pairs."""
    folder, tokenizer = tmp_path_factory.mktemp("job"), micro.tokenizer()
    micro.new_model(tokenizer, seed=0, hidden=32, layers=1).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    pairs = [
        Pair(
            turns=Exchange.of(q, "").turns,
            chosen=micro.answer(q, "good"),
            rejected=micro.answer(q, "bad"),
            correction_id=q,
        )
        for q in micro.questions()[:30]
    ]
    write_pairs(folder / "pairs.jsonl", pairs)
    return folder


def job(inputs: Path, folder: Path, **changes: Any) -> TrainingJob:
    values = {"base": inputs / "base", "data": inputs / "pairs.jsonl", "work": folder / "work", "out": folder / "out"}
    return TrainingJob(kind="upstream", **{**values, "settings": SETTINGS, **changes})


def until(held: Callable[[], Any], seconds: float = 110) -> Any:
    end = time.monotonic() + seconds
    while not (found := held()):
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.05)
    return found


def processes(work: Path, module: bytes = b"") -> list[int]:
    """The processes of a folder's job: its launcher and its worker, or those that run `module`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes().split(b"\0")
            if str(work / "job.json").encode() in line and module in (b"", *line[2:3]):
                found.append(int(path.name))
    return found


CALLER = """
import sys
from pathlib import Path
from bootstrap.training import Launcher, TrainingJob, run_job
run_job(TrainingJob.read(Path(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_caller_leaves_no_training_and_its_job_goes_on_to_the_same_weights(
    inputs: Path, tmp_path: Path
) -> None:
    one = job(inputs, tmp_path / "killed")
    one.work.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(one.write())], env=environment)
    try:
        until(lambda: newest(one) > 5 or caller.poll() is not None)  # the one before is whole
        assert caller.poll() is None, (one.work / "worker.log").read_text()
    finally:
        caller.kill()
        caller.wait()
    until(lambda: not processes(one.work))
    assert not one.out.exists()
    run_job(one, Launcher.here())
    whole = job(inputs, tmp_path / "whole")
    run_job(whole, Launcher.here())
    assert fingerprint(one.out / "model.safetensors") == fingerprint(whole.out / "model.safetensors")
    steps = [json.loads(line)["step"] for line in (one.work / "dpo" / "progress.jsonl").read_text().splitlines()]
    assert steps.count(1) == 1  # it did not begin again


def newest(one: TrainingJob) -> int:
    found = [int(path.name.rpartition("-")[2]) for path in (one.work / "dpo").glob("checkpoint-*")]
    return max(found, default=0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_worker_is_a_failed_job_that_can_go_on(inputs: Path, tmp_path: Path) -> None:
    one = job(inputs, tmp_path)
    raised: list[Exception] = []

    def run() -> None:
        try:
            run_job(one)
        except TrainingFailedError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    (worker,) = until(lambda: processes(one.work, b"bootstrap.training.worker"))
    os.kill(worker, signal.SIGKILL)
    thread.join(30)
    (error,) = raised
    assert isinstance(error, TrainingFailedError)
    assert (error.signal, error.out_of_memory) == ("SIGKILL", True)
    assert "run the same job again" in str(error)
    assert not processes(one.work)
    with pytest.raises(TrainingFailedError, match=r"ended after 0\.5 seconds"):
        run_job(one, Launcher(timeout_s=0.5))
    with pytest.raises(TrainingFailedError, match="encodings") as refused:  # what Python says of such a home
        run_job(replace(one, work=tmp_path / "other"), Launcher(environment={"PYTHONHOME": "/nonsense"}))
    assert refused.value.signal is None


ABORTED_AT_ITS_END = """
import atexit, os, runpy, sys
atexit.register(os.abort)
runpy.run_module("bootstrap.training.worker", run_name="__main__")
"""


@pytest.mark.parametrize(("data", "status"), [("pairs.jsonl", 0), ("nowhere.jsonl", 1)])
def test_what_a_worker_did_stands_however_the_interpreter_would_end(
    inputs: Path, tmp_path: Path, data: str, status: int
) -> None:
    """As C++ threads abort it there, now and then, that wait for the interpreter's lock."""
    one = job(inputs, tmp_path, settings=replace(SETTINGS, steps=1), data=inputs / data)
    one.work.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", ABORTED_AT_ITS_END, str(one.write())]
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == status
    assert one.out.exists() == (status == 0)


def test_a_folder_is_for_one_job_at_a_time(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(inputs, tmp_path)
    one.work.mkdir(parents=True)
    monkeypatch.setattr(launching, "LOCK_WAIT_S", 0.0)
    with (one.work / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="Another process is training"):
            run_job(one, Launcher.here())


def test_a_job_that_is_done_is_not_done_again_and_others_are_refused(inputs: Path, tmp_path: Path) -> None:
    data = shutil.copy(inputs / "pairs.jsonl", tmp_path / "pairs.jsonl")
    one = job(inputs, tmp_path, data=data, settings=replace(SETTINGS, steps=2), replay=data)
    figures = run_job(one, Launcher.here())
    assert (figures["rows"], figures["replayed"], figures["trainings"]["dpo"]["steps"]) == (33, 3, 2)
    before = (one.out / "model.safetensors").stat().st_mtime_ns
    assert run_job(one, Launcher.here()) == figures
    assert (one.out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigurationError, match="other settings"):
        run_job(replace(one, settings=replace(SETTINGS, steps=2, learning_rate=1.0)), Launcher.here())
    with pytest.raises(ConfigurationError, match="other launcher"):
        run_job(one, Launcher(processes=2))
    with data.open("a") as file:
        file.write(data.read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigurationError, match="other data, replay"):
        run_job(one, Launcher.here())
    with pytest.raises(ConfigurationError, match="not of this job"):
        run_job(replace(one, work=tmp_path / "new"), Launcher.here())
    with pytest.raises(TrainingDataError, match="is not there"):
        run_job(replace(one, data=tmp_path / "none", work=tmp_path / "newer"), Launcher.here())


def test_broken_checkpoints_are_deleted_and_the_one_before_is_taken(inputs: Path, tmp_path: Path) -> None:
    one = job(inputs, tmp_path, settings=replace(SETTINGS, steps=4, save_every=2))
    run_job(one, Launcher.here())
    work = one.work / "dpo"
    good, last = work / "checkpoint-2", work / "checkpoint-4"
    assert (checkpoint_problem(good), checkpoint_problem(last)) == (None, None)
    for number, name in enumerate(("model.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt"), 5):
        broken = shutil.copytree(good, work / f"checkpoint-{number}")
        state = json.loads((broken / "trainer_state.json").read_text())
        (broken / "trainer_state.json").write_text(json.dumps({**state, "global_step": number}))
        assert checkpoint_problem(broken) is None
        os.truncate(broken / name, (broken / name).stat().st_size // 2)
        assert checkpoint_problem(broken) is not None, name
    (work / "checkpoint-9").mkdir()
    os.truncate(last / "model.safetensors", 40)
    assert newest_checkpoint(work) == good
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-2"]
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_an_aligner_is_trained_and_says_what_it_is(inputs: Path, tmp_path: Path) -> None:
    write_triples(tmp_path / "rows.jsonl", micro.triples()[:40])
    stage = TrainingSettings(steps=1, batch=8, save_every=1)
    settings = AlignerTrainingSettings(warm_up=stage, correction=stage)
    one = TrainingJob(
        kind="aligner",
        base=inputs / "base",
        data=tmp_path / "rows.jsonl",
        work=tmp_path / "work",
        out=tmp_path / "out",
        settings=settings,
    )
    assert set(run_job(one, Launcher.here())["trainings"]) == {"warm-up", "correction"}
    made = read_metadata(one.out)
    assert (made.template, made.criteria) == ("aligner-chain/1", ("kind", "right"))
    longest = max(len((triple.correction or "").split()) for triple in micro.triples()[:40])
    assert longest < made.longest_output < 10 * longest
    assert TrainingJob.read(one.work / "job.json") == one
    with pytest.raises(ConfigurationError, match="not with DPOSettings"):
        replace(one, settings=SETTINGS)


def test_too_little_memory_is_known_by_what_is_said() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert describe(refused.value)["out_of_memory"]
    assert describe(MemoryError())["out_of_memory"]
    assert describe(torch.OutOfMemoryError("x"))["out_of_memory"]
    assert not describe(ValueError("a memory of summer"))["out_of_memory"]


def test_a_launcher_passes_on_what_it_is_given(tmp_path: Path) -> None:
    config = tmp_path / "fsdp.yaml"
    config.write_text("distributed_type: FSDP\nnum_processes: 3\n")
    written = tmp_path / "round.toml"
    required = 'store = "s"\nbase_upstream = "u"\nbase_aligner = "a"\njudge = "json:loads"\nverifier = "json:dumps"\n'
    written.write_text(f'{required}[launcher]\nconfig = "fsdp.yaml"\narguments = ["--debug"]\ntimeout_s = 9\n')
    launcher = read_config(written).launcher
    command = launcher.command(tmp_path / "job.json")
    assert command[3:8] == ["--config_file", str(config), "--num_processes", "3", "--debug"]
    assert launcher.timeout_s == 9
    for wrong in ({"processes": 0}, {"timeout_s": 0}, {"config": tmp_path / "none.yaml"}, {"main_address": "host"}):
        with pytest.raises(ConfigurationError):
            Launcher(**wrong)
    written.write_text(f"{required}[launcher]\ngpus = 1\n")
    with pytest.raises(ConfigurationError, match="gpus"):
        read_config(written)
