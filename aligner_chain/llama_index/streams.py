"""Responses that stream: the answer is read to its end, corrected, and streamed again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse

from aligner_chain.exchange import Correction
from aligner_chain.llama_index.correcting import Correcting
from aligner_chain.llama_index.responses import METADATA_KEY
from aligner_chain.streaming import closing_once


@dataclass
class CorrectedStream(StreamingResponse):
    """A stream that an Aligner corrects; its metadata tells of it once it has been read."""


@dataclass
class CorrectedAsyncStream(AsyncStreamingResponse):
    """The same for asyncio."""


def corrected_stream(
    response: StreamingResponse, correcting: Correcting, *, keep_original: bool = False
) -> CorrectedStream:
    """The response with its text corrected, which happens when it is read."""
    summary: dict[str, Any] = {}

    def pieces() -> Generator[str, None, None]:
        with correcting.reading() as read, closing(_corrected(_whole(response, read), correcting)) as corrected:
            for piece in corrected:
                if isinstance(piece, Correction):
                    summary.update(piece.summary(keep_original=keep_original))
                elif piece:
                    yield piece

    return CorrectedStream(pieces(), response.source_nodes, _with_summary(response, summary))


def corrected_async_stream(
    response: AsyncStreamingResponse, correcting: Correcting, *, keep_original: bool = False
) -> CorrectedAsyncStream:
    """The same for asyncio."""
    summary: dict[str, Any] = {}

    async def pieces() -> AsyncGenerator[str, None]:
        with correcting.reading() as read:
            async with closing_once(_acorrected(await _awhole(response, read), correcting)) as corrected:
                async for piece in corrected:
                    if isinstance(piece, Correction):
                        summary.update(piece.summary(keep_original=keep_original))
                    elif piece:
                        yield piece

    return CorrectedAsyncStream(pieces(), response.source_nodes, _with_summary(response, summary))


def _with_summary(response: StreamingResponse | AsyncStreamingResponse, summary: dict[str, Any]) -> dict[str, Any]:
    """The metadata with a summary that is still empty: some engines give a response without metadata a dict of their own."""
    return {**(response.metadata or {}), METADATA_KEY: summary}


def _whole(response: StreamingResponse, read: Callable[[str], None]) -> str:
    """The text of a response as `get_response` gives it, each piece of which is read as it comes."""
    # Where somebody has read the response before, its generator is exhausted.
    if response.response_txt is None:
        text = ""
        for piece in response.response_gen:
            read(piece)
            text += piece
        response.response_txt = text
    return response.response_txt


async def _awhole(response: AsyncStreamingResponse, read: Callable[[str], None]) -> str:
    async for piece in response.async_response_gen():
        read(piece)
    return response.response_txt or ""


def _corrected(answer: str, correcting: Correcting) -> Generator[str | Correction, None, None]:
    """The correction and its text; or, where nothing is checked, pieces of the text and then the correction."""
    if correcting.streams(answer):
        yield from correcting.stream(answer)
        return
    correction = correcting.correct(answer)
    yield correction
    yield correction.text


async def _acorrected(answer: str, correcting: Correcting) -> AsyncGenerator[str | Correction, None]:
    if correcting.streams(answer):
        async with closing_once(correcting.astream(answer)) as pieces:
            async for piece in pieces:
                yield piece
        return
    correction = await correcting.acorrect(answer)
    yield correction
    yield correction.text
