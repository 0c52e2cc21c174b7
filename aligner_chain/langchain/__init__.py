"""The LangChain face: correct a chain's answers, and run a local upstream as a chat model.

from aligner_chain.langchain import AlignerCorrector

chain = prompt | llm | AlignerCorrector()
"""

from __future__ import annotations

from aligner_chain.errors import MissingExtraError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingExtraError("langchain-core", "langchain") from error

from aligner_chain.langchain.corrector import AlignerCorrector
from aligner_chain.langchain.local import LocalChatModel

__all__ = ["AlignerCorrector", "LocalChatModel"]
