"""What a postprocessor does with answers, between LlamaIndex and the Aligner: the only place where one calls the other."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from llama_index_instrumentation import get_dispatcher

from aligner_chain import decisions
from aligner_chain.exchange import Correction, Exchange
from aligner_chain.llama_index.asked import Asked, question_not_found
from aligner_chain.llama_index.events import AlignEndEvent, AlignStartEvent
from aligner_chain.llama_index.responses import other_marks, other_shape
from aligner_chain.session import Session
from aligner_chain.shared import Holding, hold_if_loaded
from aligner_chain.streaming import closing_once
from aligner_chain.structured import is_structured

if TYPE_CHECKING:
    from aligner_chain.llama_index.postprocessor import AlignerResponsePostprocessor

Check = Callable[[Correction], str]
"""What is wrong with a correction, or ""."""

_dispatcher = get_dispatcher(__name__)


class Correcting(Holding):
    """Takes the answer to one question through the Aligner, by the settings of a postprocessor.

    Each method tells `on_correction` and raises the error of a correction that failed, where the settings say so.
    """

    def __init__(self, settings: AlignerResponsePostprocessor, asked: Asked) -> None:
        self._settings, self._asked = settings, asked
        self._session: Session | None = None

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], None]]:
        """Has the Aligner read along with an answer whose pieces are given to the function, if it can and is loaded.

        What was not corrected when the block is left is cancelled.
        """
        wanted = self._asked.tags.enabled and self._asked.turns
        with hold_if_loaded(self._settings.aligner) as aligner:
            if aligner is None or not wanted or not aligner.engine.capabilities.overlap:
                yield _not_read
                return
            with self._configured(aligner).begin(self._asked.turns, self._asked.passages) as self._session:
                yield self._session.feed

    def correct(self, answer: str, *, skip: str = "", checks: Sequence[Check] = ()) -> Correction:
        """The correction of an answer; `skip` says why it is not for the Aligner."""
        exchange = self._asked.exchange(answer)
        correction = self._skipped(exchange, skip)
        if correction is None:
            began = _begin(exchange)
            with self._using() as aligner:
                [given] = aligner.correct([exchange], timeout=self._settings.timeout)
            correction = _end(self._checked(given, checks), began)
        return self._tell(correction)

    async def acorrect(self, answer: str, *, skip: str = "", checks: Sequence[Check] = ()) -> Correction:
        """The same for asyncio."""
        exchange = self._asked.exchange(answer)
        correction = self._skipped(exchange, skip)
        if correction is None:
            began = _begin(exchange)
            async with self._ausing() as aligner:
                [given] = await aligner.acorrect([exchange], timeout=self._settings.timeout)
            correction = _end(self._checked(given, checks), began)
        return await self._atell(correction)

    def streams(self, answer: str) -> bool:
        """Whether the correction of an answer is handed out before it was checked."""
        if not self._settings.stream_unchecked or self._structured(answer):
            return False
        return not self._skip_reason(answer)

    def stream(self, answer: str) -> Generator[str | Correction, None, None]:
        """Pieces of the corrected text while it is decoded, and last the correction."""
        exchange = self._asked.exchange(answer)
        self._skipped(exchange, "")
        began, started = _begin(exchange), False
        with (
            self._using() as aligner,
            closing(aligner.stream(exchange, timeout=self._settings.timeout, unchecked=True)) as pieces,
        ):
            for piece in pieces:
                if isinstance(piece, Correction):
                    correction = self._tell(_end(self._noted(piece), began), broken_off=started)
                    yield from _last(correction)
                else:
                    started = True
                    yield piece

    async def astream(self, answer: str) -> AsyncGenerator[str | Correction, None]:
        """The same for asyncio."""
        exchange = self._asked.exchange(answer)
        self._skipped(exchange, "")
        began, started = _begin(exchange), False
        async with (
            self._ausing() as aligner,
            closing_once(aligner.astream(exchange, timeout=self._settings.timeout, unchecked=True)) as pieces,
        ):
            async for piece in pieces:
                if isinstance(piece, Correction):
                    correction = await self._atell(_end(self._noted(piece), began), broken_off=started)
                    for last in _last(correction):
                        yield last
                else:
                    started = True
                    yield piece

    def _skipped(self, exchange: Exchange, skip: str) -> Correction | None:
        """The correction of an answer that is not for the Aligner, or None where it is.

        Raises:
            PromptNotFoundError: it is, but its question is not known.
        """
        reason = skip or self._skip_reason(exchange.answer)
        if reason:
            skipped = Correction(exchange=exchange, text=exchange.answer, outcome="skipped", reason=reason)
            decisions.tell([skipped] if exchange.question else [])
            return skipped
        if not exchange.question:
            raise question_not_found()
        return None

    def _skip_reason(self, answer: str) -> str:
        if not self._asked.tags.enabled:
            return "the postprocessor is turned off for this call"
        if not answer.strip():
            return "the answer is empty"
        if answer.strip() in self._settings.skip_texts:
            return "the answer is LlamaIndex's own word for none"
        if self._settings.structured == "skip" and is_structured(answer):
            return "the answer is structured output"
        return ""

    def _structured(self, answer: str) -> bool:
        return self._settings.structured == "validate" and is_structured(answer)

    def _checked(self, correction: Correction, checks: Sequence[Check]) -> Correction:
        """The correction, or its refusal by the first check that it does not pass."""
        if not correction.changed:
            return correction
        shape = [other_shape] if self._structured(correction.exchange.answer) else []
        for check in (*checks, *shape, self._marks):
            if reason := check(correction):
                # A second line of the same id. What a validator of the user's own says may quote the text.
                decisions.tell([correction.refused(reason.partition(":")[0])])
                return correction.refused(reason)
        return correction

    def _noted(self, correction: Correction) -> Correction:
        """The correction with what a check would have refused it for: what is out cannot be taken back."""
        reason = self._marks(correction) if correction.changed else ""
        return replace(correction, reason="; ".join(filter(None, [correction.reason, reason])))

    def _marks(self, correction: Correction) -> str:
        return other_marks(correction, self._asked.sources)

    def _tell(self, correction: Correction, *, broken_off: bool = False) -> Correction:
        if self._settings.on_correction and correction.exchange.question:
            self._settings.on_correction(correction)
        return self._raised(correction, broken_off)

    async def _atell(self, correction: Correction, *, broken_off: bool = False) -> Correction:
        if self._settings.on_correction and correction.exchange.question:
            await self._settings.on_correction.acall(correction)
        return self._raised(correction, broken_off)

    def _raised(self, correction: Correction, broken_off: bool) -> Correction:
        """The correction, unless it failed and must be raised. Half a correction is an error, whatever `on_error` says."""
        if correction.error is not None and (broken_off or self._settings.on_error == "raise"):
            raise correction.error
        return correction


def _not_read(piece: str) -> None:
    """What is told of pieces where nobody reads along."""


def _begin(exchange: Exchange) -> float:
    _dispatcher.event(AlignStartEvent(query=exchange.question, answer=exchange.answer, passages=len(exchange.context)))
    return time.monotonic()


def _end(correction: Correction, began: float) -> Correction:
    _dispatcher.event(
        AlignEndEvent(
            query=correction.exchange.question,
            answer=correction.exchange.answer,
            corrected=correction.text,
            changed=correction.changed,
            outcome=correction.outcome,
            reason=correction.reason,
            correction_id=correction.id,
            duration_s=time.monotonic() - began,
        )
    )
    return correction


def _last(correction: Correction) -> Sequence[str | Correction]:
    """The end of a stream; of a correction that failed before anything was out, the original is still to be served."""
    return [correction.text, correction] if correction.error is not None else [correction]
