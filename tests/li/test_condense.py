"""CondenseQuestionChatEngine over aligned engines: corrected on the way, with and without our chat engine around it."""

from __future__ import annotations

from typing import Any

import pytest
from llama import BAD, CHATS, GOOD, ScriptedLLM, call, rag, read
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.response_synthesizers import get_response_synthesizer

from aligner_chain import Aligner, Exchange
from aligner_chain.errors import EngineError
from aligner_chain.llama_index import AlignerChatEngine, AlignerQueryEngine, AlignerSynthesizer


@pytest.fixture
def llm() -> ScriptedLLM:
    return ScriptedLLM(reply=lambda prompt: "is that bad?" if "standalone question" in prompt else BAD)


@pytest.fixture
def chat_over(llm: ScriptedLLM) -> Any:
    def make(engine: Any) -> CondenseQuestionChatEngine:
        memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
        return CondenseQuestionChatEngine.from_defaults(engine, llm=llm, memory=memory)

    return make


def said(engine: Any) -> list[str]:
    return [message.content for message in engine.chat_history]


@pytest.mark.parametrize("stream", [False, True], ids=["whole synthesizer", "streaming synthesizer"])
@pytest.mark.parametrize("method", CHATS)
async def test_over_our_synthesizer_all_four_methods_correct(
    method: str, stream: bool, llm: Any, chat_over: Any, postprocessor: Any, asked: list[Exchange]
) -> None:
    """Trap 8: the question is the condensed one, and condensing itself is not corrected."""
    inner = get_response_synthesizer(llm=llm, streaming=stream)
    engine = chat_over(rag(AlignerSynthesizer(inner, postprocessor), "one"))
    for question in ("q1", "q2"):
        assert await read(await call(engine, method, question)) == GOOD
        assert inner._streaming is stream
    assert said(engine) == ["q1", GOOD, "q2", GOOD]
    assert [(one.question, one.context) for one in asked] == [("q1", ("one",)), ("is that bad?", ("one",))]


@pytest.mark.parametrize("method", CHATS)
async def test_over_our_query_engine_streaming_needs_an_engine_that_streams(
    method: str, llm: Any, chat_over: Any, postprocessor: Any
) -> None:
    """A limit of LlamaIndex's own: it turns streaming on only in a RetrieverQueryEngine itself."""
    whole = chat_over(AlignerQueryEngine(rag(get_response_synthesizer(llm=llm)), postprocessor))
    if "stream" in method:
        with pytest.raises(ValueError, match="Streaming is not enabled"):
            await call(whole, method, "q1")
    else:
        assert await read(await call(whole, method, "q1")) == GOOD
        assert said(whole) == ["q1", GOOD]
    streaming = chat_over(AlignerQueryEngine(rag(get_response_synthesizer(llm=llm, streaming=True)), postprocessor))
    assert await read(await call(streaming, method, "q1")) == GOOD
    assert said(streaming) == ["q1", GOOD]


@pytest.mark.parametrize("stream", [False, True], ids=["whole synthesizer", "streaming synthesizer"])
@pytest.mark.parametrize("method", CHATS)
@pytest.mark.parametrize("inside", ["synthesizer", "query engine"])
async def test_an_aligned_engine_in_our_chat_engine_is_corrected_once(
    inside: str, method: str, stream: bool, llm: Any, chat_over: Any, correcting: Any, twice: Any, asked: Any, told: Any
) -> None:
    """Trap 11."""
    if inside == "query engine" and "stream" in method and not stream:
        pytest.skip("LlamaIndex does not stream this")
    inner = get_response_synthesizer(llm=llm, streaming=stream)
    if inside == "synthesizer":
        aligned: Any = rag(AlignerSynthesizer(inner, correcting(twice)))
    else:
        aligned = AlignerQueryEngine(rag(inner), correcting(twice))
    engine = AlignerChatEngine(chat_over(aligned), correcting(twice))
    response = await call(engine, method, "q1")
    assert await read(response) == f"{BAD} (checked)"
    assert said(engine) == ["q1", f"{BAD} (checked)"]
    assert len(asked) == len(told) == 1


@pytest.mark.parametrize("method", ["chat", "achat"])
async def test_what_the_engine_inside_told_of_its_correction_is_told(
    method: str, llm: Any, chat_over: Any, mend: Any, told: list
) -> None:
    aligned = rag(AlignerSynthesizer(get_response_synthesizer(llm=llm), mend), "one")
    response = await call(AlignerChatEngine(chat_over(aligned), mend), method, "q1")
    assert response.metadata["aligner"]["outcome"] == "corrected"
    assert [node.node.get_content() for node in response.source_nodes] == ["one"]


@pytest.mark.parametrize("method", CHATS)
async def test_around_it_the_message_and_the_conversation_are_read(
    method: str, llm: Any, chat_over: Any, mend: Any, asked: list[Exchange]
) -> None:
    """Trap 7: the nodes reach the Aligner and the caller although LlamaIndex does not find them in all streams."""
    engine = AlignerChatEngine(chat_over(rag(get_response_synthesizer(llm=llm, streaming=True), "one")), mend)
    for question in ("q1", "q2"):
        response = await call(engine, method, question)
        assert await read(response) == GOOD
        assert [node.node.get_content() for node in response.source_nodes] == ["one"]
    assert [turn.text for turn in asked[1].turns] == ["q1", GOOD, "q2"]
    assert asked[1].context == ("one",)


async def test_without_us_an_async_stream_has_no_source_nodes(llm: Any, chat_over: Any) -> None:
    """Trap 7, a limit of LlamaIndex's own, which stays one with our synthesizer inside."""
    for synthesizer in (get_response_synthesizer(llm=llm), AlignerSynthesizer(get_response_synthesizer(llm=llm), "x")):
        response = await chat_over(rag(synthesizer)).astream_chat("q")
        assert response.source_nodes == []
        response.awrite_response_to_history_task.cancel()


@pytest.mark.parametrize("method", ["chat", "achat"])
async def test_a_raised_correction_leaves_nothing_behind(method: str, chat_over: Any, mend: Any) -> None:
    inner = get_response_synthesizer(llm=ScriptedLLM(reply="a crash"))
    engine = chat_over(rag(AlignerSynthesizer(inner, mend)))
    with pytest.raises(EngineError):
        await call(engine, method, "q1")
    assert said(engine) == []


async def test_nothing_uncorrected_is_among_the_sources(mend: Aligner) -> None:
    engine = rag(get_response_synthesizer(llm=ScriptedLLM()))
    chat = AlignerChatEngine(CondenseQuestionChatEngine.from_defaults(engine, llm=ScriptedLLM()), mend)
    for answer in (chat.chat("q1"), await chat.achat("q2")):
        assert answer.response == GOOD
        [source] = answer.sources
        assert (source.content, str(source.raw_output)) == (GOOD, GOOD)
        assert len(answer.source_nodes) == 3
