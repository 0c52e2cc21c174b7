"""What a chat engine remembers: the corrected answer in the place of the original, and all else as it was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama import CHATS, GOOD, ScriptedLLM, Shelf, call, read
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.memory import BaseMemoryBlock, ChatMemoryBuffer, Memory
from llama_index.core.storage.chat_store.base_db import MessageStatus

from aligner_chain import Aligner, ConfigurationError, Exchange
from aligner_chain.llama_index import AlignerChatEngine
from aligner_chain.llama_index.memory import areplace_answer, replace_answer


class Archive(BaseMemoryBlock[str]):
    """A memory block that notes what it is fed."""

    fed: list[str] = []  # noqa: RUF012  A pydantic field: each object has its own.

    async def _aget(self, messages: Any = None, **kw: Any) -> str:
        return "remembered"

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.fed.extend(message.content or "" for message in messages)


def said(messages: list[ChatMessage]) -> list[str]:
    return [message.content or "" for message in messages]


def memories() -> list[Any]:
    return [Memory.from_defaults(token_limit=3000), ChatMemoryBuffer.from_defaults(token_limit=3000)]


@pytest.mark.parametrize("method", CHATS)
async def test_what_was_archived_stays_so_and_no_block_is_fed_twice(method: str, mend: Aligner) -> None:
    archive = Archive(name="archive")
    memory = Memory.from_defaults(token_limit=40, token_flush_size=4, memory_blocks=[archive])
    llm = ScriptedLLM(reply=lambda prompt: "bad " * 4 + "answer")
    engine = AlignerChatEngine(SimpleChatEngine.from_defaults(llm=llm, memory=memory), mend)
    for number in range(4):
        await read(await call(engine, method, f"what about number {number}?"))
    archived, active = [
        said(await memory.aget_all(status=status)) for status in (MessageStatus.ARCHIVED, MessageStatus.ACTIVE)
    ]
    mended = "good " * 4 + "answer"
    turns = [text for number in range(4) for text in (f"what about number {number}?", mended)]
    assert archived
    assert [*archived, *active] == turns
    assert archive.fed == archived
    assert said(engine.chat_history) == turns


@pytest.mark.parametrize("method", CHATS)
async def test_memory_blocks_are_read_as_part_of_the_history(method: str, mend: Aligner, asked: list[Exchange]) -> None:
    memory = Memory.from_defaults(token_limit=3000, memory_blocks=[Archive(name="archive")])
    engine = AlignerChatEngine(SimpleChatEngine.from_defaults(llm=ScriptedLLM(), memory=memory), mend)
    await read(await call(engine, method, "q"))
    assert [turn.role for turn in asked[0].turns] == ["system", "user"]
    assert "remembered" in asked[0].turns[0].text


@pytest.mark.parametrize("method", CHATS)
async def test_of_equal_answers_the_newest_is_replaced(method: str) -> None:
    numbers = iter(range(1, 9))
    counting = Aligner.scripted(lambda exchange: f"{exchange.answer} {next(numbers)}")
    for memory in memories():
        history = [ChatMessage("q", role="user"), ChatMessage("the same", role="assistant")]
        await memory.aput_messages(history)
        inner = SimpleChatEngine.from_defaults(llm=ScriptedLLM(reply="the same"), memory=memory)
        answer = await read(await call(AlignerChatEngine(inner, counting), method, "q"))
        assert said(memory.get_all()) == ["q", "the same", "q", answer]
        assert answer.startswith("the same ")


@pytest.mark.parametrize("memory", memories(), ids=lambda memory: type(memory).__name__)
async def test_only_the_text_of_the_answer_changes(memory: Any) -> None:
    picture = ImageBlock(url="http://localhost/a.png")
    answer = ChatMessage(
        role=MessageRole.ASSISTANT, blocks=[TextBlock(text="a bad one"), picture], additional_kwargs={"kept": 1}
    )
    others = [
        ChatMessage("s", role=MessageRole.SYSTEM),
        ChatMessage("a bad one", role=MessageRole.USER),
        answer,
        ChatMessage("a bad one", role=MessageRole.TOOL),
    ]
    await memory.aput_messages(list(others))
    await areplace_answer(memory, "a bad one", "a good one")
    kept = await memory.aget_all()
    assert [message.role for message in kept] == [message.role for message in others]
    assert said(kept) == ["s", "a bad one", "a good one", "a bad one"]
    assert kept[2].blocks[1].url == picture.url
    assert kept[2].additional_kwargs == {"kept": 1}
    assert answer.content == "a bad one"
    replace_answer(memory, "a bad one", "never said")
    replace_answer(memory, "a good one", None)
    assert said(await memory.aget_all()) == ["s", "a bad one", "a bad one"]


@pytest.mark.parametrize("method", ["stream_chat", "astream_chat"])
async def test_an_answer_that_was_stripped_is_found(method: str, mend: Aligner) -> None:
    for memory in memories():
        inner = SimpleChatEngine.from_defaults(llm=ScriptedLLM(reply="\n a bad answer \n"), memory=memory)
        assert (await read(await call(AlignerChatEngine(inner, mend), method, "q"))).strip() == GOOD
        assert said(memory.get_all()) == ["q", GOOD]


@pytest.mark.parametrize("method", CHATS)
async def test_an_answer_is_corrected_also_where_nothing_was_remembered(method: str, mend: Aligner) -> None:
    class Forgetful(ChatMemoryBuffer):
        def put(self, message: ChatMessage) -> None:
            """Remembers nothing."""

        async def aput(self, message: ChatMessage) -> None:
            """Remembers nothing."""

    memory = Forgetful.from_defaults(token_limit=3000)
    inner = ContextChatEngine.from_defaults(Shelf("one"), llm=ScriptedLLM(), memory=memory)
    assert await read(await call(AlignerChatEngine(inner, mend), method, "q")) == GOOD
    assert memory.get_all() == []


@pytest.mark.filterwarnings(
    "ignore:Exception in thread:pytest.PytestUnhandledThreadExceptionWarning"
)  # LlamaIndex's own
@pytest.mark.parametrize("method", CHATS)
async def test_an_upstream_that_fails_takes_no_other_message_along(method: str, mend: Aligner) -> None:
    def fail(prompt: str) -> str:
        raise ConnectionError("the upstream is gone")

    before = [
        ChatMessage("q", role=MessageRole.USER),
        ChatMessage(role=MessageRole.ASSISTANT, blocks=[], additional_kwargs={"tool_calls": [{"id": "1"}]}),
        ChatMessage("found", role=MessageRole.TOOL),
    ]
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
    memory.put_messages(list(before))

    class Failing(ScriptedLLM):
        def stream_chat(self, messages: Any, **kw: Any) -> Any:
            yield fail("")

        async def astream_chat(self, messages: Any, **kw: Any) -> Any:
            return self._failing()

        async def _failing(self) -> Any:
            yield fail("")

    engine = AlignerChatEngine(SimpleChatEngine.from_defaults(llm=Failing(reply=fail), memory=memory), mend)
    with pytest.raises(ConnectionError):
        await read(await call(engine, method, "q2"))
    assert memory.get_all()[:3] == before
    assert "assistant" not in [message.role.value for message in memory.get_all()[3:]]


@pytest.mark.parametrize("method", CHATS)
async def test_a_call_that_cannot_be_corrected_leaves_no_answer_behind(method: str, mend: Aligner) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
    engine = AlignerChatEngine(SimpleChatEngine.from_defaults(llm=ScriptedLLM(), memory=memory), mend)
    with instrument_tags({"aligner_subject": 7}), pytest.raises(ConfigurationError, match="aligner_subject"):
        await read(await call(engine, method, "q"))
    await asyncio.sleep(0.05)  # what LlamaIndex may still be writing in the background
    assert "assistant" not in [message.role.value for message in memory.get_all()]


class Slow(ChatMemoryBuffer):
    """A memory that takes its time to be written, and tells that it has begun."""

    begun: Any = None
    written: Any = None

    async def aset(self, messages: list[ChatMessage]) -> None:
        self.set([])
        self.begun.set()
        await asyncio.sleep(0.05)
        self.set(messages)
        self.written.set()


async def test_a_memory_is_whole_where_its_call_was_cancelled_meanwhile(mend: Aligner) -> None:
    memory: Any = Slow.from_defaults(token_limit=3000)
    memory.begun, memory.written = asyncio.Event(), asyncio.Event()
    engine = AlignerChatEngine(SimpleChatEngine.from_defaults(llm=ScriptedLLM(), memory=memory), mend)
    running = asyncio.create_task(engine.achat("q"))
    await memory.begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await memory.written.wait()
    assert GOOD in said(memory.get_all()) or said(memory.get_all()) == ["q"]
