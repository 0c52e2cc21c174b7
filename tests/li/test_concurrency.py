"""One wrapper for a whole service: tasks and threads, none of which sees another's answer, and a loop that stays free."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama import BAD, QUESTION, Mirror, ScriptedLLM, asked_in, async_streaming, node, rag, read
from llama_index.core.base.response.schema import Response
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.llama_index import AlignerQueryEngine, AlignerResponsePostprocessor, AlignerSynthesizer


@pytest.fixture
def naming(asked: list[Exchange]) -> Aligner:
    """Writes everything that it was given into the answer, so that a mix-up shows."""

    def correct(exchange: Exchange) -> str:
        asked.append(exchange)
        return f"<{exchange.question}|{exchange.answer}|{','.join(exchange.context)}|{exchange.subject}>"

    return Aligner.scripted(correct)


@pytest.fixture
def engine_of(naming: Aligner, told: list[Correction]) -> Any:
    """Makes an engine whose nodes and answers name the question."""
    llm = ScriptedLLM(reply=lambda prompt: f"A({asked_in(prompt)})")

    def make(form: str, stream: bool) -> Any:
        postprocessor = AlignerResponsePostprocessor(naming, on_correction=told.append)
        inner = get_response_synthesizer(llm=llm, streaming=stream)
        if form == "synthesizer":
            return RetrieverQueryEngine(Mirror(), AlignerSynthesizer(inner, postprocessor))
        return AlignerQueryEngine(RetrieverQueryEngine(Mirror(), inner), postprocessor)

    return make


def expected(number: int) -> str:
    return f"<q{number}|A(q{number})|about q{number}|s{number}>"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
@pytest.mark.parametrize("count", [8, 64])
async def test_tasks_get_each_their_own(count: int, form: str, stream: bool, engine_of: Any, told: Any) -> None:
    engine = engine_of(form, stream)

    async def ask(number: int) -> tuple[str, Any]:
        with instrument_tags({"aligner_subject": f"s{number}"}):
            response = await engine.aquery(f"q{number}")
        await asyncio.sleep(0)
        return await read(response), response.metadata["aligner"]["correction_id"]

    answers = await asyncio.gather(*map(ask, range(count)))
    assert [text for text, _ in answers] == [expected(number) for number in range(count)]
    by_id = {correction.id: correction.text for correction in told}
    assert len(by_id) == count
    assert all(by_id[correction_id] == text for text, correction_id in answers)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
def test_threads_get_each_their_own(form: str, stream: bool, engine_of: Any, told: list[Correction]) -> None:
    engine = engine_of(form, stream)

    def ask(number: int) -> str:
        with instrument_tags({"aligner_subject": f"s{number}"}):
            return str(engine.query(f"q{number}"))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(64))) == [expected(number) for number in range(64)]
    assert len({correction.id for correction in told}) == 64


@pytest.mark.parametrize("kind", ["whole", "stream", "engine", "unchecked"])
async def test_the_event_loop_stays_free_during_a_correction(kind: str, told: list[Correction]) -> None:
    """The Aligner only goes on after the loop has gone round a hundred times."""
    release = threading.Event()

    def wait(exchange: Exchange) -> str:
        assert release.wait(30), "the loop stood still"
        return "good"

    postprocessor = AlignerResponsePostprocessor(
        Aligner.scripted(wait), on_correction=told.append, stream_unchecked=kind == "unchecked"
    )

    async def tick() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        release.set()

    async def correct() -> str:
        if kind == "engine":
            inner = get_response_synthesizer(llm=ScriptedLLM(reply=BAD))
            return await read(await rag(AlignerSynthesizer(inner, postprocessor)).aquery(QUESTION))
        given: Any = Response(BAD) if kind == "whole" else async_streaming(BAD, source_nodes=[node("one")])
        return await read(await postprocessor.apostprocess_response(given, query_str=QUESTION))

    text, _ = await asyncio.gather(correct(), tick())
    assert text == "good"
    assert [one.outcome for one in told] == ["corrected"]


async def test_many_slow_corrections_wait_side_by_side() -> None:
    """Sixty-four of them are under way at once, and none needs a thread of its own."""
    postprocessor = AlignerResponsePostprocessor(Aligner.scripted(lambda exchange: exchange.answer.upper()))
    before = threading.active_count()
    answers = await asyncio.gather(
        *(postprocessor.apostprocess_response(Response(f"a{number}"), query_str="q") for number in range(64))
    )
    assert [answer.response for answer in answers] == [f"A{number}" for number in range(64)]
    assert threading.active_count() <= before + 2
