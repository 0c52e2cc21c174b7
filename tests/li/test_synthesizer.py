"""`AlignerSynthesizer` around every response mode: what it corrects, refuses and hands on."""

from __future__ import annotations

from typing import Any

import pytest
from llama import BAD, GOOD, QUESTION, Handing, ScriptedLLM, apieces, call, node, pieces, rag, read
from llama_index.core import PromptTemplate, Settings, SummaryIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import BaseModel

from aligner_chain import Aligner, ConfigurationError, Correction, Exchange, Policy
from aligner_chain.llama_index import AlignerResponsePostprocessor, AlignerSynthesizer

WRITING = [
    ResponseMode.REFINE,
    ResponseMode.COMPACT,
    ResponseMode.SIMPLE_SUMMARIZE,
    ResponseMode.TREE_SUMMARIZE,
    ResponseMode.GENERATION,
    ResponseMode.ACCUMULATE,
    ResponseMode.COMPACT_ACCUMULATE,
]
KINDS = {
    (False, ""): Response,
    (False, "a"): Response,
    (True, ""): StreamingResponse,
    (True, "a"): AsyncStreamingResponse,
}


@pytest.mark.parametrize("prefix", ["", "a"], ids=["sync", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("mode", WRITING)
async def test_every_mode_that_writes_an_answer(
    mode: ResponseMode, stream: bool, prefix: str, llm: ScriptedLLM, postprocessor: Any, asked: list[Exchange]
) -> None:
    if stream and "accumulate" in mode.value:
        pytest.skip("accumulating synthesizers do not stream")
    inner = get_response_synthesizer(llm=llm, response_mode=mode, streaming=stream)
    response = await call(rag(AlignerSynthesizer(inner, postprocessor)), f"{prefix}query", QUESTION)
    assert type(response) is KINDS[stream, prefix] or isinstance(response, KINDS[stream, prefix])
    assert BAD not in (text := await read(response))
    assert GOOD in text
    assert response.metadata["aligner"]["outcome"] == "corrected"
    assert len(asked) == 1, "refining asks the upstream several times, and the Aligner once"
    assert (asked[0].question, asked[0].context) == (QUESTION, ("one", "two", "three"))


@pytest.mark.parametrize("prefix", ["", "a"], ids=["sync", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_an_upstream_thinks_aloud_stays_as_it_is(stream: bool, prefix: str) -> None:
    mending = Aligner.scripted(lambda exchange: exchange.answer.replace("bad", "good"))
    inner = get_response_synthesizer(llm=ScriptedLLM(reply="<think>\nbad?\n</think>\n\nA bad one."), streaming=stream)
    synthesizer = AlignerSynthesizer(inner, AlignerResponsePostprocessor(aligner=mending, policy=Policy(thoughts=True)))
    response = await call(rag(synthesizer), f"{prefix}query", QUESTION)
    assert await read(response) == "<think>\nbad?\n</think>\n\nA good one."
    assert response.metadata["aligner"]["outcome"] == "corrected"


@pytest.mark.parametrize("prefix", ["", "a"], ids=["sync", "async"])
@pytest.mark.parametrize("in_engine", [False, True])
async def test_no_text_is_skipped(prefix: str, in_engine: bool, llm: Any, postprocessor: Any, told: Any) -> None:
    Settings.llm = llm  # the factory gives NoText none
    synthesizer = AlignerSynthesizer(get_response_synthesizer(response_mode=ResponseMode.NO_TEXT), postprocessor)
    if in_engine:
        response = await call(rag(synthesizer), f"{prefix}query", QUESTION)
    else:
        response = await call(synthesizer, f"{prefix}synthesize", QUESTION, [node("one")])
    assert (response.response, [one.outcome for one in told]) == ("", ["skipped"])


def test_a_synthesizer_that_writes_no_answer_is_refused(llm: ScriptedLLM, mend: Any) -> None:
    Settings.llm = llm
    context_only = get_response_synthesizer(response_mode=ResponseMode.CONTEXT_ONLY)
    with pytest.raises(ConfigurationError, match=r"ResponseMode\.COMPACT"):
        AlignerSynthesizer(context_only, mend)


def test_the_default_is_llama_indexs_own(llm: ScriptedLLM, mend: Any) -> None:
    Settings.llm = llm
    synthesizer = AlignerSynthesizer(postprocessor=mend)
    assert type(synthesizer.synthesizer) is type(get_response_synthesizer())
    assert rag(synthesizer).query(QUESTION).response == GOOD


def test_no_second_language_model_is_looked_for(mend: Any) -> None:
    """`BaseSynthesizer.__init__` would take the one of the settings, and there is none."""
    assert AlignerSynthesizer(Handing(Response(BAD)), mend).synthesize(QUESTION, []).response == GOOD


async def test_the_question_is_a_text_or_a_bundle(llm: ScriptedLLM, mend: Any, asked: list[Exchange]) -> None:
    synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=llm), mend)
    for query in (QUESTION, QueryBundle(QUESTION)):
        assert synthesizer.synthesize(query, [node("one")]).response == GOOD
        assert (await synthesizer.asynthesize(query, nodes=[node("one")])).response == GOOD
    assert {exchange.question for exchange in asked} == {QUESTION}


async def test_additional_sources_are_read_too(llm: ScriptedLLM, mend: Any, asked: list[Exchange]) -> None:
    synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=llm), mend)
    for method in ("synthesize", "asynthesize"):
        response = await call(synthesizer, method, QUESTION, [node("one")], additional_source_nodes=[node("more")])
        assert len(response.source_nodes) == 2
    assert [exchange.context for exchange in asked] == [("one", "more")] * 2


def test_other_arguments_reach_the_synthesizer_inside(llm: ScriptedLLM, mend: Any) -> None:
    template = PromptTemplate("{mood} {context_str} Query: {query_str}")
    inner = get_response_synthesizer(llm=llm, text_qa_template=template)
    AlignerSynthesizer(inner, mend).synthesize(QUESTION, [node("one")], mood="angry")
    assert llm.prompts[-1].startswith("angry")


def test_what_llama_index_reads_of_a_synthesizer_is_the_inner_ones(llm: ScriptedLLM, mend: Any) -> None:
    inner = get_response_synthesizer(llm=llm, streaming=True)
    synthesizer = AlignerSynthesizer(inner, mend)
    assert synthesizer._llm is llm
    assert synthesizer._prompt_helper is inner._prompt_helper
    assert synthesizer._streaming is True
    synthesizer._streaming = False
    assert inner._streaming is False
    manager = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])
    synthesizer.callback_manager = manager
    assert inner.callback_manager is synthesizer.callback_manager is manager
    assert "_streaming" not in vars(synthesizer)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = synthesizer.nonsense


def test_an_index_takes_it(llm: ScriptedLLM, mend: Any) -> None:
    index = SummaryIndex(nodes=[TextNode(text="one")])
    engine = index.as_query_engine(
        llm=llm, response_synthesizer=AlignerSynthesizer(get_response_synthesizer(llm=llm), mend)
    )
    assert isinstance(engine, RetrieverQueryEngine)
    assert engine.query(QUESTION).response == GOOD


async def test_what_llama_index_takes_no_argument_for_it_drops(llm: ScriptedLLM, mend: Any, asked: list) -> None:
    """Trap 6, a limit of LlamaIndex's own: neither a misspelt argument nor a synthesizer for a chat mode is an error."""
    index = SummaryIndex(nodes=[TextNode(text="one")])
    synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=llm), mend)
    assert index.as_query_engine(llm=llm, response_postprocessors=[synthesizer]).query(QUESTION).response == BAD
    chat = index.as_chat_engine("context", llm=llm, response_synthesizer=synthesizer)
    assert chat.chat(QUESTION).response == BAD
    engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer, streaming=True)
    assert isinstance(engine.query(QUESTION), Response)
    assert len(asked) == 1


# Without nodes: texts, as routers ask for


class Verdict(BaseModel):
    answer: str


@pytest.mark.parametrize("method", ["get_response", "aget_response"])
@pytest.mark.parametrize("stream", [False, True])
async def test_texts_are_corrected_without_passages(
    stream: bool, method: str, llm: ScriptedLLM, postprocessor: Any, asked: list[Exchange]
) -> None:
    inner = get_response_synthesizer(llm=llm, response_mode=ResponseMode.TREE_SUMMARIZE, streaming=stream)
    text = await call(AlignerSynthesizer(inner, postprocessor), method, QUESTION, ["one answer", "another [1]"])
    if stream:
        text = "".join([piece async for piece in text] if method.startswith("a") else text)
    assert text == GOOD
    assert (asked[0].question, asked[0].context) == (QUESTION, ())


async def test_other_results_of_a_synthesizer_pass(mend: Any, asked: list[Exchange]) -> None:
    model = Verdict(answer=BAD)
    synthesizer = AlignerSynthesizer(Handing(model), mend)
    assert synthesizer.get_response(QUESTION, []) is model
    assert await synthesizer.aget_response(QUESTION, []) is model
    assert asked == []
    plain = AlignerSynthesizer(Handing(pieces("a b", "ad")), mend)
    assert "".join(await plain.aget_response(QUESTION, [])) == "a good"  # a plain generator under asyncio
    with pytest.raises(TypeError):
        "".join(await AlignerSynthesizer(Handing(apieces("a")), mend).aget_response(QUESTION, []))


@pytest.mark.parametrize("method", ["get_response_from_messages", "aget_response_from_messages"])
async def test_messages_are_corrected_like_texts(method: str, mend: Any, asked: list[Exchange]) -> None:
    class Seeing(Handing):
        def get_response_from_messages(self, query_str: str, message_chunks: Any, **kw: Any) -> Any:
            return self.response

        async def aget_response_from_messages(self, query_str: str, message_chunks: Any, **kw: Any) -> Any:
            return self.response

    assert await call(AlignerSynthesizer(Seeing(BAD), mend), method, QUESTION, [ChatMessage("one")]) == GOOD
    assert (asked[0].question, asked[0].context) == (QUESTION, ())


@pytest.mark.parametrize("method", ["query", "aquery"])
async def test_a_multimodal_answer_is_corrected(method: str, postprocessor: Any, told: list[Correction]) -> None:
    class ChatLLM(ScriptedLLM):
        @property
        def metadata(self) -> Any:
            return super().metadata.model_copy(update={"is_chat_model": True})

    try:
        inner = get_response_synthesizer(llm=ChatLLM(reply=BAD), multimodal=True)
    except TypeError:
        pytest.skip("this version of LlamaIndex has no multimodal synthesizers")
    found = NodeWithScore(node=TextNode(text="one"))
    response = await call(rag(AlignerSynthesizer(inner, postprocessor), found), method, QUESTION)
    assert (response.response, told[0].exchange.context) == (GOOD, ("one",))
