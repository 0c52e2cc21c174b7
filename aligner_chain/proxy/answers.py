"""A message of an answer as the chat completions API writes it: whether it is for the Aligner, and with another text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner_chain.exchange import Correction
from aligner_chain.proxy.asking import Asked, is_text, text_of
from aligner_chain.structured import is_structured

Message = Mapping[str, Any]

KEY = "aligner"
"""Where a choice tells what became of its answer."""
OF_TOKENS = ("logprobs", "token_ids")
"""What a choice tells of the tokens of its text; vLLM tells their ids too, where it is asked to."""


def skip_reason(message: Message, asked: Asked) -> str:
    """Why this answer is not for the Aligner, or "" where it is: the rules of the faces, in the words of this API."""
    content = message.get("content")
    if calls_tools(message):
        return "the answer calls a tool"
    if refuses(message):
        return "the answer is a refusal"
    if message.get("audio"):
        return "the answer is spoken"
    if not text_of(content).strip():
        return "the answer is empty"
    if asked.constrained or is_structured(text_of(content)):
        return "the answer is structured output"
    if _is_interleaved(content):
        return "the text stands on both sides of other content"
    return ""


def calls_tools(message: Message) -> bool:
    """Whether the message, or a piece of one, asks for a tool."""
    return bool(message.get("tool_calls") or message.get("function_call"))


def refuses(message: Message) -> bool:
    """Whether the upstream marked the message as a refusal, in a field of its own or as a part."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return bool(message.get("refusal")) or any(isinstance(one, dict) and one.get("type") == "refusal" for one in parts)


def with_text(content: Any, text: str) -> Any:
    """The content with its run of text replaced by `text`."""
    if not isinstance(content, list):
        return text
    first = next(place for place, part in enumerate(content) if is_text(part))
    kept = [part for place, part in enumerate(content) if place == first or not is_text(part)]
    kept[first] = {"type": "text", "text": text}
    return kept


def delivered(choice: Message, correction: Correction) -> tuple[dict[str, Any], dict[str, Any]]:
    """The choice as it is sent, and what is told of it. What described the old text, its tokens and sources, goes."""
    told = correction.summary()
    sent, message = dict(choice), dict(choice["message"])
    if not correction.changed:
        return sent, told
    message["content"] = with_text(message["content"], correction.text)
    dropped = [*told_of_tokens(sent), *(["annotations"] if message.get("annotations") else [])]
    sent |= dict.fromkeys(told_of_tokens(sent))
    if message.get("annotations"):
        message["annotations"] = []
    return {**sent, "message": message}, {**told, "dropped": dropped} if dropped else told


def told_of_tokens(choice: Message) -> list[str]:
    """The fields of a choice, or of a piece of one, that tell something of the tokens of its text."""
    return [name for name in OF_TOKENS if choice.get(name)]


def _is_interleaved(content: Any) -> bool:
    if not isinstance(content, list):
        return False
    places = [place for place, part in enumerate(content) if is_text(part)]
    return places[-1] - places[0] >= len(places)
