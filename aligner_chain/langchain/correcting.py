"""What a corrector does with answers, between LangChain and the Aligner: the only place where one calls the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import RunnableConfig

from aligner_chain import decisions
from aligner_chain.exchange import Correction
from aligner_chain.langchain.jobs import Asked, Job, Source, asked_so_far, enabled, prepare, waiting_for_aligner
from aligner_chain.langchain.messages import deliver
from aligner_chain.langchain.recorder import recorder
from aligner_chain.langchain.streams import HeldStream, StreamedAnswer, marked_last
from aligner_chain.langchain.tracing import acorrect_traced, astream_traced, correct_traced, stream_traced
from aligner_chain.session import Session
from aligner_chain.shared import Holding, hold_if_loaded
from aligner_chain.streaming import closing_once

if TYPE_CHECKING:
    from aligner_chain.langchain.corrector import AlignerCorrector


class Correcting(Holding):
    """Takes answers through the Aligner by the settings of a corrector. `runs` are the corrector's own, if it has any."""

    def __init__(self, settings: AlignerCorrector) -> None:
        self._settings = settings
        self._session: Session | None = None
        self._reading = ExitStack()  # what holds the session's Aligner

    def job(
        self,
        value: Any,
        run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        ids: Sequence[str] = (),
    ) -> Job:
        """An input of the corrector; `ids` are those of the chunks that it was merged from."""
        source = self._source(config.get("configurable", {}), parent=run.parent_run_id, chunk_ids=ids)
        return _skips_told(prepare(value, source))

    def answer(self, asked: Asked, answer: AIMessage) -> Job:
        """An answer to a prompt that is at hand."""
        source = self._source(asked.configurable, run_id=asked.run_id, upstream=asked.upstream)
        return _skips_told(prepare([*asked.messages, answer], source))

    def held_stream(
        self, run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> HeldStream:
        """What takes in the stream of an input: everything is held back unless the corrector is turned off."""
        return self._held(self._source(config.get("configurable", {}), parent=run.parent_run_id))

    def held_answer(self, asked: Asked) -> HeldStream:
        """The same for an answer to a prompt that is at hand."""
        return self._held(self._source(asked.configurable), asked.messages)

    def settle(self, jobs: Sequence[Job], runs: Sequence[CallbackManagerForChainRun] = ()) -> None:
        """Has the jobs corrected that wait for it, in one call, and tells of every correction."""
        waiting, exchanges, parents = waiting_for_aligner(jobs, runs)
        if waiting:
            with self._using() as aligner:
                corrections = correct_traced(aligner, exchanges, parents, self._settings.timeout)
            _settle(waiting, corrections)
        self._tell(jobs)

    async def asettle(self, jobs: Sequence[Job], runs: Sequence[AsyncCallbackManagerForChainRun] = ()) -> None:
        """The same for asyncio."""
        waiting, exchanges, parents = waiting_for_aligner(jobs, runs)
        if waiting:
            async with self._ausing() as aligner:
                corrections = await acorrect_traced(aligner, exchanges, parents, self._settings.timeout)
            _settle(waiting, corrections)
        await self._atell(jobs)

    def result(self, job: Job) -> Any:
        """The answer of a settled job, or the error in its place."""
        correction = job.correction
        if job.answer is None or job.error is not None:
            return job.error
        if correction is None:
            return job.answer.given
        if correction.error is not None and self._settings.on_error == "raise":
            return correction.error
        return deliver(job.answer.given, correction, keep_original=self._settings.keep_original)

    def pieces(
        self, job: Job, runs: Sequence[CallbackManagerForChainRun] = (), *, silent: bool
    ) -> Generator[Any, None, None]:
        """The answer as a stream; `silent` where its own pieces were handed on already."""
        if not (self._settings.stream_unchecked and job.exchange and job.answer and job.waits and job.plain):
            self.settle([job], runs)
            if not silent:
                yield marked_last(raise_or_return(self.result(job)))
            return
        out = StreamedAnswer(job.answer.given)
        with (
            self._using() as aligner,
            closing(stream_traced(aligner, job.exchange, runs, self._settings.timeout)) as pieces,
        ):
            for piece in pieces:
                if isinstance(piece, str):
                    yield out.piece(piece)
                else:
                    job.correction = piece
                    self._tell([job])
                    yield from self._end(job, piece, out)

    async def apieces(
        self, job: Job, runs: Sequence[AsyncCallbackManagerForChainRun] = (), *, silent: bool
    ) -> AsyncGenerator[Any, None]:
        """The same for asyncio."""
        if not (self._settings.stream_unchecked and job.exchange and job.answer and job.waits and job.plain):
            await self.asettle([job], runs)
            if not silent:
                yield marked_last(raise_or_return(self.result(job)))
            return
        out = StreamedAnswer(job.answer.given)
        async with (
            self._ausing() as aligner,
            closing_once(astream_traced(aligner, job.exchange, runs, self._settings.timeout)) as pieces,
        ):
            async for piece in pieces:
                if isinstance(piece, str):
                    yield out.piece(piece)
                else:
                    job.correction = piece
                    await self._atell([job])
                    for last in self._end(job, piece, out):
                        yield last

    def _end(self, job: Job, correction: Correction, out: StreamedAnswer) -> Iterable[Any]:
        """What is left of a stream of unchecked pieces. Half a correction is an error, whatever `on_error` says."""
        if correction.error is None:
            return out.end(correction.summary(keep_original=self._settings.keep_original))
        if out.started:
            raise correction.error
        return [marked_last(raise_or_return(self.result(job)))]

    def _tell(self, jobs: Sequence[Job]) -> None:
        self._note(jobs)
        for job in jobs:
            if self._settings.on_correction and job.correction:
                self._settings.on_correction(job.correction)

    async def _atell(self, jobs: Sequence[Job]) -> None:
        self._note(jobs)
        for job in jobs:
            if self._settings.on_correction and job.correction:
                await self._settings.on_correction.acall(job.correction)

    def _note(self, jobs: Sequence[Job]) -> None:
        if self._settings.records_prompts:
            for job in jobs:
                if job.correction and job.correction.changed:
                    recorder().rewritten(job.correction.exchange.run_id, job.correction.text)

    def _held(self, source: Source, asked: Sequence[BaseMessage] = ()) -> HeldStream:
        begin = partial(self._begin, source, asked)
        return HeldStream(begin, released=not enabled(source), ended=self._reading_ended)

    def _begin(self, source: Source, asked: Sequence[BaseMessage], piece: AIMessageChunk | str) -> Session | None:
        """Has the Aligner read along from a stream's first piece on, if it can, is loaded, and knows the question by then."""
        with ExitStack() as held:
            aligner = held.enter_context(hold_if_loaded(self._settings.aligner))
            if aligner is None or not aligner.engine.capabilities.overlap:
                return None
            ids = [piece.id] if isinstance(piece, AIMessageChunk) and piece.id else []
            turns = asked_so_far([*asked, piece] if asked else piece, replace(source, chunk_ids=ids))
            if turns:
                self._session = self._configured(aligner).begin(turns)
                self._reading = held.pop_all()
        return self._session

    def _reading_ended(self) -> None:
        self._reading.close()

    def _source(self, configurable: Mapping[str, Any], **known: Any) -> Source:
        return Source(
            configurable=configurable,
            question=self._settings.question,
            prompt_source=self._settings.prompt_source,
            structured=self._settings.structured,
            **known,
        )


def _skips_told(job: Job) -> Job:
    """Logs the decision about an answer that is not for the Aligner, which logs its own."""
    decisions.tell([job.correction] if job.correction else [])
    return job


def _settle(jobs: Sequence[Job], corrections: Sequence[Correction]) -> None:
    for job, correction in zip(jobs, corrections, strict=True):
        job.settle(correction)
        if job.correction and job.correction is not correction:  # a second line of the same id
            decisions.tell([job.correction])


def raise_or_return(result: Any) -> Any:
    """Raises a result that is an error, and returns every other one."""
    if isinstance(result, Exception):
        raise result
    return result
