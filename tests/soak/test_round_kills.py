"""A hundred kills of rounds, at every moment of every stage, amidst trainings and at random times.

Each round ends with the weights of an undisturbed one, and no kill of a training cost more than a checkpoint interval.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
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
AMIDST = ("train_upstream", "train_aligner")


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


@pytest.fixture(scope="module")
def again(capfd_disabled: Any) -> Iterator[Counter[int]]:
    """How many steps were done a second time, over all that trainings went on; printed at the end."""
    found: Counter[int] = Counter()
    yield found
    capfd_disabled(f"steps done again by {found.total()} resumed trainings: {dict(sorted(found.items()))}")


@pytest.fixture(scope="module")
def capfd_disabled(request: pytest.FixtureRequest) -> Any:
    """Prints past the capture of output."""

    def say(text: str) -> None:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            sys.stderr.write(f"\n{text}\n")

    return say


def killed(seed: int) -> Iterator[tuple[str, str] | float]:
    """Ten kills of one round: seven at moments in the order of the stages, one amidst each training, one at a random time."""
    dice = random.Random(seed)
    amidst = [(stage, f"step {dice.randint(1, killing.STEPS)}") for stage in AMIDST]
    kills = sorted([*amidst, *AT_MOMENTS[seed::10]], key=lambda kill: STAGE_NAMES.index(kill[0]))
    at_random = dice.randrange(len(kills))
    for number, kill in enumerate(kills):
        yield kill
        if number == at_random:
            yield dice.uniform(0.2, 2.0)


@pytest.mark.parametrize("seed", range(10))
def test_a_round_killed_ten_times_ends_as_an_undisturbed_one(
    seed: int,
    begun: Path,
    models: Path,
    context: ForkServerContext,
    undisturbed: dict[str, Any],
    again: Counter[int],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(begun, tmp_path / "it")
    codes = [killing.run(context, folder, models, kill=kill) for kill in killed(seed)]
    assert codes.count(-9) >= 9, codes
    assert killing.run(context, folder, models) == 0
    assert killing.outcome(folder) == undisturbed
    told = killing.told(folder)
    assert [stage for stage, moment in told if moment == "committed"] == sorted(STAGE_NAMES, key=STAGE_NAMES.index)
    redone = killing.done_again(folder)
    assert all(redone.values()), redone  # each training was killed
    assert max(redone["train_upstream"] + redone["train_aligner"]) <= killing.SAVE_EVERY, redone
    again.update(redone["train_upstream"] + redone["train_aligner"])
