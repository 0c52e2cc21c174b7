"""One answer on its way through the Aligner, from its first piece if it is streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from contextlib import ExitStack
from typing import Any

from aligner_chain import decisions
from aligner_chain.exchange import Correction
from aligner_chain.hook import CorrectionHook
from aligner_chain.proxy import errors
from aligner_chain.proxy.answers import Message, skip_reason
from aligner_chain.proxy.asking import Asked, text_of
from aligner_chain.proxy.settings import Settings
from aligner_chain.session import Session
from aligner_chain.shared import Holding, hold_if_loaded


class Answering(Holding):
    """Takes one answer through the Aligner, with the settings of the proxy. `seconds` is how long it kept its client waiting."""

    def __init__(self, settings: Settings, hook: CorrectionHook | None, asked: Asked) -> None:
        self._settings, self._hook, self._asked = settings, hook, asked
        self._session: Session | None = None
        self._reading = ExitStack()  # what holds the session's Aligner
        self._begun = False
        self.seconds = 0.0

    def read(self, text: str) -> None:
        """Has the Aligner read along with an answer that is still being written, if it can and is loaded."""
        if not self._begun:
            self._begun = True
            self._begin()
        if self._session is not None:
            self._session.feed(text)

    async def settle(self, message: Message, *, upstream: str | None, message_id: str | None) -> Correction:
        """What became of the answer, which is whole now, be it a failure. Raises `AlignerError` where there is no Aligner."""
        start = time.perf_counter()
        try:
            return await self._settled(message, upstream, message_id)
        finally:
            self.seconds = time.perf_counter() - start
            self.close()

    def passed(self, correction: Correction) -> Correction:
        """The correction as it may be served. Raises `Refused` where it failed and `on_error` is "raise"."""
        if correction.error is not None and self._settings.on_error == "raise":
            raise errors.not_corrected(correction, correction.error) from correction.error
        return correction

    def close(self) -> None:
        """Has the Aligner forget what it read, where the answer was not settled."""
        if self._session is not None:
            self._session.cancel()
            self._session = None
        self._reading.close()

    async def _settled(self, message: Message, upstream: str | None, message_id: str | None) -> Correction:
        answer = text_of(message.get("content"))
        exchange = self._asked.exchange(answer, upstream=upstream, message_id=message_id)
        if reason := skip_reason(message, self._asked):
            correction = Correction(exchange=exchange, text=answer, outcome="skipped", reason=reason)
            if (
                not exchange.question
            ):  # What is not going to be corrected needs none; there is then no record of it either.
                return correction
            decisions.tell([correction])
        else:
            async with self._ausing() as aligner:
                [correction] = await aligner.acorrect([exchange], timeout=self._settings.timeout)
        if self._hook is not None:
            await self._hook.acall(correction)
        return correction

    def _begin(self) -> None:
        with ExitStack() as held:
            aligner = held.enter_context(hold_if_loaded(self._settings.aligner))
            if aligner is not None and aligner.engine.capabilities.overlap and self._asked.turns:
                self._session = self._configured(aligner).begin(self._asked.turns)
                self._reading = held.pop_all()


def message_id_of(completion_id: object, index: int) -> str | None:
    """The id that feedback names: the completion's own, and for its other choices that with their number."""
    if not isinstance(completion_id, str) or not completion_id:
        return None
    return completion_id if index == 0 else f"{completion_id}-{index}"


async def together(settling: Iterable[Coroutine[Any, Any, Correction]]) -> list[Correction]:
    """All of them at once, so that they share the Aligner's batch; the first error ends the others."""
    tasks = [asyncio.create_task(one) for one in settling]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
