"""`aligner-chain calibrate`: labelled answers in, the trade-off out, one calibration stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aligner_chain import Aligner, Exchange, __version__, tradeoff
from aligner_chain.calibration import Calibration
from aligner_chain.checkpoint import AlignerMetadata, read_metadata, write_metadata
from aligner_chain.cli import BATCH, main
from aligner_chain.errors import CheckpointError, ConfigurationError
from aligner_chain.inspectors import CallableInspector

METADATA = AlignerMetadata(name="desk", version="3", template="aligner-chain/1", thresholds={"leave": 0.4})
OTHER = Calibration(
    criterion="kind",
    threshold=0.5,
    alpha=0.05,
    delta=0.05,
    n_bad=60,
    n_good=0,
    kept=None,
    date="2026-01-31T12:00:00+00:00",
    aligner="desk@3",
    upstream=None,
    package_version="0.1.0",
)


@pytest.fixture
def folder(tmp_path: Path, prepared: Any, tiny_llama: Any) -> Path:
    """An Aligner with random weights, which is not sure of much."""
    made = tmp_path / "desk"
    tiny_llama(prepared, dtype="float32").save_pretrained(made)
    prepared.save_pretrained(made)
    write_metadata(made, METADATA)
    return made


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """40 bad answers and 10 good ones, half of them labelled by their correction."""
    rows = [{"question": "Is it?", "answer": f"no {n}", "ok": False, "upstream": "up@1"} for n in range(20)]
    rows += [{"question": "Is it?", "answer": f"no {n}", "correction": "yes", "upstream": "up@1"} for n in range(20)]
    rows += [{"question": "Is it?", "answer": f"yes {n}", "ok": True, "upstream": "up@1"} for n in range(5)]
    turns = [{"role": "user", "text": "Is it?"}]
    rows += [{"turns": turns, "answer": "yes", "correction": "yes", "context": ["It is."], "upstream": "up@1"}] * 5
    return written(tmp_path, rows)


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "labelled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def by_answer(*scores: float) -> tuple[CallableInspector, list[Exchange]]:
    """An inspector that reads its score in the answer, and such answers."""
    return CallableInspector(lambda one: float(one.answer), "keep"), [Exchange.of("?", str(one)) for one in scores]


# --- measuring ----------------------------------------------------------------------------------------------------


def test_scores_come_in_batches_and_in_order() -> None:
    inspector, exchanges = by_answer(*(n / 100 for n in range(25)))
    told: list[str] = []
    scores = tradeoff.score(inspector, exchanges, batch=10, progress=told.append)
    assert [one["keep"] for one in scores] == [n / 100 for n in range(25)]
    assert told == [f"{n} of 25 answers scored" for n in (0, 10, 20)] + [""]


def test_each_alpha_has_its_threshold_and_what_it_saves() -> None:
    scores = [{"keep": n / 100} for n in range(100)]
    ok = [n >= 60 for n in range(100)]
    shut, strict, lax = tradeoff.measure(scores, ok, alphas=[0.01, 0.05, 0.1], delta=0.05)
    assert (shut.threshold, shut.kept, shut.needed, shut.n_bad, shut.n_good) == (None, None, 299, 60, 40)
    assert (strict.threshold, strict.kept, strict.auc, strict.auc_high) == (0.59, 1.0, 1.0, 1.0)
    assert lax.threshold == 0.58
    assert strict.auc_low is not None
    assert 0.9 < strict.auc_low < 1
    # The best half of the good answers is above all of the bad ones.
    [mixed] = tradeoff.measure(scores, [n % 2 == 0 or n > 79 for n in range(100)], alphas=[0.1], delta=0.05)
    assert (mixed.n_bad, mixed.threshold, mixed.kept) == (40, 0.79, pytest.approx(20 / 60))


def test_every_criterion_is_measured_on_the_answers_that_have_it() -> None:
    scores = [{"a": 0.1, "b": 0.2}, {"a": 0.3}, {}, {"b": 0.9}]
    rows = tradeoff.measure(scores, [False, False, True, True], alphas=[0.5], delta=0.3)
    assert [(row.criterion, row.n_bad, row.n_good) for row in rows] == [("a", 2, 0), ("b", 1, 1)]
    assert (rows[0].threshold, rows[0].kept, rows[0].auc) == (0.3, None, None)
    assert (rows[1].threshold, rows[1].needed) == (None, 2)


def test_nothing_scored_is_said() -> None:
    with pytest.raises(ConfigurationError, match="None of 2 answers could be scored"):
        tradeoff.measure([{}, {}], [True, False], alphas=[0.05], delta=0.05)


def test_the_table_says_why_a_gate_stays_shut() -> None:
    scores = [{"keep": n / 100} for n in range(100)]
    rows = tradeoff.measure(scores, [n >= 41 for n in range(100)], alphas=[0.05, 0.1], delta=0.05)
    head, _, shut, opened, last = tradeoff.describe(rows)
    assert head.startswith("keep: 59 good and 41 bad answers, AUC 1.000 (0.9")
    assert " ".join(shut.split()) == "5 % 59 bad the gate stays shut: 41 bad answers, 59 are needed"
    assert " ".join(opened.split()) == "10 % 29 bad 0.40000 100.0%"
    assert "confidence 0.95" in last


@pytest.mark.parametrize(
    ("good", "told"), [(lambda n: n < 40, True), (lambda n: n >= 40, False)], ids=["blind", "seeing"]
)
def test_a_score_that_is_no_better_than_chance_is_said(good: Callable[[int], bool], told: bool) -> None:
    scores = [{"keep": n / 100} for n in range(100)]
    rows = tradeoff.measure(scores, [good(n) for n in range(100)], alphas=[0.1], delta=0.05)
    lines = list(tradeoff.describe(rows))
    assert ("keep is not shown to tell good answers from bad ones: chance alone has an AUC of 0.5." in lines) is told


def test_a_table_of_one_kind_only() -> None:
    rows = tradeoff.measure([{"keep": 0.2}] * 30, [False] * 30, alphas=[0.1], delta=0.05)
    head, _, line, _ = tradeoff.describe(rows)
    assert "no AUC without some of both" in head
    assert line.endswith("unknown: no good answers")


def test_a_threshold_just_below_1_is_not_printed_as_1() -> None:
    rows = tradeoff.measure([{"keep": 0.9999991}] * 30, [False] * 30, alphas=[0.1], delta=0.05)
    assert "0.99999 " in list(tradeoff.describe(rows))[2]


def test_the_upstream_is_known_where_all_answers_are_its() -> None:
    [first], [second] = ([replace(Exchange.of("?", "!"), upstream=name)] for name in ("up@1", "up@2"))
    assert tradeoff.upstream_of([first, first]) == "up@1"
    assert tradeoff.upstream_of([first, second]) is None
    assert tradeoff.upstream_of([first, Exchange.of("?", "!")]) is None


# --- storing ------------------------------------------------------------------------------------------------------


def row(**changed: Any) -> tradeoff.Tradeoff:
    [measured] = tradeoff.measure([{"keep": 0.2}] * 30, [False] * 30, alphas=[0.1], delta=0.05)
    return replace(measured, **changed)


def test_a_calibration_says_what_it_was_measured_on(tmp_path: Path) -> None:
    write_metadata(tmp_path, METADATA)
    tradeoff.store(tmp_path, METADATA, [row()], "up@1")
    stored = read_metadata(tmp_path)
    found = stored.calibrations["keep"]
    assert stored.threshold_of("keep") == found.threshold == 0.2
    assert (found.alpha, found.delta, found.n_bad, found.n_good, found.kept) == (0.1, 0.05, 30, 0, None)
    assert (found.aligner, found.upstream, found.package_version) == ("desk@3", "up@1", __version__)
    age = datetime.now().astimezone() - datetime.fromisoformat(found.date)
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert replace(stored, calibrations={}) == METADATA


def test_calibrations_of_the_same_version_stay_and_those_of_another_go(tmp_path: Path) -> None:
    old = {"kind": OTHER, "true": replace(OTHER, criterion="true", aligner="desk@2")}
    write_metadata(tmp_path, replace(METADATA, calibrations=old))
    tradeoff.store(tmp_path, METADATA, [row()], None)
    assert set(read_metadata(tmp_path).calibrations) == {"kind", "keep"}
    tradeoff.store(tmp_path, METADATA, [row(threshold=None)], None)
    assert read_metadata(tmp_path).threshold_of("keep") == 0.2


def test_what_was_not_measured_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no aligner\.json"):
        tradeoff.store(tmp_path, METADATA, [row()], None)
    write_metadata(tmp_path, METADATA)
    for other in ({"version": "4"}, {"template": "pku-aligner/1"}):
        with pytest.raises(ConfigurationError, match="without --template"):
            tradeoff.store(tmp_path, replace(METADATA, **other), [row()], None)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_the_trade_off(folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--aligner", str(folder), "--file", str(labelled)]) == 0
    head, _, one, five, ten, *_ = capsys.readouterr().out.splitlines()
    assert head.startswith("leave: 10 good and 40 bad answers, AUC ")
    assert one.endswith("the gate stays shut: 40 bad answers, 299 are needed")
    assert five.endswith("the gate stays shut: 40 bad answers, 59 are needed")
    assert ten.endswith("%")
    assert read_metadata(folder) == METADATA


def test_a_threshold_is_written_and_said_in_json(
    folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--alpha", "0.05", "--delta", "0.04", "--write", "0.1", "--json"]
    assert main(["calibrate", "--aligner", str(folder), "--file", str(labelled), *options]) == 0
    shown = capsys.readouterr()
    shut, opened = map(json.loads, shown.out.splitlines())
    assert shown.err == f"aligner-chain: written to {folder / 'aligner.json'}: leave {opened['threshold']:.7g}\n"
    assert (shut["alpha"], shut["threshold"], shut["needed"], shut["n_bad"]) == (0.05, None, 63, 40)
    assert (opened["aligner"], opened["upstream"], opened["criterion"]) == ("desk@3", "up@1", "leave")
    stored = read_metadata(folder).calibrations["leave"]
    assert stored.as_json().items() >= {name: opened[name] for name in ("alpha", "delta", "threshold", "kept")}.items()
    assert read_metadata(folder).threshold_of("leave") == opened["threshold"]
    aligner = Aligner.from_pretrained(folder)
    assert aligner.metadata.thresholds == {"leave": 0.4}
    aligner.close()


def test_a_gate_that_stays_shut_writes_nothing(
    folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--aligner", str(folder), "--file", str(labelled), "--write", "0.05"]) == 1
    shown = capsys.readouterr()
    assert "59 are needed" in shown.out
    assert shown.err == "aligner-chain: the gate stays shut, and nothing was written\n"
    assert read_metadata(folder) == METADATA


def test_more_answers_than_a_batch(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "?", "answer": f"{n}", "ok": n % 2 == 0} for n in range(BATCH + 6)]
    assert main(["calibrate", "--aligner", str(folder), "--file", str(written(tmp_path, rows))]) == 0
    assert f"leave: {BATCH // 2 + 3} good and {BATCH // 2 + 3} bad answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, 'exactly one of "ok" and "correction"'),
        ({"ok": True, "correction": "yes"}, 'exactly one of "ok" and "correction"'),
        ({"ok": 1}, '"ok" is not true or false'),
        ({"correction": None}, '"correction" is missing'),
        ({"ok": True, "answer": 5}, '"answer" is not a text'),
        ({"ok": True, "label": 5}, "unknown key 'label'"),
    ],
)
def test_a_broken_line_is_named(
    changed: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, [{"question": "?", "answer": "!", "ok": True}, {"question": "?", "answer": "!"} | changed])
    assert main(["calibrate", "--aligner", "nowhere/at-all", "--file", str(path)]) == 2
    error = capsys.readouterr().err
    assert "line 2" in error
    assert said in error
    assert "`aligner-chain calibrate --help`" in error


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_answers_is_said_before_a_model_is_loaded(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text(text)
    assert main(["calibrate", "--aligner", "nowhere/at-all", "--file", str(tmp_path / "empty.jsonl")]) == 2
    assert "empty.jsonl holds no labelled answers" in capsys.readouterr().err


def test_only_a_folder_is_written_into(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--aligner", "some/aligner", "--file", str(labelled), "--write", "0.1"]) == 2
    assert "--write needs an Aligner's folder, and some/aligner is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--file"),
        (["--file", "f", "--alpha", "5"], "'5' is not a share"),
        (["--file", "f", "--alpha", "nan"], "'nan' is not a share"),
        (["--file", "f", "--delta", "0"], "'0' is not a share"),
        (["--file", "f", "--write", "five"], "'five' is not a share"),
    ],
)
def test_wrong_usage(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["calibrate", *options])
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["calibrate", "--help"])
    assert left.value.code == 0
    assert "example:" in capsys.readouterr().out
