from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import micro
import pytest

from aligner_chain.exchange import Correction, Exchange, edits_between
from bootstrap.store import CorrectionStore


@pytest.fixture
def store(tmp_path) -> CorrectionStore:
    return CorrectionStore(tmp_path / "corrections.db")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server; skips where there is none."""
    server = pytest.importorskip("postgres", exc_type=ModuleNotFoundError)
    if reason := server.missing():
        pytest.skip(reason)
    running = server.PostgresServer()
    try:
        yield running
    finally:
        running.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store can be: in a file, and in a server's database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'corrections.db'}"
    return str(request.getfixturevalue("postgres").new_database())


@pytest.fixture
def any_store(url: str) -> Iterator[CorrectionStore]:
    """An empty store of each kind."""
    store = CorrectionStore(url)
    yield store
    store.close()


@pytest.fixture
def make_correction() -> Callable[..., Correction]:
    """A correction of `answer` to `text`, with ids in the order of the calls; other arguments go to its exchange."""
    ids = count()

    def correction(question="What is it?", answer="bad", text="good", *, outcome=None, **exchange) -> Correction:
        asked = Exchange.of(question, answer)
        fields = {name: getattr(asked, name) for name in asked.__slots__} | exchange
        return Correction(
            exchange=Exchange(**fields),
            text=text,
            outcome=outcome or ("approved" if text == answer else "corrected"),
            edits=edits_between(answer, text),
            aligner="tiny@1",
            template="aligner-chain/1",
            id=f"{next(ids):06}",
        )

    return correction


@pytest.fixture
def run_python(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a fresh interpreter, in an empty folder, with what this test run can import."""

    def run(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "script.py"
        file.write_text(script, encoding="utf-8")
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [*prefix, sys.executable, "-P", str(file), *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an `upstream` and an `aligner` that are really trained on the micro world."""
    folder = tmp_path_factory.mktemp("models")
    micro.train_upstream_model(folder)
    micro.train_aligner_model(folder)
    return folder
