"""An Aligner that mends "bad" to "good", what it was asked and what was told of it, and an upstream that answers badly."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama import BAD, ScriptedLLM, node
from llama_index.core import Settings
from llama_index.core.schema import NodeWithScore

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.llama_index import AlignerResponsePostprocessor

WORKER = "_connection_worker_thread"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """LlamaIndex's `Memory` leaves its database to the garbage collector, when the loops that it ran in are closed."""
    left = pytest.mark.filterwarnings(
        f"ignore:Exception in thread .*{WORKER}:pytest.PytestUnhandledThreadExceptionWarning"
    )
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(left)


@pytest.fixture(autouse=True, scope="module")
def _databases_end_here() -> Iterator[None]:
    """So that no test of another module hears of it."""
    before = set(threading.enumerate())
    yield
    workers = [thread for thread in threading.enumerate() if WORKER in thread.name and thread not in before]
    if workers:
        gc.collect()
        for worker in workers:
            worker.join(0.1)


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex looks for a model of a provider where none was set; no test may need one by accident."""
    monkeypatch.setattr(Settings, "_llm", None)


@pytest.fixture
def asked() -> list[Exchange]:
    """Every exchange that the Aligner of `mend` was given."""
    return []


@pytest.fixture
def told() -> list[Correction]:
    """Every correction that `on_correction` was given."""
    return []


@pytest.fixture
def mend(asked: list[Exchange]) -> Aligner:
    """Corrects "bad" to "good"; fails on "crash"; writes nothing for "empty"."""

    def correct(exchange: Exchange) -> str:
        asked.append(exchange)
        if "crash" in exchange.answer:
            raise RuntimeError("out of luck")
        return "" if exchange.answer == "empty" else exchange.answer.replace("bad", "good")

    return Aligner.scripted(correct)


@pytest.fixture
def twice(asked: list[Exchange]) -> Aligner:
    """Adds a mark to each answer, so that a second correction shows."""

    def correct(exchange: Exchange) -> str:
        asked.append(exchange)
        return f"{exchange.answer} (checked)"

    return Aligner.scripted(correct)


@pytest.fixture
def correcting(mend: Aligner, told: list[Correction]) -> Callable[..., AlignerResponsePostprocessor]:
    """Makes a postprocessor with other settings."""

    def make(aligner: Aligner = mend, **settings: Any) -> AlignerResponsePostprocessor:
        return AlignerResponsePostprocessor(aligner, **{"on_correction": told.append, **settings})

    return make


@pytest.fixture
def postprocessor(correcting: Callable[..., AlignerResponsePostprocessor]) -> AlignerResponsePostprocessor:
    return correcting()


@pytest.fixture
def llm() -> ScriptedLLM:
    return ScriptedLLM(reply=BAD)


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return [node("one", page=1), node("two"), node("three")]
