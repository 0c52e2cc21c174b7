"""The form for RAG: a response synthesizer whose answers are corrected."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE
from pydantic import BaseModel

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.llama_index.postprocessor import AlignerResponsePostprocessor
from aligner_chain.llama_index.wrapping import fitted, require_kind


class AlignerSynthesizer(BaseSynthesizer):
    """A response synthesizer around another one, whose answers it corrects.

        engine = index.as_query_engine(response_synthesizer=AlignerSynthesizer(get_response_synthesizer(llm=llm)))

    The engine around it stays what it is, so everything that builds on it works, chat engines included. With a
    `response_synthesizer` LlamaIndex ignores `streaming=`, `response_mode=` and `llm=` of `as_query_engine`: give them to
    `get_response_synthesizer`.

    Args:
        synthesizer: the one that answers; it keeps its prompts, under the same keys, and its streaming. Default:
            `get_response_synthesizer()`.
        postprocessor: how to correct; an `Aligner`, a folder or a hub id stands for one with its defaults, and None for
            `AlignerResponsePostprocessor()`. Its copy here also knows the synthesizer's word for no answer and, for
            the record, the name of its model.

    Raises:
        ConfigurationError: the synthesizer is one of these already, or one that hands on passages and writes no answer.
    """

    # Not BaseSynthesizer's own: it would look for a language model, and there is one inside already.
    def __init__(
        self,
        synthesizer: BaseSynthesizer | None = None,
        postprocessor: AlignerResponsePostprocessor | Aligner | str | Path | None = None,
    ) -> None:
        self.synthesizer = get_response_synthesizer() if synthesizer is None else synthesizer
        require_kind(self.synthesizer, BaseSynthesizer, "AlignerSynthesizer", "get_response_synthesizer()")
        require_answers(self.synthesizer)
        self.postprocessor = fitted(postprocessor, self.synthesizer)

    def __getattr__(self, name: str) -> Any:
        """What LlamaIndex reads of a synthesizer, such as `_llm` and `_prompt_helper`, is the inner one's."""
        if name == "synthesizer" or name.startswith("__"):
            raise AttributeError(name)  # A copy that is just being made has nothing inside yet.
        return getattr(self.synthesizer, name)

    @property
    def _streaming(self) -> bool:
        return self.synthesizer._streaming

    @_streaming.setter
    def _streaming(self, streaming: bool) -> None:
        # CondenseQuestionChatEngine switches it for each of its calls.
        self.synthesizer._streaming = streaming

    @property
    def callback_manager(self) -> CallbackManager:
        return self.synthesizer.callback_manager

    @callback_manager.setter
    def callback_manager(self, callback_manager: CallbackManager) -> None:
        self.synthesizer.callback_manager = callback_manager

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        response = self.synthesizer.synthesize(query, nodes, additional_source_nodes, **response_kwargs)
        return self.postprocessor.postprocess_response(response, _bundle(query))

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        response = await self.synthesizer.asynthesize(query, nodes, additional_source_nodes, **response_kwargs)
        return await self.postprocessor.apostprocess_response(response, _bundle(query))

    # Without nodes: a router has the answers of its engines summarised so, and answers are no sources.

    def get_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> RESPONSE_TEXT_TYPE:
        return self._text(self.synthesizer.get_response(query_str, text_chunks, **response_kwargs), query_str)

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        text = await self.synthesizer.aget_response(query_str, text_chunks, **response_kwargs)
        return await self._atext(text, query_str)

    def get_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        text = self.synthesizer.get_response_from_messages(query_str, message_chunks, **response_kwargs)
        return self._text(text, query_str)

    async def aget_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        text = await self.synthesizer.aget_response_from_messages(query_str, message_chunks, **response_kwargs)
        return await self._atext(text, query_str)

    def _text(self, text: RESPONSE_TEXT_TYPE, query_str: str) -> RESPONSE_TEXT_TYPE:
        if isinstance(text, Generator):
            return self.postprocessor.postprocess_response(StreamingResponse(text), query_str=query_str).response_gen
        if isinstance(text, str):
            return self.postprocessor.postprocess_response(Response(text), query_str=query_str).response or ""
        if isinstance(text, BaseModel):
            return self.postprocessor.postprocess_response(PydanticResponse(text), query_str=query_str).response or text
        return text

    async def _atext(self, text: RESPONSE_TEXT_TYPE, query_str: str) -> RESPONSE_TEXT_TYPE:
        if isinstance(text, AsyncGenerator):
            stream = AsyncStreamingResponse(text)
            return (await self.postprocessor.apostprocess_response(stream, query_str=query_str)).response_gen
        if isinstance(text, str):
            response = await self.postprocessor.apostprocess_response(Response(text), query_str=query_str)
            return response.response or ""
        if isinstance(text, BaseModel):
            model = await self.postprocessor.apostprocess_response(PydanticResponse(text), query_str=query_str)
            return model.response or text
        return self._text(text, query_str)

    # The inner one's prompts under its own keys: one more level in a key is one more than LlamaIndex can read.

    def _get_prompts(self) -> dict[str, Any]:
        return self.synthesizer._get_prompts()

    def _update_prompts(self, prompts: dict[str, Any]) -> None:
        self.synthesizer._update_prompts(prompts)

    def _get_prompt_modules(self) -> dict[str, Any]:
        return self.synthesizer._get_prompt_modules()


def require_answers(synthesizer: object) -> None:
    """Raises `ConfigurationError` for a synthesizer whose answers are corrected already, or that writes none."""
    if isinstance(synthesizer, AlignerSynthesizer):
        raise ConfigurationError(
            "This AlignerSynthesizer corrects its answers already. Use it, and its engine, as it is."
        )
    if isinstance(synthesizer, ContextOnly):
        raise ConfigurationError(
            "ContextOnly hands on the passages as they are: there is no answer to correct. Use it as it is, or take a "
            "response_mode that writes one, such as ResponseMode.COMPACT."
        )


def _bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query
