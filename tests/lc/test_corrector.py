"""`AlignerCorrector` as a Runnable: what it reads, which question holds, failures, batches, streams, traces, settings."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RunnableLambda,
    RunnablePassthrough,
)
from pydantic import BaseModel, ValidationError
from versions import known_to

from aligner_chain import Aligner, AlignerNotConfiguredError, CheckpointError, Correction, Exchange, PromptNotFoundError
from aligner_chain.errors import CorrectionTimeoutError, EngineError
from aligner_chain.exchange import Turn
from aligner_chain.langchain import AlignerCorrector
from aligner_chain.shared import catch_up, following, hold, shared_aligner

QUESTION = {"configurable": {"aligner_question": "q"}}


# What it reads


def test_text_comes_back_as_text(corrector: AlignerCorrector) -> None:
    assert corrector.invoke("a", QUESTION) == "<q|a>"


@pytest.mark.parametrize(
    "given",
    [
        AIMessage("a", id="1"),
        AIMessageChunk("a", id="1"),
        {"question": "q", "answer": AIMessage("a", id="1")},
        {"messages": [HumanMessage("q"), AIMessage("a", id="1")]},
        [HumanMessage("q"), AIMessage("a", id="1")],
        [("human", "q"), {"role": "assistant", "content": "a", "id": "1"}],
    ],
)
def test_messages_come_back_as_messages(corrector: AlignerCorrector, given: Any) -> None:
    result = corrector.invoke(given, QUESTION)
    assert isinstance(result, AIMessage)
    assert (result.text, result.id) == ("<q|a>", "1")


def test_question_and_answer_of_a_dict(corrector: AlignerCorrector) -> None:
    result = corrector.invoke({"question": "asked", "answer": "a", "context": "more keys are no harm"})
    assert isinstance(result, AIMessage)
    assert result.text == "<asked|a>"


def test_a_conversation_keeps_its_turns(corrector: AlignerCorrector, asked: list[Exchange]) -> None:
    call = {"name": "f", "args": {}, "id": "1"}
    corrector.invoke(
        {"messages": [("system", "s"), ("human", "q"), AIMessage("", tool_calls=[call]), ("ai", "hm"), AIMessage("a")]}
    )
    assert asked[0].turns == (
        Turn(role="system", text="s"),
        Turn(role="user", text="q"),
        Turn(role="assistant", text="hm"),
    )


class Parsed(BaseModel):
    answer: str


@pytest.mark.parametrize(
    "given",
    [
        {"answer": "a"},
        {"question": 1, "answer": "a"},
        Parsed(answer="a"),
        HumanMessage("a"),
        [HumanMessage("a")],
        [],
        [1, 2],
        [{"type": "text", "text": "a"}],
        {"messages": []},
        {"messages": None},
        None,
        3,
    ],
)
def test_other_inputs_are_an_error_that_says_what_is_read(corrector: AlignerCorrector, given: Any) -> None:
    with pytest.raises(TypeError, match=r"llm \| AlignerCorrector\(\) \| parser"):
        corrector.invoke(given, QUESTION)


# Which question holds


def test_precedence_of_questions(models: SimpleNamespace, aligner: Aligner) -> None:
    fixed = AlignerCorrector(aligner, question="fixed")
    llm = models.Chat()
    assert (llm | AlignerCorrector(aligner)).invoke("recorded").text == "<recorded|A(recorded)>"
    assert (llm | fixed).invoke("recorded").text == "<fixed|A(recorded)>"
    assert (llm | fixed).invoke("recorded", QUESTION).text == "<q|A(recorded)>"
    assert fixed.invoke({"question": "explicit", "answer": "a"}, QUESTION).text == "<explicit|a>"
    assert fixed.invoke([HumanMessage("explicit"), AIMessage("a")], QUESTION).text == "<explicit|a>"


def test_an_empty_question_is_no_question(aligner: Aligner) -> None:
    for given in ({"question": " ", "answer": "a"}, [AIMessage("a")]):
        with pytest.raises(PromptNotFoundError):
            AlignerCorrector(aligner).invoke(given, {"configurable": {"aligner_question": ""}})
        with pytest.raises(PromptNotFoundError):
            AlignerCorrector(aligner, question=" ").invoke(given)
        assert AlignerCorrector(aligner, question="q").invoke(given).text == "<q|a>"


def test_explicit_source_asks_no_recorder(models: SimpleNamespace, aligner: Aligner) -> None:
    explicit = AlignerCorrector(aligner, prompt_source="explicit")
    with pytest.raises(PromptNotFoundError):
        (models.Chat() | explicit).invoke("q")
    assert (models.Chat() | explicit).invoke("q", QUESTION).text == "<q|A(q)>"


@pytest.mark.parametrize("on_error", ["raise", "pass_through"])
def test_a_missing_question_is_always_raised(aligner: Aligner, told: list[Correction], on_error: Any) -> None:
    corrector = AlignerCorrector(aligner, on_error=on_error, on_correction=told.append)
    with pytest.raises(PromptNotFoundError):
        corrector.invoke("a")
    assert told == []


def test_a_question_that_is_no_text_is_an_error(corrector: AlignerCorrector) -> None:
    with pytest.raises(TypeError, match="aligner_question"):
        corrector.invoke("a", {"configurable": {"aligner_question": HumanMessage("q")}})


# What is recorded of an exchange


def test_keys_of_the_record_flow_through_the_chain(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector, asked: list[Exchange]
) -> None:
    chain = prompt | models.Chat() | StrOutputParser() | corrector
    chain.invoke({"q": "q"}, {"configurable": {"aligner_split_key": "k", "aligner_subject": "s"}})
    assert (asked[0].split_key, asked[0].subject) == ("k", "s")
    assert chain.get_config_jsonschema()["$defs"]["Configurable"]["properties"].keys() == {
        "aligner_question",
        "aligner_enabled",
        "aligner_split_key",
        "aligner_subject",
    }


@pytest.mark.parametrize("parser", [RunnablePassthrough(), StrOutputParser()], ids=["message", "text"])
def test_the_upstream_is_named(
    models: SimpleNamespace, corrector: AlignerCorrector, asked: list[Exchange], parser: Any
) -> None:
    metadata = {"upstream": "upstream@3", "model_name": "upstream"}
    chain = models.Scripted(answers=[AIMessage("a", response_metadata=metadata)]) | parser | corrector
    chain.invoke("q")
    assert asked[0].upstream == "upstream@3"
    assert UUID(asked[0].run_id)


def test_the_message_and_its_run_are_named(
    models: SimpleNamespace, corrector: AlignerCorrector, asked: list[Exchange]
) -> None:
    answer = (models.Chat() | corrector).invoke("q")
    assert asked[0].message_id == answer.id
    assert asked[0].run_id in answer.id
    corrector.invoke([HumanMessage("q"), AIMessage("a", id="resp_1", response_metadata={"model_name": "m"})])
    assert (asked[1].message_id, asked[1].run_id, asked[1].upstream) == ("resp_1", None, "m")


# Failures


async def test_failure_is_raised(fixer: AlignerCorrector, told: list[Correction]) -> None:
    with pytest.raises(EngineError) as caught:
        fixer.invoke(AIMessage("crash"))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(EngineError):
        await fixer.ainvoke("crash")
    with pytest.raises(EngineError):
        list(fixer.stream("crash"))
    assert [c.outcome for c in told] == ["failed"] * 3


async def test_failure_passes_through(fixer: AlignerCorrector, told: list[Correction]) -> None:
    passing = AlignerCorrector(fixer.aligner, question="q", on_error="pass_through", on_correction=told.append)
    given = AIMessage("crash", id="1")
    result = passing.invoke(given)
    assert (result.text, result.id, result.response_metadata["aligner"]["outcome"]) == ("crash", "1", "failed")
    assert "out of luck" in result.response_metadata["aligner"]["reason"]
    assert passing.invoke("crash") == "crash"
    assert [a.text for a in await passing.abatch([given, AIMessage("bad")])] == ["crash", "good"]
    assert [c.outcome for c in told] == ["failed", "failed", "failed", "corrected"]


async def test_a_timeout_is_a_failure(told: list[Correction]) -> None:
    release = threading.Event()

    def wait(exchange: Exchange) -> str:
        release.wait(30)
        return exchange.answer

    settings: Any = {"question": "q", "timeout": 0.02, "on_correction": told.append}
    slow = Aligner.scripted(wait)
    with pytest.raises(CorrectionTimeoutError):
        AlignerCorrector(slow, **settings).invoke("a")
    passing = AlignerCorrector(slow, on_error="pass_through", **settings)
    assert await passing.ainvoke("a") == "a"
    assert list(passing.stream("a")) == ["a"]
    assert [c.outcome for c in told] == ["failed"] * 3
    with pytest.raises(ValidationError, match="greater than 0"):
        AlignerCorrector(slow, timeout=0)
    release.set()


async def test_a_fallback_takes_over_where_the_corrector_raises(fixer: AlignerCorrector, aligner: Aligner) -> None:
    """Around the corrector it answers with another Aligner; `pass_through` gives it nothing to do."""
    chain = fixer.with_fallbacks([AlignerCorrector(aligner, question="q")])
    assert chain.invoke("crash") == "<q|crash>"
    assert await chain.abatch(["bad", "crash"]) == ["good", "<q|crash>"]
    passing = AlignerCorrector(fixer.aligner, question="q", on_error="pass_through")
    assert passing.with_fallbacks([AlignerCorrector(aligner, question="q")]).invoke("crash") == "crash"


def test_a_retry_asks_the_aligner_again_and_records_each_try(told: list[Correction]) -> None:
    tries: list[str] = []

    def shaky(exchange: Exchange) -> str:
        tries.append(exchange.answer)
        if len(tries) == 1:
            raise RuntimeError("out of luck")
        return "good"

    corrector = AlignerCorrector(Aligner.scripted(shaky), question="q", on_correction=told.append)
    assert corrector.with_retry(wait_exponential_jitter=False).invoke("bad") == "good"
    assert [c.outcome for c in told] == ["failed", "corrected"]


async def test_turned_off_for_a_call(fixer: AlignerCorrector, told: list[Correction]) -> None:
    off: Any = {"configurable": {"aligner_enabled": False}}
    given = AIMessage("bad", id="1")
    assert fixer.invoke(given, off) is given
    assert await fixer.ainvoke("crash", off) == "crash"
    assert fixer.batch(["bad", "bad"], [off, {}]) == ["bad", "good"]
    assert [c.outcome for c in told] == ["skipped", "skipped", "skipped", "corrected"]
    blind = AlignerCorrector(fixer.aligner, prompt_source="explicit", on_correction=told.append)
    assert blind.invoke("bad", off) == "bad"
    assert len(told) == 4  # nobody knows its question, so there is nothing to record
    for wrong in ("no", 0):
        with pytest.raises(TypeError, match="aligner_enabled"):
            fixer.invoke("bad", {"configurable": {"aligner_enabled": wrong}})
        with pytest.raises(TypeError, match="aligner_enabled"):
            list(fixer.stream("bad", {"configurable": {"aligner_enabled": wrong}}))


STRUCTURED = {
    "a value": ('{"mood": "bad"}', '{"mood": "good"}', "corrected"),
    "an item": ('["bad", "bad"]', '["good"]', "corrected"),
    "a fence": ('```json\n{"mood": "bad"}\n```', '```json\n{"mood": "good"}\n```', "corrected"),
    "a lost fence": ('```json\n{"mood": "bad"}\n```', '{"mood": "good"}', "kept"),
    "a lost key": ('{"mood": "bad", "why": "?"}', '{"mood": "good"}', "kept"),
    "another kind": ('{"mood": "bad"}', '{"mood": 3}', "kept"),
    "another inside": ('[{"mood": "bad"}]', '[{"tone": "good"}]', "kept"),
    "not JSON": ('{"mood": "bad"}', "good", "kept"),
    "broken JSON": ('{"mood": "bad"}', '{"mood": "good"', "kept"),
}


@pytest.mark.parametrize(("answer", "correction", "outcome"), STRUCTURED.values(), ids=STRUCTURED)
async def test_structured_output_is_validated_on_request(
    told: list[Correction], answer: str, correction: str, outcome: str
) -> None:
    settings: Any = {"question": "q", "on_correction": told.append}
    aligner = Aligner.scripted(lambda exchange: correction)
    corrector = AlignerCorrector(aligner, structured="validate", stream_unchecked=True, **settings)
    served = correction if outcome == "corrected" else answer
    assert corrector.invoke(answer) == served
    assert "".join([piece async for piece in corrector.astream(answer)]) == served
    assert [(c.outcome, c.text, bool(c.edits)) for c in told] == [(outcome, served, outcome == "corrected")] * 2
    assert AlignerCorrector(aligner, **settings).invoke(answer) == answer
    assert told[-1].reason == "the answer is structured output"
    assert corrector.invoke("plain text") == correction  # only what is JSON must stay it


def test_no_aligner_is_an_error_at_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path))
    corrector = AlignerCorrector(on_error="pass_through", question="q")
    with pytest.raises(AlignerNotConfiguredError, match="from_chat_model"):
        corrector.invoke("a")
    assert corrector.invoke("") == ""


def test_a_named_aligner_is_loaded_at_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setenv("ALIGNER_MODEL", str(missing))
    for corrector in (AlignerCorrector(missing, question="q"), AlignerCorrector(question="q")):
        with pytest.raises(CheckpointError, match="missing"):
            corrector.invoke("a")


async def test_a_folder_is_loaded_once(
    tiny_aligner: Path, monkeypatch: pytest.MonkeyPatch, serve: Any, told: list[Correction]
) -> None:
    home = serve("upstream@1", None)
    (home / "aligner" / "1").rmdir()
    (home / "aligner" / "1").symlink_to(tiny_aligner)
    settings: Any = {"question": "q", "on_error": "pass_through", "on_correction": told.append}
    AlignerCorrector(**settings).invoke("a")
    await AlignerCorrector(tiny_aligner, **settings).ainvoke("a")
    monkeypatch.setenv("ALIGNER_MODEL", str(tiny_aligner))
    monkeypatch.setenv("ALIGNER_HOME", "/nowhere")
    AlignerCorrector(**settings).batch(["a"])
    assert [correction.aligner for correction in told] == ["tiny@1"] * 3
    assert shared_aligner(tiny_aligner) is shared_aligner(home / "aligner" / "1")
    with hold(None) as named:
        assert named is shared_aligner(tiny_aligner)
    monkeypatch.delenv("ALIGNER_MODEL")
    monkeypatch.setenv("ALIGNER_HOME", str(home))
    with hold(None) as served:
        assert served.engine is named.engine


def test_the_served_aligner_is_let_go_after_a_promotion(tiny_aligner: Path, serve: Any, tmp_path: Path) -> None:
    home = serve("upstream@1", None)
    (home / "aligner" / "1").rmdir()
    shutil.copytree(tiny_aligner, home / "aligner" / "1")
    corrector = AlignerCorrector(question="q", on_error="pass_through")
    corrector.invoke("a")
    with hold(None) as aligner:
        first = weakref.ref(aligner.engine)
    del aligner
    shutil.copytree(tiny_aligner, home / "aligner" / "2")
    record = (home / "served.json").read_text().replace("aligner/1", "aligner/2")
    (home / "served.json").write_text(record)
    assert catch_up(60)
    corrector.invoke("a")
    while following().draining:
        time.sleep(0.01)
    gc.collect()
    assert first() is None


def test_a_cache_key_names_the_aligner_and_what_it_does(
    aligner: Aligner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path))
    settings: dict[str, Any] = {"question": None, "structured": "skip", "keep_original": False}
    settings |= {"policy": "None", "criteria": None, "strength": None}
    assert AlignerCorrector(aligner).identifying_params == {"aligner": "scripted@1", **settings}
    assert AlignerCorrector("some/aligner").identifying_params == {"aligner": "some/aligner", **settings}
    assert AlignerCorrector().identifying_params == {"aligner": "None", **settings}
    monkeypatch.setenv("ALIGNER_MODEL", "named/aligner")
    assert AlignerCorrector().identifying_params["aligner"] == "named/aligner"


def test_unknown_settings_are_refused(aligner: Aligner) -> None:
    misspelt: list[dict[str, Any]] = [{"on_eror": "raise"}, {"on_error": "ignore"}]
    for wrong in misspelt:
        with pytest.raises(ValidationError):
            AlignerCorrector(**wrong)
    of_another_kind: list[dict[str, Any]] = [{"on_correction": 3}, {"aligner": object()}]
    for wrong in of_another_kind:
        with pytest.raises(TypeError):
            AlignerCorrector(**wrong)
    with pytest.raises(TypeError):
        AlignerCorrector(aligner, question="q").invoke("a", question="other")


# Batches


@pytest.mark.parametrize("size", [1, 7])
async def test_a_batch_is_one_call_in_order(fixer: AlignerCorrector, engine: Any, size: int) -> None:
    given = [AIMessage(f"bad {index}") for index in range(size)]
    expected = [f"good {index}" for index in range(size)]
    assert [a.text for a in fixer.batch(given)] == expected
    assert [a.text for a in await fixer.abatch(given, {"max_concurrency": 2})] == expected
    assert engine.batches == [size, size]


def test_a_chains_batch_is_one_call(
    models: SimpleNamespace, prompt: ChatPromptTemplate, fixer: AlignerCorrector, engine: Any
) -> None:
    (prompt | models.Chat() | fixer | StrOutputParser()).batch([{"q": str(index)} for index in range(5)])
    assert engine.batches == [5]


def test_each_of_a_batch_has_its_own_question(corrector: AlignerCorrector) -> None:
    configs: Any = [{"configurable": {"aligner_question": f"q{index}"}} for index in range(3)]
    assert corrector.batch(["a", "b", "c"], configs) == ["<q0|a>", "<q1|b>", "<q2|c>"]


async def test_one_failure_in_a_batch(fixer: AlignerCorrector, engine: Any, told: list[Correction]) -> None:
    given = ["bad", "crash", "", {"no": "answer"}, "fine"]
    for results in (
        fixer.batch(given, return_exceptions=True),
        await fixer.abatch(given, return_exceptions=True),
    ):
        assert results[0] == "good"
        assert isinstance(results[1], EngineError)
        assert results[2] == ""
        assert isinstance(results[3], TypeError)
        assert results[4] == "fine"
    assert engine.batches == [3, 3]
    assert [c.outcome for c in told] == ["corrected", "failed", "skipped", "approved"] * 2
    with pytest.raises(EngineError):
        fixer.batch(["bad", "crash", "fine"])
    assert len(told) == 11  # what was corrected is told of, though the batch as a whole is lost


def test_an_unknown_question_in_a_batch(aligner: Aligner) -> None:
    corrector = AlignerCorrector(aligner)
    given = [{"question": "q", "answer": "a"}, AIMessage("b")]
    results = corrector.batch(given, return_exceptions=True)
    assert results[0].text == "<q|a>"
    assert isinstance(results[1], PromptNotFoundError)
    with pytest.raises(PromptNotFoundError):
        corrector.batch(given)


async def test_an_empty_batch(fixer: AlignerCorrector) -> None:
    assert fixer.batch([]) == await fixer.abatch([]) == []


async def test_tool_calls_need_no_aligner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNER_MODEL", str(tmp_path / "missing"))
    call = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
    assert AlignerCorrector().invoke(call) is call
    assert await AlignerCorrector().ainvoke(call) is call


# on_correction


async def test_on_correction_is_told_before_the_answer_is_returned(aligner: Aligner) -> None:
    order: list[str] = []
    corrector = AlignerCorrector(aligner, question="q", on_correction=lambda correction: order.append(correction.text))
    (corrector | RunnableLambda(lambda _: order.append("returned"))).invoke("a")
    assert order == ["<q|a>", "returned"]


async def test_a_coroutine_is_awaited(aligner: Aligner) -> None:
    told: list[str] = []

    async def tell(correction: Correction) -> None:
        told.append(correction.text)

    corrector = AlignerCorrector(aligner, question="q", on_correction=tell)
    await corrector.ainvoke("a")
    await corrector.abatch(["b", "c"])
    [_ async for _ in corrector.astream("d")]
    assert told == ["<q|a>", "<q|b>", "<q|c>", "<q|d>"]
    assert corrector.on_correction_failures == 0


def test_a_coroutine_without_asyncio_is_a_counted_failure(aligner: Aligner, caplog: pytest.LogCaptureFixture) -> None:
    async def tell(correction: Correction) -> None:
        raise AssertionError("never run")

    corrector = AlignerCorrector(aligner, question="q", on_correction=tell)
    assert corrector.invoke("a") == "<q|a>"
    assert corrector.on_correction_failures == 1
    assert "ainvoke" in caplog.text


async def test_its_errors_are_logged_and_counted(aligner: Aligner, caplog: pytest.LogCaptureFixture) -> None:
    def fail(correction: Correction) -> None:
        raise OSError("disk full")

    corrector = AlignerCorrector(aligner, question="q", on_correction=fail)
    configured = corrector.configurable_fields(keep_original=ConfigurableField(id="keep"))
    with caplog.at_level(logging.ERROR):
        assert corrector.batch(["a", "b"]) == ["<q|a>", "<q|b>"]
        assert await corrector.ainvoke("c") == "<q|c>"
        configured.invoke("d", {"configurable": {"keep": True}})
    assert corrector.on_correction_failures == 4
    assert "disk full" in caplog.text


# Settings


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_dumps_and_loads(aligner: Aligner) -> None:
    corrector = AlignerCorrector("some/aligner", on_error="pass_through", on_correction=print, keep_original=True)
    dumped = dumpd(corrector)
    assert dumped["kwargs"] == {
        "aligner": "some/aligner",
        "on_error": "pass_through",
        "keep_original": True,
        "structured": "skip",
        "prompt_source": "auto",
    }
    settings = {"allowed_objects": [AlignerCorrector], "valid_namespaces": ["aligner_chain"]}
    loaded = load(dumped, **known_to(load, settings))
    assert (loaded.aligner, loaded.on_error, loaded.keep_original) == ("some/aligner", "pass_through", True)
    assert loaded.on_correction is None
    assert "aligner" not in dumpd(AlignerCorrector(aligner))["kwargs"]


def test_configurable_fields_keep_the_aligner(aligner: Aligner, told: list[Correction]) -> None:
    corrector = AlignerCorrector(aligner, question="q", on_correction=told.append)
    configured = corrector.configurable_fields(keep_original=ConfigurableField(id="keep"))
    result = configured.invoke(AIMessage("a"), {"configurable": {"keep": True}})
    assert result.response_metadata["aligner"]["original"] == "a"
    assert len(told) == 1


def test_copies_share_the_aligner(models: SimpleNamespace, aligner: Aligner, told: list[Correction]) -> None:
    chain = copy.deepcopy(models.Chat() | AlignerCorrector(aligner, on_correction=told.append))
    assert chain.invoke("q").text == "<q|A(q)>"
    assert chain.last.aligner is aligner


_UNPICKLED = """
import pickle, sys
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from aligner_chain import Aligner
corrector = pickle.loads(bytes.fromhex(sys.argv[1]))
corrector.aligner = Aligner.scripted(lambda exchange: f"<{exchange.question}|{exchange.answer}>")
assert (FakeListChatModel(responses=["a"]) | corrector).invoke("q").text == "<q|a>"
"""


def test_a_corrector_that_is_sent_to_another_process_finds_the_question_there() -> None:
    pickled = pickle.dumps(AlignerCorrector("some/aligner")).hex()
    subprocess.run([sys.executable, "-c", _UNPICKLED, pickled], check=True)


def test_alternatives(models: SimpleNamespace, aligner: Aligner) -> None:
    other = AlignerCorrector(Aligner.scripted(lambda exchange: "other"))
    chosen = AlignerCorrector(aligner).configurable_alternatives(ConfigurableField(id="which"), other=other)
    assert (models.Chat() | chosen).invoke("q").text == "<q|A(q)>"
    assert (models.Chat() | chosen).invoke("q", {"configurable": {"which": "other"}}).text == "other"


def test_schemas_and_graph(models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector) -> None:
    chain = prompt | models.Chat() | corrector
    assert {part.get("type", "object") for part in corrector.get_input_jsonschema()["anyOf"]} >= {
        "string",
        "object",
        "array",
    }
    assert len(chain.get_output_jsonschema()["anyOf"]) == 2
    assert "AlignerCorrector" in [node.name for node in chain.get_graph().nodes.values()]


def test_a_chat_model_as_aligner(models: SimpleNamespace) -> None:
    replies = [AIMessage("FIX\ngood"), AIMessage("KEEP")]
    corrector = AlignerCorrector(Aligner.from_chat_model(models.Scripted(answers=replies)))
    # The second corrector must not take the instructions of the first one's Aligner for the question.
    chain = models.Scripted(answers=[AIMessage("bad")]) | corrector | StrOutputParser() | corrector
    assert chain.invoke("q") == "good"


_LIGHT = """
import sys
from langchain_core.language_models import BaseChatModel
before = set(sys.modules)  # older versions of LangChain load transformers by themselves
from aligner_chain.langchain import AlignerCorrector, LocalChatModel
chain = LocalChatModel("not/loaded") | AlignerCorrector("not/loaded")
heavy = {"torch", "transformers", "llama_index", "trl", "sqlalchemy", "bootstrap", "datasets"} & (set(sys.modules) - before)
assert not heavy, heavy
"""
_MISSING = """
import sys
sys.modules["langchain_core"] = None
try:
    import aligner_chain.langchain
except ImportError as error:
    assert "pip install 'aligner-chain[langchain]'" in str(error), error
else:
    raise SystemExit("imported without langchain-core")
"""


@pytest.mark.parametrize("code", [_LIGHT, _MISSING], ids=["no heavy imports", "missing extra"])
def test_import(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)
