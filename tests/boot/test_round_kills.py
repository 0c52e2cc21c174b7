"""A round that is killed and resumed ends as one that was left alone: the same weights, nothing done twice."""

from __future__ import annotations

import contextlib
import json
import shutil
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import killing
import pytest

from bootstrap.pairs.manifests import check
from bootstrap.registry import Registry
from bootstrap.rounds import STAGE_NAMES, Ledger
from bootstrap.store import CorrectionStore


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


# Each stage, each moment of a stage several times, and amidst both trainings; one process after the other on the same round.
KILLS = (
    ("freeze", "written"),
    ("train_upstream", "step 4"),
    ("train_upstream", "synced"),
    ("evaluate_upstream", "renamed"),
    ("gate_upstream", "committed"),
    ("regenerate", "begun"),
    ("correct", "renamed"),
    ("verify", "written"),
    ("triples", "synced"),
    ("train_aligner", "step 3"),
    ("train_aligner", "renamed"),
    ("calibrate", "committed"),
    ("evaluate_pair", "begun"),
    ("promote", "written"),
)


def test_fourteen_kills_change_nothing(
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
        killed_before_its_end = [
            moment for name, moment in KILLS if name == stage and moment not in ("renamed", "committed")
        ]
        assert told.count((stage, "begun")) == 1 + len(killed_before_its_end), stage
    # Killed amidst the checkpoint of step 4, so from that of step 2; then at the end, from that of step 4.
    assert killing.done_again(folder) == {"train_upstream": [2, 2], "train_aligner": [1]}
    assert killing.SAVE_EVERY == 2


# Where there is nothing to train, amidst the Aligner's training, and at the decision.
PROVIDER_KILLS = (
    ("train_upstream", "written"),
    ("train_aligner", "step 3"),
    ("gate_pair", "renamed"),
    ("promote", "written"),
)


def test_a_round_for_a_providers_upstream_improves_the_aligner_alone_whatever_is_killed(
    models: Path, context: ForkServerContext, tmp_path: Path
) -> None:
    killing.start_for_a_provider(tmp_path / "begun", models)
    outcomes = []
    for name, kills in (("undisturbed", ()), ("killed", PROVIDER_KILLS)):
        folder = shutil.copytree(tmp_path / "begun", tmp_path / name)
        for kill in kills:
            assert killing.run(context, folder, models, kill=kill) == -9, kill
        assert killing.run(context, folder, models) == 0
        outcomes.append(killing.outcome(folder))
        told = killing.told(folder)
        assert [stage for stage, moment in told if moment == "committed"] == list(STAGE_NAMES)
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0]["rounds"], outcomes[0]["versions"]) == ([("promoted", 2)], [0, 2])
    assert killing.done_again(folder) == {"train_upstream": [], "train_aligner": [1]}
    (one,) = Ledger(Registry(folder / "home").database).rounds()
    assert "no base_upstream" in one.result("gate_upstream")["skipped"]
    assert one.reason.startswith("the Aligner alone")
    assert set(one.result("evaluate_upstream")) == {"n", "before", "health"}
    assert one.gates[0]["name"] == "Aligner better than the served one"
    _check_handed_over(folder)


def _check_handed_over(folder: Path) -> None:
    """The pairs are where the provider's fine-tuning can be given them, and are what was trained on."""
    handed = folder / "home" / "exports"
    assert [path.name for path in handed.iterdir()] == ["round-1"]
    rows = [json.loads(line) for line in (handed / "round-1" / "openai-preference.jsonl").read_text().splitlines()]
    assert {tuple(row) for row in rows} == {("input", "preferred_output", "non_preferred_output")}
    with contextlib.closing(CorrectionStore(folder / "corrections.db")) as store:
        assert check(handed / "round-1", store).good
        held_out = {one.question for one in store.prompts("gate")}
    assert not held_out & {row["input"]["messages"][-1]["content"] for row in rows}
