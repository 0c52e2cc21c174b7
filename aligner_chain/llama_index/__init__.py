"""LlamaIndex: a step after the answer, which LlamaIndex itself does not have.

- `AlignerSynthesizer` in a query engine of your own: `index.as_query_engine(response_synthesizer=AlignerSynthesizer(...))`.
- `AlignerQueryEngine` around any query engine that is ready.
- `AlignerChatEngine` around any chat engine; its memory holds the corrected answers.
- `AlignerFunctionAgent` and `AlignerReActAgent`.
- `AlignerResponsePostprocessor`, which they all use, for workflows and code of your own.
"""

from __future__ import annotations

from aligner_chain.errors import MissingExtraError

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "llama_index":
        raise
    raise MissingExtraError("llama-index-core", "llama-index") from error

from aligner_chain.llama_index.agents import AlignerFunctionAgent, AlignerReActAgent
from aligner_chain.llama_index.chat_engine import AlignerChatEngine
from aligner_chain.llama_index.events import AlignEndEvent, AlignStartEvent
from aligner_chain.llama_index.postprocessor import AlignerResponsePostprocessor
from aligner_chain.llama_index.query_engine import AlignerQueryEngine
from aligner_chain.llama_index.synthesizer import AlignerSynthesizer

__all__ = [
    "AlignEndEvent",
    "AlignStartEvent",
    "AlignerChatEngine",
    "AlignerFunctionAgent",
    "AlignerQueryEngine",
    "AlignerReActAgent",
    "AlignerResponsePostprocessor",
    "AlignerSynthesizer",
]
