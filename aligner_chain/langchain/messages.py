"""LangChain's messages as questions and answers, and a correction as a message again.

A message is shared by caches, states and handlers, so it is never changed: what comes out is a copy, or the very object
that came in where there was nothing to correct.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)

from aligner_chain.errors import PromptNotFoundError
from aligner_chain.exchange import Correction, Turn
from aligner_chain.structured import is_structured

METADATA_KEY = "aligner"
"""Where `response_metadata` tells what became of the answer."""

_ROLE_OF: dict[type[BaseMessage], str] = {
    HumanMessage: "user",
    AIMessage: "assistant",
    SystemMessage: "system",
    ToolMessage: "tool",
    FunctionMessage: "tool",
}
_RUN_ID = re.compile(r"run-{1,2}([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_OF_THE_ORIGINAL = ("annotations", "citations", "logprobs")
"""What describes the tokens and characters of a text and is wrong for another one."""

_FOUND = {
    "unknown": "The question of this answer is not known: no model run that this process recorded gave it.\n"
    "An AlignerCorrector asks no model; it stands behind the one whose answer it corrects:  llm | AlignerCorrector()",
    "ambiguous": "The question of this answer is ambiguous: models near the corrector were asked different ones.",
    "wordless": "The question of this answer holds no words, and an Aligner reads nothing else.",
}
_REMEDIES = """Give the question in one of these ways:
- chain.invoke(..., config={"configurable": {"aligner_question": question}})
- corrector.invoke({"question": question, "answer": answer})
- corrector.invoke({"messages": [*prompt_messages, answer_message]})
- AlignerCorrector(question=question), where it is always the same
- AlignedChatModel(llm=llm) in place of llm | corrector, since a chat model knows its own prompt"""

_READABLE = """AlignerCorrector reads an AIMessage, a str, {"question": ..., "answer": ...}, {"messages": [..., AIMessage]} \
or a list of messages that ends in an AIMessage.
Put it right after the model, before any parser that makes something else of the answer:  llm | AlignerCorrector() | parser"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One input of the corrector: the answer as it was given and, where the input says so, what was asked."""

    given: AIMessage | str
    turns: tuple[Turn, ...] = ()
    asked: bool = False
    """Whether the input holds a question, which may be an image alone and then makes no turns."""

    @property
    def text(self) -> str:
        return text_of(self.given)

    @property
    def message(self) -> AIMessage | None:
        return self.given if isinstance(self.given, AIMessage) else None


def read_answer(value: object) -> Answer:
    """The answer in an input of the corrector.

    Raises:
        TypeError: the input is none of the readable forms; the message lists them.
    """
    if isinstance(value, str | AIMessage):
        return Answer(given=value)
    if isinstance(value, Mapping) and "messages" in value:
        return _end_of_conversation(value["messages"])
    if isinstance(value, Mapping) and {"question", "answer"} <= value.keys():
        return _question_and_answer(value)
    if isinstance(value, list | tuple):
        return _end_of_conversation(value)
    raise _unreadable(value)


def turns_of(messages: Iterable[BaseMessage]) -> tuple[Turn, ...]:
    """The text of each message, with its role in the words of `Turn`."""
    return tuple(Turn(role=role_of(message), text=text_of(message)) for message in messages)


def worded(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """The turns that hold text, or none where the user said nothing in words: such a question is not known."""
    spoken = tuple(turn for turn in turns if turn.text.strip())
    return spoken if any(turn.role == "user" for turn in spoken) else ()


def known_turns(messages: Iterable[BaseMessage]) -> tuple[Turn, ...]:
    """What messages ask in words."""
    return worded(turns_of(messages))


def text_of(answer: BaseMessage | str) -> str:
    """The text of a message, without its other blocks."""
    if isinstance(answer, str):
        return str(answer)
    return answer.content if isinstance(answer.content, str) else str(answer.text)


def run_id_of(message_id: str | None) -> UUID | None:
    """The model run that LangChain wrote into a message's id, or None where a provider or a user chose the id."""
    match = _RUN_ID.search(message_id or "")
    return UUID(match.group(1)) if match else None


def upstream_in(metadata: Mapping[str, Any]) -> str | None:
    """The model that wrote an answer: as `name@version` where it says so, else by the name its provider gives it."""
    name = metadata.get("upstream") or metadata.get("model_name")
    return str(name) if name else None


def skip_reason(answer: AIMessage | str, *, structured: bool = True) -> str:
    """Why this answer is not for the Aligner, or "" where it is. `structured=False` lets JSON in its text pass."""
    if isinstance(answer, AIMessage) and calls_tools(answer):
        return "the answer calls a tool"
    if isinstance(answer, AIMessage) and _refuses(answer):
        return "the answer is a refusal"
    if not text_of(answer).strip():
        return "the answer is empty"
    if isinstance(answer, AIMessage) and "parsed" in answer.additional_kwargs:
        return "the answer is structured output that was parsed already"
    if structured and is_structured(text_of(answer)):
        return "the answer is structured output"
    if isinstance(answer, AIMessage) and _is_interleaved(answer.content):
        return "the text stands on both sides of other content"
    return ""


def calls_tools(message: AIMessage) -> bool:
    """Whether the message asks for a tool, be the call whole, broken or a first piece of one."""
    pieces = message.tool_call_chunks if isinstance(message, AIMessageChunk) else ()
    called = message.tool_calls or message.invalid_tool_calls or pieces
    return bool(called or "function_call" in message.additional_kwargs)


def deliver(given: AIMessage | str, correction: Correction, *, keep_original: bool = False) -> AIMessage | str:
    """The answer to hand on: a text for a text; for a message its copy, under the same id, with the corrected text."""
    if correction.outcome == "skipped":
        return given
    if isinstance(given, str):
        return correction.text
    content, metadata = given.content, given.response_metadata
    if correction.changed:
        content, metadata = _with_text(content, correction.text), still_true(metadata)
    metadata = {**metadata, METADATA_KEY: correction.summary(keep_original=keep_original)}
    return given.model_copy(update={"content": content, "response_metadata": metadata})


def prompt_not_found(reason: Literal["unknown", "ambiguous", "wordless"]) -> PromptNotFoundError:
    """The error for an answer without a question, with the ways to give one."""
    return PromptNotFoundError(f"{_FOUND[reason]}\n{_REMEDIES}", reason=reason)


def _end_of_conversation(messages: Any) -> Answer:
    if not isinstance(messages, list | tuple) or not messages:
        raise _unreadable(messages)
    try:
        *asked, answer = convert_to_messages(messages)
    except (ValueError, NotImplementedError) as error:  # what LangChain raises for items that are no messages
        raise _unreadable(messages) from error
    if not isinstance(answer, AIMessage):
        raise _unreadable(answer)
    return Answer(given=answer, turns=known_turns(asked), asked=any(isinstance(said, HumanMessage) for said in asked))


def _question_and_answer(value: Mapping[str, Any]) -> Answer:
    question, answer = value["question"], value["answer"]
    if not isinstance(question, str) or not isinstance(answer, str | AIMessage):
        raise _unreadable(value)
    message = AIMessage(content=answer) if isinstance(answer, str) else answer
    return Answer(given=message, turns=known_turns([HumanMessage(question)]))


def _unreadable(value: object) -> TypeError:
    keys = f" with the keys {sorted(map(str, value))}" if isinstance(value, Mapping) else ""
    return TypeError(f"This {type(value).__name__}{keys} holds no answer to correct. {_READABLE}")


def role_of(message: BaseMessage) -> str:
    """The role in the words of `Turn`, or the one that a `ChatMessage` names."""
    known = _ROLE_OF.get(type(message))
    if known is not None:
        return known
    if isinstance(message, ChatMessage):
        return message.role
    return next((role for kind, role in _ROLE_OF.items() if isinstance(message, kind)), message.type)


def _refuses(message: AIMessage) -> bool:
    """Whether the provider marked the answer as a refusal, in Chat Completions' way or in a block of its own."""
    blocks = message.content if isinstance(message.content, list) else []
    kinds = {_kind(block) for block in blocks if isinstance(block, Mapping)}
    return "refusal" in kinds or bool(message.additional_kwargs.get("refusal"))


def _kind(block: Mapping[str, Any]) -> Any:
    held = block.get("value")  # of a block that this version of LangChain does not know
    return held.get("type") if block.get("type") == "non_standard" and isinstance(held, Mapping) else block.get("type")


def _is_text(block: object) -> bool:
    return isinstance(block, str) or (isinstance(block, Mapping) and block.get("type") == "text")


def _is_interleaved(content: str | Sequence[object]) -> bool:
    if isinstance(content, str):
        return False
    places = [place for place, block in enumerate(content) if _is_text(block)]
    return places[-1] - places[0] >= len(places)


def _with_text(content: str | list[Any], text: str) -> str | list[Any]:
    """The content with its run of text blocks replaced by the first of them, which says `text`.

    Annotations and citations go, since they point at characters that are no longer there.
    """
    if isinstance(content, str):
        return text
    first = next(place for place, block in enumerate(content) if _is_text(block))
    kept = [block for place, block in enumerate(content) if place == first or not _is_text(block)]
    kept[first] = text if isinstance(kept[first], str) else still_true(kept[first]) | {"text": text}
    return kept


def still_true(described: Mapping[str, Any]) -> dict[str, Any]:
    """What of a block or of metadata holds for another text too."""
    return {key: value for key, value in described.items() if key not in _OF_THE_ORIGINAL or value is None}
