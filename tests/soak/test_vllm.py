"""A real vLLM on this machine: the same corrections as in process, many streams, a server that is killed, our drafter in it.

    make vllm-env
    python -m pytest -m soak -s tests/soak/test_vllm.py

`ALIGNER_TEST_VLLM` may name the Python of another environment that has vLLM. Takes some five minutes on two cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import by_heart
import httpx
import pytest
from by_heart import CORRECTED, DOUBTFUL, ENDLESS, FORGED, GOOD, WRONG

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.errors import ServerError

PYTHON = os.environ.get("ALIGNER_TEST_VLLM", str(Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"))
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path(PYTHON).exists(), reason="no vLLM: make vllm-env, or ALIGNER_TEST_VLLM=its-python"),
]

WINDOW = 512
START_S = 400
EXCHANGES = [GOOD, WRONG, DOUBTFUL, FORGED, ENDLESS, *(Exchange.of(f"q{n}?", f"It is {n}.") for n in range(195))]
DRAFTER = {"method": "custom_class", "model": "aligner_chain.vllm.AnswerDrafter", "num_speculative_tokens": 16}


class Server:
    """A vLLM of its own on a free port."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "aligner"]
        settings = ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port), *options]
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self.url = f"http://127.0.0.1:{port}/v1"
        with (folder / f"vllm-{port}.log").open("w") as log:
            self.process = subprocess.Popen(
                [PYTHON, *serve, *settings], stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
            )

    def wait(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                Aligner.from_server(self.url, model="aligner").close()
            except ServerError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(2)
            else:
                return

    def kill(self) -> None:
        """Ends it and its engine at once; safe to call twice."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """A server that answers, until the block ends."""
    made = Server(folder, *options)
    try:
        made.wait()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any, tiny_llama: Any) -> Path:
    def model(tokenizer: Any, **settings: Any) -> Any:
        # vLLM's attention on CPUs has no smaller heads.
        return tiny_llama(tokenizer, max_position_embeddings=WINDOW, head_dim=32, **settings)

    return by_heart.train(tmp_path_factory.mktemp("tiny"), make_tokenizer(), model)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as made:
        yield made


@pytest.fixture(scope="module")
def drafting(folder: Path) -> Iterator[Server]:
    """One with our drafter in it."""
    with serving(folder, "--speculative-config", json.dumps(DRAFTER)) as made:
        yield made


@pytest.fixture(scope="module")
def there(server: Server) -> Iterator[Aligner]:
    with closing(Aligner.from_server(server.url, model="aligner")) as aligner:
        yield aligner


@pytest.fixture(scope="module")
def here(folder: Path) -> Iterator[Aligner]:
    with closing(Aligner.from_pretrained(folder, dtype="float32", device="cpu")) as aligner:
        yield aligner


def told(correction: Correction) -> tuple[object, ...]:
    return (correction.text, correction.outcome, correction.reason, correction.criteria, type(correction.error))


def test_it_does_all_that_an_aligner_can_use(there: Aligner) -> None:
    can = there.engine.capabilities
    assert (can.choices, can.bias, can.score_draft, can.stream, can.window) == (True, True, True, True, WINDOW)


@pytest.mark.parametrize("strength", [None, 0.3, 0.7, 1.0])
def test_corrections_and_scores_are_those_of_the_model_in_this_process(
    strength: float | None, there: Aligner, here: Aligner
) -> None:
    worst = 0.0
    ours, theirs = (one.correct(EXCHANGES, strength=strength) for one in (here, there))
    for one, other in zip(ours, theirs, strict=True):
        assert told(one) == told(other)
        assert one.scores.keys() == other.scores.keys()
        worst = max([worst, *(abs(one.scores[name] - other.scores[name]) for name in one.scores)])
    sys.stdout.write(f"\n{len(ours)} corrections, all the same; scores differ by at most {worst:.1e}\n")
    assert worst < 1e-3


def test_sixty_four_streams_at_once(there: Aligner, here: Aligner) -> None:
    async def read(exchange: Exchange) -> tuple[str, Correction]:
        *pieces, last = [piece async for piece in there.astream(exchange)]
        return "".join(map(str, pieces)), last

    async def all_of_them() -> list[tuple[str, Correction]]:
        return await asyncio.gather(*(read(one) for one in EXCHANGES[:64]))

    for (text, last), expected in zip(asyncio.run(all_of_them()), here.correct(EXCHANGES[:64]), strict=True):
        assert told(last) == told(expected)
        assert text == last.text or last.error is not None


def test_the_drafter_changes_no_text_and_saves_forwards(drafting: Server, here: Aligner) -> None:
    with closing(Aligner.from_server(drafting.url, model="aligner")) as aligner:
        for one, other in zip(here.correct(EXCHANGES), aligner.correct(EXCHANGES), strict=True):
            assert told(one) == told(other)
    metrics = httpx.get(drafting.url.replace("/v1", "/metrics"), trust_env=False).text
    accepted = sum(float(n) for n in re.findall(r"^vllm:spec_decode_num_accepted_tokens_total.* (\S+)$", metrics, re.M))
    drafted = sum(float(n) for n in re.findall(r"^vllm:spec_decode_num_draft_tokens_total.* (\S+)$", metrics, re.M))
    sys.stdout.write(f"\n{accepted:.0f} of {drafted:.0f} drafted tokens were right\n")
    assert accepted > 0


def test_a_stream(there: Aligner) -> None:
    *pieces, last = there.stream(WRONG, unchecked=True)
    assert "".join(map(str, pieces)) == CORRECTED[WRONG]
    assert isinstance(last, Correction)
    assert last.criteria == ("true",)


def long(number: int) -> Exchange:
    """One whose question fills a block of the prefix cache (128 tokens on a CPU) by itself, and is like no other's."""
    return Exchange.of(f"{number}: " + "May I return what I bought? " * 6, f"You may, within {number} days. " * 2)


def test_what_goes_ahead_of_a_growing_prompt_is_found_in_the_prefix_cache(
    server: Server, there: Aligner, here: Aligner
) -> None:
    def metric(name: str) -> float:
        text = httpx.get(server.url.replace("/v1", "/metrics"), trust_env=False).text
        return sum(float(n) for n in re.findall(rf"^vllm:{name}.* (\S+)$", text, re.M))

    def at_its_end(exchange: Exchange) -> Correction:
        return there.correct([exchange])[0]

    def as_it_grows(exchange: Exchange) -> Correction:
        read = metric("prefix_cache_queries_total")
        with there.begin(exchange.turns) as session:
            while metric("prefix_cache_queries_total") == read:
                time.sleep(0.01)
            session.feed(exchange.answer)
            return session.finish()

    def hits(correct: Callable[[Exchange], Correction], numbers: range) -> float:
        before, exchanges = metric("prefix_cache_hits_total"), [long(number) for number in numbers]
        for exchange, expected in zip(exchanges, here.correct(exchanges), strict=True):
            assert told(correct(exchange)) == told(expected)
        return metric("prefix_cache_hits_total") - before

    assert there.engine.capabilities.overlap
    without, warmed = hits(at_its_end, range(100, 120)), hits(as_it_grows, range(120, 140))
    sys.stdout.write(
        f"\n20 prompts found {without:.0f} tokens in the prefix cache without, {warmed:.0f} with warming\n"
    )
    assert warmed >= without + 20 * 128


def test_one_of_two_servers_killed_under_load_loses_no_request(
    folder: Path, drafting: Server, server: Server, here: Aligner
) -> None:
    """Runs last: it kills one of them. The one that is left has the drafter, so the answers come from both kinds."""
    expected = {one: told(correction) for one, correction in zip(EXCHANGES, here.correct(EXCHANGES), strict=True)}
    servers = [server.url, drafting.url]
    with closing(Aligner.from_server(servers, model="aligner")) as aligner, ThreadPoolExecutor(8) as pool:
        running = [pool.submit(aligner.correct, EXCHANGES[start::8] * 4) for start in range(8)]
        time.sleep(1.0)
        assert not all(one.done() for one in running)
        server.kill()
        corrections = [one for call in running for one in call.result(300)]
    assert len(corrections) == 4 * len(EXCHANGES)
    for one in corrections:
        assert told(one) == expected[one.exchange]
