"""What importing the package costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aligner_chain

FRAMEWORKS = {
    "torch",
    "transformers",
    "tokenizers",
    "langchain_core",
    "sqlalchemy",
    "trl",
    "peft",
    "numpy",
    "bootstrap",
}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return FRAMEWORKS.intersection(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import aligner_chain",
        "from aligner_chain import Aligner, Exchange; Aligner.scripted(lambda e: 'b').correct([Exchange.of('q', 'a')])",
        "import aligner_chain.templates, aligner_chain.checkpoint, aligner_chain.engines.huggingface",
    ],
)
def test_no_framework_is_loaded(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_the_check_above_can_see_one() -> None:
    assert loaded_by("import aligner_chain, numpy") == {"numpy"}


def test_every_public_name_is_there() -> None:
    for name in aligner_chain.__all__:
        assert getattr(aligner_chain, name) is not None
    assert set(dir(aligner_chain)) == set(aligner_chain.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        aligner_chain.nothing  # noqa: B018
