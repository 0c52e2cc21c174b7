"""Chat answers that stream: corrected in the background, as chat engines write them, and remembered as corrected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.memory import BaseMemory
from llama_index.core.types import Thread

from aligner_chain.llama_index.memory import areplace_answer, replace_answer


@dataclass
class CorrectedChatStream(StreamingAgentChatResponse):
    """A streamed chat answer that an Aligner corrects; `metadata` tells of it once it has been read."""

    metadata: dict[str, Any] | None = None

    @property
    def response_gen(self) -> Generator[str, None, None]:
        if self.chat_stream is not None:
            # LlamaIndex looks for the next piece without a pause, which would take the Aligner's CPU away from it.
            self.is_function_not_none_thread_event.wait()
        yield from super().response_gen

    def start(self, original: StreamingResponse, corrected: StreamingResponse, memory: BaseMemory) -> None:
        """Starts correcting in a thread, whether anybody reads the stream or not."""
        self.chat_stream = _messages(original, corrected, memory)
        thread = Thread(target=self._write, args=(_Rewritten(original, memory),))
        self.write_response_to_history_thread = thread
        thread.start()

    def start_async(
        self, original: AsyncStreamingResponse, corrected: AsyncStreamingResponse, memory: BaseMemory
    ) -> None:
        """The same in a task."""
        self.achat_stream = _amessages(original, corrected, memory)
        self._ensure_async_setup()
        written = self.awrite_response_to_history(_Rewritten(original, memory))
        self.awrite_response_to_history_task = asyncio.create_task(written)

    def _write(self, memory: Any) -> None:
        try:
            self.write_response_to_history(memory)
        except Exception as error:  # noqa: BLE001  It is raised where the stream is read, and not in a thread of its own.
            self.exception = error


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A memory that holds the original already, as what writes the corrected answer into it sees it."""

    original: StreamingResponse | AsyncStreamingResponse
    memory: BaseMemory

    def put(self, message: ChatMessage) -> None:
        if self._differs(message):
            replace_answer(self.memory, self.original.response_txt or "", message.content)

    async def aput(self, message: ChatMessage) -> None:
        if self._differs(message):
            await areplace_answer(self.memory, self.original.response_txt or "", message.content)

    def _differs(self, message: ChatMessage) -> bool:
        return message.content != (self.original.response_txt or "").strip()


def _messages(
    original: StreamingResponse, corrected: StreamingResponse, memory: BaseMemory
) -> Generator[ChatResponse, None, None]:
    text = ""
    try:
        for piece in corrected.response_gen:
            text += piece
            yield _said(text, piece)
    except BaseException:
        replace_answer(memory, original.response_txt or "", None)  # Nobody was given this answer.
        raise


async def _amessages(
    original: AsyncStreamingResponse, corrected: AsyncStreamingResponse, memory: BaseMemory
) -> AsyncGenerator[ChatResponse, None]:
    text = ""
    try:
        async for piece in corrected.response_gen:
            text += piece
            yield _said(text, piece)
    except BaseException:
        await areplace_answer(memory, original.response_txt or "", None)
        raise


def _said(text: str, piece: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)
