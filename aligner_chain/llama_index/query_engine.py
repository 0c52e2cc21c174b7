"""The form for any query engine that is ready: its answer is corrected on the way out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.llama_index.postprocessor import AlignerResponsePostprocessor
from aligner_chain.llama_index.synthesizer import require_answers
from aligner_chain.llama_index.wrapping import fitted, require_kind


class AlignerQueryEngine(BaseQueryEngine):
    """A query engine whose answers are corrected: `AlignerQueryEngine(index.as_query_engine(), postprocessor)`.

    It works around every query engine, and inside of those that take others (router, retry, sub-questions, tools). Put
    it inside of a retrying one, which then judges the corrected answer. Where the synthesizer is yours to choose,
    `AlignerSynthesizer` is the better form, since the engine around it stays a `RetrieverQueryEngine`.

    Args:
        query_engine: the engine; it keeps its prompts, under the same keys.
        postprocessor: how to correct; an `Aligner`, a folder or a hub id stands for one with its defaults, and None for
            `AlignerResponsePostprocessor()`.

    Raises:
        ConfigurationError: the engine corrects its answers already, or writes none.
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        postprocessor: AlignerResponsePostprocessor | Aligner | str | Path | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        require_kind(query_engine, BaseQueryEngine, "AlignerQueryEngine", "index.as_query_engine()")
        if isinstance(query_engine, AlignerQueryEngine):
            raise ConfigurationError("This AlignerQueryEngine corrects its answers already. Use it as it is.")
        synthesizer = getattr(query_engine, "_response_synthesizer", None)
        require_answers(synthesizer)
        self.query_engine, self.postprocessor = query_engine, fitted(postprocessor, synthesizer)
        super().__init__(callback_manager or getattr(query_engine, "callback_manager", None))

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.query_engine.retrieve(query_bundle)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The nodes of a query; in a thread, where the engine has no asyncio of its own for it."""
        inner: Any = getattr(self.query_engine, "aretrieve", None)
        if inner is None:
            return await asyncio.to_thread(self.query_engine.retrieve, query_bundle)
        nodes: list[NodeWithScore] = await inner(query_bundle)
        return nodes

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        response = self.query_engine.synthesize(query_bundle, nodes, additional_source_nodes)
        return self.postprocessor.postprocess_response(response, query_bundle)

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        response = await self.query_engine.asynthesize(query_bundle, nodes, additional_source_nodes)
        return await self.postprocessor.apostprocess_response(response, query_bundle)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        response = self.query_engine.query(query_bundle)
        return self.postprocessor.postprocess_response(response, query_bundle)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        response = await self.query_engine.aquery(query_bundle)
        return await self.postprocessor.apostprocess_response(response, query_bundle)

    # The engine's own prompts under the engine's own keys: one more level in a key is one more than LlamaIndex can read.

    def _get_prompts(self) -> dict[str, Any]:
        return self.query_engine._get_prompts()

    def _update_prompts(self, prompts: dict[str, Any]) -> None:
        self.query_engine._update_prompts(prompts)

    def _get_prompt_modules(self) -> dict[str, Any]:
        return self.query_engine._get_prompt_modules()
