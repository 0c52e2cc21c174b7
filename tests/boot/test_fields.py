"""What settings may hold: whatever a file or a caller gives in their place is refused by its name, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aligner_chain.errors import ConfigurationError
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.cli import main
from bootstrap.config import read_config
from bootstrap.evaluation import GatePolicy
from bootstrap.sft import TrainingSettings
from bootstrap.training import Launcher
from bootstrap.upstream import DPOSettings

NEEDED = 'store = "c.db"\nbase_aligner = "aligner"\njudge = "micro:judge"\nverifier = "micro:verify"\n'


def config(folder: Path, lines: str) -> Any:
    path = folder / "round.toml"
    path.write_text(NEEDED + lines, encoding="utf-8")
    return read_config(path)


@pytest.mark.parametrize(
    "line",
    [
        *(f"{name} = {value}" for name in ("least_pairs", "tries") for value in (0, -1, 1.5)),
        *(f"{name} = {value}" for name in ("annotations", "regenerate", "examples") for value in (-1, 1.5)),
        *(f"seed = {value}" for value in (-1, 1.5, "nan")),
        *(f"{name} = {value}" for name in ("margin", "pair_margin") for value in (-0.1, 1.1, "nan", "inf")),
        *(f"{table} = 3" for table in ("answering", "dpo", "launcher", "policy", "aligner")),
        *(f"answering.{field}" for field in ('temperature = "hot"', "temperature = -1", "seed = 0.5", "max_new = 0")),
        *(f"dpo.{field}" for field in ("epochs = 0", "batch = 0", "batch = 2.5", 'learning_rate = "5e-6"', "beta = 0")),
        *(
            f"dpo.{field}"
            for field in ("extra = 3", "replay = []", 'max_age = "old"', "loss_weights = [1.0]", "lora = 3")
        ),
        *(f"policy.{field}" for field in ("alpha = 5", "alpha = 0", "margin = 1.5", "most_items = 0", "health = 1")),
        *(f"policy.{field}" for field in ("margins.general = 2", "length_ratio = -1", 'damaged = "few"')),
        *(f"launcher.{field}" for field in ("config = 3", "arguments = [1]", 'timeout_s = "1h"', "in_process = 1")),
        *(f"aligner.{field}" for field in ("correction = 3", "warm_up = 3", "lora = 3", 'template = "mine"')),
        *(f"aligner.correction.{field}" for field in ("steps = 1.5", "warmup = 2", "save_every = -1", "threads = 0")),
    ],
)
def test_a_field_that_holds_something_else_is_refused_by_its_name(line: str, tmp_path: Path) -> None:
    name = line.partition(" ")[0].rpartition(".")[2]
    with pytest.raises(ConfigurationError, match=rf"(?s)\b{name}\b|no template 'mine'"):
        config(tmp_path, line)


def test_the_message_says_where_what_was_found_and_what_must_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "round.toml").write_text(NEEDED + "[policy]\nalpha = 5\n", encoding="utf-8")
    assert main(["round", "run", "--config", str(tmp_path / "round.toml")]) == 2
    told = capsys.readouterr().err
    assert "round.toml: In [policy] alpha is 5 and must be above 0 and below 1." in told


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (TrainingSettings, {"batch": True}),
        (TrainingSettings, {"learning_rate": float("nan")}),
        (DPOSettings, {"epochs": -1.0}),
        (AlignerTrainingSettings, {"correction": None}),
        (GatePolicy, {"criterion_margin": -0.01}),
        (Launcher, {"environment": {"RANK": 0}}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_same_holds_in_python(make: Any, given: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(given))} is "):
        make(**given)


def test_a_path_may_begin_with_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    found = config(tmp_path, 'home = "~/aligner"\nbase_upstream = "~upstream"\n')
    assert found.home == tmp_path / "me" / "aligner"
    assert found.base_upstream == tmp_path / "~upstream"


def test_a_callable_that_is_none_and_a_module_that_breaks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "desk_of_mine.py").write_text("LIMIT = 3\n", encoding="utf-8")
    (tmp_path / "broken_desk.py").write_text("def judge(:\n", encoding="utf-8")
    (tmp_path / "failing_desk.py").write_text("limit = undefined\n", encoding="utf-8")
    for line, told in (
        ('garbled = "desk_of_mine:LIMIT"', "garbled is 'desk_of_mine:LIMIT', which is 3 and cannot be called"),
        ('preference = "micro:judge"', "preference is 'micro:judge', which has no method prefer"),
        ('garbled = "broken_desk:judge"', r"cannot be imported: SyntaxError: .*broken_desk\.py, line 1"),
        ('garbled = "failing_desk:judge"', r"cannot be imported: NameError: .*failing_desk\.py, line 1"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            config(tmp_path, line)
