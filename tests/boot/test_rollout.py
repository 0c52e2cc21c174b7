"""Promotion to model servers: all of them have a version before one application is sent there, or nothing has changed."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import by_heart
import pytest
from by_heart import WRONG
from completions_server import CompletionsServer, Dialect, Fault

from aligner_chain import Correction
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.server import ServerEngine
from aligner_chain.engines.server.wire import KEY
from aligner_chain.serving import ModelServers, read_served
from aligner_chain.shared import catch_up, following, hold
from aligner_chain.switching import VARIABLE
from bootstrap import rollout
from bootstrap.cli import main
from bootstrap.database.leases import Leases
from bootstrap.errors import RegistryError, RolloutError
from bootstrap.registry import PairVersion, Registry, Servers
from bootstrap.rollout import Where
from bootstrap.rollout.replicas import Use, use_of

TEXTS = {"1": "Within 31 days!", "2": "Within 32 days!"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any, tiny_llama: Any) -> Path:
    def model(tokenizer: Any, **settings: Any) -> Any:
        return tiny_llama(tokenizer, max_position_embeddings=512, **settings)

    return by_heart.train(tmp_path_factory.mktemp("base"), make_tokenizer(), model)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {version: by_heart.adapt(folder / version, base, text, version) for version, text in TEXTS.items()}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty home, whose applications look at every request."""
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    monkeypatch.setenv(VARIABLE, "0")
    return Registry(tmp_path / "home")


@pytest.fixture
def start(base: Path) -> Iterator[Callable[..., CompletionsServer]]:
    """Starts servers, of the base that loads adapters or of another folder."""
    with ExitStack() as stack:

        def started(folder: Path = base, **settings: Any) -> CompletionsServer:
            engine = HuggingFaceEngine.from_pretrained(folder, dtype="float32", device="cpu")
            stack.callback(engine.close)
            settings = {"model": "base", "dialect": Dialect(adapters=True), **settings}
            return stack.enter_context(CompletionsServer(engine, root=str(folder), **settings))

        yield started


@pytest.fixture
def servers(start: Callable[..., CompletionsServer]) -> list[CompletionsServer]:
    return [start(), start()]


@pytest.fixture
def pairs(registry: Registry, adapters: dict[str, Path]) -> list[PairVersion]:
    """Pairs 1, 2 and 3, whose Aligners are adapters: 1 and 3 correct alike."""
    return [registered(registry, adapters[version]) for version in ("1", "2", "1")]


def registered(registry: Registry, source: Path) -> PairVersion:
    aligner = registry.add("aligner", lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True), {})
    return registry.register_pair(None, aligner, figures={})


def on(*servers: CompletionsServer) -> Where:
    return Where(urls=tuple(one.url for one in servers))


def corrected() -> Correction:
    with hold(None) as aligner:
        [correction] = aligner.correct([WRONG])
    return correction


def loaded(servers: list[CompletionsServer]) -> list[list[str]]:
    return [sorted(one.adapters) for one in servers]


def test_an_adapter_is_loaded_everywhere_and_then_answers(
    registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer]
) -> None:
    rollout.promote(registry, pairs[0], on(*servers))
    assert loaded(servers) == [["aligner@1"]] * 2
    assert all([one["model"] for one in server.asked].count("aligner@1") > 1 for server in servers), "each was probed"
    served = read_served(registry.home)
    assert served is not None
    assert served.aligner.server == ModelServers(urls=tuple(one.url for one in servers), model="aligner@1")
    correction = corrected()
    assert (correction.text, correction.aligner, correction.pair) == (TEXTS["1"], "tiny@1", "1")
    with hold(None) as aligner:
        assert isinstance(aligner.engine, ServerEngine)
        assert aligner.engine.capabilities.window == 512, "that of the model below the adapter"
    # vLLM 0.32 ends where such a request for an adapter meets another one.
    assert not any("prompt_logprobs" in one for server in servers for one in server.asked)


def test_a_switch_under_load_loses_no_request_and_each_answer_is_of_one_version(
    registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer]
) -> None:
    rollout.promote(registry, pairs[0], on(*servers))
    corrected()
    before, stop, corrections = following(), threading.Event(), list[Correction]()

    def ask() -> None:
        while not stop.is_set():
            corrections.append(corrected())

    def wait_for(pair: str, count: int) -> None:
        deadline = time.monotonic() + 60
        while sum(one.pair == pair for one in corrections) < count:
            assert time.monotonic() < deadline, "nobody asks any more"
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(ask) for _ in range(4)]
        try:
            wait_for("1", 10)
            rollout.promote(registry, pairs[1])  # where the pair before is
            assert catch_up(60)
            wait_for("2", 10)
            rollout.rollback(registry)
            assert catch_up(60)
            wait_for("1", sum(one.pair == "1" for one in corrections) + 10)
        finally:
            stop.set()
        for asker in askers:
            asker.result(60)
    expected = {"1": (TEXTS["1"], "tiny@1"), "2": (TEXTS["2"], "tiny@2")}
    assert [one for one in corrections if (one.text, one.aligner) != expected[one.pair or ""]] == []
    assert following().switched - before.switched == 2
    assert following().failed == before.failed
    assert [one.loads for one in servers] == [["aligner@1", "aligner@2"]] * 2, "a rollback loads nothing"


def refuses_the_load(server: CompletionsServer, _: Registry) -> None:
    server.refuses_loads = 500


def knows_the_name_as_another(server: CompletionsServer, registry: Registry) -> None:
    server.load("aligner@2", str(registry.home / "aligner" / "1"))


def loads_no_adapters(server: CompletionsServer, _: Registry) -> None:
    server.dialect = Dialect()


def fails_when_asked(server: CompletionsServer, _: Registry) -> None:
    server.always = Fault(status=400, message="broken weights")


def is_gone(server: CompletionsServer, _: Registry) -> None:
    server.kill()


FAILURES = [
    (refuses_the_load, "rank 64 is greater.*--max-lora-rank"),
    (knows_the_name_as_another, "it loaded aligner@2 from .*/aligner/1 and not from .*/aligner/2"),
    (loads_no_adapters, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    (fails_when_asked, "broken weights"),
    (is_gone, "did not answer"),
]


@pytest.mark.parametrize(("breaks", "said"), FAILURES, ids=[breaks.__name__ for breaks, _ in FAILURES])
def test_a_server_that_fails_in_the_middle_leaves_all_as_it_was(
    breaks: Callable[[CompletionsServer, Registry], None],
    said: str,
    registry: Registry,
    pairs: list[PairVersion],
    servers: list[CompletionsServer],
) -> None:
    rollout.promote(registry, pairs[0], on(*servers))
    before, event = (registry.home / "served.json").read_bytes(), registry.event()
    breaks(servers[1], registry)
    there = loaded(servers)
    with pytest.raises(RolloutError, match=f"(?s){said}") as caught:
        rollout.promote(registry, pairs[1])
    assert f"aligner@2 is not ready on {servers[1].url}" in str(caught.value)
    assert ((registry.home / "served.json").read_bytes(), registry.event()) == (before, event)
    assert loaded(servers) == there
    assert "aligner@2" not in servers[0].adapters
    assert corrected().text == TEXTS["1"]


def test_what_the_registry_refuses_is_unloaded_again(
    registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer]
) -> None:
    rollout.promote(registry, pairs[0], on(*servers))
    with pytest.raises(RegistryError, match="pair 1 is served and pair 3 was expected"):
        rollout.promote(registry, pairs[1], expected=pairs[2])
    assert loaded(servers) == [["aligner@1"]] * 2


def test_what_cannot_be_taken_back_is_told(
    registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer], caplog: pytest.LogCaptureFixture
) -> None:
    class Lost:
        def check(self, _: object) -> None:
            servers[0].kill()
            raise RegistryError("too late")

    with pytest.raises(RegistryError, match="too late"), caplog.at_level(logging.WARNING):
        rollout.promote(registry, pairs[0], on(*servers), fence=Lost())
    assert f"{servers[0].url} may still have aligner@1 loaded" in caplog.text
    assert servers[1].adapters == {}


def test_a_server_that_was_started_again_gets_the_adapter_again(
    registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer]
) -> None:
    rollout.promote(registry, pairs[0], on(*servers))
    servers[1].adapters.clear()
    rollout.promote(registry, pairs[0])
    assert loaded(servers) == [["aligner@1"]] * 2
    assert len(registry.history()) == 1, "the pair is served as it was"
    rollout.promote(registry, pairs[1])
    servers[0].adapters.clear()
    rollout.rollback(registry)
    assert loaded(servers) == [["aligner@1"], ["aligner@1", "aligner@2"]]


def test_whole_models_run_on_servers_of_their_own_and_a_rollback_returns_to_the_first(
    registry: Registry, base: Path, start: Callable[..., CompletionsServer]
) -> None:
    pairs = [registered(registry, base) for _ in range(2)]
    first, second = (
        start(pair.aligner.path, model=pair.aligner.identity, dialect=Dialect(tokenize=n == 0))
        for n, pair in enumerate(pairs)
    )
    rollout.promote(registry, pairs[0], on(first))
    assert corrected().pair == "1"
    with pytest.raises(
        RolloutError, match=r"(?s)aligner@2 is a whole model.*vllm serve .*/aligner/2 --served-model-name"
    ):
        rollout.promote(registry, pairs[1])
    rollout.promote(registry, pairs[1], on(second))
    assert catch_up(60)
    asked = len(first.asked)
    assert corrected().pair == "2"
    assert len(first.asked) == asked
    rollout.rollback(registry)
    assert catch_up(60)
    assert corrected().pair == "1"
    assert len(first.asked) > asked


@pytest.mark.parametrize("root", ["/models/aligner/1", "aligner/1"])
def test_a_whole_model_of_another_version_is_refused(
    root: str, registry: Registry, base: Path, start: Callable[..., CompletionsServer]
) -> None:
    pairs = [registered(registry, base) for _ in range(2)]
    server = start(model="aligner@2")
    server.root = root
    where = Where(urls=(server.url,), home="/models")
    with pytest.raises(RolloutError, match=f"it loaded aligner@2 from {root} and not from /models/aligner/2"):
        rollout.promote(registry, pairs[1], where)
    server.root = root.replace("1", "2")
    rollout.promote(registry, pairs[1], where)
    assert registry.event().servers == Servers(urls=(server.url,), home="/models")


def test_an_adapter_of_long_ago_is_unloaded_and_the_one_before_stays(
    registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer]
) -> None:
    said = list[str]()
    for pair in pairs[:2]:
        rollout.promote(registry, pair, on(*servers), grace_s=0.05, say=said.append)
    assert (loaded(servers), said) == ([["aligner@1", "aligner@2"]] * 2, [])
    _, called = servers[1].adapters["aligner@1"]
    servers[1].adapters["aligner@1"] = ("/another/home/aligner/1", called)
    rollout.promote(registry, pairs[2], grace_s=0.05, say=said.append)
    assert loaded(servers) == [["aligner@2", "aligner@3"], ["aligner@1", "aligner@2", "aligner@3"]]
    assert said == [f"aligner@1 was unloaded from {servers[0].url}"]
    rollout.promote(registry, pairs[2], keep=0, grace_s=0.05)
    assert loaded(servers) == [["aligner@3"], ["aligner@1", "aligner@3"]]


def one_long_request(server: CompletionsServer, over: threading.Event) -> None:
    with server.busy("aligner@1"):
        assert over.wait(60)


def many_short_requests(server: CompletionsServer, over: threading.Event) -> None:
    while not over.wait(0.02):
        with server.busy("aligner@1"):
            pass


@pytest.mark.parametrize("asking", [one_long_request, many_short_requests], ids=lambda one: one.__name__)
def test_an_adapter_is_not_unloaded_while_somebody_asks_for_it(
    asking: Callable[[CompletionsServer, threading.Event], None],
    registry: Registry,
    pairs: list[PairVersion],
    servers: list[CompletionsServer],
) -> None:
    over, said = threading.Event(), list[str]()
    rollout.promote(registry, pairs[0], on(servers[0]))
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(asking, servers[0], over)
        rolled = pool.submit(rollout.promote, registry, pairs[1], keep=0, grace_s=0.2, say=said.append)
        try:
            while registry.served() != pairs[1]:
                assert not rolled.done()
                time.sleep(0.01)
            time.sleep(1.0)  # several graces
            assert (loaded(servers)[0], said, rolled.done()) == (["aligner@1", "aligner@2"], [], False)
        finally:
            over.set()
        asked.result(60)
        rolled.result(60)
    assert (loaded(servers)[0], said) == (["aligner@2"], [f"aligner@1 was unloaded from {servers[0].url}"])


def test_an_adapter_that_is_asked_for_without_end_stays(
    registry: Registry,
    pairs: list[PairVersion],
    servers: list[CompletionsServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bootstrap.rollout.retiring.PATIENCE_S", 0.1)
    said = list[str]()
    rollout.promote(registry, pairs[0], on(servers[0]))
    with servers[0].busy("aligner@1"):
        rollout.promote(registry, pairs[1], keep=0, grace_s=0.05, say=said.append)
    assert loaded(servers)[0] == ["aligner@1", "aligner@2"]
    assert said == [
        f"aligner@1 stays loaded on {servers[0].url}: requests for it still come, or the server does not tell of them"
    ]


def test_an_adapter_stays_where_nobody_tells_whether_it_is_used(
    registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer]
) -> None:
    said = list[str]()
    servers[0].dialect = Dialect(adapters=True, metrics=False)
    rollout.promote(registry, pairs[0], on(servers[0]))
    rollout.promote(registry, pairs[1], keep=0, grace_s=0.0, say=said.append)
    assert loaded(servers)[0] == ["aligner@1", "aligner@2"]
    assert said[0].startswith(f"aligner@1 could not be unloaded from {servers[0].url}: ")


# As vLLM 0.32.0 wrote it, with one request for aligner@1 at work.
METRICS = """\
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="2",running_lora_adapters="aligner@2",waiting_lora_adapters="aligner@2"} 1.7953641128010845e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""} 1.7953641128057754e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="aligner@1",waiting_lora_adapters="aligner@1"} 1.795364287337908e+09
"""


def test_the_metrics_tell_who_is_asked_for() -> None:
    assert use_of(METRICS, "aligner@1") == Use(last=1.795364287337908e09, now=True)
    assert use_of(METRICS, "aligner@2") == Use(last=1.7953641128010845e09, now=False)
    assert use_of(METRICS, "aligner") == Use(last=0.0, now=False)
    assert use_of("# HELP other", "aligner@1") is None


def test_one_rollout_at_a_time(registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer]) -> None:
    rollout.promote(registry, pairs[0], on(*servers))
    lease = Leases(registry.database).take("rollout")
    assert lease is not None
    with pytest.raises(RolloutError, match="Another process promotes to servers"):
        rollout.promote(registry, pairs[1])
    lease.release()
    rollout.promote(registry, pairs[1])


def test_the_registry_knows_the_servers_of_what_it_serves(
    registry: Registry, pairs: list[PairVersion], servers: list[CompletionsServer]
) -> None:
    rollout.promote(registry, pairs[0])
    rollout.promote(registry, pairs[1], on(*servers))
    whole = (registry.home / "served.json").read_bytes()
    (registry.home / "served.json").write_text("{}")
    assert registry.sync().found == "edited"
    assert (registry.home / "served.json").read_bytes() == whole
    rollout.rollback(registry)
    served = read_served(registry.home)
    assert served is not None
    assert served.aligner.server is None
    (registry.home / "served.json").write_bytes(whole)
    assert registry.sync().found == "old"
    rollout.promote(registry, pairs[1], on(*servers))
    rollout.promote(registry, pairs[1], Where(in_process=True))
    rollout.rollback(registry)
    assert [event.servers and len(event.servers.urls) for event in registry.history()] == [None, 2, None, 2, None, 2]
    assert (registry.home / "served.json").read_bytes() == whole


def test_the_commands_and_the_key(
    registry: Registry,
    pairs: list[PairVersion],
    start: Callable[..., CompletionsServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    server, home = start(key="sk-secret"), ("--home", str(registry.home))
    assert main(["promote", "1", "--server", server.url, *home]) == 0
    assert f"Pair 1 is served (aligner@1 on {server.url})." in capsys.readouterr().out
    assert main(["promote", "2", "--keep", "0", "--grace", "0", "--json", *home]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"served": 2, "aligner": "aligner@2", "servers": [server.url]}
    assert err == f"aligner@1 was unloaded from {server.url}\n"
    assert main(["rollback", *home]) == 0
    assert f"Pair 1 is served again (aligner@1 on {server.url})." in capsys.readouterr().out
    assert server.authorised == {"Bearer sk-secret"}
    assert main(["registry", "list", *home]) == 0
    assert f"rollback  pair 1: aligner@1 alone on {server.url}" in capsys.readouterr().out
    monkeypatch.setenv(KEY, "sk-other")
    assert main(["promote", "2", *home]) == 1
    err = capsys.readouterr().err
    assert "answered 401" in err
    assert "export ALIGNER_API_KEY=" in err
    assert "sk-" not in err
