"""What importing loads, which names are public, and that a foreign `bootstrap.py` takes nothing from us."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

TRAINERS = {"trl", "peft", "datasets", "accelerate"}
MODELS = {"torch", "transformers"}
FRAMEWORKS = TRAINERS | MODELS | {"tokenizers", "langchain_core", "llama_index", "sqlalchemy", "numpy", "httpx"}

PUBLIC = {
    "aligner_chain": {"Aligner", "Exchange", "Turn", "Correction"},
    "aligner_chain.langchain": {"AlignerCorrector", "AlignedChatModel", "AlignerMiddleware", "LocalChatModel"},
    "aligner_chain.llama_index": {
        "AlignerResponsePostprocessor",
        "AlignerSynthesizer",
        "AlignerQueryEngine",
        "AlignerChatEngine",
        "AlignerFunctionAgent",
        "AlignerReActAgent",
    },
    "bootstrap": {"CorrectionStore", "Collector", "Registry", "RoundConfig", "run_round"},
}


def run(*command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import aligner_chain", FRAMEWORKS),
        ("from aligner_chain import Aligner, Exchange, Turn, Correction", FRAMEWORKS),
        ("import aligner_chain.cli", FRAMEWORKS),
        ("import aligner_chain.langchain", TRAINERS | {"torch", "llama_index", "sqlalchemy", "langgraph"}),
        ("from aligner_chain.langchain import AlignerCorrector, LocalChatModel", TRAINERS | {"torch", "llama_index"}),
        ("import aligner_chain.llama_index", TRAINERS | {"torch", "transformers", "langchain_core"}),
        ("import bootstrap", FRAMEWORKS),
        (
            "import bootstrap.store, bootstrap.collect, bootstrap.registry, bootstrap.pairs",
            TRAINERS | MODELS | {"langchain_core"},
        ),
        ("import bootstrap.cli", TRAINERS | MODELS),
    ],
)
def test_importing_loads_no_more_than_it_needs(statement: str, unwanted: set[str]) -> None:
    done = run(sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert unwanted.isdisjoint(done.stdout.split()), sorted(unwanted & set(done.stdout.split()))


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_every_public_name_can_be_imported(module: str) -> None:
    package = importlib.import_module(module)
    assert set(package.__all__) >= PUBLIC[module]
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import aligner_chain.langchain
    import bootstrap

    for package in (aligner_chain, aligner_chain.langchain, bootstrap):
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = package.no_such_name


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder whose own `bootstrap.py` and `aligner_chain.py` stop whoever imports them."""
    for name in ("bootstrap", "aligner_chain"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the foreign {name} was imported')\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("command", ["aligner-chain", "aligner-bootstrap"])
def test_a_command_takes_its_own_packages_in_a_folder_with_foreign_ones(command: str, foreign: Path) -> None:
    done = run(str(Path(sys.executable).parent / command), "--help", folder=foreign)
    assert done.returncode == 0, done.stderr
    assert f"usage: {command}" in done.stdout


def test_running_a_module_there_needs_the_safe_path(foreign: Path) -> None:
    """`python -m` puts the working folder first, so only `-P` finds ours; the commands need nothing."""
    done = run(sys.executable, "-m", "bootstrap.cli", "--help", folder=foreign)
    assert "the foreign bootstrap was imported" in done.stderr
    done = run(sys.executable, "-P", "-m", "bootstrap.cli", "--help", folder=foreign)
    assert done.returncode == 0, done.stderr
    assert "usage: aligner-bootstrap" in done.stdout
