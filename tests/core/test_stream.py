"""`Aligner.stream`: what comes while the engine still decodes, what comes at the end, and what stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.engines.base import Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import CorrectionTimeoutError, IncompleteCorrectionError
from aligner_chain.exchange import edits_between
from aligner_chain.streaming import Pieces, closing_once

EXCHANGE = Exchange.of("q", "a bad answer")


def released(aligner: Aligner) -> Aligner:
    """Lets the engine play without waiting for anybody."""
    aligner.engine.beats.release(10_000)  # type: ignore[attr-defined]
    return aligner


def place_of_the_d(aligner: Aligner) -> int:
    engine: Any = aligner.engine
    texts: Any = aligner.tokenizer
    return int(texts.convert_ids_to_tokens(engine.ids).index("d"))


TEMPLATES = ["aligner-chain/1", "pku-aligner/1", "pku-aligner/2", "align-anything/1"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_text_comes_before_the_engine_is_done(playing: Any, template: str) -> None:
    criteria = ("polite",) if template == "aligner-chain/1" else ()
    aligner = playing("a good answer ", *criteria, template=template)
    stream = aligner.stream(EXCHANGE, unchecked=True)
    early = ""
    aligner.engine.beats.release(place_of_the_d(aligner) + 1)
    while early != "a good":
        early += next(stream)
    assert not aligner.engine.tickets[0].future.done()
    released(aligner)
    *late, correction = stream
    assert early + "".join(late) == correction.text == "a good answer "
    assert (correction.outcome, correction.criteria) == ("corrected", criteria)
    assert correction.edits == edits_between(EXCHANGE.answer, "a good answer ")
    assert correction.reason == "streamed before it was checked"


async def test_the_same_for_asyncio(playing: Any) -> None:
    aligner = playing("a good answer")
    stream = aligner.astream(EXCHANGE, unchecked=True)
    aligner.engine.beats.release(7)
    early = ""
    while early != "a good":
        early += await anext(stream)
    assert not aligner.engine.tickets[0].future.done()
    released(aligner)
    *late, correction = [piece async for piece in stream]
    assert early + "".join(late) == correction.text == "a good answer"


async def both(aligner: Aligner, exchange: Exchange = EXCHANGE, **settings: Any) -> list[list[Any]]:
    released(aligner)
    synchronous = list(aligner.stream(exchange, unchecked=True, **settings))
    released(aligner)
    return [synchronous, [piece async for piece in aligner.astream(exchange, unchecked=True, **settings)]]


async def test_a_kept_answer_comes_whole(playing: Any) -> None:
    for text, correction in await both(playing(None, finish="stop")):
        assert (text, correction.text, correction.outcome, correction.reason) == (*["a bad answer"] * 2, "approved", "")


async def test_characters_of_several_tokens_come_whole(playing: Any) -> None:
    for *pieces, correction in await both(playing("Grüße, 日本 👍")):
        assert all("\ufffd" not in piece for piece in pieces)
        assert "".join(pieces) == correction.text == "Grüße, 日本 👍"


@pytest.mark.parametrize("template", TEMPLATES[1:])
async def test_a_copy_keeps_the_whitespace_of_the_answer(playing: Any, template: str) -> None:
    for *pieces, correction in await both(
        playing("a bad answer", template=template), Exchange.of("q", "a bad answer\n")
    ):
        assert "".join(pieces) == correction.text == "a bad answer\n"
        assert correction.outcome == "approved"


def test_what_breaks_off_has_failed_though_some_of_it_is_out(playing: Any) -> None:
    aligner = playing("a good ans", finish="length")
    stream = aligner.stream(EXCHANGE, unchecked=True)
    aligner.engine.beats.release(place_of_the_d(aligner) + 1)
    early = next(stream)
    released(aligner)
    *late, correction = stream
    assert "a good ans".startswith(early + "".join(late))
    assert (correction.outcome, correction.text) == ("failed", "a bad answer")
    assert isinstance(correction.error, IncompleteCorrectionError)


@pytest.mark.parametrize("text", ["", "   "])
async def test_an_empty_correction_leaves_the_original(playing: Any, text: str) -> None:
    for *pieces, correction in await both(playing(text)):
        assert "".join(pieces) == correction.text == "a bad answer"
        assert correction.outcome == "kept"


async def test_too_slow_has_failed(playing: Any) -> None:
    for run in (lambda aligner: list(aligner.stream(EXCHANGE, unchecked=True, timeout=0.05)), asynchronous):
        aligner = playing("a good answer")
        aligner.engine.beats.release(3)
        result = run(aligner)
        *_, correction = await result if asyncio.iscoroutine(result) else result
        assert isinstance(correction.error, CorrectionTimeoutError)
        assert aligner.engine.tickets[0].cancelled


async def asynchronous(aligner: Aligner) -> list[Any]:
    return [piece async for piece in aligner.astream(EXCHANGE, unchecked=True, timeout=0.05)]


async def test_whoever_stops_reading_stops_the_decoding(playing: Any) -> None:
    aligner = playing("a good answer")
    aligner.engine.beats.release(3)
    stream = aligner.stream(EXCHANGE, unchecked=True)
    next(stream)
    stream.close()
    assert aligner.engine.tickets[0].cancelled
    aligner.engine.beats.release(5)  # two of them for the first, which still plays
    astream = aligner.astream(EXCHANGE, unchecked=True)
    await anext(astream)
    await astream.aclose()
    assert aligner.engine.tickets[0].cancelled


async def test_a_generator_that_is_being_closed_is_not_closed_again() -> None:
    """As when a consumer just stops: asyncio then closes the inner and the outer one in tasks of their own."""

    async def letters() -> AsyncIterator[str]:
        try:
            yield "a"
        finally:
            await asyncio.sleep(0.01)

    async def outer(inner: AsyncIterator[str]) -> AsyncIterator[str]:
        async with closing_once(inner) as pieces:
            async for piece in pieces:
                yield piece

    inner: Any = letters()
    around: Any = outer(inner)
    assert await anext(around) == "a"
    closing = asyncio.ensure_future(inner.aclose())
    await asyncio.sleep(0)
    await around.aclose()
    await closing


async def test_what_needs_no_engine_streams_too(playing: Any) -> None:
    for pieces, outcome in ((Exchange.of("q", " "), "skipped"), (Exchange.of(" ", "a"), "failed")):
        for *texts, correction in await both(playing("x"), pieces):
            assert (correction.outcome, texts) == (outcome, [" "] if outcome == "skipped" else [])


async def test_an_engine_of_texts_gives_one_piece() -> None:
    aligner = Aligner.scripted(lambda exchange: "a good answer")
    for pieces in (
        list(aligner.stream(EXCHANGE, unchecked=True)),
        [piece async for piece in aligner.astream(EXCHANGE, unchecked=True)],
    ):
        assert pieces[:-1] == ["a good answer"]
        assert (pieces[-1].outcome, pieces[-1].reason) == ("corrected", "")


def test_a_real_engine_tells_each_token_but_the_one_that_ends(tiny_llama: Any, prepared: Any) -> None:
    engine = HuggingFaceEngine(tiny_llama(prepared), prepared)
    asked = [Request(key="", prompt=(1, 2, 3), max_new=12, stream=stream) for stream in (True, False)]
    watched, unwatched = engine.submit(asked)
    ids = watched.result(60).ids
    assert tuple(watched.ids) == ids == unwatched.result(60).ids
    [ended] = engine.submit([Request(key="", prompt=(1, 2, 3), max_new=12, stream=True, stop_ids=(ids[4],))])
    assert ended.result(60).ids == tuple(ended.ids) == ids[: ids.index(ids[4])]
    assert unwatched.ids == []
    engine.close()


@given(st.lists(st.text(max_size=4), max_size=8), st.text(max_size=6))
def test_what_was_handed_out_is_what_was_served(parts: list[str], end: str) -> None:
    growing = ["".join(parts[:count]) for count in range(len(parts) + 1)]
    pieces = Pieces(lambda ids: growing[len(ids)])
    out = "".join(pieces.next(range(count)) for count in range(len(growing)))
    rest, served = pieces.end(Correction(exchange=EXCHANGE, text=end, outcome="corrected"))
    assert out + rest == served.text
    assert served.edits == edits_between(EXCHANGE.answer, served.text) or end.startswith(out)
