"""What a newcomer does wrong with `aligner-bootstrap`: each is answered with what to do, and never with a traceback."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bootstrap.cli import main

WITHOUT = """
import sys
missing, program, *typed = sys.argv[1:]
sys.modules[missing] = None
from bootstrap.cli import main
sys.exit(main([program, *typed]))
"""


@pytest.mark.parametrize(
    ("missing", "typed", "extra"),
    [
        ("sqlalchemy", "demo --quick", "demo"),
        ("trl", "demo --quick", "demo"),
        ("sqlalchemy", "round list", "collect"),
        ("sqlalchemy", "registry list", "collect"),
        ("sqlalchemy", "stats --store corrections.db", "collect"),
        ("sqlalchemy", "report", "collect"),
        ("torch", "round run --config round.toml", "collect,train"),
        ("trl", "schedule --config round.toml --once", "collect,train"),
        ("torch", "train-aligner --data rows.jsonl --base base --out out", "train"),
        ("gradio", "review --store corrections.db", "review"),
    ],
    ids=lambda value: value,
)
def test_a_command_without_its_extra_says_what_to_install(
    missing: str, typed: str, extra: str, run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_python(WITHOUT, missing, *typed.split())
    assert done.returncode == 2
    assert f"{missing} is not installed. Install it with:  pip install 'aligner-chain[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "elsewhere").iterdir())  # nothing was begun


def test_a_module_that_no_extra_brings_is_an_error_of_its_own(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_python(WITHOUT, "bootstrap.rounds", "round", "list")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_the_demo_names_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a file"
    file.touch()
    assert main(["demo", "--out", str(file)]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["demo", "--quick", "--out", str(file / "below")]) == 2
    assert "a file/below cannot be used: Not a directory" in capsys.readouterr().err
    full = tmp_path / "not empty"
    full.mkdir()
    (full / "precious").touch()
    assert main(["demo", "--out", str(full)]) == 2
    typed = capsys.readouterr().err.rpartition("remove it:  ")[2]
    assert shlex.split(typed) == ["rm", "-r", str(full)]


def test_a_demo_that_is_stopped_says_what_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bootstrap.cli", "demo", "--quick", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it trains
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert f"remove it before the next:  rm -r {out}" in told
    assert "Traceback" not in told


def test_a_registry_without_a_round_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for typed in ("round list", "round status", "gate explain"):
        assert main([*typed.split(), "--home", str(tmp_path)]) == 0
        told = capsys.readouterr().out
        assert f"No round was begun yet in {tmp_path}:" in told
        assert "--home FOLDER" in told


def test_looking_into_a_registry_that_is_not_there_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "hoem"
    looks = ("round list", "round status", "round abort 1", "gate explain", "registry list", "registry gc", "rollback")
    for typed in looks:
        assert main([*typed.split(), "--home", str(home)]) == 2, typed
        assert f"There is no registry in {home}: no such folder." in capsys.readouterr().err
    assert not home.exists()


def test_data_that_is_not_there_is_told_before_the_base_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["train-aligner", "--data", "none.jsonl", "--base", "no-base", "--out", "no-out"]
    assert main(typed) == 1
    assert "There is no file none.jsonl in " in capsys.readouterr().err


def test_what_is_misspelt_is_answered_with_what_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--quik"])
    told = capsys.readouterr().err
    assert "Did you mean --quick?" in told
    assert "aligner-bootstrap demo --help" in told


@pytest.mark.parametrize(
    "typed",
    [
        "report N",
        "gate explain N",
        "round status N",
        "round abort N",
        "registry gc --grace N",
        "review --store s --limit N",
        "review --store s --port N",
        "delete --store s --older-than Nw",
        "annotate --model a:b --out o --limit N",
        "eval judge --store s --judge a:b --limit N",
        "eval correctors --limit N",
    ],
    ids=lambda typed: typed.partition(" N")[0],
)
def test_a_number_that_nothing_can_count_is_wrong_usage(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(typed.replace("N", "9" * 30).split())
    assert ended.value.code == 2
    assert f"'{'9' * 30}" in capsys.readouterr().err


def test_none_of_something_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for typed in ("annotate --model a:b --out o", "eval judge --store s --judge a:b", "eval correctors"):
        with pytest.raises(SystemExit) as ended:
            main([*typed.split(), "--limit", "0"])
        assert ended.value.code == 2
        assert "'0' is no whole number from 1 to " in capsys.readouterr().err


def test_a_reader_that_has_gone_before_the_end_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "bootstrap.cli", "registry", "list", "--home", str(tmp_path)]
    user = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=user, timeout=120, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")
