"""`LocalChatModel` over a tiny real upstream: what it answers, shares, reports and refuses, and how it follows a registry."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from aligner_chain import CapabilityError, CheckpointError, ConfigurationError, ContextOverflowError, Exchange
from aligner_chain.engines.huggingface import shared_engine
from aligner_chain.langchain import AlignerCorrector, LocalChatModel
from aligner_chain.shared import catch_up

Serve = Callable[[str, Path | None], Path]
WINDOW = 256


@pytest.fixture
def llm(upstream: Path) -> LocalChatModel:
    return LocalChatModel(upstream, max_new_tokens=12)


@pytest.fixture
def batches(upstream: Path) -> Iterator[list[int]]:
    """The rows of each forward of the upstream, each of which wants the logits of one place."""
    rows: list[int] = []
    model = shared_engine(upstream).model
    hook = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["logits_to_keep"])), with_kwargs=True
    )
    yield rows
    hook.remove()


@pytest.fixture
def held_forward(upstream: Path) -> Iterator[SimpleNamespace]:
    """Holds each forward of the upstream until `go` is set; `went` tells for each whether that happened."""
    held = SimpleNamespace(started=threading.Event(), go=threading.Event(), went=[])

    def hold(*_: Any) -> None:
        held.started.set()
        held.went.append(held.go.wait(timeout=60))

    hook = shared_engine(upstream).model.register_forward_pre_hook(hold)
    yield held
    held.go.set()
    hook.remove()


def test_greedy_is_what_transformers_generates(llm: LocalChatModel, upstream: Path) -> None:
    import torch

    engine = shared_engine(upstream)
    for question in ("hello", "how are you?"):
        text = engine.tokenizer.apply_chat_template(
            [{"role": "system", "content": "be kind"}, {"role": "user", "content": question}],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = torch.tensor([engine.tokenizer(text, add_special_tokens=False).input_ids])
        output = engine.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        answer = llm.invoke([("system", "be kind"), ("human", question)])
        assert answer.text == engine.tokenizer.decode(output, skip_special_tokens=True)
        assert answer.usage_metadata["input_tokens"] == ids.shape[1]
        assert 0 < answer.usage_metadata["output_tokens"] <= 12
        assert answer.usage_metadata["total_tokens"] == sum(
            answer.usage_metadata[kind] for kind in ("input_tokens", "output_tokens")
        )


def test_text_of_a_message_is_never_a_special_token(llm: LocalChatModel) -> None:
    spelled = llm.invoke("<|im_end|>").usage_metadata["input_tokens"]
    assert spelled == llm.invoke("x" * len("<|im_end|>")).usage_metadata["input_tokens"]


async def test_every_way_to_run_gives_the_same_answers(llm: LocalChatModel) -> None:
    questions = [f"question {index}" for index in range(6)]
    sampled = llm.bind(temperature=1.0)
    for model in (llm, sampled):
        expected = [model.invoke(q).text for q in questions]
        assert len(set(expected)) > 1
        assert [a.text for a in model.batch(questions, config={"max_concurrency": 64})] == expected
        assert [a.text for a in await model.abatch(questions)] == expected
        assert [(await model.ainvoke(q)).text for q in questions] == expected
        assert ["".join(piece.text for piece in model.stream(q)) for q in questions] == expected


def test_concurrent_calls_share_batches(
    llm: LocalChatModel, upstream: Path, batches: list[int], held_forward: SimpleNamespace
) -> None:
    questions = [f"question {index}" for index in range(64)]
    with ThreadPoolExecutor(1) as caller:
        calls = caller.submit(llm.batch, questions, config={"max_concurrency": 64})
        assert held_forward.started.wait(timeout=60)
        give_up = time.monotonic() + 60
        while batches[0] + len(shared_engine(upstream)._waiting) < 64 and time.monotonic() < give_up:
            time.sleep(0.01)
        held_forward.go.set()
        assert len(calls.result()) == 64
    assert max(batches) == 64  # those that came later joined the first


def test_sampling(llm: LocalChatModel, upstream: Path) -> None:
    answers = {seed: llm.invoke("hello", temperature=1.0, seed=seed).text for seed in range(4)}
    assert len(set(answers.values())) > 1
    assert LocalChatModel(upstream, temperature=1.0, seed=3, max_new_tokens=12).invoke("hello").text == answers[3]
    assert llm.bind(temperature=0.0, seed=9).invoke("hello").text == llm.invoke("hello").text


def test_metadata(llm: LocalChatModel, upstream: Path) -> None:
    metadata = llm.invoke("hello", max_new_tokens=3).response_metadata
    assert (
        metadata.items()
        >= {
            "model_name": upstream.name,
            "upstream": f"{upstream.name}@local",
            "finish_reason": "length",
        }.items()
    )
    named = LocalChatModel(upstream, identity="support@7", max_new_tokens=3).invoke("hello").response_metadata
    assert (named["model_name"], named["upstream"]) == ("support", "support@7")
    assert llm._get_ls_params()["ls_model_name"] == f"{upstream.name}@local"


def test_an_answer_that_ends_by_itself(upstream: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(upstream), AutoTokenizer.from_pretrained(upstream)
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits are equal, and the first of the best is taken
    model.generation_config.eos_token_id = 0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    answer = LocalChatModel(tmp_path).invoke("hello")
    assert (answer.text, answer.response_metadata["finish_reason"]) == ("", "stop")


def test_stop_sequences(llm: LocalChatModel) -> None:
    text = llm.invoke("hello").text
    early, late = text[1:4], text[-3:]
    assert 0 < text.index(early) < text.index(late)
    stopped = llm.invoke("hello", stop=["never said", late, early])
    assert stopped.text == text[: text.index(early)]
    assert stopped.response_metadata["finish_reason"] == "stop"
    assert llm.bind(stop=["never said", ""]).invoke("hello").text == text


async def test_the_loop_is_not_blocked(llm: LocalChatModel, held_forward: SimpleNamespace) -> None:
    task = asyncio.create_task(llm.ainvoke("hello", max_new_tokens=1))
    await asyncio.to_thread(held_forward.started.wait, 60)
    held_forward.go.set()
    await task
    assert held_forward.went == [True]


async def test_cancelling_the_task_stops_the_decoding(llm: LocalChatModel, held_forward: SimpleNamespace) -> None:
    task = asyncio.create_task(llm.ainvoke("hello", max_new_tokens=200))
    await asyncio.to_thread(held_forward.started.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held_forward.go.set()
    await llm.ainvoke("the next one", max_new_tokens=2)  # the same thread decodes it, so the first has ended
    assert len(held_forward.went) < 100  # of 200: how soon the thread hears of it is the machine's business


def test_rebuilt_objects_share_the_weights(llm: LocalChatModel, upstream: Path) -> None:
    configured = llm.configurable_fields(temperature=ConfigurableField(id="temperature"))
    engine = shared_engine(upstream)
    configured.invoke("hello", {"configurable": {"temperature": 1.0}})
    LocalChatModel(str(upstream), max_new_tokens=2).invoke("hello")
    assert shared_engine(upstream) is engine


def test_a_cache_tells_settings_apart(upstream: Path) -> None:
    cache = InMemoryCache()
    short = LocalChatModel(upstream, max_new_tokens=2, cache=cache).invoke("hello")
    long = LocalChatModel(upstream, max_new_tokens=12, cache=cache).invoke("hello")
    assert len(short.text) < len(long.text)


def test_the_window_bounds_an_answer(llm: LocalChatModel) -> None:
    used = llm.invoke("").usage_metadata["input_tokens"]
    nearly_full = llm.invoke("x" * (WINDOW - used - 5))
    assert nearly_full.usage_metadata["output_tokens"] == 5
    assert nearly_full.response_metadata["finish_reason"] == "length"
    with pytest.raises(ContextOverflowError, match=str(WINDOW)):
        llm.invoke("x" * WINDOW)


def test_an_image_is_refused(llm: LocalChatModel) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(CapabilityError, match="image_url"):
        llm.invoke([HumanMessage([{"type": "text", "text": "what is this?"}, image])])
    thought = AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "hi"}])
    assert llm.invoke([HumanMessage("hello"), thought, HumanMessage("and?")]).text


def test_tools_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=r"create_agent\(model, tools=\[\]\)"):
        LocalChatModel(tmp_path).bind_tools([print])


async def test_unknown_settings_are_refused(llm: LocalChatModel, upstream: Path) -> None:
    with pytest.raises(ConfigurationError, match="top_p"):
        llm.invoke("hello", top_p=0.5)
    with pytest.raises(ConfigurationError, match="top_p"):
        await llm.bind(top_p=0.5).ainvoke("hello")
    for wrong in ({"top_p": 0.5}, {"temperature": -1}, {"max_new_tokens": 0}):
        with pytest.raises(ValidationError):
            LocalChatModel(upstream, **wrong)


def test_a_missing_folder_is_an_error_at_the_first_call(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the lowest versions are tested without local models")
    llm = LocalChatModel(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="missing"):
        llm.invoke("hello")


def test_hub_ids_and_versions_of_a_registry_have_identities(tmp_path: Path) -> None:
    version = tmp_path / "upstream" / "3"
    version.mkdir(parents=True)
    assert LocalChatModel(version)._get_ls_params()["ls_model_name"] == "upstream@3"
    assert LocalChatModel("org/name")._get_ls_params()["ls_model_name"] == "org/name@main"
    assert LocalChatModel("org/name", revision="v2")._get_ls_params()["ls_model_name"] == "org/name@v2"


def test_in_a_chain_with_a_corrector(
    llm: LocalChatModel, prompt: ChatPromptTemplate, corrector: AlignerCorrector, asked: list[Exchange]
) -> None:
    answer = (prompt | llm | corrector).invoke({"q": "hello"})
    assert answer.text == f"<hello|{llm.invoke('hello').text}>"
    assert asked[0].upstream == llm._get_ls_params()["ls_model_name"]


# What a registry serves


def test_served_follows_promotions(
    make_upstream: Callable[[Path, int], Path], upstream: Path, tmp_path: Path, serve: Serve
) -> None:
    second = make_upstream(tmp_path / "second", 1)
    serve("upstream@1", upstream)
    llm = LocalChatModel.served(max_new_tokens=12)
    for identity, folder in (("upstream@1", upstream), ("upstream@2", second), ("upstream@1", upstream)):
        serve(identity, folder)
        assert catch_up(60)
        answer = llm.invoke("hello")
        assert answer.response_metadata["upstream"] == identity
        assert answer.text == LocalChatModel(folder, max_new_tokens=12).invoke("hello").text


def test_a_cache_does_not_outlive_a_promotion(upstream: Path, serve: Serve) -> None:
    serve("upstream@1", upstream)
    llm = LocalChatModel.served(max_new_tokens=2, cache=InMemoryCache())
    llm.invoke("hello")
    serve("upstream@2", upstream)
    assert catch_up(60)
    assert llm.invoke("hello").response_metadata["upstream"] == "upstream@2"


def test_nothing_served_is_an_error_with_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: Path, serve: Serve
) -> None:
    def check() -> None:
        with pytest.raises(ConfigurationError) as caught:
            LocalChatModel.served()
        for way_out in ("LocalChatModel(", "aligner-bootstrap registry list", "ALIGNER_HOME"):
            assert way_out in str(caught.value)

    check()
    serve("", None)
    check()
    serve("upstream@1", upstream)
    llm = LocalChatModel.served()
    serve("upstream@2", tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="aligner-bootstrap rollback"):
        llm.invoke("hello")
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigurationError, match="elsewhere"):
        llm.invoke("hello")


def test_served_keeps_following_when_rebuilt(upstream: Path, serve: Serve, models: SimpleNamespace) -> None:
    serve("upstream@1", upstream)
    llm = LocalChatModel.served(max_new_tokens=2).configurable_fields(seed=ConfigurableField(id="seed"))
    serve("upstream@2", upstream)
    answer: Any = llm.invoke("hello", {"configurable": {"seed": 3}})
    assert answer.response_metadata["upstream"] == "upstream@2"
