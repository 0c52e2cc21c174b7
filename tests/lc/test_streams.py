"""Streams through the corrector: held back, passed on, or handed out while they are decoded."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableGenerator, RunnableParallel, RunnablePassthrough

from aligner_chain import Aligner, Correction
from aligner_chain.errors import EngineError, IncompleteCorrectionError
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector


async def both_streams(chain: Any) -> list[list[Any]]:
    return [list(chain.stream("q")), [piece async for piece in chain.astream("q")]]


async def test_a_stream_is_held_back_and_corrected(models: SimpleNamespace, fixer: AlignerCorrector) -> None:
    usage: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    answer = [
        AIMessageChunk("a b", id="1"),
        AIMessageChunk("ad answer"),
        AIMessageChunk("", usage_metadata=usage, response_metadata={"finish_reason": "stop"}),
    ]
    chain = models.StreamingScripted(answers=[answer, list(answer)]) | fixer
    for pieces in await both_streams(chain):
        [piece] = pieces
        assert isinstance(piece, AIMessageChunk)
        assert (piece.text, piece.id, piece.usage_metadata) == ("a good answer", "1", usage)
        assert piece.response_metadata["finish_reason"] == "stop"
        assert piece.response_metadata["aligner"]["outcome"] == "corrected"
        assert piece.chunk_position == "last"


async def test_a_streamed_tool_call_passes_piece_by_piece(
    models: SimpleNamespace, fixer: AlignerCorrector, told: list[Correction]
) -> None:
    def call(args: str, name: str | None = None) -> AIMessageChunk:
        piece = {"name": name, "args": args, "id": "c1" if name else None, "index": 0, "type": "tool_call_chunk"}
        return AIMessageChunk("", id="1", tool_call_chunks=[piece])

    answer = [AIMessageChunk("a bad", id="1"), call('{"q"', "search"), call(': "bad"}')]
    chain = models.StreamingScripted(answers=[answer, list(answer)]) | fixer
    for pieces in await both_streams(chain):
        whole = pieces[0] + pieces[1:]
        assert len(pieces) >= len(answer)
        assert pieces[0].text == whole.text == "a bad"
        assert whole.tool_calls == [{"name": "search", "args": {"q": "bad"}, "id": "c1", "type": "tool_call"}]
    assert [c.outcome for c in told] == ["skipped", "skipped"]


async def test_text_dicts_and_whole_messages_stream(aligner: Aligner, models: SimpleNamespace) -> None:
    corrector = AlignerCorrector(aligner)
    words = models.StreamingChat() | StrOutputParser()
    assert await both_streams(words | corrector) == [["<q|A(q)>"], ["<q|A(q)>"]]
    asked_and_answered = RunnableParallel(question=RunnablePassthrough(), answer=models.StreamingChat()) | corrector
    for [piece] in await both_streams(asked_and_answered):
        assert piece.text == "<q|A(q)>"
    for [message] in await both_streams(models.Chat() | corrector):
        assert message.text == "<q|A(q)>"


def test_of_several_whole_messages_the_last_is_the_answer(fixer: AlignerCorrector) -> None:
    def stream(_: Iterator[Any]) -> Iterator[AIMessage]:
        yield AIMessage("a draft")
        yield AIMessage("bad")

    assert [message.text for message in (RunnableGenerator(stream) | fixer).stream("q")] == ["good"]


async def test_an_empty_stream(fixer: AlignerCorrector, told: list[Correction]) -> None:
    assert list(fixer.transform(iter(()))) == []
    assert told == []


async def test_turned_off_it_passes_piece_by_piece(models: SimpleNamespace, fixer: AlignerCorrector, told: Any) -> None:
    chain = models.StreamingScripted(answers=[[AIMessageChunk("a b"), AIMessageChunk("ad")] for _ in range(2)]) | fixer
    off: Any = {"configurable": {"aligner_enabled": False}}
    for pieces in ([p.text for p in chain.stream("q", off)], [p.text async for p in chain.astream("q", off)]):
        assert [piece for piece in pieces if piece] == ["a b", "ad"]
    assert [(c.outcome, c.reason) for c in told] == [("skipped", "the corrector is turned off for this call")] * 2


def test_a_stream_of_unmarked_pieces_ends_marked(fixer: AlignerCorrector) -> None:
    [piece] = fixer.transform(iter([AIMessageChunk("b"), AIMessageChunk("ad")]))
    assert (piece.text, piece.chunk_position) == ("good", "last")


# Unchecked: handed out while it is decoded


@pytest.fixture
def unchecked(playing: Any, told: list[Correction]) -> Any:
    """Makes a corrector that streams what its Aligner's engine plays."""

    def make(text: str | None, finish: str = "eos", **settings: Any) -> AlignerCorrector:
        aligner = playing(text, finish=finish)
        return AlignerCorrector(aligner, question="q", on_correction=told.append, stream_unchecked=True, **settings)

    return make


USAGE: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
GIVEN = AIMessage(
    "a bad answer", id="1", name="n", usage_metadata=USAGE, additional_kwargs={"k": 1}, response_metadata={"m": "x"}
)


async def test_text_goes_out_while_it_is_decoded(unchecked: Any, told: list[Correction]) -> None:
    corrector = unchecked("a good answer")
    stream = corrector.stream(GIVEN)
    corrector.aligner.engine.beats.release(7)  # FIX and six bytes
    early = next(stream)
    assert early.name == "n"  # LangChain itself drops it when it adds chunks
    while early.text != "a good":
        early += next(stream)
    assert told == []
    corrector.aligner.engine.beats.release(100)
    whole = early
    for piece in stream:
        whole += piece
    assert (whole.text, whole.id, whole.usage_metadata) == ("a good answer", "1", USAGE)
    assert (whole.additional_kwargs, whole.response_metadata["m"]) == ({"k": 1}, "x")
    assert whole.response_metadata["aligner"]["reason"] == "streamed before it was checked"
    assert (whole.chunk_position, [c.text for c in told]) == ("last", ["a good answer"])


@pytest.mark.parametrize(("text", "outcome"), [("a good answer", "corrected"), (None, "approved")])
async def test_unchecked_pieces_of_every_kind_of_answer(unchecked: Any, text: str | None, outcome: str) -> None:
    served = text or "a bad answer"
    corrector = unchecked(text, "eos" if text else "stop")
    corrector.aligner.engine.beats.release(1000)
    for pieces in (list(corrector.stream(GIVEN)), [piece async for piece in corrector.astream(GIVEN)]):
        whole = pieces[0] + pieces[1:]
        assert (whole.text, whole.response_metadata["aligner"]["outcome"]) == (served, outcome)
    assert "".join(corrector.stream("a bad answer")) == served
    assert "".join([piece async for piece in corrector.astream("a bad answer")]) == served
    blocks = AIMessage([{"type": "text", "text": "a bad answer"}])
    [whole] = corrector.stream(blocks)
    assert whole.content == [{"type": "text", "text": served}]


async def test_half_a_correction_is_an_error_whatever_the_policy(unchecked: Any, told: list[Correction]) -> None:
    corrector = unchecked("a good ans", "length", on_error="pass_through")
    corrector.aligner.engine.beats.release(7)
    stream = corrector.stream(GIVEN)
    assert next(stream).text
    corrector.aligner.engine.beats.release(100)
    with pytest.raises(IncompleteCorrectionError):
        list(stream)
    corrector = unchecked("a good ans", "length", on_error="pass_through")
    corrector.aligner.engine.beats.release(7)
    astream = corrector.astream(GIVEN)
    assert (await anext(astream)).text
    corrector.aligner.engine.beats.release(100)
    with pytest.raises(IncompleteCorrectionError):
        [piece async for piece in astream]
    assert [c.outcome for c in told] == ["failed"] * 2


async def test_a_failure_before_any_text_follows_the_policy(models: SimpleNamespace, fixer: AlignerCorrector) -> None:
    settings: Any = {"question": "q", "stream_unchecked": True}
    passing = AlignerCorrector(fixer.aligner, on_error="pass_through", **settings)
    for pieces in (list(passing.stream(AIMessage("crash"))), [p async for p in passing.astream(AIMessage("crash"))]):
        assert [(p.text, p.response_metadata["aligner"]["outcome"]) for p in pieces] == [("crash", "failed")]
    with pytest.raises(EngineError):
        list(AlignerCorrector(fixer.aligner, **settings).stream(AIMessage("crash")))


@pytest.mark.parametrize("form", ["corrector", "chain", "aligned model"])
async def test_whoever_stops_reading_stops_the_decoding(
    unchecked: Any, models: SimpleNamespace, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    corrector = unchecked("a good answer")
    llm = models.StreamingScripted(answers=[[AIMessageChunk("a bad"), AIMessageChunk(" answer")] for _ in range(3)])
    aligned = AlignedChatModel(llm=llm, corrector=corrector)
    chain = {"corrector": corrector, "chain": llm | corrector, "aligned model": aligned}[form]
    corrector.aligner.engine.beats.release(5)
    stream = chain.stream("q")
    next(stream)
    stream.close()
    assert corrector.aligner.engine.tickets[0].cancelled
    for closed in (True, False):
        corrector.aligner.engine.beats.release(8)
        astream = chain.astream("q")
        async for _ in astream:
            break
        if closed:
            await astream.aclose()
            assert corrector.aligner.engine.tickets[0].cancelled or form != "corrector"
        del astream
        await until_cancelled(corrector)
    assert "error" not in caplog.text


async def until_cancelled(corrector: AlignerCorrector) -> None:
    """A chain of LangChain leaves closing its steps to the event loop, which does so in its next rounds."""
    engine: Any = corrector.aligner.engine
    async with asyncio.timeout(30):
        while not engine.tickets[0].cancelled:
            gc.collect()
            await asyncio.sleep(0.001)


async def test_cancelling_the_task_stops_the_decoding(unchecked: Any) -> None:
    for run in (lambda c: c.ainvoke(GIVEN), lambda c: anext(c.astream(GIVEN))):
        corrector = unchecked("a good answer")
        task = asyncio.ensure_future(run(corrector))
        while not corrector.aligner.engine.tickets:  # noqa: ASYNC110  The engine has no event to wait for.
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert corrector.aligner.engine.tickets[0].cancelled


async def test_the_run_of_the_aligner_tells_each_piece(unchecked: Any) -> None:
    corrector = unchecked("a good answer")
    corrector.aligner.engine.beats.release(100)
    events = [event async for event in corrector.astream_events(GIVEN, version="v2")]
    told = [event["data"]["chunk"] for event in events if event["event"] == "on_llm_stream"]
    assert "".join(getattr(chunk, "text", chunk) for chunk in told) == "a good answer"
    assert [e["event"] for e in events if e["name"] == "Aligner" and "stream" not in e["event"]] == [
        "on_llm_start",
        "on_llm_end",
    ]


async def test_an_aligned_model_streams_unchecked_too(models: SimpleNamespace, unchecked: Any) -> None:
    corrector = unchecked("a good answer")
    model = AlignedChatModel(
        llm=models.StreamingScripted(answers=[[AIMessageChunk("a bad"), AIMessageChunk(" answer")] for _ in range(2)]),
        corrector=corrector,
    )
    corrector.aligner.engine.beats.release(1000)
    for pieces in (list(model.stream("q")), [piece async for piece in model.astream("q")]):
        whole = pieces[0] + pieces[1:]
        assert (whole.text, whole.chunk_position) == ("a good answer", "last")
        assert whole.response_metadata["aligner"]["outcome"] == "corrected"
