"""What happens where an answer cannot be corrected, must not be, or where whoever is told of it fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama import BAD, GOOD, QUESTION, ScriptedLLM, async_streaming, call, rag, read, streaming
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from pydantic import BaseModel, ValidationError

from aligner_chain import Aligner, AlignerNotConfiguredError, CheckpointError, Correction, Exchange, PromptNotFoundError
from aligner_chain.errors import CorrectionTimeoutError, EngineError
from aligner_chain.llama_index import AlignerQueryEngine, AlignerResponsePostprocessor, AlignerSynthesizer

METHODS = ("postprocess_response", "apostprocess_response")


class Verdict(BaseModel):
    answer: str


def responses(text: str) -> Iterator[Any]:
    yield Response(text)
    yield streaming(text)
    yield async_streaming(text)
    yield PydanticResponse(Verdict(answer=text))


async def text_of(postprocessor: AlignerResponsePostprocessor, method: str, given: Any) -> str:
    result = await call(postprocessor, method, given, query_str=QUESTION)
    return result.answer if isinstance(result, PydanticResponse) else await read(result)


@pytest.mark.parametrize("method", METHODS)
async def test_a_failure_is_raised(method: str, correcting: Any, told: list[Correction]) -> None:
    for given in responses("a crash"):
        with pytest.raises(EngineError) as caught:
            await text_of(correcting(pydantic_field="answer"), method, given)
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert [one.outcome for one in told] == ["failed"] * 4


@pytest.mark.parametrize("method", METHODS)
async def test_a_failure_passes_through(method: str, correcting: Any, told: list[Correction]) -> None:
    passing = correcting(pydantic_field="answer", on_error="pass_through")
    for given in responses("a crash"):
        assert await text_of(passing, method, given) == "a crash"
    assert [(one.outcome, one.text) for one in told] == [("failed", "a crash")] * 4
    result = passing.postprocess_response(Response("a crash"), query_str=QUESTION)
    assert result.metadata["aligner"]["outcome"] == "failed"
    assert "out of luck" in result.metadata["aligner"]["reason"]


def test_the_error_of_a_stream_is_raised_when_it_is_read(postprocessor: Any, told: list[Correction]) -> None:
    """Trap 4."""
    response = postprocessor.postprocess_response(streaming("a crash"), query_str=QUESTION)
    assert told == []
    with pytest.raises(EngineError):
        str(response)


@pytest.mark.parametrize("method", ["query", "aquery"])
@pytest.mark.parametrize("mode", [ResponseMode.COMPACT, ResponseMode.REFINE])
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
async def test_the_aligners_error_is_not_swallowed_as_an_empty_response(form: str, mode: Any, method: str) -> None:
    """Trap 4: refining synthesizers take a ValueError of the language model for an empty answer."""

    def fail(exchange: Exchange) -> str:
        raise ValueError("out of luck")

    inner = get_response_synthesizer(llm=ScriptedLLM(reply=BAD), response_mode=mode)
    failing = Aligner.scripted(fail)
    engine: Any = rag(AlignerSynthesizer(inner, failing))
    if form == "query engine":
        engine = AlignerQueryEngine(rag(inner), failing)
    with pytest.raises(EngineError, match="out of luck"):
        await call(engine, method, QUESTION)


@pytest.mark.parametrize("method", METHODS)
async def test_a_timeout_is_a_failure(method: str, correcting: Any, told: list[Correction]) -> None:
    release = threading.Event()

    def wait(exchange: Exchange) -> str:
        release.wait(30)
        return exchange.answer

    slow = Aligner.scripted(wait)
    settings: Any = {"timeout": 0.02, "pydantic_field": "answer"}
    try:
        for given in responses(BAD):
            with pytest.raises(CorrectionTimeoutError):
                await text_of(correcting(slow, **settings), method, given)
        for given in responses(BAD):
            assert await text_of(correcting(slow, on_error="pass_through", **settings), method, given) == BAD
    finally:
        release.set()
    assert [one.outcome for one in told] == ["failed"] * 8


async def test_an_empty_correction_keeps_the_original(postprocessor: Any, told: list[Correction]) -> None:
    """Trap 3: LlamaIndex would show the word None."""
    for given in responses("empty"):
        assert await text_of(postprocessor, "apostprocess_response", given) == "empty"
    assert [one.outcome for one in told] == ["kept"] * 3 + ["skipped"]
    blank = AlignerResponsePostprocessor(Aligner.scripted(lambda exchange: " \n"))
    assert str(blank.postprocess_response(Response(BAD), query_str=QUESTION)) == BAD


@pytest.mark.parametrize("answer", [None, "", " \n", "None", "Empty Response", " Empty Response\n"])
async def test_what_is_no_answer_is_skipped(answer: Any, postprocessor: Any, asked: list, told: Any) -> None:
    given = Response(answer)
    result = await postprocessor.apostprocess_response(given, query_str=QUESTION)
    assert (result.response, result.metadata["aligner"]["outcome"]) == (answer, "skipped")
    assert asked == []
    assert [one.exchange.answer for one in told] == [answer or ""]
    if answer is not None:
        assert await read(postprocessor.postprocess_response(streaming(answer), query_str=QUESTION)) == answer


def test_other_words_for_no_answer_can_be_named(correcting: Any, asked: list[Exchange]) -> None:
    naming = correcting(skip_texts=("bad luck",))
    assert naming.postprocess_response(Response("bad luck"), query_str=QUESTION).response == "bad luck"
    assert asked == []
    assert naming.postprocess_response(Response("Empty Response"), query_str=QUESTION) is not None
    assert len(asked) == 1


@pytest.mark.parametrize("on_error", ["raise", "pass_through"])
@pytest.mark.parametrize("method", METHODS)
async def test_without_a_question_nothing_is_corrected(method: str, on_error: str, correcting: Any, told: Any) -> None:
    postprocessor = correcting(on_error=on_error, pydantic_field="answer")
    for unchecked in (False, True):
        blind = postprocessor.model_copy(update={"stream_unchecked": unchecked})
        for question in ("", "  \n", None):
            for given in responses(BAD):
                with pytest.raises(PromptNotFoundError, match=r"postprocess_response\(response, query_str=question\)"):
                    await read(await call(blind, method, given, query_str=question))
    assert told == []


async def test_what_is_skipped_needs_no_question(correcting: Any, told: list[Correction]) -> None:
    response = await correcting().apostprocess_response(Response(""))
    assert response.metadata["aligner"]["outcome"] == "skipped"
    assert told == []  # nobody knows its question, so there is nothing to record


@pytest.fixture
def no_aligner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path))


@pytest.mark.usefixtures("no_aligner")
@pytest.mark.parametrize("on_error", ["raise", "pass_through"])
async def test_no_aligner_is_an_error_at_first_use(on_error: Any) -> None:
    bare = AlignerResponsePostprocessor(on_error=on_error)
    for method in METHODS:
        for given in (Response(BAD), streaming(BAD), async_streaming(BAD)):
            with pytest.raises(AlignerNotConfiguredError, match="from_chat_model"):
                await text_of(bare, method, given)
    assert bare.postprocess_response(Response(""), query_str=QUESTION).response == ""
    engine = AlignerQueryEngine(rag(get_response_synthesizer(llm=ScriptedLLM())))
    with pytest.raises(AlignerNotConfiguredError):
        engine.query(QUESTION)


async def test_a_named_aligner_is_loaded_at_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setenv("ALIGNER_MODEL", str(missing))
    for named in (missing, str(missing), None):
        postprocessor = AlignerResponsePostprocessor(named)
        for method in METHODS:
            with pytest.raises(CheckpointError, match="missing"):
                await call(postprocessor, method, Response(BAD), query_str=QUESTION)


# on_correction


async def test_every_answer_is_told_once_and_before_it_is_returned(mend: Aligner) -> None:
    order: list[str] = []
    told = AlignerResponsePostprocessor(mend, on_correction=lambda correction: order.append(correction.outcome))
    for method in METHODS:
        for answer in (BAD, GOOD, "empty", "Empty Response"):
            await call(told, method, Response(answer), query_str=QUESTION)
            order.append("returned")
        with pytest.raises(EngineError):
            await call(told, method, Response("a crash"), query_str=QUESTION)
    outcomes = ["corrected", "approved", "kept", "skipped"]
    assert order == [one for outcome in outcomes for one in (outcome, "returned")] * 1 + ["failed"] + [
        one for outcome in outcomes for one in (outcome, "returned")
    ] + ["failed"]


async def test_whoever_is_told_cannot_disturb_the_answer(mend: Aligner, caplog: pytest.LogCaptureFixture) -> None:
    def fail(correction: Correction) -> None:
        raise OSError("the disk is full")

    postprocessor = AlignerResponsePostprocessor(mend, on_correction=fail)
    assert postprocessor.on_correction_failures == 0
    engine = AlignerQueryEngine(rag(get_response_synthesizer(llm=ScriptedLLM(reply=BAD))), postprocessor)
    synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=ScriptedLLM(reply=BAD)), postprocessor)
    with caplog.at_level(logging.ERROR):
        assert engine.query(QUESTION).response == GOOD
        assert (await rag(synthesizer).aquery(QUESTION)).response == GOOD
    assert postprocessor.on_correction_failures == 2
    assert synthesizer.postprocessor.on_correction_failures == 2
    assert "the disk is full" in caplog.text


async def test_a_coroutine_is_awaited_under_asyncio(mend: Aligner) -> None:
    told: list[Correction] = []

    async def tell(correction: Correction) -> None:
        told.append(correction)

    postprocessor = AlignerResponsePostprocessor(mend, on_correction=tell, pydantic_field="answer")
    for given in responses(BAD):
        if type(given).__name__ != "StreamingResponse":
            assert await text_of(postprocessor, "apostprocess_response", given) == GOOD
    unchecked = postprocessor.model_copy(update={"stream_unchecked": True})
    assert await text_of(unchecked, "apostprocess_response", async_streaming(BAD)) == GOOD
    assert len(told) == 4
    assert postprocessor.on_correction_failures == 0
    assert await text_of(postprocessor, "postprocess_response", Response(BAD)) == GOOD
    assert (len(told), postprocessor.on_correction_failures) == (4, 1)


def test_nobody_needs_to_be_told(mend: Aligner) -> None:
    postprocessor = AlignerResponsePostprocessor(mend)
    assert postprocessor.postprocess_response(Response(BAD), query_str=QUESTION).response == GOOD
    assert postprocessor.on_correction_failures == 0


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"on_error": "original"}, {"structured": "yes"}, {"pydantic_fields": ["a"]}]
)
def test_a_wrong_setting_is_an_error(wrong: dict[str, Any]) -> None:
    """Trap 6: what LlamaIndex does not know it drops without a word."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AlignerResponsePostprocessor("folder", **wrong)


@pytest.mark.parametrize("question", ["", "  ", None])
def test_an_earlier_question_is_not_taken_for_one_that_is_missing(postprocessor: Any, question: str | None) -> None:
    history = [ChatMessage(role="user", content="another question"), ChatMessage(role="assistant", content="yes")]
    with pytest.raises(PromptNotFoundError):
        postprocessor.postprocess_response(Response(BAD), query_str=question, chat_history=history)
