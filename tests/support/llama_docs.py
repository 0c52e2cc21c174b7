"""The language model behind the examples of docs/llama_index.md: it plays every part that they ask of one."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool

DRAFT = "You have 30 days [1]."

# What a tool may want to be called with.
_ARGUMENTS = {"input": "How long?", "index": 0, "reason": "shop", "text": DRAFT, "product": "kettle"}

# What stands in a prompt of LlamaIndex, and what a model answers to it.
_PARTS = (
    (r'"sub_question"', '```json\n{"items": [{"sub_question": "How long?", "tool_name": "shop"}]}\n```'),
    (r"YES", "YES"),
    (r"Observation: [^`]*$", f"Thought: I can answer.\nAnswer: {DRAFT}"),
    (r"Tool Name: (\w+)", 'Thought: I look it up.\nAction: \\1\nAction Input: {"input": "How long?"}'),
    (r"standalone question", "How long can a kettle be returned?"),
)


class ShopModel(FunctionCallingLLM):
    """Answers DRAFT, word by word where it streams, once it has called the first tool that it was given."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="shop-model", is_chat_model=True, is_function_calling_model=True)

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=_said(messages, kwargs.get("tools") or ()))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        message, text = self.chat(messages, **kwargs).message, ""
        for piece in re.findall(r"\S+\s*", message.content or "") or [""]:
            text += piece
            yield ChatResponse(
                message=ChatMessage(role="assistant", content=text, additional_kwargs=message.additional_kwargs),
                delta=piece,
            )

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self.chat(messages, **kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        async def pieces() -> AsyncGenerator[ChatResponse, None]:
            for response in self.stream_chat(messages, **kwargs):
                yield response

        return pieces()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=_text(prompt))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self.complete(prompt)

    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def astream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        said = [ChatMessage(content=user_msg) if isinstance(user_msg, str) else user_msg] if user_msg else []
        return {"messages": [*(chat_history or []), *said], "tools": tools}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        return list(response.message.additional_kwargs.get("tool_calls", []))


def _said(messages: Sequence[ChatMessage], tools: Sequence[BaseTool]) -> ChatMessage:
    if tools and messages[-1].role != MessageRole.TOOL:
        tool = tools[0].metadata
        given = {name: _ARGUMENTS[name] for name in tool.get_parameters_dict()["properties"]}
        call = ToolSelection(tool_id="call", tool_name=tool.get_name(), tool_kwargs=given)
        return ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]})
    return ChatMessage(role="assistant", content=_text("\n".join(message.content or "" for message in messages)))


def _text(prompt: str) -> str:
    return next((match.expand(text) for pattern, text in _PARTS if (match := re.search(pattern, prompt))), DRAFT)
