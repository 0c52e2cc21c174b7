"""What led to an answer, in LlamaIndex's terms: the query, the conversation before it, the nodes, the tags of the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation.dispatcher import active_instrument_tags

from aligner_chain.errors import ConfigurationError, PromptNotFoundError
from aligner_chain.exchange import Exchange, Turn

_T = TypeVar("_T")

_ROLE_OF = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
    MessageRole.TOOL: "tool",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tags:
    """What the caller says of one call with LlamaIndex's `instrument_tags`: for the record, and whether to correct."""

    subject: str | None = None
    tenant: str | None = None
    split_key: str | None = None
    enabled: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question with what belongs to it. `sources` is the number of nodes."""

    turns: tuple[Turn, ...]
    tags: Tags
    passages: tuple[str, ...] = ()
    sources: int = 0
    upstream: str | None = None

    def exchange(self, answer: str) -> Exchange:
        """The exchange that an answer makes of it."""
        return Exchange(
            turns=self.turns,
            answer=answer,
            context=self.passages,
            upstream=self.upstream,
            subject=self.tags.subject,
            tenant=self.tags.tenant,
            split_key=self.tags.split_key,
        )


def asked(
    query: QueryBundle | None,
    nodes: Sequence[NodeWithScore],
    *,
    history: Sequence[ChatMessage] = (),
    context: MetadataMode | None = MetadataMode.LLM,
    upstream: str | None = None,
) -> Asked:
    """What was asked, in the call that is running.

    `context` says which text of the nodes goes along; None: none of it.
    """
    question = query.query_str if query else ""
    # Without a question of its own, an earlier one of the history would be taken for it.
    turns = [*_turns(history), Turn(role="user", text=question)] if question.strip() else []
    return Asked(
        turns=tuple(turn for turn in turns if turn.text.strip()),
        tags=tags(),
        passages=() if context is None else passages(nodes, context),
        sources=len(nodes),
        upstream=upstream,
    )


def tags() -> Tags:
    """The tags of the call that is running.

    Raises:
        ConfigurationError: one is of the wrong type.
    """
    found = active_instrument_tags.get()
    return Tags(
        subject=_tag(found, "aligner_subject", str),
        tenant=_tag(found, "aligner_tenant", str),
        split_key=_tag(found, "aligner_split_key", str),
        enabled=_tag(found, "aligner_enabled", bool) is not False,
    )


def passages(nodes: Sequence[NodeWithScore], mode: MetadataMode) -> tuple[str, ...]:
    """The texts of the nodes, best first as they were retrieved; a node without a text is an image or the like."""
    texts = (node.node.get_content(metadata_mode=mode) for node in nodes)
    return tuple(text for text in texts if text.strip())


def question_not_found() -> PromptNotFoundError:
    """The error for an answer without a question, with the ways to give one."""
    return PromptNotFoundError(
        "The question of this answer is not known. An answer is never corrected blind. Give the question in one of these "
        "ways:\n"
        "- postprocessor.postprocess_response(response, query_str=question)\n"
        "- AlignerQueryEngine(query_engine, postprocessor).query(question)\n"
        "- AlignerSynthesizer(synthesizer, postprocessor).synthesize(question, nodes)",
        reason="unknown",
    )


def _turns(history: Sequence[ChatMessage]) -> list[Turn]:
    return [Turn(role=_ROLE_OF[message.role], text=message.content or "") for message in history]


def _tag(found: Mapping[str, Any], key: str, kind: type[_T]) -> _T | None:
    value = found.get(key)
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(
            f"The instrument tag {key!r} must be a {kind.__name__}, not {type(value).__name__}: "
            f"with instrument_tags({{{key!r}: ...}})."
        )
    return value
