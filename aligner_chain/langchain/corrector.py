"""`llm | AlignerCorrector()`: the step of a LangChain chain that corrects what the model before it answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import ConfigurableFieldSpec
from pydantic import ConfigDict, Field, InstanceOf, field_validator

from aligner_chain.aligner import Aligner
from aligner_chain.hook import CorrectionHook
from aligner_chain.langchain.correcting import Correcting, raise_or_return
from aligner_chain.langchain.jobs import CONFIGURABLE, Structured
from aligner_chain.langchain.recorder import recorder
from aligner_chain.policy import Policy
from aligner_chain.shared import aligner_now, as_source
from aligner_chain.streaming import closing_once


class AlignerCorrector(RunnableSerializable[Any, Any]):
    """Corrects the answer of a chat model with an Aligner: `chain = prompt | llm | AlignerCorrector()`.

    It reads an `AIMessage`, a `str`, `{"question": ..., "answer": ...}`, `{"messages": [..., AIMessage]}` or a list of
    messages that ends in an `AIMessage`. A `str` comes back as a `str`, everything else as an `AIMessage` under the id
    of the answer. The question is what the input says, else the configurable `aligner_question`, else `question`, else
    what the model before was asked, which a recorder of prompts remembers.

    Tool calls, refusals, structured output and empty answers come back as the very object that went in. Otherwise
    `response_metadata["aligner"]` of a message holds `outcome`, `reason`, `correction_id`, `aligner` and the number of
    `edits`.

    ??? info "Instantiate"

        ```python
        from aligner_chain.langchain import AlignerCorrector

        corrector = AlignerCorrector("path-or-hub-id", timeout=20, on_correction=collector.submit)
        chain = prompt | llm | corrector
        ```

    ??? info "Invoke"

        ```python
        answer = chain.invoke({"question": "Can I still return my kettle?"})
        answer.response_metadata["aligner"]["outcome"]  # "approved", "corrected", "kept", "skipped" or "failed"
        ```

        `batch` corrects all answers in one call of the Aligner. `config["configurable"]` may hold `aligner_question`,
        `aligner_enabled` (False hands the answer on as it is), `aligner_subject` and `aligner_split_key` (both for the
        record of the correction).

    ??? info "Stream"

        An Aligner reads the whole answer before it writes, so the first text waits for the end of the upstream, and
        then for the correction. With `stream_unchecked` text goes out while it is decoded, once the Aligner has
        decided that the answer needs a change. From the first tool call on a stream passes through as it is.

        ```python
        for chunk in chain.stream({"question": "Can I still return my kettle?"}):
            print(chunk.text, end="")
        ```

    ??? info "Async"

        `ainvoke`, `abatch`, `astream` and `astream_events` leave the event loop free; cancelling the task stops the
        decoding.

    ??? info "Tool calling"

        `llm.bind_tools(tools) | corrector` corrects the texts and passes the calls on. Agents that must not show the
        uncorrected text anywhere take `AlignedChatModel(llm=llm, corrector=corrector)`.

    Args:
        aligner: an `Aligner`, or a folder or hub id, loaded at first use and once in a process. Default: the one that
            `ALIGNER_MODEL` names, else the one that `$ALIGNER_HOME` serves, which may follow a promotion between two calls.
        policy: what of its corrections is served, and which answers it sees at all. Default: the Aligner's own, by which
            a correction must not damage code, links, quotes, citations or JSON (`aligner_chain.checks`).
        criteria: what to judge by, in the Aligner's own words. Default: what it was trained for.
        strength: the score of an answer below which it is corrected, from 0 (none is) to 1 (all are). Default: as
            calibrated, else the Aligner's verdict.
        on_correction: called with every `Correction` before the answer is returned, also when an error is raised. Its
            own errors are logged and counted in `on_correction_failures`. A coroutine function works under asyncio.
        on_error: what to do where the correction of an answer failed: "raise" its error, or "pass_through" the
            original, with the outcome `failed` in its metadata. A missing question or Aligner is always raised. An error
            ends a whole `batch`, unless it has `return_exceptions=True`.
        timeout: seconds for the correction of all answers of one call. None: without end. What is not finished by then
            has failed.
        structured: answers that are JSON: "skip" them, or "validate" that the correction is JSON with the same keys and
            kinds of values, and keep the original where it is not.
        stream_unchecked: stream the correction while it is decoded. What is out cannot be taken back, so a correction
            that breaks off is raised even with "pass_through".
        keep_original: add the `original` text and the `edit_list` to the metadata.
        question: the question of every answer, where it is always the same.
        prompt_source: "auto", or "explicit" for a corrector that records no prompts and must be given each question.

    Raises:
        PromptNotFoundError: the question is not known, or ambiguous; the message lists the ways to give it.
        AlignerNotConfiguredError: there is no Aligner; the message lists the ways to one.
        CorrectionError: an answer could not be corrected, and `on_error` is "raise".
        TypeError: the input holds no answer that could be read.
    """

    # Fields and not private attributes, because `configurable_fields` builds a new object from the fields at each call.
    aligner: Aligner | str | Path | None = Field(default=None, exclude=True)
    policy: InstanceOf[Policy] | None = Field(default=None, exclude=True, repr=False)
    criteria: tuple[str, ...] | None = None
    strength: float | None = Field(default=None, ge=0, le=1)
    on_correction: CorrectionHook | None = Field(default=None, exclude=True, repr=False)
    on_error: Literal["raise", "pass_through"] = "raise"
    timeout: float | None = Field(default=None, gt=0)
    structured: Structured = "skip"
    stream_unchecked: bool = False
    keep_original: bool = False
    question: str | None = None
    prompt_source: Literal["auto", "explicit"] = "auto"

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def __init__(self, aligner: Aligner | str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**{"aligner": aligner, **kwargs})
        if self.records_prompts:
            recorder()

    def __setstate__(self, state: Any) -> None:
        """Puts the recorder to work in the process that an object was sent to as well."""
        super().__setstate__(state)
        if self.records_prompts:
            recorder()

    @property
    def records_prompts(self) -> bool:
        """Whether it needs the recorder, which nobody else puts to work."""
        return self.prompt_source == "auto" and not self.question

    @field_validator("aligner", mode="before")
    @classmethod
    def _is_source(cls, aligner: Any) -> Any:
        return as_source(aligner)

    @field_validator("on_correction", mode="before")
    @classmethod
    def _hooked(cls, function: Any) -> Any:
        return CorrectionHook.of(function)

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
    def identifying_params(self) -> dict[str, Any]:
        """What a correction depends on, as the key of a cache; the served Aligner by its folder of this moment."""
        named = self.aligner.identity if isinstance(self.aligner, Aligner) else str(self.aligner or aligner_now())
        kept = {"structured": self.structured, "keep_original": self.keep_original}
        rules = {"policy": repr(self.policy), "criteria": self.criteria, "strength": self.strength}
        return {"aligner": named, "question": self.question, **kept, **rules}

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What `config["configurable"]` may hold for it."""
        return list(CONFIGURABLE)

    @property
    def InputType(self) -> Any:  # noqa: N802  LangChain's name.
        """The readable forms of an answer."""
        return str | AIMessage | dict[str, Any] | list[Any]

    @property
    def OutputType(self) -> Any:  # noqa: N802  LangChain's name.
        """A text for a text, a message for everything else."""
        return str | AIMessage

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._call_with_config(self._one, input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
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

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        async with closing_once(self.atransform(_one_piece(input), config, **kwargs)) as pieces:
            async for piece in pieces:
                yield piece

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        yield from self._transform_stream_with_config(input, self._streamed, config, **kwargs)

    async def atransform(
        self,
        input: AsyncIterator[Any],
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        streamed = self._atransform_stream_with_config(input, self._astreamed, config, **kwargs)
        async with closing_once(streamed) as pieces:
            async for piece in pieces:
                yield piece

    def _one(self, value: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Any:
        return raise_or_return(*self._many([value], [run_manager], [config]))

    async def _aone(self, value: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Any:
        return raise_or_return(*await self._amany([value], [run_manager], [config]))

    def _many(
        self,
        values: Sequence[Any],
        run_manager: Sequence[CallbackManagerForChainRun],
        config: Sequence[RunnableConfig],
    ) -> list[Any]:
        correcting = Correcting(self)
        jobs = list(map(correcting.job, values, run_manager, config))
        correcting.settle(jobs, run_manager)
        return list(map(correcting.result, jobs))

    async def _amany(
        self,
        values: Sequence[Any],
        run_manager: Sequence[AsyncCallbackManagerForChainRun],
        config: Sequence[RunnableConfig],
    ) -> list[Any]:
        correcting = Correcting(self)
        jobs = list(map(correcting.job, values, run_manager, config))
        await correcting.asettle(jobs, run_manager)
        return list(map(correcting.result, jobs))

    def _streamed(
        self, pieces: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig
    ) -> Iterator[Any]:
        correcting = Correcting(self)
        with correcting.held_stream(run_manager, config) as held:
            for piece in pieces:
                yield from held.add(piece)
            if held.pieces:
                job = correcting.job(held.whole(), run_manager, config, held.ids())
                yield from correcting.pieces(job, [run_manager], silent=held.released)

    async def _astreamed(
        self, pieces: AsyncIterator[Any], run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> AsyncIterator[Any]:
        correcting = Correcting(self)
        with correcting.held_stream(run_manager, config) as held:
            async for piece in pieces:
                for released in held.add(piece):
                    yield released
            if held.pieces:
                job = correcting.job(held.whole(), run_manager, config, held.ids())
                async with closing_once(correcting.apieces(job, [run_manager], silent=held.released)) as left:
                    async for piece in left:
                        yield piece


def required(given: Any) -> Any:
    """A corrector, or what was made of one. Raises `TypeError` for an Aligner in its place, and for the class."""
    if isinstance(given, type) or not callable(getattr(given, "invoke", None)):
        name = getattr(given, "__name__", type(given).__name__)
        raise TypeError(f"Here an AlignerCorrector is needed and not {name}. Make one:  AlignerCorrector(aligner)")
    return given


async def _one_piece(value: Any) -> AsyncIterator[Any]:
    yield value
