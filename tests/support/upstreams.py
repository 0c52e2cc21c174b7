"""A chat model as an agent has one, that answers badly: whole, in pieces, or only under asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

USAGE: Any = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


class Upstream(BaseChatModel):
    """Answers "a bad answer", or calls the first tool it is given for a prompt of "call"; notes what it was asked."""

    model_name: str = "upstream-1"
    asked: list[dict[str, Any]] = []  # noqa: RUF012  A pydantic field: each object has its own.
    generations: int = 1
    reply: str = "a bad answer"

    @property
    def _llm_type(self) -> str:
        return "upstream"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name}

    def _answer(self, messages: Sequence[BaseMessage], settings: dict[str, Any]) -> AIMessage:
        self.asked.append(settings)
        call = messages[-1].text == "call"
        calls = [{"name": settings["tools"][0]["function"]["name"], "args": {"q": "bad"}, "id": "c1"}] if call else []
        text = "a bad plan" if call else self.reply
        return AIMessage(text, tool_calls=calls, usage_metadata=USAGE, additional_kwargs={"kept": 1})

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        info = {"finish_reason": "stop"}
        answers = [self._answer(messages, {"stop": stop, **kw}) for _ in range(self.generations)]
        return ChatResult(
            generations=[ChatGeneration(message=answer, generation_info=info) for answer in answers],
            llm_output={"model_name": self.model_name},
        )

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kw: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kw)


class StreamingUpstream(Upstream):
    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> Iterator[ChatGenerationChunk]:
        answer = self._answer(messages, {"stop": stop, **kw})
        for place, word in enumerate(answer.text.split(" ")):
            usage = USAGE if place == 0 else None
            yield ChatGenerationChunk(message=AIMessageChunk(word if place == 0 else f" {word}", usage_metadata=usage))
        if answer.tool_calls:
            call, pieces = answer.tool_calls[0], ('{"q": ', '"bad"}')
            for place, arguments in enumerate(pieces):
                named = {"name": call["name"], "id": call["id"]} if place == 0 else {"name": None, "id": None}
                chunk: Any = {**named, "args": arguments, "index": 0, "type": "tool_call_chunk"}
                yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=[chunk]))
        info = {"finish_reason": "stop", "model_name": self.model_name}
        yield ChatGenerationChunk(message=AIMessageChunk(""), generation_info=info)


class AsyncUpstream(StreamingUpstream):
    """Can do nothing without asyncio."""

    def _generate(self, *given: Any, **kw: Any) -> ChatResult:
        raise AssertionError("called from a coroutine")

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> Any:
        return Upstream._generate(self, messages, stop, **kw)

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in StreamingUpstream._stream(self, messages, stop, **kw):
            yield chunk

    def _stream(self, *given: Any, **kw: Any) -> Iterator[ChatGenerationChunk]:
        raise AssertionError("called from a coroutine")


def search(q: str) -> str:
    """Searches."""
    return q
