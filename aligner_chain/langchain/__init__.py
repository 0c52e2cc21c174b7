"""The LangChain face: correct what a model answers in a chain, an agent or a graph, and run a local upstream.

    from aligner_chain.langchain import AlignerCorrector

    chain = prompt | llm | AlignerCorrector()

`AlignedChatModel` is for those who must not show an uncorrected word anywhere, `AlignerMiddleware` for `create_agent`,
`aligner_node` for LangGraph, `LocalChatModel` for an upstream in this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aligner_chain.errors import MissingExtraError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingExtraError("langchain-core", "langchain") from error

from aligner_chain.langchain.chat_model import AlignedChatModel
from aligner_chain.langchain.corrector import AlignerCorrector
from aligner_chain.langchain.graph import aligner_node
from aligner_chain.langchain.local import LocalChatModel

if TYPE_CHECKING:
    from aligner_chain.langchain.middleware import AlignerMiddleware

__all__ = ["AlignedChatModel", "AlignerCorrector", "AlignerMiddleware", "LocalChatModel", "aligner_node"]


def __getattr__(name: str) -> Any:
    if name != "AlignerMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Only who builds agents needs the package langchain.
    from aligner_chain.langchain.middleware import AlignerMiddleware

    return AlignerMiddleware
