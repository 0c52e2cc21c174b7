"""The primitive: a response of LlamaIndex in, the corrected response out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.schema import BaseComponent, MetadataMode, QueryBundle, QueryType
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, field_serializer, field_validator

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.hook import CorrectionHook
from aligner_chain.llama_index.asked import asked
from aligner_chain.llama_index.correcting import Correcting
from aligner_chain.llama_index.responses import CorrectedPydanticResponse, CorrectedResponse, read
from aligner_chain.llama_index.streams import (
    CorrectedAsyncStream,
    CorrectedStream,
    corrected_async_stream,
    corrected_stream,
)
from aligner_chain.policy import Policy
from aligner_chain.shared import as_source

_R = TypeVar("_R", bound=RESPONSE_TYPE)

_dispatcher = get_dispatcher(__name__)


class AlignerResponsePostprocessor(BaseComponent):
    """Corrects the answer in a response of LlamaIndex, against its question and its source nodes.

        response = postprocessor.postprocess_response(response, query_str="Can I still return my kettle?")

    A `Response`, `StreamingResponse` or `AsyncStreamingResponse` comes back as a new one of its kind with the same
    `source_nodes`; a `PydanticResponse` as it is, unless `pydantic_field` is given. `response.metadata["aligner"]` holds
    `outcome`, `reason`, `correction_id`, `aligner` and the number of `edits`; for a stream once it has been read.
    A response that was corrected already comes back as it is.

    A correction that adds or loses a citation such as `[1]` of one of the nodes is refused: the original is served.

    `instrument_tags` of LlamaIndex may hold, for one call, `aligner_enabled` (False hands the answer on as it is),
    `aligner_subject`, `aligner_tenant` and `aligner_split_key` (for the record of the correction).

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
            original, with the outcome `failed` in its metadata. A missing question or Aligner is always raised; engines
            that swallow errors (sub-questions) then answer without it.
        timeout: seconds for the correction of one answer. None: without end. What is not finished by then has failed.
        use_context: let the Aligner read the source nodes. What does not fit its window is left out, last nodes first.
        metadata_mode: which text of a node it reads; the default is what the language model read.
        pydantic_field: the field of a structured answer that holds its text. None: such answers pass.
        structured: answers that are JSON: "skip" them, or "validate" that the correction is JSON with the same keys and
            kinds of values, and keep the original where it is not.
        skip_texts: answers that are none: what LlamaIndex says where it found nothing, and how it writes no text.
        stream_unchecked: stream the correction while it is decoded. What is out cannot be taken back, so checks only
            warn, and a correction that breaks off is raised even with "pass_through".
        keep_original: add the `original` text and the `edit_list` to the metadata.
        upstream: the model that answers, as `name@version`, for the record.

    Raises:
        PromptNotFoundError: no question was given.
        AlignerNotConfiguredError: there is no Aligner; the message lists the ways to one.
        CorrectionError: the answer could not be corrected, and `on_error` is "raise".
    """

    aligner: Aligner | str | Path | None = None
    policy: InstanceOf[Policy] | None = Field(default=None, exclude=True, repr=False)
    criteria: tuple[str, ...] | None = None
    strength: float | None = Field(default=None, ge=0, le=1)
    on_correction: CorrectionHook | None = Field(default=None, exclude=True, repr=False)
    on_error: Literal["raise", "pass_through"] = "raise"
    timeout: float | None = Field(default=None, gt=0)
    use_context: bool = True
    metadata_mode: MetadataMode = MetadataMode.LLM
    pydantic_field: str | None = None
    structured: Literal["skip", "validate"] = "skip"
    skip_texts: tuple[str, ...] = ("Empty Response", "None")
    stream_unchecked: bool = False
    keep_original: bool = False
    upstream: str | None = None

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

    def __init__(self, aligner: Aligner | str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**{"aligner": aligner, **kwargs})

    @classmethod
    def class_name(cls) -> str:
        return "AlignerResponsePostprocessor"

    @field_validator("aligner", mode="before")
    @classmethod
    def _is_source(cls, aligner: Any) -> Any:
        return as_source(aligner)

    @field_validator("on_correction", mode="before")
    @classmethod
    def _hooked(cls, function: Any) -> Any:
        return CorrectionHook.of(function)

    @field_serializer("aligner")
    def _named(self, aligner: Aligner | str | Path | None) -> str | None:
        # An Aligner object cannot be written; what reads this takes the one that is configured there.
        return str(aligner) if isinstance(aligner, str | Path) else None

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's own takes what cannot be pickled out of the object itself, which could correct nothing afterwards.
        state = BaseModel.__getstate__(self)
        written = {"aligner": self._named(self.aligner), "on_correction": None}
        return {**state, "__dict__": {**state["__dict__"], **written}}

    @property
    def on_correction_failures(self) -> int:
        """How often `on_correction` failed."""
        return self.on_correction.failures if self.on_correction else 0

    def postprocess_response(
        self,
        response: _R,
        query_bundle: QueryType | None = None,
        query_str: str | None = None,
        *,
        chat_history: Sequence[ChatMessage] = (),
    ) -> _R:
        """The response with its answer corrected; a stream is corrected when it is read.

        Args:
            response: any of LlamaIndex's four kinds.
            query_bundle: the question; or
            query_str: the question as a text.
            chat_history: the conversation before it.
        """
        query = _query(query_bundle, query_str)
        _require_response(response)
        if _is_corrected(response):
            return response
        return cast(_R, self._postprocess_response(response, self._correcting(response, query, chat_history)))

    async def apostprocess_response(
        self,
        response: _R,
        query_bundle: QueryType | None = None,
        query_str: str | None = None,
        *,
        chat_history: Sequence[ChatMessage] = (),
    ) -> _R:
        """The same without blocking the event loop; cancelling the task stops the decoding.

        A `StreamingResponse` still blocks whoever reads it; under asyncio LlamaIndex makes an `AsyncStreamingResponse`.
        """
        query = _query(query_bundle, query_str)
        _require_response(response)
        if _is_corrected(response):
            return response
        return cast(_R, await self._apostprocess_response(response, self._correcting(response, query, chat_history)))

    def postprocess_nodes(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: this is no node postprocessor."""
        raise _misused()

    async def apostprocess_nodes(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: this is no node postprocessor."""
        raise _misused()

    @property
    def callback_manager(self) -> NoReturn:
        """There is none. Engines give one to their node postprocessors, so setting it is where the mistake shows first."""
        raise AttributeError("callback_manager")

    @callback_manager.setter
    def callback_manager(self, manager: object) -> NoReturn:
        raise _misused()

    @_dispatcher.span
    def _postprocess_response(self, response: RESPONSE_TYPE, correcting: Correcting) -> RESPONSE_TYPE:
        if isinstance(response, StreamingResponse | AsyncStreamingResponse):
            return self._stream(response, correcting)
        answer = read(response, self.pydantic_field)
        correction = correcting.correct(answer.text, skip=answer.skip, checks=[answer.misfit])
        return answer.deliver(correction, keep_original=self.keep_original)

    @_dispatcher.span
    async def _apostprocess_response(self, response: RESPONSE_TYPE, correcting: Correcting) -> RESPONSE_TYPE:
        if isinstance(response, StreamingResponse | AsyncStreamingResponse):
            return self._stream(response, correcting)
        answer = read(response, self.pydantic_field)
        correction = await correcting.acorrect(answer.text, skip=answer.skip, checks=[answer.misfit])
        return answer.deliver(correction, keep_original=self.keep_original)

    def _stream(self, response: StreamingResponse | AsyncStreamingResponse, correcting: Correcting) -> RESPONSE_TYPE:
        if isinstance(response, AsyncStreamingResponse):
            return corrected_async_stream(response, correcting, keep_original=self.keep_original)
        return corrected_stream(response, correcting, keep_original=self.keep_original)

    def _correcting(
        self, response: RESPONSE_TYPE, query: QueryBundle | None, history: Sequence[ChatMessage]
    ) -> Correcting:
        context = self.metadata_mode if self.use_context else None
        known = asked(query, response.source_nodes or (), history=history, context=context, upstream=self.upstream)
        return Correcting(self, known)


def _is_corrected(response: RESPONSE_TYPE) -> bool:
    return isinstance(response, CorrectedResponse | CorrectedPydanticResponse | CorrectedStream | CorrectedAsyncStream)


def _query(bundle: QueryType | None, text: str | None) -> QueryBundle | None:
    if bundle is not None and text is not None:
        raise ConfigurationError("Give the question as query_bundle= or as query_str=, not as both.")
    query = bundle if text is None else text
    return QueryBundle(query) if isinstance(query, str) else query


def _require_response(response: object) -> None:
    if not isinstance(response, Response | StreamingResponse | AsyncStreamingResponse | PydanticResponse):
        raise ConfigurationError(
            f"A {type(response).__name__} is none of the responses that hold a query engine's answer (Response, "
            "StreamingResponse, AsyncStreamingResponse, PydanticResponse). For a text write Response(text); for a chat "
            "engine take AlignerChatEngine(chat_engine, postprocessor)."
        )


def _misused() -> ConfigurationError:
    return ConfigurationError(
        "AlignerResponsePostprocessor corrects the answer and cannot be one of node_postprocessors=, which run before there "
        "is one. Use it in one of these ways:\n"
        "- index.as_query_engine(response_synthesizer=AlignerSynthesizer(get_response_synthesizer(), postprocessor))\n"
        "- AlignerQueryEngine(query_engine, postprocessor)\n"
        "- AlignerChatEngine(chat_engine, postprocessor)"
    )
