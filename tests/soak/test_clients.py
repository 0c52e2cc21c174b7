"""LlamaIndex's `OpenAILike` with the proxy as its base URL: every call beside the same one straight to the upstream.

    make clients-env
    python -m pytest -m soak tests/soak/test_clients.py

It needs an environment of its own, since its version of `openai` is none that fits beside ours; `ALIGNER_TEST_CLIENTS` may name the
Python of another one that has it. Takes half a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_index_client
import pytest
from llama_index_client import CALLS
from openai_server import OpenAIServer

pytest.importorskip("prometheus_client")

from proxying import proxy

from aligner_chain import Correction

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("ALIGNER_TEST_CLIENTS", str(ROOT / ".venv-clients" / "bin" / "python"))
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        not Path(PYTHON).exists(), reason="no clients: make clients-env, or ALIGNER_TEST_CLIENTS=its-python"
    ),
]

NAMES = list(CALLS)
FAILED = ["chat that fails", "stream_chat that fails"]
TEXTS = NAMES[: NAMES.index("chat_with_tools")]
PASSED = [name for name in NAMES if name not in (*TEXTS, *FAILED)]
Answers = dict[str, list[Any]]


@pytest.fixture(scope="module")
def told() -> list[Correction]:
    return []


@pytest.fixture(scope="module")
def both(told: list[Correction]) -> Iterator[tuple[Answers, Answers]]:
    """What the upstream says itself, and what comes through the proxy."""
    with OpenAIServer() as model, proxy(model.url, on_correction=told.append) as url:
        direct, asked = made(model.url), list(model.requests)
        model.forget()
        proxied = made(url)
        assert model.requests == asked  # so each was asked once, and in the client's own words
        yield direct, proxied


def made(url: str) -> Answers:
    command = [PYTHON, llama_index_client.__file__, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answers: Answers = json.loads(done.stdout)
    return answers


def notes(value: Any) -> list[Any]:
    """What the proxy told of each choice, taken out."""
    if isinstance(value, dict):
        own = [value.pop("aligner")] if "aligner" in value else []
        return own + [note for one in value.values() for note in notes(one)]
    return [note for one in value for note in notes(one)] if isinstance(value, list) else []


def text_of(response: dict[str, Any]) -> str:
    """The whole text, which the pieces of its streams hold too."""
    if "message" not in response:
        return str(response["text"])
    return "".join(block["text"] for block in response["message"]["blocks"] if block["block_type"] == "text")


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_corrected(name: str, both: tuple[Answers, Answers]) -> None:
    direct, proxied = (answers[name] for answers in both)
    [note] = notes(proxied)
    assert note["outcome"] == "corrected"
    original, corrected = text_of(direct[-1]), text_of(proxied[-1])
    assert original.startswith("bad answer")
    assert corrected == original.replace("bad", "good")
    assert not any("bad" in text_of(piece) for piece in proxied)
    assert "".join(piece["delta"] or "" for piece in proxied) in ("", corrected)
    if "stream" in name:
        assert proxied[-1] == {**direct[-1], **with_text(direct[-1], corrected)}


def with_text(response: dict[str, Any], text: str) -> dict[str, Any]:
    """The place of a response's text, with this one in it."""
    if "message" not in response:
        return {"text": text}
    return {"message": {**response["message"], "blocks": [{"block_type": "text", "text": text}]}}


@pytest.mark.parametrize("name", PASSED)
def test_all_else_comes_as_it_is_piece_by_piece(
    name: str, both: tuple[Answers, Answers], told: list[Correction]
) -> None:
    direct, proxied = (answers[name] for answers in both)
    assert {note["outcome"] for note in notes(proxied)} <= {"skipped"}
    assert proxied == direct
    assert {one.outcome for one in told} == {"corrected", "skipped", "failed"}


@pytest.mark.parametrize("name", FAILED)
def test_a_correction_that_failed_is_an_error_without_the_text(name: str, both: tuple[Answers, Answers]) -> None:
    [error] = both[1][name]
    assert error["code"] == "engine"
    assert "bad answer" not in json.dumps(error)
