"""`llm | AlignerCorrector()`: the step of a LangChain chain that corrects what the model before it answered."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import run_in_executor
from langchain_core.runnables.utils import ConfigurableFieldSpec
from pydantic import ConfigDict, Field, field_validator

from aligner_chain.aligner import Aligner
from aligner_chain.langchain.hook import CorrectionHook
from aligner_chain.langchain.jobs import CONFIGURABLE, HeldStream, Job, Source, prepare, waiting_for_aligner
from aligner_chain.langchain.messages import deliver
from aligner_chain.langchain.recorder import recorder
from aligner_chain.langchain.tracing import acorrect_traced, correct_traced
from aligner_chain.serving import resolve_aligner

_ALIGNERS: dict[str, Aligner] = {}
_LOADING = threading.Lock()

_Run = CallbackManagerForChainRun | AsyncCallbackManagerForChainRun


def loaded_aligner(source: str) -> Aligner:
    """The Aligner of a folder or hub id, loaded once in this process."""
    folder = Path(source).expanduser()
    key = str(folder.resolve()) if folder.is_dir() else source
    if key in _ALIGNERS:
        return _ALIGNERS[key]
    with _LOADING:
        if key not in _ALIGNERS:
            _ALIGNERS[key] = Aligner.from_pretrained(source)
        return _ALIGNERS[key]


class AlignerCorrector(RunnableSerializable[Any, Any]):
    """Corrects the answer of a chat model with an Aligner: `chain = prompt | llm | AlignerCorrector()`.

    It reads an `AIMessage`, a `str`, `{"question": ..., "answer": ...}`, `{"messages": [..., AIMessage]}` or a list of
    messages that ends in an `AIMessage`. A `str` comes back as a `str`, everything else as an `AIMessage` under the id
    of the answer. The question is what the input says, else the configurable `aligner_question`, else `question`, else
    what the model before was asked, which a recorder of prompts remembers.

    Tool calls, structured output and empty answers come back as the very object that went in. Otherwise
    `response_metadata["aligner"]` of a message holds `outcome`, `reason`, `correction_id`, `aligner` and the number of
    `edits`. A stream is held back until the answer is whole, since an Aligner reads all of it before it writes.

    Also configurable: `aligner_split_key` and `aligner_subject`, for the record of the correction.

    Args:
        aligner: an `Aligner`, or a folder or hub id, loaded at first use and once in a process. Default: the one that
            `ALIGNER_MODEL` names, else the one that `$ALIGNER_HOME` serves at the time of each call.
        on_correction: called with every `Correction` before the answer is returned, also when an error is raised. Its
            own errors are logged and counted in `on_correction_failures`. A coroutine function works under asyncio.
        on_error: what to do where the correction of an answer failed: "raise" its error, or "pass_through" the
            original, with the outcome `failed` in its metadata. A missing question or Aligner is always raised.
        keep_original: add the `original` text and the `edit_list` to the metadata.
        question: the question of every answer, where it is always the same.
        prompt_source: "auto", or "explicit" for a corrector that records no prompts and must be given each question.

    Raises:
        PromptNotFoundError: the question is not known, or ambiguous; the message lists the ways to give it.
        AlignerNotConfiguredError: there is no Aligner; the message lists the ways to one.
        CorrectionError: an answer could not be corrected, and `on_error` is "raise".
    """

    # Fields and not private attributes, because `configurable_fields` builds a new object from the fields at each call.
    aligner: Aligner | str | Path | None = Field(default=None, exclude=True)
    on_correction: CorrectionHook | None = Field(default=None, exclude=True, repr=False)
    on_error: Literal["raise", "pass_through"] = "raise"
    keep_original: bool = False
    question: str | None = None
    prompt_source: Literal["auto", "explicit"] = "auto"

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def __init__(self, aligner: Aligner | str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**{"aligner": aligner, **kwargs})
        if self.prompt_source == "auto" and not self.question:
            recorder()

    @field_validator("on_correction", mode="before")
    @classmethod
    def _hooked(cls, function: Any) -> Any:
        return CorrectionHook(function) if callable(function) and not isinstance(function, CorrectionHook) else function

    @property
    def on_correction_failures(self) -> int:
        """How often `on_correction` failed."""
        return self.on_correction.failures if self.on_correction else 0

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: `dumps` writes the settings and the name of the Aligner, but neither its weights nor functions."""
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The folder or hub id; an `Aligner` object cannot be written."""
        return {"aligner": str(self.aligner)} if isinstance(self.aligner, str | Path) else {}

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What `config["configurable"]` may hold for it."""
        return [
            ConfigurableFieldSpec(id=key, annotation=str | None, default=None, description=text)
            for key, text in CONFIGURABLE.items()
        ]

    @property
    def InputType(self) -> Any:  # noqa: N802  LangChain's name.
        """The readable forms of an answer."""
        return str | AIMessage | dict[str, Any] | list[Any]

    @property
    def OutputType(self) -> Any:  # noqa: N802  LangChain's name.
        """A text for a text, a message for everything else."""
        return str | AIMessage

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        return self._call_with_config(self._one, input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        return await self._acall_with_config(self._aone, input, config, **kwargs)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        return self._batch_with_config(self._many, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        return await self._abatch_with_config(
            self._amany, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:  # noqa: A002
        yield from self._transform_stream_with_config(input, self._streamed, config, **kwargs)

    async def atransform(
        self,
        input: AsyncIterator[Any],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        async for piece in self._atransform_stream_with_config(input, self._astreamed, config, **kwargs):
            yield piece

    def _one(self, value: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Any:
        return _raise_or_return(*self._many([value], [run_manager], [config]))

    async def _aone(self, value: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Any:
        return _raise_or_return(*await self._amany([value], [run_manager], [config]))

    def _many(
        self,
        values: Sequence[Any],
        run_manager: Sequence[CallbackManagerForChainRun],
        config: Sequence[RunnableConfig],
        ids: Sequence[str] = (),
    ) -> list[Any]:
        jobs = self._jobs(values, run_manager, config, ids)
        waiting, exchanges, runs = waiting_for_aligner(jobs, run_manager)
        if waiting:
            aligner = self._aligner()
            for job, correction in zip(waiting, correct_traced(aligner, exchanges, runs), strict=True):
                job.correction = correction
        for job in jobs:
            if self.on_correction and job.correction:
                self.on_correction(job.correction)
        return [self._result(job) for job in jobs]

    async def _amany(
        self,
        values: Sequence[Any],
        run_manager: Sequence[AsyncCallbackManagerForChainRun],
        config: Sequence[RunnableConfig],
        ids: Sequence[str] = (),
    ) -> list[Any]:
        jobs = self._jobs(values, run_manager, config, ids)
        waiting, exchanges, runs = waiting_for_aligner(jobs, run_manager)
        if waiting:
            aligner = await self._aaligner()
            for job, correction in zip(waiting, await acorrect_traced(aligner, exchanges, runs), strict=True):
                job.correction = correction
        for job in jobs:
            if self.on_correction and job.correction:
                await self.on_correction.acall(job.correction)
        return [self._result(job) for job in jobs]

    def _streamed(
        self, pieces: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig
    ) -> Iterator[Any]:
        held = HeldStream()
        for piece in pieces:
            yield from held.add(piece)
        if held.pieces:
            [result] = self._many([held.whole()], [run_manager], [config], held.ids())
            if not held.released:
                yield _raise_or_return(result)

    async def _astreamed(
        self, pieces: AsyncIterator[Any], run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> AsyncIterator[Any]:
        held = HeldStream()
        async for piece in pieces:
            for released in held.add(piece):
                yield released
        if held.pieces:
            [result] = await self._amany([held.whole()], [run_manager], [config], held.ids())
            if not held.released:
                yield _raise_or_return(result)

    def _aligner(self) -> Aligner:
        if isinstance(self.aligner, Aligner):
            return self.aligner
        return loaded_aligner(str(self.aligner or resolve_aligner()))

    async def _aaligner(self) -> Aligner:
        if isinstance(self.aligner, Aligner):
            return self.aligner
        return await run_in_executor(None, self._aligner)  # It may have to be loaded, which takes a while.

    def _jobs(
        self, values: Sequence[Any], runs: Sequence[_Run], configs: Sequence[RunnableConfig], ids: Sequence[str]
    ) -> list[Job]:
        return [
            prepare(
                value,
                Source(
                    configurable=config.get("configurable", {}),
                    question=self.question,
                    prompt_source=self.prompt_source,
                    parent=run.parent_run_id,
                    chunk_ids=ids,
                ),
            )
            for value, run, config in zip(values, runs, configs, strict=True)
        ]

    def _result(self, job: Job) -> Any:
        correction = job.correction
        if job.answer is None or job.error is not None:
            return job.error
        if correction is None:
            return job.answer.given
        if correction.error is not None and self.on_error == "raise":
            return correction.error
        return deliver(job.answer.given, correction, keep_original=self.keep_original)


def _raise_or_return(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result
