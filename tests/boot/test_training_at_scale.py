"""Training by several processes: that it is the same training, how it is started, and what it is said to take."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import micro
import pytest
import torch
import twins
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM

from aligner_chain.errors import ConfigurationError
from bootstrap.aligner_training import AlignerTrainingSettings, aligner_rows
from bootstrap.cli import main
from bootstrap.config import read_config
from bootstrap.errors import TrainingFailedError
from bootstrap.pairs import read_triples
from bootstrap.sft import TrainingSettings
from bootstrap.training import CONFIGURATIONS, Launcher, configuration, run_job, worker
from bootstrap.training.configurations import divides_model, process_count
from bootstrap.training.estimating import estimate_aligner, step_count
from bootstrap.training.following import newest_line
from bootstrap.training.presets import PRESETS, preset
from bootstrap.training_run import dropped_line
from bootstrap.upstream import LORA


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twins.write_inputs(tmp_path_factory.mktemp("twins"))


# --- the same training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["aligner", "upstream"])
def test_two_processes_train_what_one_does_that_accumulates(
    kind: Literal["aligner", "upstream"], inputs: Path, tmp_path: Path
) -> None:
    found = twins.differences(kind, inputs, tmp_path)
    assert found.keys() == twins.ALLOWED.keys()
    assert all(found[name] <= allowed for name, allowed in twins.ALLOWED.items()), found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_when_a_job_is_ended_none_of_its_processes_is_left(inputs: Path, tmp_path: Path) -> None:
    """Each worker of several is in a session of its own, where no signal to the launcher's group reaches it."""
    job = twins.job("upstream", inputs, tmp_path, twins.settings("upstream", accumulate=1, steps=10**6))
    seen: list[int] = []

    def look() -> None:
        twins.until(lambda: len(twins.workers(job)) == 2)
        seen.extend(twins.workers(job))
        twins.until((job.work / "dpo" / "steps.jsonl").exists)
        os.kill(twins.launchers(job)[0], signal.SIGKILL)

    thread = threading.Thread(target=look)
    thread.start()
    with pytest.raises(TrainingFailedError):
        run_job(job, Launcher(processes=2))
    left = twins.workers(job)
    thread.join()
    assert len(seen) == 2
    assert left == []


def test_a_launch_of_fewer_processes_than_asked_for_trains_nothing(inputs: Path, tmp_path: Path) -> None:
    """accelerate 1.15 starts one process for MULTI_CPU and for --cpu, whatever --num_processes says."""
    config = tmp_path / "cpu.yaml"
    config.write_text("distributed_type: MULTI_CPU\nnum_machines: 1\nnum_processes: 2\nuse_cpu: true\n")
    job = twins.job("upstream", inputs, tmp_path, twins.settings("upstream", accumulate=1))
    with pytest.raises(TrainingFailedError, match=r"2 processes should train together, and accelerate started 1"):
        run_job(job, Launcher(config=config))
    assert not job.out.exists()


def test_the_first_error_of_any_process_is_told(tmp_path: Path) -> None:
    worker._tell(tmp_path / "error.json", MemoryError("the cause"))
    worker._tell(tmp_path / "error.json", RuntimeError("connection closed by peer"))
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "the cause"


@pytest.mark.parametrize("kind", ["aligner", "upstream"])
def test_weights_that_are_stored_in_bf16_are_trained_in_fp32(
    kind: Literal["aligner", "upstream"], inputs: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(inputs / "base").to(torch.bfloat16).save_pretrained(base)
    micro.tokenizer().save_pretrained(base)
    # So small a step that in bf16 nearly every weight would stay what it was.
    settings = twins.settings(kind, accumulate=1, steps=1, learning_rate=1e-6)
    job = replace(twins.job(kind, inputs, tmp_path, settings), base=base)
    run_job(job, Launcher.here())
    before, after = twins.weights(base), twins.weights(job.out)
    name = "model.layers.0.mlp.up_proj.weight"
    assert after[name].dtype == torch.float32
    assert float((after[name] != before[name].float()).float().mean()) > 0.9


# --- how it is started -----------------------------------------------------------------------------------------

MEANT: dict[str, tuple[str, dict[str, Any]]] = {
    "one_gpu": ("NO", {"num_processes": 1, "num_machines": 1}),
    "ddp": ("MULTI_GPU", {"num_processes": -1, "num_machines": 1, "main_process_port": 0}),
    "fsdp2": ("FSDP", {"num_processes": -1, "mixed_precision": "bf16", "main_process_port": 0}),
    "zero3": ("DEEPSPEED", {"num_processes": -1, "mixed_precision": "bf16", "main_process_port": 0}),
    "two_nodes": ("MULTI_GPU", {"num_processes": -1, "num_machines": 2, "same_network": True}),
}
WITHIN: dict[str, dict[str, Any]] = {
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": True,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_activation_checkpointing": False,
        "fsdp_offload_params": False,
    },
    "deepspeed_config": {"zero_stage": 3, "zero3_save_16bit_model": True, "offload_optimizer_device": "none"},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_our_configurations_say_to_accelerate_what_we_mean(name: str) -> None:
    found = load_config_from_file(str(configuration(name)))
    kind, fields = MEANT[name]
    assert found.distributed_type == DistributedType(kind)
    assert {field: getattr(found, field) for field in fields} == fields
    assert divides_model(configuration(name)) == (name in ("fsdp2", "zero3"))
    for part, wanted in WITHIN.items():
        if name == {"fsdp_config": "fsdp2", "deepspeed_config": "zero3"}[part]:
            assert {key: getattr(found, part)[key] for key in wanted} == wanted


def test_what_accelerate_makes_of_fsdp2_and_zero3_is_what_they_say() -> None:
    """Its own parser and its own plug-in read the file; only the devices are missing."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = Launcher(config="fsdp2", processes=2).command(Path("job.json"))[3:]
    arguments, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(given))
    environment = prepare_multi_gpu_env(arguments)
    wanted = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "ACCELERATE_MIXED_PRECISION": "bf16",
    }
    assert {name: environment.get(name) for name in wanted} == wanted
    given = Launcher(config="zero3", processes=2).command(Path("job.json"))[3:]
    arguments, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(given))
    assert (arguments.use_deepspeed, arguments.zero_stage, arguments.zero3_save_16bit_model) == (True, 3, True)


def test_how_many_train_is_said_by_the_caller_or_the_file_or_refused(tmp_path: Path) -> None:
    assert process_count(configuration("ddp"), 4) == 4
    counted = tmp_path / "counted.yaml"
    counted.write_text("distributed_type: MULTI_GPU\nnum_processes: 8\n")
    assert Launcher(config=counted).count() == 8
    alone = tmp_path / "alone.yaml"
    alone.write_text(
        "distributed_type: 'NO'\nnum_processes: 8\n"
    )  # as TRL ships one, and accelerate starts one process
    assert Launcher(config=alone).count() == 1
    with pytest.raises(ConfigurationError, match="starts one process"):
        Launcher(config="one_gpu", processes=2).count()
    with pytest.raises(ConfigurationError, match="nor is it one of"):
        Launcher(config="fsdp3")
    broken = tmp_path / "broken.yaml"
    broken.write_text("num_processes: 2\n")
    with pytest.raises(ConfigurationError, match="no configuration of accelerate"):
        Launcher(config=broken).count()


def test_a_launch_never_takes_what_lies_in_the_users_home(tmp_path: Path) -> None:
    for launcher in (Launcher(), Launcher(processes=2), Launcher(config="fsdp2", processes=2)):
        assert "--config_file" in launcher.command(tmp_path / "job.json")
    there = Launcher(config="two_nodes", processes=2, main_address="10.0.0.1:29511")
    assert there.command(tmp_path, machine=1)[7:13] == [
        *("--machine_rank", "1", "--main_process_ip", "10.0.0.1", "--main_process_port", "29511"),
    ]
    assert there.plan() == replace(there, main_address="10.0.0.2:1").plan()


def test_a_round_names_a_configuration_and_a_preset(tmp_path: Path) -> None:
    written = tmp_path / "round.toml"
    required = 'store = "s"\nbase_upstream = "u"\nbase_aligner = "a"\njudge = "json:loads"\nverifier = "json:dumps"\n'
    aligner = 'preset = "7b-lora"\nasked_share = 0.5\nkeep_share = [0.1, 0.2]\n'
    written.write_text(f'{required}[launcher]\nconfig = "ddp"\nprocesses = 4\n[aligner]\n{aligner}')
    read = read_config(written)
    assert read.launcher.config == "ddp"
    assert read.aligner.lora is not None
    assert (read.aligner.lora["r"], read.aligner.asked_share, read.aligner.keep_share) == (64, 0.5, (0.1, 0.2))
    assert (read.aligner.correction.batch, read.aligner.correction.accumulate) == (16, 1)


# --- presets and what they take --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("processes", [1, 2, 8])
def test_a_preset_never_has_more_rows_in_memory_than_it_says(name: str, processes: int) -> None:
    found = PRESETS[name]
    settings = found.settings(processes=processes)
    for stage in settings.stages.values():
        assert stage.batch == found.batch
        rows = stage.batch // processes // stage.accumulate
        assert 1 <= rows <= found.at_once
        assert rows * stage.accumulate * processes == stage.batch
    assert (settings.lora is None) == (found.method == "full")
    assert bool(settings.quantized) == (found.method == "qlora")


def test_presets_are_named_and_refused() -> None:
    assert preset("8B-QLoRA") is PRESETS["7b-qlora"]
    assert preset("1.5b-full") is PRESETS["2b-full"]
    assert preset("7b-full").learning_rate == 2e-5
    assert preset("7b-full").batch == 256
    with pytest.raises(ConfigurationError, match="7b-qlora"):
        preset("70b-lora")
    with pytest.raises(ConfigurationError, match="cannot be divided among 3"):
        preset("7b-lora").settings(processes=3)
    with pytest.raises(ConfigurationError, match="give lora"):
        AlignerTrainingSettings(quantized="4bit")


def test_a_preset_trains(inputs: Path, tmp_path: Path) -> None:
    options = ["--data", str(inputs / "aligner.jsonl"), "--base", str(inputs / "base"), "--steps", "2"]
    options += ["--preset", "0.5b-lora", "--keep-share", "0.2", "0.5"]
    assert main(["train-aligner", *options, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    plan = json.loads((tmp_path / "out.work" / "plan.json").read_text())
    assert plan["settings"]["lora"]["r"] == 64
    assert plan["settings"]["keep_share"] == [0.2, 0.5]
    assert plan["settings"]["correction"]["learning_rate"] == 2e-4


def test_what_was_dropped_is_said_in_words_and_how_to_keep_it() -> None:
    assert dropped_line({"too long": 0, "to balance": 0}) == "dropped: none"
    assert dropped_line({"too long": 2, "to balance": 0}) == "dropped: 2 too long"
    told = "dropped: 2 too long, 31 to balance (--keep-share 0 1 keeps them)"
    assert dropped_line({"too long": 2, "to balance": 31}) == told


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(inputs / "aligner.jsonl"), "--base", str(inputs / "base"), "--out", str(tmp_path / "out")]
    assert main(["train-aligner", *options, "--preset", "7b-full", "--processes", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "256 rows a step (2 processes, 32 times 4 rows each), rate 2e-05" in said
    assert "all weights, in fp32" in said
    assert "memory of each device, estimated" in said
    assert "TFLOP/s" in said
    assert list(tmp_path.iterdir()) == []
    assert main(["train-aligner", *options, "--batch", "3", "--processes", "2", "--dry-run"]) == 2
    assert "multiple of 2" in capsys.readouterr().err


def test_the_estimate_counts_steps_and_tokens_as_the_training_does(inputs: Path, tmp_path: Path) -> None:
    stage = TrainingSettings(epochs=2, batch=8, learning_rate=1e-3, save_every=0, threads=1)
    settings = AlignerTrainingSettings(warm_up=None, correction=stage)
    job = twins.job("aligner", inputs, tmp_path, settings)
    figures = run_job(job, Launcher.here())
    tokenizer = worker.aligner_tokenizer(job.base, settings)
    rows = aligner_rows(tokenizer, read_triples(job.data), worker.window(job.base), settings)
    found = estimate_aligner(job.base, rows, settings, cuda=False)
    assert found.steps == {"correction": figures["trainings"]["correction"]["steps"]}
    lengths = [len(row.prompt) + len(row.output) for row in rows.stages["correction"]]
    assert found.tokens == pytest.approx(2 * sum(lengths), rel=0.05)
    adapted = estimate_aligner(job.base, rows, replace(settings, lora=LORA), cuda=False)
    assert adapted.flops == pytest.approx(found.flops * 2 / 3)  # no gradient of the frozen weights is computed
    assert adapted.memory.optimiser < found.memory.optimiser
    assert step_count(replace(stage, steps=7), 100) == 7


def test_an_aligner_that_does_not_fit_is_refused_before_its_weights_are_read(inputs: Path, tmp_path: Path) -> None:
    stage = TrainingSettings(steps=1, batch=2**26, save_every=0)
    job = twins.job("aligner", inputs, tmp_path, AlignerTrainingSettings(warm_up=None, correction=stage))
    with pytest.raises(ConfigurationError, match="accumulate = 4"):
        run_job(job, Launcher.here())


def test_the_line_on_the_terminal_is_of_the_training_at_work(tmp_path: Path) -> None:
    assert newest_line(tmp_path) == ""
    for number, name in enumerate(("warm-up", "correction")):
        (tmp_path / name).mkdir()
        lines = [{"step": step, "steps": 50, "loss": 1.0 + number, "at_ms": 2000 * step} for step in (10, 20)]
        path = tmp_path / name / "progress.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 50, "train_loss": 1}]))
        os.utime(path, (number, number))
    assert newest_line(tmp_path).split() == ["step", "20/50", "loss", "2.000", "60", "s", "left"]
