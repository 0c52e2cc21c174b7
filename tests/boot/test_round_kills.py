"""A round that is killed and resumed ends as one that was left alone: the same weights, nothing done twice."""

from __future__ import annotations

import shutil
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import killing
import pytest

from bootstrap.rounds import STAGE_NAMES


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return killing.forkserver()


@pytest.fixture(scope="module")
def begun(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    killing.start(folder, models)
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    begun: Path, models: Path, context: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = shutil.copytree(begun, tmp_path_factory.mktemp("undisturbed") / "it")
    assert killing.run(context, folder, models) == 0
    assert [stage for stage, moment in killing.told(folder) if moment == "committed"] == list(STAGE_NAMES)
    return killing.outcome(folder)


# Each stage once, and each moment of a stage several times; one process after the other on the same round.
KILLS = (
    ("freeze", "written"),
    ("train_upstream", "synced"),
    ("evaluate_upstream", "renamed"),
    ("gate_upstream", "committed"),
    ("regenerate", "begun"),
    ("correct", "renamed"),
    ("verify", "written"),
    ("triples", "synced"),
    ("train_aligner", "renamed"),
    ("calibrate", "committed"),
    ("evaluate_pair", "begun"),
    ("promote", "written"),
)


def test_twelve_kills_change_nothing(
    begun: Path, models: Path, context: ForkServerContext, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(begun, tmp_path / "it")
    for kill in KILLS:
        assert killing.run(context, folder, models, kill=kill) == -9, kill
    assert killing.run(context, folder, models) == 0
    assert killing.outcome(folder) == undisturbed
    told = killing.told(folder)
    assert [stage for stage, moment in told if moment == "committed"] == list(STAGE_NAMES)
    for stage in STAGE_NAMES:
        killed_before_its_end = any(
            name == stage and moment in ("begun", "written", "synced") for name, moment in KILLS
        )
        assert told.count((stage, "begun")) == 1 + killed_before_its_end, stage
