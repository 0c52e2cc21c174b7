"""The measures of benchmarks/ablations.py on answers made by hand, its pairing and intervals, and its tables."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from aligner_chain import Correction
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.demo import world
from bootstrap.sft import TrainingSettings

ROOT = Path(__file__).parents[2]
FOLDER = str(ROOT / "benchmarks")
LEVELS = dict.fromkeys(
    ("wrong_fixed", "wrong_left", "right_changed", "right_harmed", "accepted", "garbled", "right_after"), 0.5
)


@pytest.fixture(scope="module")
def code() -> Iterator[SimpleNamespace]:
    """The two modules as a run finds them; nothing of them stays importable."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, FOLDER)
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in ("ablations", "ablation_tables")}
    yield SimpleNamespace(**modules)
    sys.path[:] = path
    for name in ("ablations", "ablation_tables", "cells", "desk", "stored"):
        if name not in before:
            sys.modules.pop(name, None)


def stored(**arms: dict[str, list[float | None]]) -> dict[str, Any]:
    """Figures of one source as a run stores them: by arm the values of its measures, one for each seed."""
    runs: dict[str, Any] = {}
    for arm, measures in arms.items():
        for at in range(max(map(len, measures.values()))):
            told = {"n_right": 10, "n_wrong": 30, "garbled_before": 0.25, "right_before": 0.125, **LEVELS}
            told |= {name: values[at] for name, values in measures.items()}
            sources = {"upstream": {"default policy": told, "checks off": told}}
            runs.setdefault(str(20 + at), {})[arm] = {"sources": sources}
    return {"arms": {arm: {"against": "default"} for arm in arms}, "runs": runs}


def test_the_interval_is_students(code: SimpleNamespace) -> None:
    mean, half = code.ablation_tables.interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5)


def test_of_one_seed_there_is_no_interval(code: SimpleNamespace) -> None:
    found = stored(default={"wrong_fixed": [0.5]}, other={"wrong_fixed": [0.75]})
    lines = code.ablation_tables.tables(found)
    assert "| default | 1 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 |" in lines
    assert "| other | +25.0 | +0.0 | +0.0 | +0.0 | +0.0 | +0.0 | +0.0 |" in lines


def test_arms_are_compared_seed_by_seed(code: SimpleNamespace) -> None:
    found = stored(default={"wrong_fixed": [0.1, 0.5, 0.9]}, other={"wrong_fixed": [0.2, 0.6, 1.0]})
    differences = code.ablation_tables.differences(found, "other", "upstream", "wrong_fixed")
    assert differences == pytest.approx([0.1] * 3)
    del found["runs"]["21"]["default"]
    differences = code.ablation_tables.differences(found, "other", "upstream", "wrong_fixed")
    assert differences == pytest.approx([0.1] * 2)


def test_a_seed_without_such_answers_is_left_out(code: SimpleNamespace) -> None:
    found = stored(default={"right_changed": [0.1, None, 0.3]}, other={"right_changed": [None, 0.2, 0.5]})
    assert code.ablation_tables.levels(found, "default", "upstream", "right_changed") == [0.1, 0.3]
    assert code.ablation_tables.differences(found, "other", "upstream", "right_changed") == pytest.approx([0.2])


def test_a_star_marks_what_the_interval_tells_from_nothing(code: SimpleNamespace) -> None:
    found = stored(
        default={"wrong_fixed": [0.5, 0.6], "wrong_left": [0.5, 0.6]},
        other={"wrong_fixed": [0.6, 0.702], "wrong_left": [0.6, 0.6]},
    )
    lines = code.ablation_tables.tables(found)
    assert lines[2].startswith("| copying | - | 0.0 | 100.0 | 0.0 | 0.0 | 100.0 | 25.0 | 12.5 |")
    assert lines[3].startswith("| default | 2 | 55.0 ± 63.5 |")
    [row] = [line for line in lines if line.startswith("| other | +")]
    assert row.startswith("| other | +10.1 ± 1.3 * | +5.0 ± 63.5 | +0.0 ± 0.0 |")
    assert lines[-1] == "The checks make at most 0.0 points of difference to a mean."


def test_all_answers_together_count_each_answer_once(code: SimpleNamespace) -> None:
    found = stored(default={"wrong_fixed": [0.8], "right_changed": [0.4], "accepted": [0.5]})
    sources = found["runs"]["20"]["default"]["sources"]
    right = {"n_right": 30, "n_wrong": 0, **LEVELS, "wrong_fixed": None, "right_changed": 0.0, "accepted": 0.9}
    sources["right answers"] = {"default policy": right, "checks off": right}
    for measure, pooled in (("wrong_fixed", 0.8), ("right_changed", 0.1), ("accepted", (40 * 0.5 + 30 * 0.9) / 70)):
        assert code.ablation_tables.levels(found, "default", "all answers", measure) == pytest.approx([pooled]), measure


def test_what_the_checks_change_is_the_largest_of_all(code: SimpleNamespace) -> None:
    found = stored(default={"garbled": [0.2, 0.4]})
    policies = found["runs"]["20"]["default"]["sources"]["upstream"]
    policies["checks off"] = {**policies["checks off"], "garbled": 0.5, "accepted": None}
    assert code.ablation_tables.checks_matter(found) == pytest.approx(0.15)


def test_what_became_of_answers_is_told_by_what_they_were(code: SimpleNamespace) -> None:
    rng = random.Random(0)
    ticket = world.draw_ticket(rng)
    right = ticket.exchange(world.right_answer(rng, ticket))
    wrong = ticket.exchange(world.flawed_answer(rng, ticket, world.Faults(rude=1.0)))
    other = replace(right, answer=world.right_answer(rng, ticket))
    assert other.answer != right.answer
    served = [
        (right, right.answer),
        (right, other.answer),
        (right, wrong.answer),
        (right, "Best wishes."),
        (wrong, wrong.answer),
        (wrong, right.answer),
        (wrong, "Best wishes."),
        (wrong, wrong.answer + " No."),
        (replace(wrong, answer="Best wishes."), "Best wishes."),
    ]
    told = code.ablations.shares([Correction(exchange=one, text=text, outcome="corrected") for one, text in served])
    assert (told["n_right"], told["n_wrong"]) == (4, 5)
    assert told["right_changed"] == 3 / 4
    assert told["right_harmed"] == 2 / 4
    assert told["wrong_fixed"] == 1 / 5
    assert told["wrong_left"] == 2 / 5
    assert told["accepted"] == 3 / 9
    assert told["garbled"] == 4 / 9
    assert (told["garbled_before"], told["right_before"], told["right_after"]) == (1 / 9, 4 / 9, 3 / 9)


def test_no_right_answers_have_no_share(code: SimpleNamespace) -> None:
    rng = random.Random(0)
    ticket = world.draw_ticket(rng)
    wrong = ticket.exchange(world.flawed_answer(rng, ticket, world.Faults(rude=1.0)))
    told = code.ablations.shares([Correction(exchange=wrong, text=wrong.answer, outcome="approved")])
    assert (told["right_changed"], told["wrong_left"]) == (None, 1.0)


def test_every_arm_trains_as_long_and_is_held_against_one_that_is_there(code: SimpleNamespace) -> None:
    stages = {"warm_up": TrainingSettings(steps=3), "correction": TrainingSettings(steps=5)}
    for name, arm in code.ablations.ARMS.items():
        changed = arm.change(AlignerTrainingSettings(**stages))
        assert sum(stage.steps for stage in changed.stages.values()) == 8, name
        assert arm.against in code.ablations.ARMS
    assert code.ablations.ARMS["one stage"].change(AlignerTrainingSettings(**stages)).warm_up is None
    assert code.ablations.ARMS["0 % right answers"].change(AlignerTrainingSettings()).keep_share == (0.0, 0.0)


def test_what_was_made_is_not_made_again_and_half_made_is(code: SimpleNamespace, tmp_path: Path) -> None:
    made: list[int] = []

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        code.ablations.once(tmp_path, killed)
    for _ in range(2):
        assert code.ablations.once(tmp_path, lambda: made.append(1)) == tmp_path
    assert made == [1]


def test_the_docs_show_the_stored_figures(code: SimpleNamespace) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "ablations.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
    blocks = "\n".join(code.ablation_tables.tables(found)).split("\n\n")
    assert len(blocks) == 5
    assert [block for block in blocks if block not in page] == []
    assert list(found["arms"]) == list(code.ablations.ARMS)
