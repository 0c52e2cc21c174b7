"""A real vLLM on this machine: the same corrections as in process, many streams, a server that is killed, our drafter in it,
and promotions to it under load.

    make vllm-env
    python -m pytest -m soak -s tests/soak/test_vllm.py

`ALIGNER_TEST_VLLM` may name the Python of another environment that has vLLM. Takes some ten minutes on two cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
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
from aligner_chain.shared import ahold, catch_up, following, hold
from bootstrap import rollout
from bootstrap.merging import merge_adapter
from bootstrap.registry import PairVersion, Registry

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

    def __init__(self, folder: Path, *options: str, model: str = "aligner") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", model]
        settings = ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port), *options]
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self.url, self.model = f"http://127.0.0.1:{port}/v1", model
        place = folder.parent  # a version of a registry is not to be written to
        with (place / f"vllm-{port}.log").open("w") as log:
            self.process = subprocess.Popen(
                [PYTHON, *serve, *settings], stdout=log, stderr=log, env=environment, cwd=place, start_new_session=True
            )

    def wait(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                Aligner.from_server(self.url, model=self.model).close()
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
def serving(folder: Path, *options: str, model: str = "aligner") -> Iterator[Server]:
    """A server that answers, until the block ends."""
    made = Server(folder, *options, model=model)
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
    """Runs last of those that share the servers: it kills one. The one that is left has the drafter, so the answers come from both kinds."""
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


ADAPTED = {"1": "Within 31 days!", "2": "Within 32 days!"}
LORA = ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    return Registry(tmp_path / "home")


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    return {version: by_heart.adapt(place / version, folder, text, version) for version, text in ADAPTED.items()}


def registered(registry: Registry, source: Path) -> PairVersion:
    aligner = registry.add("aligner", lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True), {})
    return registry.register_pair(None, aligner, figures={})


class Applications:
    """Threads, and streams of one event loop, that ask what is served until the block ends."""

    def __init__(self) -> None:
        self.corrections: list[Correction] = []
        self.longest_s = 0.0
        self._stop, self._pool = threading.Event(), ThreadPoolExecutor(5)

    def __enter__(self) -> Applications:
        self._running = [self._pool.submit(self._ask) for _ in range(4)]
        self._running.append(self._pool.submit(asyncio.run, self._read_streams()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._running:
            one.result(120)

    def wait_for(self, pair: str, more: int = 40) -> None:
        """Until so many more answers are of a pair."""
        deadline, before = time.monotonic() + 120, self.pairs[pair]
        while self.pairs[pair] < before + more:
            assert time.monotonic() < deadline, f"pair {pair} does not answer: {self.pairs}"
            time.sleep(0.05)

    @property
    def pairs(self) -> Counter[str | None]:
        return Counter(one.pair for one in list(self.corrections))

    def _ask(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            with hold(None) as aligner:
                self.corrections += aligner.correct([WRONG] * 4)
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    async def _read_streams(self) -> None:
        async def read() -> None:
            while not self._stop.is_set():
                async with ahold(None) as aligner:
                    *pieces, last = [piece async for piece in aligner.astream(WRONG, unchecked=True)]
                assert "".join(map(str, pieces)) == last.text
                self.corrections.append(last)

        await asyncio.gather(*(read() for _ in range(8)))


def report(what: str, asking: Applications, switches: int) -> None:
    pairs = ", ".join(f"{count} by pair {pair}" for pair, count in sorted(asking.pairs.items()))
    sys.stdout.write(
        f"\n{what}: {len(asking.corrections)} answers ({pairs}), {switches} switches, the longest call took "
        f"{asking.longest_s:.1f} s\n"
    )


def test_adapters_are_switched_under_load_and_no_request_is_lost(
    folder: Path, adapters: dict[str, Path], registry: Registry
) -> None:
    """With nothing kept, so that an adapter is unloaded while the applications ask, and a rollback loads it again."""
    expected = {"1": (ADAPTED["1"], "tiny@1"), "2": (ADAPTED["2"], "tiny@2")}
    first, second = (registered(registry, adapters[version]) for version in ("1", "2"))
    said, before = list[str](), following()
    with serving(folder, *LORA, model="base") as one, serving(folder, *LORA, model="base") as other:
        rollout.promote(registry, first, rollout.Where(urls=(one.url, other.url)))
        with Applications() as asking:
            asking.wait_for("1")
            rollout.promote(registry, second, keep=0, say=said.append)
            asking.wait_for("2")
            rollout.rollback(registry)
            asking.wait_for("1")
            rollout.promote(registry, second)
            asking.wait_for("2")
        assert catch_up(60)
    report("two vLLMs with adapters", asking, following().switched - before.switched)
    assert [one for one in asking.corrections if (one.text, one.aligner) != expected[one.pair or ""]] == []
    assert said == [f"aligner@1 was unloaded from {server.url}" for server in (one, other)]
    assert (following().switched - before.switched, following().failed) == (3, before.failed)


def test_processes_are_switched_under_load_and_no_request_is_lost(
    folder: Path, adapters: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    expected = {"1": (CORRECTED[WRONG], "tiny@7"), "2": (ADAPTED["2"], "tiny@2")}
    merge_adapter(adapters["2"], tmp_path / "merged", base=str(folder))
    shutil.copy(adapters["2"] / "aligner.json", tmp_path / "merged")
    first, second = (registered(registry, source) for source in (folder, tmp_path / "merged"))
    before = following()
    with (
        serving(first.aligner.path, model="aligner@1") as old,
        serving(second.aligner.path, model="aligner@2") as new,
    ):
        rollout.promote(registry, first, rollout.Where(urls=(old.url,)))
        with Applications() as asking:
            asking.wait_for("1")
            rollout.promote(registry, second, rollout.Where(urls=(new.url,)))
            asking.wait_for("2")
            rollout.rollback(registry)
            asking.wait_for("1")
            rollout.promote(registry, second, rollout.Where(urls=(new.url,)))
            asking.wait_for("2")
            old.kill()
            asking.wait_for("2")
    report("two processes", asking, following().switched - before.switched)
    assert [one for one in asking.corrections if (one.text, one.aligner) != expected[one.pair or ""]] == []
    assert (following().switched - before.switched, following().failed) == (3, before.failed)
