"""A chat engine's memory, into which the engine has written an answer before it could be corrected."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.memory import BaseMemory, Memory
from llama_index.core.storage.chat_store.base_db import MessageStatus


def replace_answer(memory: BaseMemory, answer: str, text: str | None) -> None:
    """Puts `text` in the place of the newest assistant message that says `answer`; None takes the message out."""
    asyncio_run(areplace_answer(memory, answer, text))


async def areplace_answer(memory: BaseMemory, answer: str, text: str | None) -> None:
    """The same for asyncio."""
    if not answer.strip():
        return  # The upstream failed before it said anything; a message without a text is a tool call.
    messages = await _recent(memory)
    for place in reversed(range(len(messages))):
        message = messages[place]
        # Engines strip what they streamed.
        if message.role == MessageRole.ASSISTANT and (message.content or "").strip() == answer.strip():
            messages[place : place + 1] = [] if text is None else [saying(message, text)]
            await _put_back(memory, messages)
            return


async def _recent(memory: BaseMemory) -> list[ChatMessage]:
    if isinstance(memory, Memory):
        return list(await memory.aget_all(status=MessageStatus.ACTIVE))
    return list(await memory.aget_all())


async def _put_back(memory: BaseMemory, messages: Sequence[ChatMessage]) -> None:
    if not isinstance(memory, Memory):
        await memory.aset(list(messages))
        return
    # Its own `aset` would also delete what was archived, or, given that too, hand it to the memory blocks once more.
    await memory.sql_store.delete_messages(memory.session_id, status=MessageStatus.ACTIVE)
    await memory.sql_store.add_messages(memory.session_id, list(messages), status=MessageStatus.ACTIVE)


def saying(message: ChatMessage, text: str) -> ChatMessage:
    """The message with another text."""
    others = [block for block in message.blocks if not isinstance(block, TextBlock)]
    return message.model_copy(update={"blocks": [TextBlock(text=text), *others]})
