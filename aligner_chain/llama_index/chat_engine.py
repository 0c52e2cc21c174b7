"""The form for chat engines: all four methods, and a memory that holds the corrected answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.memory import BaseMemory
from llama_index.core.schema import NodeWithScore
from llama_index.core.tools import ToolOutput

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.llama_index.asked import tags
from aligner_chain.llama_index.chat_streams import CorrectedChatStream
from aligner_chain.llama_index.memory import areplace_answer, replace_answer
from aligner_chain.llama_index.postprocessor import AlignerResponsePostprocessor
from aligner_chain.llama_index.responses import CorrectedResponse
from aligner_chain.llama_index.streams import CorrectedAsyncStream, CorrectedStream
from aligner_chain.llama_index.wrapping import fitted, require_kind

_ANSWERS = (Response, StreamingResponse, AsyncStreamingResponse)
_CORRECTED = (CorrectedResponse, CorrectedStream, CorrectedAsyncStream)
_PAUSE = 0.01
"""Seconds between two looks at an answer that another thread writes."""


class AlignerChatEngine(BaseChatEngine):
    """A chat engine whose answers are corrected: `AlignerChatEngine(index.as_chat_engine(), postprocessor)`.

    The Aligner reads the conversation, the message, the answer and the nodes that were retrieved for it. The engine
    inside writes each answer into its memory, where the corrected one then takes its place; an answer whose correction
    was raised is taken out. What streams is corrected in the background, whether anybody reads it or not.

    Args:
        chat_engine: the engine.
        postprocessor: how to correct; an `Aligner`, a folder or a hub id stands for one with its defaults, and None for
            `AlignerResponsePostprocessor()`.
        memory: the engine's memory, for an engine that does not keep it where LlamaIndex's own do.

    Raises:
        ConfigurationError: the engine is one of these already, or its memory was not found.
    """

    def __init__(
        self,
        chat_engine: BaseChatEngine,
        postprocessor: AlignerResponsePostprocessor | Aligner | str | Path | None = None,
        memory: BaseMemory | None = None,
    ) -> None:
        require_kind(chat_engine, BaseChatEngine, "AlignerChatEngine", "index.as_chat_engine()")
        if isinstance(chat_engine, AlignerChatEngine):
            raise ConfigurationError("This AlignerChatEngine corrects its answers already. Use it as it is.")
        memory = memory or getattr(chat_engine, "_memory", None)
        if memory is None:
            raise ConfigurationError(
                f"The memory of this {type(chat_engine).__name__} was not found, and would keep the uncorrected answers. "
                "Give it as well: AlignerChatEngine(chat_engine, postprocessor, memory=memory)."
            )
        self.chat_engine, self.postprocessor = chat_engine, fitted(postprocessor, chat_engine)
        self._memory = memory

    @property
    def chat_history(self) -> list[ChatMessage]:
        return self.chat_engine.chat_history

    def reset(self) -> None:
        self.chat_engine.reset()

    def chat(self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any) -> AgentChatResponse:
        history = self._history(message, chat_history)
        answer = cast(AgentChatResponse, self.chat_engine.chat(message, chat_history, **kwargs))
        try:
            corrected = self.postprocessor.postprocess_response(
                _response(answer), query_str=message, chat_history=history
            )
        except BaseException:
            replace_answer(self._memory, answer.response, None)  # Nobody was given this answer.
            raise
        if corrected.response != answer.response:
            replace_answer(self._memory, answer.response, corrected.response)
        return _delivered(answer, corrected)

    async def achat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> AgentChatResponse:
        history = await self._ahistory(message, chat_history)
        answer = cast(AgentChatResponse, await self.chat_engine.achat(message, chat_history, **kwargs))
        try:
            corrected = await self.postprocessor.apostprocess_response(
                _response(answer), query_str=message, chat_history=history
            )
        except BaseException:
            await areplace_answer(self._memory, answer.response, None)
            raise
        if corrected.response != answer.response:
            await areplace_answer(self._memory, answer.response, corrected.response)
        return _delivered(answer, corrected)

    def stream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> CorrectedChatStream:
        history = self._history(message, chat_history)
        answer = self.chat_engine.stream_chat(message, chat_history, **kwargs)
        if (inside := _corrected_inside(answer)) is not None:
            return _passed_on(answer, inside)
        original = StreamingResponse(_pieces(answer), source_nodes=_nodes(answer))
        corrected = self.postprocessor.postprocess_response(original, query_str=message, chat_history=history)
        stream = CorrectedChatStream(
            sources=answer.sources, source_nodes=original.source_nodes, metadata=corrected.metadata
        )
        stream.start(original, corrected, self._memory)
        return stream

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> CorrectedChatStream:
        history = await self._ahistory(message, chat_history)
        answer = await self.chat_engine.astream_chat(message, chat_history, **kwargs)
        if (inside := _corrected_inside(answer)) is not None:
            return _passed_on(answer, inside)
        original = AsyncStreamingResponse(_apieces(answer), source_nodes=_nodes(answer))
        corrected = await self.postprocessor.apostprocess_response(original, query_str=message, chat_history=history)
        stream = CorrectedChatStream(
            sources=answer.sources, source_nodes=original.source_nodes, metadata=corrected.metadata
        )
        stream.start_async(original, corrected, self._memory)
        return stream

    def _history(self, message: str, given: list[ChatMessage] | None) -> list[ChatMessage]:
        """The conversation before the message, as it is now: engines add to the very list that they are given."""
        tags()  # What is wrong with them shall show before there is an answer that could not be corrected.
        return self._memory.get(input=message) if given is None else list(given)

    async def _ahistory(self, message: str, given: list[ChatMessage] | None) -> list[ChatMessage]:
        tags()
        return await self._memory.aget(input=message) if given is None else list(given)


def _response(answer: AgentChatResponse) -> Response:
    """The answer as a response, and one of an engine that corrects already as a corrected one."""
    inside = (source.raw_output for source in answer.sources)
    corrected = next((raw for raw in inside if isinstance(raw, _CORRECTED) and str(raw) == answer.response), None)
    if corrected is None:
        return Response(answer.response, source_nodes=_nodes(answer), metadata=answer.metadata)
    return CorrectedResponse(answer.response, source_nodes=_nodes(answer), metadata=corrected.metadata)


def _delivered(answer: AgentChatResponse, corrected: Response) -> AgentChatResponse:
    sources = [_source(source, answer.response, corrected) for source in answer.sources]
    return replace(
        answer,
        response=corrected.response or "",
        sources=sources,
        source_nodes=corrected.source_nodes,
        metadata=corrected.metadata,
    )


def _source(source: ToolOutput, answer: str, corrected: Response) -> ToolOutput:
    """What an engine's answer came from; the answer itself, where it came from another engine."""
    if not isinstance(source.raw_output, _ANSWERS) or source.content != answer:
        return source
    return ToolOutput(
        content=corrected.response or "", tool_name=source.tool_name, raw_input=source.raw_input, raw_output=corrected
    )


def _nodes(answer: AgentChatResponse | StreamingAgentChatResponse) -> list[NodeWithScore]:
    """The nodes of an answer; LlamaIndex itself does not look for them in an AsyncStreamingResponse."""
    inside = (source.raw_output for source in answer.sources)
    return answer.source_nodes or [node for raw in inside if isinstance(raw, _ANSWERS) for node in raw.source_nodes]


def _corrected_inside(answer: StreamingAgentChatResponse) -> CorrectedStream | CorrectedAsyncStream | None:
    """The stream of an engine that corrects already, if the answer comes from one."""
    inside = (source.raw_output for source in answer.sources)
    return next((raw for raw in inside if isinstance(raw, CorrectedStream | CorrectedAsyncStream)), None)


def _passed_on(
    answer: StreamingAgentChatResponse, inside: CorrectedStream | CorrectedAsyncStream
) -> CorrectedChatStream:
    """The answer of an engine that corrects already, as one of ours.

    LlamaIndex's writer holds on to this very object, so it cannot be replaced by another.
    """
    answer.__class__ = CorrectedChatStream
    stream = cast(CorrectedChatStream, answer)
    stream.source_nodes, stream.metadata = _nodes(answer), inside.metadata
    return stream


def _pieces(answer: StreamingAgentChatResponse) -> Generator[str, None, None]:
    pieces, writer = answer.response_gen, getattr(answer, "write_response_to_history_thread", None)
    while writer is not None and writer.is_alive():
        # LlamaIndex looks for the next piece without a pause, so it is asked only for those that are there.
        if answer.queue.empty():
            writer.join(_PAUSE)
        else:
            yield next(pieces)
    yield from pieces


async def _apieces(answer: StreamingAgentChatResponse) -> AsyncGenerator[str, None]:
    async for piece in answer.async_response_gen():
        yield piece
