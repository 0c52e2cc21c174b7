"""LlamaIndex's client of OpenAI-compatible servers, run by the Python of an environment of its own.

    python llama_index_client.py http://127.0.0.1:8800/v1

Makes each of `CALLS` and prints, by its name, the responses of all its pieces, or its error, as JSON.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

WEATHER = "weather in Rome?"


def get_weather(location: str) -> str:
    """The weather in a place."""
    return f"bad weather in {location}"


def _asked(question: str) -> list[Any]:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=question)]


def _told() -> list[Any]:
    """A conversation in which a tool has answered."""
    from llama_index.core.llms import ChatMessage

    called = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Rome"}'}}
    calling = ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [called]})
    return [
        *_asked(WEATHER),
        calling,
        ChatMessage(role="tool", content="rain", additional_kwargs={"tool_call_id": "c1"}),
    ]


def _tools() -> list[Any]:
    from llama_index.core.tools import FunctionTool

    return [FunctionTool.from_defaults(get_weather)]


def _joke() -> Any:
    from pydantic import BaseModel

    class Joke(BaseModel):
        setup: str

    return Joke


_JSON = {"response_format": {"type": "json_object"}}

CALLS: dict[str, Callable[[Any], Any]] = {
    "complete": lambda llm: llm.complete("how?"),
    "stream_complete": lambda llm: llm.stream_complete("how?"),
    "acomplete": lambda llm: llm.acomplete("how?"),
    "astream_complete": lambda llm: llm.astream_complete("how?"),
    "chat": lambda llm: llm.chat(_asked("how?")),
    "stream_chat": lambda llm: llm.stream_chat(_asked("how?")),
    "achat": lambda llm: llm.achat(_asked("how?")),
    "astream_chat": lambda llm: llm.astream_chat(_asked("how?")),
    "chat after a tool": lambda llm: llm.chat(_told()),
    "stream_chat after a tool": lambda llm: llm.stream_chat(_told()),
    "chat_with_tools left": lambda llm: llm.chat_with_tools(_tools(), user_msg="how?"),
    "stream_chat_with_tools left": lambda llm: llm.stream_chat_with_tools(_tools(), user_msg="how?"),
    "chat_with_tools": lambda llm: llm.chat_with_tools(_tools(), user_msg=WEATHER),
    "stream_chat_with_tools": lambda llm: llm.stream_chat_with_tools(_tools(), user_msg=WEATHER),
    "achat_with_tools": lambda llm: llm.achat_with_tools(_tools(), user_msg=WEATHER),
    "astream_chat_with_tools": lambda llm: llm.astream_chat_with_tools(_tools(), user_msg=WEATHER),
    "chat_with_tools forced": lambda llm: llm.chat_with_tools(_tools(), user_msg="how?", tool_required=True),
    "stream_chat_with_tools forced": lambda llm: llm.stream_chat_with_tools(_tools(), "how?", tool_required=True),
    "predict_and_call": lambda llm: llm.predict_and_call(_tools(), user_msg=WEATHER),
    "as_structured_llm": lambda llm: llm.as_structured_llm(_joke()).chat(_asked("a joke")),
    "stream as_structured_llm": lambda llm: llm.as_structured_llm(_joke()).stream_chat(_asked("a joke")),
    "chat in JSON": lambda llm: llm.chat(_asked("a joke with 'setup'"), **_JSON),
    "stream_chat in JSON": lambda llm: llm.stream_chat(_asked("a joke with 'setup'"), **_JSON),
    "chat refused": lambda llm: llm.chat(_asked("please refuse")),
    "stream_chat refused": lambda llm: llm.stream_chat(_asked("please refuse")),
    "chat that fails": lambda llm: llm.chat(_asked("break it")),
    "stream_chat that fails": lambda llm: llm.stream_chat(_asked("break it")),
    "chat that is wrong": lambda llm: llm.chat(_told()[:2] + _told()[3:]),
    "stream_chat that is wrong": lambda llm: llm.stream_chat(_told()[:2] + _told()[3:]),
}
"""Every way in which LlamaIndex asks: the texts, which are corrected, then what passes, then errors."""


async def _made(call: Callable[[Any], Any], url: str) -> list[Any]:
    from llama_index.llms.openai_like import OpenAILike
    from openai import APIError

    # Its own retries look at the status alone: with them a correction that failed would be asked for, and paid, again.
    known = {"model": "gpt-test", "api_base": url, "api_key": "sk-secret-0123456789", "max_retries": 0}
    llm = OpenAILike(**known, is_chat_model=True, is_function_calling_model=True)
    try:
        given = call(llm)
        if inspect.isawaitable(given):
            given = await given
        if inspect.isasyncgen(given):
            return [_shown(piece) async for piece in given]
        return [_shown(piece) for piece in (given if inspect.isgenerator(given) else [given])]
    except APIError as error:
        return [{"error": type(error).__name__, "code": error.code, "body": error.body}]


def _shown(response: Any) -> Any:
    """A response as JSON, with the openai client's own object in it under "raw"."""
    if not hasattr(response, "model_dump"):
        return {"text": str(response), "sources": [str(one) for one in response.sources]}
    return response.model_dump(mode="json")


async def main(url: str) -> dict[str, list[Any]]:
    """What each of the calls gives."""
    return {name: await _made(call, url) for name, call in CALLS.items()}


if __name__ == "__main__":
    json.dump(asyncio.run(main(sys.argv[1])), sys.stdout, default=str)
