"""`AlignedChatModel`: a chat model as any other, that shows the corrected text and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel, ValidationError
from upstreams import USAGE, AsyncUpstream, StreamingUpstream, Upstream, search

from aligner_chain import (
    Aligner,
    AlignerNotConfiguredError,
    CapabilityError,
    Correction,
    PromptNotFoundError,
)
from aligner_chain.errors import EngineError
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector


@pytest.fixture
def aligned(fix: Aligner, told: list[Correction]) -> Any:
    """Makes the model under test around an upstream."""

    def make(llm: Any, **settings: Any) -> AlignedChatModel:
        corrector = AlignerCorrector(fix, on_correction=told.append, prompt_source="explicit", **settings)
        return AlignedChatModel(llm=llm, corrector=corrector)

    return make


UPSTREAMS = [Upstream, StreamingUpstream]
WAYS = ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"]


async def run(model: Any, way: str, asked: Any = "q", **kw: Any) -> AIMessage:
    """One answer, by any way to get one; a stream is put together."""
    if way in ("stream", "astream"):
        pieces = list(model.stream(asked, **kw)) if way == "stream" else [p async for p in model.astream(asked, **kw)]
        return pieces[0] + pieces[1:]
    if way in ("batch", "abatch"):
        answers = model.batch([asked], **kw) if way == "batch" else await model.abatch([asked], **kw)
        return answers[0]
    return model.invoke(asked, **kw) if way == "invoke" else await model.ainvoke(asked, **kw)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", UPSTREAMS)
async def test_the_answer_is_corrected_and_all_else_is_kept(
    aligned: Any, told: list[Correction], kind: Any, way: str
) -> None:
    answer = await run(aligned(kind()), way)
    assert answer.text == "a good answer"
    assert answer.usage_metadata == USAGE
    assert answer.response_metadata.items() >= {"model_name": "upstream-1", "finish_reason": "stop"}.items()
    assert answer.response_metadata["aligner"]["correction_id"] == told[0].id
    assert [(c.outcome, c.exchange.question, c.exchange.upstream) for c in told] == [("corrected", "q", "upstream-1")]
    if kind is Upstream:
        assert answer.additional_kwargs == {"kept": 1}
    if "stream" not in way:
        assert told[0].exchange.message_id == answer.id
        assert told[0].exchange.run_id in answer.id


async def test_a_provider_id_does_not_hide_the_run(aligned: Any, told: list[Correction]) -> None:
    class Named(Upstream):
        def _answer(self, *given: Any) -> AIMessage:
            return super()._answer(*given).model_copy(update={"id": "resp_1"})

    run_id = uuid4()
    assert aligned(Named()).invoke("q", {"run_id": run_id}).id == "resp_1"
    await aligned(Named()).ainvoke("q", {"run_id": run_id})
    assert [(c.exchange.message_id, c.exchange.run_id) for c in told] == [("resp_1", str(run_id))] * 2


@pytest.mark.parametrize("way", WAYS)
async def test_a_question_without_words_is_an_error_that_says_so(aligned: Any, way: str) -> None:
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])
    with pytest.raises(PromptNotFoundError, match="holds no words") as caught:
        await run(aligned(StreamingUpstream()), way, [image])
    assert caught.value.reason == "wordless"


@pytest.mark.parametrize("way", ["ainvoke", "astream"])
async def test_coroutines_stay_coroutines(aligned: Any, way: str) -> None:
    assert (await run(aligned(AsyncUpstream()), way)).text == "a good answer"


class Watch(BaseCallbackHandler):
    """Notes every text that callbacks are shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_chat_model_start(self, *given: Any, **kw: Any) -> None:
        self.seen.append("start")

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kw: Any) -> None:
        self.seen.append(str(chunk))

    def on_llm_end(self, response: Any, **kw: Any) -> None:
        self.seen.append(str(response))

    def on_chain_end(self, outputs: Any, **kw: Any) -> None:
        self.seen.append(str(outputs))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", UPSTREAMS)
async def test_no_callback_sees_the_raw_text_and_there_is_one_run(aligned: Any, kind: Any, way: str) -> None:
    watch = Watch()
    chain = ChatPromptTemplate.from_template("{q}") | aligned(kind())
    with get_usage_metadata_callback() as counted:
        await run(chain, way, {"q": "q"}, config={"callbacks": [watch]})
    assert not [text for text in watch.seen if "a bad" in text]
    assert watch.seen.count("start") == 1
    assert counted.usage_metadata == {"upstream-1": USAGE}


@pytest.mark.parametrize("kind", UPSTREAMS)
async def test_no_event_shows_the_raw_text(aligned: Any, kind: Any) -> None:
    events = [event async for event in aligned(kind()).astream_events("q", version="v2")]
    assert not [event for event in events if "a bad" in str(event)]
    assert events[-1]["data"]["output"].text == "a good answer"


async def test_a_tool_call_passes_piece_by_piece(aligned: Any, told: list[Correction]) -> None:
    model = aligned(StreamingUpstream()).bind_tools([search])
    for pieces in (list(model.stream("call")), [piece async for piece in model.astream("call")]):
        assert [piece.text for piece in pieces if piece.text] == ["a", " bad", " plan"]
        assert [piece.tool_call_chunks[0]["args"] for piece in pieces if piece.tool_call_chunks] == ['{"q": ', '"bad"}']
        whole = pieces[0] + pieces[1:]
        assert whole.tool_calls == [{"name": "search", "args": {"q": "bad"}, "id": "c1", "type": "tool_call"}]
    assert [c.reason for c in told] == ["the answer calls a tool"] * 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", UPSTREAMS)
async def test_tools_are_bound_in_the_upstreams_form(aligned: Any, kind: Any, way: str) -> None:
    upstream = kind()
    model = aligned(upstream).bind_tools([search], strict=True)
    answer = await run(model, way, "call")
    assert answer.tool_calls[0]["args"] == {"q": "bad"}
    assert json.loads(json.dumps(upstream.asked[0]["tools"]))[0]["function"]["name"] == "search"
    assert upstream.asked[0]["strict"] is True
    assert (await run(model, way, "q")).text == "a good answer"


def test_tools_that_leave_nothing_to_wrap_are_an_error(aligned: Any) -> None:
    class Strange(Upstream):
        def bind_tools(self, tools: Any, **kw: Any) -> Any:
            return self | RunnableLambda(lambda message: message)

    with pytest.raises(CapabilityError, match=r"llm\.bind_tools\(tools\) \| AlignerCorrector\(\)"):
        aligned(Strange()).bind_tools([search])


class Joke(BaseModel):
    setup: str


def test_structured_output_is_the_upstreams_own(aligned: Any, told: list[Correction]) -> None:
    class Structured(Upstream):
        def with_structured_output(self, schema: Any, **kw: Any) -> Any:
            return RunnableLambda(lambda asked: schema(setup="bad"))

    assert aligned(Structured()).with_structured_output(Joke).invoke("q") == Joke(setup="bad")
    assert told == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["model", "chain", "with_config", "bound", "call"])
async def test_what_a_record_needs_comes_with_config_or_call(
    aligned: Any, told: list[Correction], form: str, way: str
) -> None:
    upstream = StreamingUpstream()
    model, keys = aligned(upstream), {"aligner_subject": "s", "aligner_split_key": "k"}
    config: Any = {"configurable": keys}
    chain = {"chain": RunnableLambda(lambda q: q) | model, "with_config": model.with_config(config)}.get(form, model)
    chain = model.bind(**keys) if form == "bound" else chain
    settings = {"call": keys, "model": {"config": config}, "chain": {"config": config}}.get(form, {})
    await run(chain, way, "q", **settings)
    assert [(c.exchange.subject, c.exchange.split_key) for c in told] == [("s", "k")]
    assert upstream.asked == [{"stop": None}]  # the upstream is not bothered with it


def test_a_call_overrules_its_config(aligned: Any, told: list[Correction]) -> None:
    model = aligned(Upstream())
    model.invoke("q", {"configurable": {"aligner_subject": "around"}}, aligner_subject="called")
    model.batch(["q", "q"], [{"configurable": {"aligner_subject": one}} for one in "ab"])
    assert sorted(str(c.exchange.subject) for c in told) == ["a", "b", "called"]


@pytest.mark.parametrize("way", WAYS)
async def test_turned_off(aligned: Any, told: list[Correction], way: str) -> None:
    answer = await run(aligned(StreamingUpstream()), way, aligner_enabled=False)
    assert answer.text == "a bad answer"
    assert [c.outcome for c in told] == ["skipped"]


async def test_turned_off_it_streams_as_the_upstream_does(aligned: Any) -> None:
    model = aligned(StreamingUpstream()).bind(aligner_enabled=False)
    for pieces in (list(model.stream("q")), [piece async for piece in model.astream("q")]):
        assert [piece.text for piece in pieces if piece.text] == ["a", " bad", " answer"]


@pytest.mark.parametrize("way", WAYS)
async def test_failures_follow_the_corrector(aligned: Any, way: str) -> None:
    with pytest.raises(EngineError, match="out of luck"):
        await run(aligned(StreamingUpstream()), way, "crash")
    passed = await run(aligned(StreamingUpstream(), on_error="pass_through"), way, "crash")
    assert (passed.text, passed.response_metadata["aligner"]["outcome"]) == ("a bad answer", "failed")


def test_several_answers_are_one_call_of_the_aligner(aligned: Any, told: list[Correction]) -> None:
    rows = aligned(Upstream(generations=2)).generate([[HumanMessage("q")]]).generations
    assert [generation.message.text for generation in rows[0]] == ["a good answer"] * 2
    assert len({c.exchange.message_id for c in told}) == 2


def test_a_cache_holds_the_corrected_answer_and_knows_the_aligner(aligned: Any, fix: Aligner) -> None:
    cache, upstream = InMemoryCache(), Upstream()
    upstream.cache = cache
    assert [aligned(upstream).invoke("q").text for _ in range(2)] == ["a good answer"] * 2
    assert len(upstream.asked) == 1
    other = Aligner.scripted(lambda exchange: "other")
    metadata = type(other.metadata)(name="other", version="1", template="scripted")
    other = Aligner(other.engine, metadata=metadata)
    assert AlignedChatModel(llm=upstream, corrector=AlignerCorrector(other)).invoke("q").text == "other"


def test_a_cache_tells_apart_what_changes_the_text(aligned: Any, told: list[Correction]) -> None:
    upstream = Upstream(cache=InMemoryCache())
    model = aligned(upstream)
    off: Any = {"configurable": {"aligner_enabled": False}}
    served = [model.invoke("q", config).text for config in (off, None, off)]
    assert served == ["a bad answer", "a good answer", "a bad answer"]
    assert len(upstream.asked) == 2
    model.invoke("q", {"configurable": {"aligner_subject": "s"}})  # whom it is about changes no text
    assert len(upstream.asked) == 2
    assert aligned(upstream)._get_llm_string() != aligned(Upstream(model_name="other"))._get_llm_string()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", UPSTREAMS)
async def test_what_tells_of_the_original_tokens_goes_with_them(aligned: Any, kind: Any, way: str) -> None:
    """As ChatOpenAI gives log-probabilities: beside the message, where LangChain adds them only later."""

    class Telling(kind):
        def _generate(self, *given: Any, **kw: Any) -> Any:
            result = super()._generate(*given, **kw)
            result.generations[0].generation_info = {"finish_reason": "stop", "logprobs": [{"token": "a bad"}]}
            return result

    answer = await run(aligned(Telling()), way)
    assert "a bad" not in str(answer)
    assert answer.response_metadata["finish_reason"] == "stop"
    same = AlignedChatModel(llm=Telling(), corrector=AlignerCorrector(Aligner.scripted(lambda e: e.answer)))
    assert "logprobs" in same.invoke("q").response_metadata


def test_what_langchain_does_around_a_model_is_taken_over(aligned: Any) -> None:
    limiter = InMemoryRateLimiter(requests_per_second=1000)
    llm = StreamingUpstream(rate_limiter=limiter, disable_streaming=True, tags=["t"], metadata={"m": 1}, cache=False)
    model = aligned(llm)
    assert (model.rate_limiter, model.disable_streaming, model.cache) == (limiter, True, False)
    assert (model.tags, model.metadata["m"]) == (["t"], 1)
    assert model.metadata["lc_versions"].keys() >= {"aligner-chain"}
    if "profile" in BaseChatModel.model_fields:
        profile: Any = {"max_input_tokens": 100}
        assert aligned(Upstream(profile=profile)).profile == profile
    assert [piece.text for piece in model.stream("q")] == ["a good answer"]
    assert AlignedChatModel(llm=llm, corrector=model.corrector, tags=["own"]).tags == ["own"]


def test_it_presents_itself_as_the_upstream_does(aligned: Any) -> None:
    model = aligned(Upstream())
    assert model._get_ls_params()["ls_model_type"] == "chat"
    assert model._get_ls_params() == Upstream()._get_ls_params()
    assert model._identifying_params["llm"] == {"_type": "upstream", "model_name": "upstream-1"}
    assert model._identifying_params["corrector"]["aligner"] == "scripted@1"


@pytest.mark.parametrize(
    "wrong", [Upstream().bind(stop=["x"]), Upstream().bind_tools([search]), RunnableLambda(str), 3]
)
def test_what_is_no_chat_model_is_refused_with_the_way_out(wrong: Any) -> None:
    with pytest.raises((TypeError, ValidationError)) as caught:
        AlignedChatModel(llm=wrong)
    assert type(wrong).__name__ in str(caught.value)
    assert "AlignedChatModel(llm=llm).bind_tools(tools)" in str(caught.value) or "| AlignerCorrector()" in str(
        caught.value
    )


def test_without_an_aligner_the_first_answer_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path))
    model = AlignedChatModel(llm=Upstream())
    assert model.bind_tools([search]).invoke("call").tool_calls
    with pytest.raises(AlignerNotConfiguredError, match="from_chat_model"):
        model.invoke("q")


def test_a_model_that_streams_nothing(aligned: Any) -> None:
    class Silent(Upstream):
        def _stream(self, *given: Any, **kw: Any) -> Iterator[ChatGenerationChunk]:
            return iter(())

    with pytest.raises(ValueError, match="No generation chunks"):
        list(aligned(Silent()).stream("q"))


def test_it_can_be_corrected_again(models: SimpleNamespace, aligned: Any, aligner: Aligner) -> None:
    chain = aligned(Upstream()) | AlignerCorrector(aligner)
    assert chain.invoke("q").text == "<q|a good answer>"
