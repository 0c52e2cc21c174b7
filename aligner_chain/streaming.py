"""A correction in pieces: waiting for a ticket's tokens, and what of the text has been handed out by then."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from types import AsyncGeneratorType
from typing import TypeVar

from aligner_chain.engines.base import Ticket
from aligner_chain.exchange import Correction, edits_between

UNCHECKED = "streamed before it was checked"
"""The reason, or part of it, of a correction whose text went out before its end was known."""

_T = TypeVar("_T")


class Pieces:
    """What a stream hands out of one correction. `read` gives the text that is certain, for the output so far."""

    def __init__(self, read: Callable[[Sequence[int]], str]) -> None:
        self._read = read
        self._told = ""

    def next(self, ids: Sequence[int]) -> str:
        """The text that has become certain since the last call; often none."""
        text = self._read(ids)
        piece = text[len(self._told) :] if text.startswith(self._told) else ""
        self._told += piece
        return piece

    def end(self, correction: Correction) -> tuple[str, Correction]:
        """The text that is still to be handed out, and the correction as it was served."""
        if correction.error is not None:
            return "", correction
        if not self._told:
            return correction.text, correction
        if correction.text.startswith(self._told):
            return correction.text[len(self._told) :], _noted(correction)
        # What is out cannot be taken back, so it is the text that was served, whatever the end made of it.
        edits = edits_between(correction.exchange.answer, self._told)
        return "", _noted(replace(correction, text=self._told, outcome="corrected", edits=edits))


def _noted(correction: Correction) -> Correction:
    reason = "; ".join(filter(None, [correction.reason, UNCHECKED]))
    return replace(
        correction, reason=reason, findings=tuple(replace(one, action="warn") for one in correction.findings)
    )


@asynccontextmanager
async def closing_once(pieces: AsyncIterator[_T]) -> AsyncIterator[AsyncIterator[_T]]:
    """`contextlib.aclosing` for generators inside of generators.

    Where a consumer just stops, asyncio closes each of them in a task of its own, and not the inner ones last.
    """
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGeneratorType) and not pieces.ag_running:
            await pieces.aclose()


def woken(tickets: Sequence[Ticket], timeout: float | None) -> Iterator[None]:
    """Comes back whenever a ticket has something new, until it is done or `timeout` seconds have passed."""
    for ticket in tickets:
        news: queue.SimpleQueue[None] = queue.SimpleQueue()
        ticket.watch(partial(news.put, None))
        ends = None if timeout is None else time.monotonic() + timeout
        while not ticket.future.done():
            try:
                news.get(timeout=None if ends is None else max(0.0, ends - time.monotonic()))
            except queue.Empty:
                return
            yield


async def awoken(tickets: Sequence[Ticket], timeout: float | None) -> AsyncIterator[None]:  # noqa: ASYNC109
    """The same for asyncio."""
    loop = asyncio.get_running_loop()
    ends = None if timeout is None else loop.time() + timeout
    for ticket in tickets:
        news = asyncio.Event()
        ticket.watch(partial(_wake, loop, news))
        while not ticket.future.done():
            try:
                async with asyncio.timeout_at(ends):
                    await news.wait()
            except TimeoutError:
                return
            news.clear()
            yield


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    with suppress(RuntimeError):  # The loop is closed: nobody waits, and the engine has other rows to decode.
        loop.call_soon_threadsafe(news.set)
