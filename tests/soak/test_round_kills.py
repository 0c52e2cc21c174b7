"""A hundred kills of rounds, at every moment of every stage and at random ones: each ends with the weights of an undisturbed one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, get_args

import killing
import micro
import pytest

from bootstrap.rounds import STAGE_NAMES
from bootstrap.rounds.stages import Moment

pytestmark = pytest.mark.soak

AT_MOMENTS = [(stage, moment) for moment in get_args(Moment) for stage in STAGE_NAMES]
AT_RANDOM = 100 - len(AT_MOMENTS)


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return killing.forkserver()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    micro.train_upstream_model(folder)
    micro.train_aligner_model(folder)
    return folder


@pytest.fixture(scope="module")
def begun(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    killing.start(folder, models)
    return folder


@pytest.fixture(scope="module")
def undisturbed(begun: Path, models: Path, context: ForkServerContext, tmp_path_factory: Any) -> dict[str, Any]:
    folder = shutil.copytree(begun, tmp_path_factory.mktemp("undisturbed") / "it")
    assert killing.run(context, folder, models) == 0
    return killing.outcome(folder)


def killed(seed: int) -> Iterator[tuple[str, str] | float]:
    """Ten kills of one round: seven at moments in the order of the stages, three after a random time."""
    chosen = sorted(AT_MOMENTS[seed::10], key=lambda kill: STAGE_NAMES.index(kill[0]))
    dice = random.Random(seed)
    for number, kill in enumerate(chosen):
        yield kill
        if number % 2 == 1:
            yield dice.uniform(0.2, 2.0)


@pytest.mark.parametrize("seed", range(10))
def test_a_round_killed_ten_times_ends_as_an_undisturbed_one(
    seed: int, begun: Path, models: Path, context: ForkServerContext, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(begun, tmp_path / "it")
    codes = [killing.run(context, folder, models, kill=kill) for kill in killed(seed)]
    assert codes.count(-9) >= 7, codes
    assert killing.run(context, folder, models) == 0
    assert killing.outcome(folder) == undisturbed
    told = killing.told(folder)
    assert [stage for stage, moment in told if moment == "committed"] == sorted(STAGE_NAMES, key=STAGE_NAMES.index)
