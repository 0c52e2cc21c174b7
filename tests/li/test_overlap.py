"""Streams that the Aligner reads while the model still writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from llama import QUESTION, ScriptedLLM, Shelf, async_streaming, call, node, rag, read, streaming
from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from playback import engine, read_by

from aligner_chain import Correction, shared
from aligner_chain.llama_index import (
    AlignerChatEngine,
    AlignerQueryEngine,
    AlignerResponsePostprocessor,
    AlignerSynthesizer,
)

ANSWER = "You may return it within 90 days, and we pay for it. Ask us where to, and keep what it came in."
GOOD = "You may return it within 30 days."


class Watched(ScriptedLLM):
    """Calls `before_end` when all but the last word of its answer are out."""

    before_end: Callable[[], Any]
    reply: Any = ANSWER

    def stream_complete(self, prompt: str, formatted: bool = False, **kw: Any) -> Iterator[CompletionResponse]:
        *pieces, last = super().stream_complete(prompt, formatted, **kw)

        def watched() -> Iterator[CompletionResponse]:
            yield from pieces
            self.before_end()
            yield last

        return watched()

    async def astream_chat(self, messages: Any, **kw: Any) -> AsyncIterator[ChatResponse]:
        return slowly(await super().astream_chat(messages, **kw))

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kw: Any
    ) -> AsyncIterator[CompletionResponse]:
        return slowly(await super().astream_complete(prompt, formatted, **kw))


async def slowly(pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The pieces as a network brings them, so that others get their turn."""
    async for piece in pieces:
        yield piece
        await asyncio.sleep(0.002)


@pytest.fixture
def make(playing: Any, told: list[Correction]) -> Callable[..., AlignerResponsePostprocessor]:
    """Makes a postprocessor whose Aligner reads prompts that still grow, and writes `GOOD` at once."""

    def make(**settings: Any) -> AlignerResponsePostprocessor:
        aligner = playing(GOOD, overlap=True)
        aligner.engine.beats.release(10_000)
        return AlignerResponsePostprocessor(aligner, on_correction=told.append, **settings)

    return make


@pytest.fixture
def reading(make: Any) -> AlignerResponsePostprocessor:
    postprocessor: AlignerResponsePostprocessor = make()
    return postprocessor


def check(seen: list[str], told: list[Correction], postprocessor: Any) -> None:
    """One answer was read before its end, and corrected by the request that was begun."""
    [text] = seen
    asked, _, answer = text.partition("<|ac:answer|>")
    assert QUESTION in asked
    assert len(answer) > 20
    assert ANSWER.startswith(answer)
    assert [(one.outcome, one.exchange.answer) for one in told] == [("corrected", ANSWER)]
    assert (len(engine(postprocessor).opened), engine(postprocessor).submitted) == (1, [])
    told.clear()


@pytest.mark.parametrize("unchecked", [False, True])
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
@pytest.mark.parametrize("method", ["query", "aquery"])
async def test_the_answer_is_read_before_its_end(make: Any, told: Any, form: str, method: str, unchecked: bool) -> None:
    postprocessor, seen = make(stream_unchecked=unchecked), []
    llm = Watched(before_end=lambda: seen.append(read_by(postprocessor)))
    inner = get_response_synthesizer(llm=llm, streaming=True)
    made: Any = {
        "synthesizer": lambda: rag(AlignerSynthesizer(inner, postprocessor)),
        "query engine": lambda: AlignerQueryEngine(rag(inner), postprocessor),
    }
    response = await call(made[form](), method, QUESTION)
    assert await read(response) == GOOD
    assert response.metadata["aligner"]["outcome"] == "corrected"
    assert "<|ac:context|>" in seen[0]
    check(seen, told, postprocessor)


@pytest.mark.parametrize("form", ["simple", "context"])
@pytest.mark.parametrize("method", ["stream_chat", "astream_chat"])
async def test_chat_answers_are_read_before_their_end(
    reading: AlignerResponsePostprocessor, told: list[Correction], form: str, method: str
) -> None:
    seen: list[str] = []

    def before_end() -> None:
        give_up = time.monotonic() + 20
        while method == "stream_chat" and len(engine(reading).fed) < 2 and time.monotonic() < give_up:
            time.sleep(0.001)  # Model and Aligner have threads of their own.
        seen.append(read_by(reading))

    llm = Watched(before_end=before_end)
    chat: Any = {
        "simple": lambda: SimpleChatEngine.from_defaults(llm=llm),
        "context": lambda: ContextChatEngine.from_defaults(Shelf(node("one")), llm=llm),
    }[form]()
    aligned = AlignerChatEngine(chat, reading)
    response = await call(aligned, method, QUESTION)
    assert await read(response) == GOOD
    check(seen, told, reading)
    assert [message.content for message in aligned.chat_history] == [QUESTION, GOOD]


async def test_an_upstream_that_breaks_off_frees_the_engine(reading: Any, told: list[Correction]) -> None:
    def broken() -> Any:
        yield ANSWER
        raise ConnectionError("the upstream is gone")

    async def abroken() -> Any:
        yield ANSWER
        raise ConnectionError("the upstream is gone")

    for given in (StreamingResponse(broken()), AsyncStreamingResponse(abroken())):
        response = reading.postprocess_response(given, query_str=QUESTION)
        with pytest.raises(ConnectionError):
            await read(response)
        assert len(engine(reading).fed[-1]) > len(ANSWER) - 20
    assert [ticket.cancelled for ticket in engine(reading).opened] == [True, True]
    assert told == []


async def test_cancelling_the_task_frees_the_engine(reading: Any) -> None:
    async def stuck() -> AsyncIterator[str]:
        yield ANSWER
        await asyncio.Event().wait()

    given: Any = async_streaming()
    given.response_gen = stuck()
    task = asyncio.ensure_future(read(reading.postprocess_response(given, query_str=QUESTION)))
    while len(engine(reading).fed) < 2:  # noqa: ASYNC110  The engine has no event to wait for.
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine(reading).opened[0].cancelled


async def test_what_is_not_corrected_is_not_read_on(reading: Any, told: list[Correction]) -> None:
    from llama_index.core.instrumentation.dispatcher import instrument_tags

    for text in ('{"mood": "bad"}', "Empty Response", ""):
        response = reading.postprocess_response(async_streaming(text), query_str=QUESTION)
        assert await read(response) == text
    assert [ticket.cancelled for ticket in engine(reading).opened] == [True] * 3
    with instrument_tags({"aligner_enabled": False}):
        response = reading.postprocess_response(async_streaming(ANSWER), query_str=QUESTION)
    assert await read(response) == ANSWER
    assert len(engine(reading).opened) == 3
    assert {one.outcome for one in told} == {"skipped"}


async def test_an_aligner_is_not_loaded_for_it(reading: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_NAMED", {})
    monkeypatch.setattr(shared.Aligner, "from_pretrained", lambda key: reading.aligner)
    named: Any = AlignerResponsePostprocessor("somewhere")
    for opened, make in enumerate((streaming, async_streaming, streaming)):
        response = named.postprocess_response(make(ANSWER), query_str=QUESTION)
        assert await read(response) == GOOD
        assert len(engine(reading).opened) == opened
