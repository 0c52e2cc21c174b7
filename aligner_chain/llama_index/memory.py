"""A chat engine's memory, into which the engine has written an answer before it could be corrected."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.memory import BaseMemory, Memory
from llama_index.core.storage.chat_store.base_db import MessageStatus

_REPLACING: set[asyncio.Future[None]] = set()  # asyncio itself holds its tasks weakly


def replace_answer(memory: BaseMemory, answer: str, text: str | None) -> None:
    """Puts `text` in the place of the newest assistant message that says `answer`; None takes the message out."""
    asyncio_run(_replaced(memory, answer, text))


async def areplace_answer(memory: BaseMemory, answer: str, text: str | None) -> None:
    """The same for asyncio; it is finished also where the caller is cancelled meanwhile, or the memory would lack what was taken out."""
    replacing = asyncio.ensure_future(_replaced(memory, answer, text))
    _REPLACING.add(replacing)
    replacing.add_done_callback(_REPLACING.discard)
    await asyncio.shield(replacing)


async def _replaced(memory: BaseMemory, answer: str, text: str | None) -> None:
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
    blocks, places = list(message.blocks), [i for i, block in enumerate(message.blocks) if isinstance(block, TextBlock)]
    first = places[0] if places else len(blocks)  # Providers want a reasoning block before the text.
    others = [block for block in blocks[first:] if not isinstance(block, TextBlock)]
    return message.model_copy(update={"blocks": [*blocks[:first], TextBlock(text=text), *others]})
