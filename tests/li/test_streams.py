"""Responses that stream: every way to read them, and text that goes out while it is decoded."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from llama import BAD, GOOD, QUESTION, ScriptedLLM, async_streaming, call, node, pieces, rag, read, streaming
from llama_index.core.base.response.schema import Response, StreamingResponse
from llama_index.core.response_synthesizers import get_response_synthesizer

from aligner_chain import Aligner, Correction
from aligner_chain.errors import EngineError, IncompleteCorrectionError
from aligner_chain.llama_index import AlignerQueryEngine, AlignerResponsePostprocessor, AlignerSynthesizer


def stream_of(postprocessor: AlignerResponsePostprocessor, *texts: str, **settings: Any) -> Any:
    return postprocessor.postprocess_response(streaming(*texts, **settings), query_str=QUESTION)


def async_stream_of(postprocessor: AlignerResponsePostprocessor, *texts: str, **settings: Any) -> Any:
    return postprocessor.postprocess_response(async_streaming(*texts, **settings), query_str=QUESTION)


# Every way to read one


def test_a_stream_is_read_by_iterating(postprocessor: AlignerResponsePostprocessor) -> None:
    assert list(stream_of(postprocessor, "a b", "ad", " answer").response_gen) == [GOOD]


def test_a_stream_is_read_as_text_also_twice(postprocessor: Any, told: list[Correction]) -> None:
    response = stream_of(postprocessor, "a b", "ad answer")
    assert (str(response), str(response)) == (GOOD, GOOD)
    assert len(told) == 1


def test_a_stream_is_read_as_a_response(postprocessor: Any, told: list[Correction]) -> None:
    response = stream_of(postprocessor, BAD, source_nodes=[node("one")])
    whole = response.get_response()
    assert (whole.response, whole.source_nodes) == (GOOD, response.source_nodes)
    assert whole.metadata["aligner"]["correction_id"] == told[0].id


def test_a_stream_is_printed(postprocessor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    response = stream_of(postprocessor, BAD)
    response.print_response_stream()
    response.print_response_stream()
    assert capsys.readouterr().out == f"{GOOD}{GOOD}\n"


async def test_an_async_stream_is_read_in_every_way(
    postprocessor: Any, told: list[Correction], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [piece async for piece in async_stream_of(postprocessor, "a b", "ad answer").response_gen] == [GOOD]
    assert [piece async for piece in async_stream_of(postprocessor, BAD).async_response_gen()] == [GOOD]
    response = async_stream_of(postprocessor, BAD)
    whole = await response.get_response()
    assert (whole.response, whole.metadata["aligner"]["outcome"]) == (GOOD, "corrected")
    assert (await response.get_response()).response == GOOD
    await async_stream_of(postprocessor, BAD).print_response_stream()
    assert capsys.readouterr().out == f"{GOOD}\n"
    assert len(told) == 4


async def test_an_async_stream_is_read_as_text_inside_a_running_loop(
    postprocessor: Any, told: list[Correction]
) -> None:
    response = async_stream_of(postprocessor, BAD)
    assert (str(response), str(response)) == (GOOD, GOOD)
    assert len(told) == 1


def test_an_async_stream_is_read_as_text_without_a_loop(postprocessor: Any) -> None:
    assert str(async_stream_of(postprocessor, BAD)) == GOOD


async def test_a_stream_that_was_read_before_is_corrected_all_the_same(postprocessor: Any) -> None:
    """Trap 5: LlamaIndex then holds the text, and its generator is empty."""
    given = streaming("a b", "ad answer")
    assert str(given) == BAD
    assert list(postprocessor.postprocess_response(given, query_str=QUESTION).response_gen) == [GOOD]
    given = async_streaming("a b", "ad answer")
    await given.get_response()
    response = await postprocessor.apostprocess_response(given, query_str=QUESTION)
    assert [piece async for piece in response.async_response_gen()] == [GOOD]
    drained = StreamingResponse(pieces(), response_txt=BAD)
    assert str(postprocessor.postprocess_response(drained, query_str=QUESTION)) == GOOD


async def test_an_empty_stream_stays_empty(postprocessor: Any, told: list[Correction]) -> None:
    assert list(stream_of(postprocessor).response_gen) == []
    assert [piece async for piece in async_stream_of(postprocessor, "").response_gen] == []
    assert [correction.outcome for correction in told] == ["skipped"] * 2


async def test_an_upstream_that_breaks_off_is_raised_and_not_corrected(postprocessor: Any, told: Any) -> None:
    def broken() -> Any:
        yield "a bad"
        raise ConnectionError("the upstream is gone")

    async def abroken() -> Any:
        yield "a bad"
        raise ConnectionError("the upstream is gone")

    response = postprocessor.postprocess_response(StreamingResponse(broken()), query_str=QUESTION)
    with pytest.raises(ConnectionError):
        list(response.response_gen)
    given = async_streaming()
    given.response_gen = abroken()
    response = await postprocessor.apostprocess_response(given, query_str=QUESTION)
    with pytest.raises(ConnectionError):
        [piece async for piece in response.response_gen]
    assert told == []


@pytest.mark.parametrize("method", ["query", "aquery"])
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
async def test_a_streaming_engine_streams(method: str, form: str, llm: ScriptedLLM, postprocessor: Any) -> None:
    inner = get_response_synthesizer(llm=llm, streaming=True)
    if form == "synthesizer":
        engine: Any = rag(AlignerSynthesizer(inner, postprocessor))
    else:
        engine = AlignerQueryEngine(rag(inner), postprocessor)
    response = await call(engine, method, QUESTION)
    assert await read(response) == GOOD
    assert response.metadata["aligner"]["outcome"] == "corrected"


# Unchecked: handed out while it is decoded


@pytest.fixture
def unchecked(playing: Any, told: list[Correction]) -> Any:
    """Makes a postprocessor that streams what its Aligner's engine plays."""

    def make(text: str | None, finish: str = "eos", **settings: Any) -> AlignerResponsePostprocessor:
        aligner = playing(text, finish=finish)
        return AlignerResponsePostprocessor(aligner, on_correction=told.append, stream_unchecked=True, **settings)

    return make


async def test_text_goes_out_while_it_is_decoded(unchecked: Any, told: list[Correction]) -> None:
    for asynchronous in (False, True):
        postprocessor = unchecked(GOOD)
        beats = postprocessor.aligner.engine.beats
        response = (async_stream_of if asynchronous else stream_of)(postprocessor, BAD)
        beats.release(7)  # FIX and six bytes
        text, stream = "", response.response_gen
        while text != "a good":
            text += await anext(stream) if asynchronous else next(stream)
        assert response.metadata["aligner"] == {}
        assert told == []
        beats.release(100)
        assert text + ("".join([p async for p in stream]) if asynchronous else "".join(stream)) == GOOD
        assert response.metadata["aligner"]["reason"] == "streamed before it was checked"
        assert [(one.text, one.outcome) for one in told] == [(GOOD, "corrected")]
        told.clear()


@pytest.mark.parametrize(("text", "outcome"), [(GOOD, "corrected"), (None, "approved")])
async def test_unchecked_answers_of_every_kind(unchecked: Any, text: str | None, outcome: str) -> None:
    postprocessor = unchecked(text, "eos" if text else "stop")
    postprocessor.aligner.engine.beats.release(1000)
    for response in (stream_of(postprocessor, BAD), async_stream_of(postprocessor, BAD)):
        assert await read(response) == text or BAD
        assert response.metadata["aligner"]["outcome"] == outcome


@pytest.mark.parametrize("on_error", ["raise", "pass_through"])
async def test_half_a_correction_is_an_error_whatever_the_policy(unchecked: Any, told: Any, on_error: str) -> None:
    for asynchronous in (False, True):
        postprocessor = unchecked("a good ans", "length", on_error=on_error)
        beats = postprocessor.aligner.engine.beats
        beats.release(7)
        stream = (async_stream_of if asynchronous else stream_of)(postprocessor, BAD).response_gen
        assert await anext(stream) if asynchronous else next(stream)
        beats.release(100)
        with pytest.raises(IncompleteCorrectionError):
            [p async for p in stream] if asynchronous else list(stream)
    assert [correction.outcome for correction in told] == ["failed"] * 2


async def test_a_failure_before_any_text_follows_the_policy(correcting: Any, told: list[Correction]) -> None:
    passing = correcting(stream_unchecked=True, on_error="pass_through")
    for response in (stream_of(passing, "a crash"), async_stream_of(passing, "a crash")):
        assert await read(response) == "a crash"
        assert response.metadata["aligner"]["outcome"] == "failed"
    raising = correcting(stream_unchecked=True)
    for response in (stream_of(raising, "a crash"), async_stream_of(raising, "a crash")):
        with pytest.raises(EngineError):
            await read(response)
    assert [correction.outcome for correction in told] == ["failed"] * 4


async def test_a_lost_citation_is_only_noted_once_it_is_out(
    correcting: Any, told: list[Correction], playing: Any
) -> None:
    for make in (stream_of, async_stream_of):
        aligner = playing("none of it")
        aligner.engine.beats.release(5)
        losing = correcting(aligner, stream_unchecked=True)
        response = make(losing, "as said in [1]", source_nodes=[node("one")])
        threading.Timer(0.5, aligner.engine.beats.release, [1000]).start()
        assert await read(response) == "none of it"
        assert response.metadata["aligner"]["outcome"] == "corrected"
        assert "the correction lost [1]" in response.metadata["aligner"]["reason"]
    assert {one.action for one in told[0].findings} == {"warn"}


async def test_what_is_not_out_yet_is_checked_unchecked_too(correcting: Any) -> None:
    """An engine that gives no tokens before its end has handed nothing out by then."""
    losing = correcting(Aligner.scripted(lambda exchange: "none"), stream_unchecked=True)
    for make in (stream_of, async_stream_of):
        response = make(losing, "as said in [1]", source_nodes=[node("one")])
        assert await read(response) == "as said in [1]"
        assert response.metadata["aligner"]["outcome"] == "kept"


async def test_what_is_skipped_is_skipped_unchecked_too(correcting: Any, told: list[Correction]) -> None:
    skipping = correcting(stream_unchecked=True)
    for text in ("Empty Response", '{"mood": "bad"}', " "):
        assert await read(stream_of(skipping, text)) == text
        assert await read(async_stream_of(skipping, text)) == text
    assert {correction.outcome for correction in told} == {"skipped"}


async def test_json_that_must_keep_its_shape_is_held_back(correcting: Any) -> None:
    losing = correcting(Aligner.scripted(lambda exchange: "none"), stream_unchecked=True, structured="validate")
    for make in (stream_of, async_stream_of):
        response = make(losing, '{"mood": "bad"}')
        assert await read(response) == '{"mood": "bad"}'
        assert response.metadata["aligner"]["outcome"] == "kept"


def test_a_response_that_does_not_stream_is_checked_all_the_same(correcting: Any) -> None:
    losing = correcting(Aligner.scripted(lambda exchange: "none"), stream_unchecked=True)
    given = Response("as said in [1]", source_nodes=[node("one")])
    assert losing.postprocess_response(given, query_str=QUESTION).response == "as said in [1]"


async def test_whoever_stops_reading_stops_the_decoding(unchecked: Any, caplog: pytest.LogCaptureFixture) -> None:
    postprocessor = unchecked(GOOD)
    engine = postprocessor.aligner.engine
    engine.beats.release(5)
    stream = stream_of(postprocessor, BAD).response_gen
    next(stream)
    stream.close()
    assert engine.tickets[0].cancelled
    for closed in (True, False):
        engine.beats.release(8)
        response = async_stream_of(postprocessor, BAD)
        stream = response.response_gen
        async for _ in stream:
            break
        if closed:
            await stream.aclose()
            assert engine.tickets[0].cancelled
        del stream, response
        async with asyncio.timeout(30):
            while not engine.tickets[0].cancelled:
                gc.collect()
                await asyncio.sleep(0.001)
    assert "error" not in caplog.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_cancelling_the_task_stops_the_decoding(unchecked: Any, told: list[Correction], stream: bool) -> None:
    postprocessor = unchecked(GOOD)

    async def run() -> None:
        given: Any = async_streaming(BAD) if stream else Response(BAD)
        response = await postprocessor.apostprocess_response(given, query_str=QUESTION)
        await read(response)

    task = asyncio.ensure_future(run())
    while not postprocessor.aligner.engine.tickets:  # noqa: ASYNC110  The engine has no event to wait for.
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert postprocessor.aligner.engine.tickets[0].cancelled
    assert told == []
