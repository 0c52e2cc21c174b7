"""The tables of figures in the docs are those of the stored files, and each stored file can be computed anew."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = ("cells", "places", "recompute", "harm", "others", "rounds", "checks", "demo_rag")
FIGURE = re.compile(r"\**[-+]?\d[\d.,]*\**( ?(%|µs|ms|s|MiB))?([,: (\[±]|$)")


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """Modules of the tables and of small benchmarks, as their own commands find them; nothing of them stays importable."""
    path, known = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(BENCHMARKS / "tables"), str(BENCHMARKS)]
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in MODULES}
    yield SimpleNamespace(**modules)
    sys.path[:] = path
    for name in {*MODULES, "stored"} - known:
        del sys.modules[name]


def test_the_docs_show_the_stored_figures() -> None:
    """Without site-packages: the tables need neither torch nor anything else that is installed."""
    command = [sys.executable, "-S", str(BENCHMARKS / "tables"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_other_table_has_measured_figures(page: Path) -> None:
    """A table is taken for one where most cells behind the first column are figures; settings and limits are fewer."""
    text = re.sub(
        r"^<!-- table: .*?^<!-- end -->$|^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M
    )
    for table in re.findall(r"(?:^\|.*\n){3,}", text, re.M):
        head, _, *rows = table.splitlines()
        cells = [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row)[2:-1]]
        assert 2 * sum(FIGURE.match(cell) is not None for cell in cells) <= len(cells), head


def test_every_stored_file_has_a_recipe(parts: SimpleNamespace) -> None:
    assert {path.stem for path in (BENCHMARKS / "results").glob("*.json")} == set(parts.recompute.RECIPES)


def test_every_recipe_names_a_benchmark_and_its_options(parts: SimpleNamespace) -> None:
    """By what the script's source says of its options: to import each takes seconds."""
    made_by = [command for command in parts.recompute.MADE_BY.values() if command.startswith("python")]
    for command in [*made_by, *(one for recipe in parts.recompute.RECIPES.values() for one in recipe.commands)]:
        program, script, *words = shlex.split(command)
        if program == "python":
            path = ROOT / script
            known = options(path / "__main__.py" if path.is_dir() else path)
            assert {word for word in words if word.startswith("--")} <= known, command


def options(script: Path) -> set[str]:
    """The options that the parser of a script is given."""
    calls = (node for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    added = (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument")
    return {str(arg.value) for call in added for arg in call.args if isinstance(arg, ast.Constant)}


def test_every_benchmark_tells_its_options() -> None:
    """Once `--help` ended in a traceback, at a name with a per cent sign."""
    scripts = sorted({*BENCHMARKS.glob("*.py"), *(main.parent for main in BENCHMARKS.glob("*/__main__.py"))})
    told = [str(script) for script in scripts if options(script / "__main__.py" if script.is_dir() else script)]
    helping = [sys.executable, str(ROOT / "tests" / "support" / "helping.py"), *told]
    done = subprocess.run(helping, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for script, text in zip(told, done.stdout.split("# /")[1:], strict=True):
        assert "usage: " in text, script


def test_a_recipe_runs_its_commands_on_the_given_data(
    parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    says = "import os, sys; open(sys.argv[1], 'w').write(sys.argv[2] + os.environ['OMP_NUM_THREADS'])"
    commands = [f'python -c "{says}" {name} FOLDER/set' for name in ("one", "two")]
    parts.recompute.recompute(parts.recompute.Recipe(commands), tmp_path / "data", tmp_path)
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == [f"{tmp_path}/data/set1"] * 2


def test_the_first_command_that_fails_ends_a_recipe(parts: SimpleNamespace, tmp_path: Path) -> None:
    commands = ['python -c "raise SystemExit(3)"', "python -c \"open('later', 'w')\""]
    with pytest.raises(SystemExit) as ended:
        parts.recompute.recompute(parts.recompute.Recipe(commands), None, tmp_path)
    assert ended.value.code == 3
    assert not (tmp_path / "later").exists()


def test_what_a_recipe_lacks_is_named_with_what_makes_it(parts: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"demo-out/home is not there\. .*aligner-bootstrap demo --seed 10"):
        parts.recompute.recompute(parts.recompute.RECIPES["harm_desk"], None, tmp_path)
    command = [sys.executable, str(BENCHMARKS / "recompute.py"), "harm_gsm8k"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "harm_gsm8k needs --data FOLDER" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "No page has a place for a, b"),
        ("<!-- table: a -->\n<!-- end -->\n", "No page has a place for b"),
        ("<!-- table: a -->\n<!-- end -->\n<!-- table: c -->\n<!-- end -->\n", "c, which is no table. Known are a, b"),
        ("<!-- table: a -->\n<!-- end -->\n" * 2, "a has a place in page.md and another in page.md"),
        ("<!-- table: a -->\n<!-- table: b -->\n<!-- end -->\n", "without the other"),
        ("<!-- table: a -->\n<!-- end -->\n<!-- end -->\n", "without the other"),
    ],
    ids=["none", "one missing", "unknown", "twice", "no end", "no begin"],
)
def test_every_table_has_one_whole_place(parts: SimpleNamespace, tmp_path: Path, text: str, said: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=re.escape(said)):
        parts.places.pages_of(["a", "b"], [page])


def test_only_what_stands_between_the_comments_is_written(parts: SimpleNamespace) -> None:
    before = "one\n\n<!-- table: a -->\n\n| old |\n\n<!-- end -->\n\ntwo `<!-- table: a -->`\n"
    after = "one\n\n<!-- table: a -->\n\n| x |\n| --- |\n\n<!-- end -->\n\ntwo `<!-- table: a -->`\n"
    tables = {"a": ["| x |", "| --- |"]}
    assert parts.places.filled(before, tables) == parts.places.filled(after, tables) == after


def test_cells(parts: SimpleNamespace) -> None:
    cells = parts.cells
    assert cells.lines(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    assert cells.share(0.5, [0.25, 0.75]) == "50.0 % [25.0, 75.0]"
    assert cells.share(0.5, [0.5, 0.5]) == "50.0 %"
    assert cells.between([-0.004, 1]) == "[0.00, 1.00]"
    counted = {"k": 1, "n": 2, "share": 0.5, "interval_95": [0.25, 0.75]}
    assert cells.measured(counted) == "1 of 2: 50.0 % [25.0, 75.0]"
    assert cells.measured({"mean": 0.5, "interval_95": [-0.25, 0.75]}) == "0.500 [-0.250, 0.750]"
    assert cells.ratio({"median": 2, "interval_95": [1.5, 3]}) == "2.00 [1.50, 3.00]"
    # Of 0.2, 0.4 and 0.6 the standard deviation is 0.2; 4.303 times 0.2 / sqrt(3) is 0.4969.
    assert cells.over_seeds([0.2, 0.4, 0.6]) == "40.0 ± 49.7"
    assert cells.over_seeds([0.2]) == "20.0"


def test_what_checks_serve_and_lose(parts: SimpleNamespace) -> None:
    policies = {
        "keep_all": {"served": 0, "lost": {"code": 0, "links": 0, "json": 0}},
        "checks": {"served": 1500, "lost": {"code": 0, "links": 1, "json": 0}},
        "serve_all": {"served": 1750, "lost": {"code": 7, "links": 5, "json": 3}},
    }
    found = {"sets": {"aligner2b_recorded": {"total": 2000, "policies": policies}}}
    assert parts.harm.checked(found) == [
        "| of 2,000 | served | lost all or a block of code | lost a link | JSON no longer JSON |",
        "| --- | --- | --- | --- | --- |",
        "| keep all | 0 (0.0 %) | 0 | 0 | 0 |",
        "| checks | 1,500 (75.0 %) | 0 | 1 | 0 |",
        "| serve all | 1,750 (87.5 %) | 7 | 5 | 3 |",
    ]


def test_a_right_correction_that_is_refused_or_changed_is_not_served_as_written(parts: SimpleNamespace) -> None:
    outcomes = [{"corrected": 9}, {"corrected": 8, "kept": 1}, {"corrected": 9}, {"kept": 9}]
    restored = [0, 0, 2, 0]
    names = ("debugbench_python", "desk", "desk, passages", "desk, citation marks")
    sets = {
        name: {"total": 9, "outcomes": of, "restored": back}
        for name, of, back in zip(names, outcomes, restored, strict=True)
    }
    told = [row.split(" | ")[1:] for row in parts.harm.repairs({"sets": sets})[2:]]
    assert told == [["9", "9 |"], ["9", "8 |"], ["9", "7 |"], ["9", "0 |"]]


def test_both_parts_of_recorded_corrections_are_counted_and_no_other(parts: SimpleNamespace, tmp_path: Path) -> None:
    for name in parts.checks.RECORDED:
        (tmp_path / name).mkdir()
        for part in ("train", "dev", "test"):
            row = {"question": "q", "answer": "a", "correction": f"{name} {part}"}
            (tmp_path / name / f"{part}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    found = dict(parts.checks.sets(tmp_path))
    for name in parts.checks.RECORDED:
        assert {one.text for one in found.pop(name)} == {f"{name} train", f"{name} dev"}
    cited = {name: bool(re.search(r" \[\d\]\.", next(corrections).text)) for name, corrections in found.items()}
    assert cited == {"desk": False, "desk, passages": False, "desk, citation marks": True}


def test_differences_of_trainings_are_shown_beside_what_is_allowed(parts: SimpleNamespace) -> None:
    kinds = {
        "upstream": {"gradient": 0.0, "weights": 0.25, "losses": 1.5e-7},
        "aligner": {"gradient": 3e-6, "weights": 0, "losses": 0},
    }
    allowed = {"gradient": 1e-5, "weights": 0.01, "losses": 0.01}
    assert parts.others.same_training({"steps": 20, "kinds": kinds, "allowed": allowed})[2:] == [
        "| an Aligner (SFT) | 3e-06 | 0 | 0 |",
        "| an upstream (DPO) | 0 | 0.25 | 1.5e-07 |",
        "| what is allowed | 1e-05 | 0.01 | 0.01 |",
    ]


def test_rounds_in_short_are_means_over_the_seeds(parts: SimpleNamespace) -> None:
    shares = {"aligned": 0.5, "wrong_left": 0.25, "garbled": 0.0}
    runs = {
        str(seed): {"rounds": {"rows": [{**shares, "alone": alone + added} for added in (0.0, 0.25)]}}
        for seed, alone in enumerate((0.2, 0.4, 0.6))
    }
    assert parts.rounds.short({"runs": runs})[2:] == [
        "| start | 40.0 ± 49.7 | 50.0 ± 0.0 | 25.0 ± 0.0 | 0.0 ± 0.0 |",
        "| 1 | 65.0 ± 49.7 | 50.0 ± 0.0 | 25.0 ± 0.0 | 0.0 ± 0.0 |",
    ]


def demo_figures(parts: SimpleNamespace, **changes: Any) -> dict[str, Any]:
    """What a demo with passages writes, as far as it is read."""
    group = {
        "repaired": {"k": 3, "n": 4, "share": 0.75, "interval": [0.5, 1.0]},
        "upstream_alone": {"fully_right": 0.25},
        "with_aligner": {"fully_right": 0.875},
    }
    unseen = {**group, "repaired": {"k": 1, "n": 2, "share": 0.5, "interval": [0.25, 0.75]}}
    scale = {**asdict(parts.demo_rag.RAG_FULL), "threads": 2}
    kept = {"k": 9, "n": 10, "share": 0.9, "interval": [0.625, 1.0]}
    figures = dict.fromkeys(parts.demo_rag.KEPT) | {"seed": 1, "scale": scale, "gates": ["not stored"]}
    return {**figures, "all products": group, "unseen products": unseen, "right answers": kept, **changes}


def test_a_finished_demo_is_stored_and_not_run_again(parts: SimpleNamespace, tmp_path: Path) -> None:
    figures, full = demo_figures(parts), parts.demo_rag.RAG_FULL
    (tmp_path / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    found = parts.demo_rag.demo(tmp_path, 1, full)
    assert found == {"commit": None, "threads": 2, **{name: figures[name] for name in parts.demo_rag.KEPT}}
    (tmp_path / "commit").write_text("abc", encoding="utf-8")
    found = parts.demo_rag.demo(tmp_path, 1, full)
    assert found["commit"] == "abc"
    assert parts.others.demo_rag({"runs": {"1": found}})[2:] == [
        "| 1 | 75.0 % [50.0, 100.0] (3 of 4) | 50.0 % [25.0, 75.0] (1 of 2) | 90.0 % [62.5, 100.0] (9 of 10) | 25.0 %, 87.5 % |"
    ]


@pytest.mark.parametrize("other", ["seed", "size"])
def test_figures_of_another_demo_are_not_stored(parts: SimpleNamespace, tmp_path: Path, other: str) -> None:
    changes = {"seed": {"seed": 2}, "size": {"scale": asdict(parts.demo_rag.RAG_QUICK)}}[other]
    (tmp_path / "figures.json").write_text(json.dumps(demo_figures(parts, **changes)), encoding="utf-8")
    with pytest.raises(SystemExit, match="another demo"):
        parts.demo_rag.demo(tmp_path, 1, parts.demo_rag.RAG_FULL)
