"""`AlignerChatEngine` around LlamaIndex's engines: all four methods, with everything that the Aligner must know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from llama import BAD, CHATS, GOOD, ScriptedLLM, Shelf, call, node, rag, read
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.response_synthesizers import get_response_synthesizer

from aligner_chain import Aligner, ConfigurationError, Correction, Exchange, PromptNotFoundError
from aligner_chain.errors import EngineError
from aligner_chain.llama_index import AlignerChatEngine

ENGINES: dict[str, Callable[[Any, Any], BaseChatEngine]] = {
    "simple": lambda llm, memory: SimpleChatEngine.from_defaults(llm=llm, memory=memory),
    "context": lambda llm, memory: ContextChatEngine.from_defaults(Shelf("one", "two"), llm=llm, memory=memory),
    "condense plus context": lambda llm, memory: CondensePlusContextChatEngine.from_defaults(
        Shelf("one", "two"), llm=llm, memory=memory
    ),
    "condense question": lambda llm, memory: CondenseQuestionChatEngine.from_defaults(
        rag(get_response_synthesizer(llm=llm), "one", "two"), llm=llm, memory=memory
    ),
}
MEMORIES: dict[str, Callable[[], Any]] = {
    "Memory": lambda: Memory.from_defaults(token_limit=3000),
    "ChatMemoryBuffer": lambda: ChatMemoryBuffer.from_defaults(token_limit=3000),
}


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=MEMORIES)
def memory(request: pytest.FixtureRequest) -> Any:
    return MEMORIES[request.param]()


@pytest.fixture
def buffer() -> Any:
    return MEMORIES["ChatMemoryBuffer"]()


@pytest.fixture
def llm() -> ScriptedLLM:
    """Answers "bad 1", "bad 2" and so on; rewrites each question that refers to an earlier one to "standalone"."""
    numbers = count(1)
    return ScriptedLLM(
        reply=lambda prompt: "standalone" if "standalone question" in prompt.lower() else f"bad {next(numbers)}"
    )


def said(memory: Any) -> list[tuple[str, str]]:
    return [(message.role.value, message.content) for message in memory.get_all()]


@pytest.mark.parametrize("method", CHATS)
async def test_a_conversation(
    method: str, kind: str, memory: Any, llm: Any, postprocessor: Any, asked: list[Exchange], told: list[Correction]
) -> None:
    engine = AlignerChatEngine(ENGINES[kind](llm, memory), postprocessor)
    for number in (1, 2):
        response = await call(engine, method, f"q{number}")
        assert isinstance(response, StreamingAgentChatResponse if "stream" in method else AgentChatResponse)
        assert await read(response) == f"good {number}"
        assert response.metadata["aligner"] == {
            "outcome": "corrected",
            "reason": "",
            "correction_id": told[-1].id,
            "aligner": "scripted@1",
            "edits": 1,
        }
        assert str(response) == f"good {number}"
        found = [] if kind == "simple" else ["one", "two"]
        assert [one.node.get_content() for one in response.source_nodes] == found
        assert asked[-1].context == tuple(found)
    dialogue = [("user", "q1"), ("assistant", "good 1"), ("user", "q2")]
    assert [(turn.role, turn.text) for turn in asked[-1].turns] == dialogue
    assert said(memory) == [*dialogue, ("assistant", "good 2")]
    assert engine.chat_history == memory.get_all()
    assert len(told) == len(asked) == 2
    assert [exchange.question for exchange in asked] == ["q1", "q2"]


@pytest.mark.parametrize("method", CHATS)
async def test_an_approved_answer_stays(method: str, kind: str, buffer: Any, postprocessor: Any, told: Any) -> None:
    engine = AlignerChatEngine(ENGINES[kind](ScriptedLLM(reply=GOOD), buffer), postprocessor)
    response = await call(engine, method, "q")
    assert await read(response) == GOOD
    assert response.metadata["aligner"]["outcome"] == "approved"
    assert said(buffer) == [("user", "q"), ("assistant", GOOD)]
    assert len(told) == 1


@pytest.mark.parametrize("method", CHATS)
async def test_a_raised_correction_leaves_no_answer_behind(
    method: str, kind: str, buffer: Any, postprocessor: Any, told: list[Correction]
) -> None:
    answers = iter(["bad 1", "a crash"])
    llm = ScriptedLLM(reply=lambda prompt: "standalone" if "standalone question" in prompt.lower() else next(answers))
    engine = AlignerChatEngine(ENGINES[kind](llm, buffer), postprocessor)
    await read(await call(engine, method, "q1"))
    with pytest.raises(EngineError):
        await read(await call(engine, method, "q2"))
    assert said(buffer) == [("user", "q1"), ("assistant", "good 1"), ("user", "q2")]
    assert [one.outcome for one in told] == ["corrected", "failed"]


@pytest.mark.parametrize("method", CHATS)
async def test_a_failure_passes_through(method: str, kind: str, buffer: Any, correcting: Any) -> None:
    engine = AlignerChatEngine(ENGINES[kind](ScriptedLLM(reply="a crash"), buffer), correcting(on_error="pass_through"))
    response = await call(engine, method, "q")
    assert await read(response) == "a crash"
    assert response.metadata["aligner"]["outcome"] == "failed"
    assert said(buffer) == [("user", "q"), ("assistant", "a crash")]


@pytest.mark.parametrize("method", ["stream_chat", "astream_chat"])
async def test_a_stream_that_nobody_reads_is_remembered_corrected(
    method: str, kind: str, buffer: Any, llm: Any, postprocessor: Any, told: list[Correction]
) -> None:
    engine = AlignerChatEngine(ENGINES[kind](llm, buffer), postprocessor)
    response = await call(engine, method, "q1")
    if method == "stream_chat":
        response.write_response_to_history_thread.join()
    else:
        await response.awrite_response_to_history_task
    assert said(buffer) == [("user", "q1"), ("assistant", "good 1")]
    assert len(told) == 1


@pytest.mark.parametrize("method", ["stream_chat", "astream_chat"])
async def test_a_failure_that_nobody_reads_leaves_no_answer_behind(
    method: str, kind: str, buffer: Any, postprocessor: Any, told: list[Correction]
) -> None:
    engine = AlignerChatEngine(ENGINES[kind](ScriptedLLM(reply="a crash"), buffer), postprocessor)
    response = await call(engine, method, "q1")
    if method == "stream_chat":
        response.write_response_to_history_thread.join()
    else:
        with pytest.raises(EngineError):
            await response.awrite_response_to_history_task
    assert said(buffer) == [("user", "q1")]
    assert [one.outcome for one in told] == ["failed"]


@pytest.mark.parametrize("method", CHATS)
async def test_a_history_that_is_given_holds(
    method: str, kind: str, memory: Any, llm: Any, postprocessor: Any, asked: list[Exchange]
) -> None:
    history = [ChatMessage("before", role=MessageRole.USER), ChatMessage("as said", role=MessageRole.ASSISTANT)]
    engine = AlignerChatEngine(ENGINES[kind](llm, memory), postprocessor)
    given = list(history)
    assert await read(await call(engine, method, "q1", given)) == "good 1"
    turns = [("user", "before"), ("assistant", "as said"), ("user", "q1")]
    assert [(turn.role, turn.text) for turn in asked[0].turns] == turns
    assert said(memory)[-2:] == [("user", "q1"), ("assistant", "good 1")]


async def test_every_role_of_a_history_is_told_as_its_own(llm: Any, postprocessor: Any, asked: list[Exchange]) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
    history = [ChatMessage(role.value, role=role) for role in MessageRole]
    history.append(ChatMessage(role=MessageRole.ASSISTANT, content=None, additional_kwargs={"tool_calls": [1]}))
    AlignerChatEngine(SimpleChatEngine.from_defaults(llm=llm, memory=memory), postprocessor).chat("q", history)
    roles = {turn.text: turn.role for turn in asked[0].turns}
    assert roles.pop("q") == "user"
    assert roles == {
        "system": "system",
        "developer": "system",
        "user": "user",
        "assistant": "assistant",
        "function": "tool",
        "tool": "tool",
        "chatbot": "assistant",
        "model": "assistant",
    }


@pytest.mark.parametrize("method", CHATS)
async def test_forgetting_forgets_all(
    method: str, kind: str, buffer: Any, llm: Any, postprocessor: Any, asked: Any
) -> None:
    engine = AlignerChatEngine(ENGINES[kind](llm, buffer), postprocessor)
    await read(await call(engine, method, "q1"))
    engine.reset()
    assert engine.chat_history == []
    assert await read(await call(engine, method, "q2")) == "good 2"
    assert [turn.text for turn in asked[1].turns] == ["q2"]


def test_it_can_be_used_inside_a_running_loop_without_asyncio(kind: str, memory: Any, llm: Any, mend: Aligner) -> None:
    """As notebooks do."""

    async def main() -> None:
        engine = AlignerChatEngine(ENGINES[kind](llm, memory), mend)
        assert engine.chat("q1").response == "good 1"
        assert "".join(engine.stream_chat("q2").response_gen) == "good 2"
        assert said(memory)[1::2] == [("assistant", "good 1"), ("assistant", "good 2")]

    asyncio.run(main())


@pytest.mark.parametrize("method", CHATS)
async def test_tags_of_the_call_reach_the_record(
    method: str, kind: str, llm: Any, buffer: Any, postprocessor: Any, asked: Any
) -> None:
    engine = AlignerChatEngine(ENGINES[kind](llm, buffer), postprocessor)
    with instrument_tags({"aligner_subject": "s"}):
        response = await call(engine, method, "q1")
    assert await read(response) == "good 1"
    assert asked[0].subject == "s"
    with instrument_tags({"aligner_enabled": False}):
        response = await call(engine, method, "q2")
    assert await read(response) == "bad 2"
    assert said(buffer)[-1] == ("assistant", "bad 2")


@pytest.mark.parametrize("method", CHATS)
async def test_a_message_without_a_text_is_no_question(method: str, llm: Any, buffer: Any, postprocessor: Any) -> None:
    engine = AlignerChatEngine(ENGINES["simple"](llm, buffer), postprocessor)
    with pytest.raises(PromptNotFoundError):
        await read(await call(engine, method, " "))
    assert [role for role, _ in said(buffer)] == ["user"]


@pytest.mark.parametrize("method", CHATS)
async def test_nodes_without_an_answer_are_the_word_for_none(
    method: str, buffer: Any, llm: Any, postprocessor: Any
) -> None:
    inner = ContextChatEngine.from_defaults(Shelf("one"), llm=llm, memory=buffer)
    inner._retriever.found = []
    response = await call(AlignerChatEngine(inner, postprocessor), method, "q1")
    assert await read(response) == "Empty Response"
    assert response.metadata["aligner"]["outcome"] == "skipped"


@pytest.mark.parametrize("method", ["chat", "achat"])
async def test_other_arguments_reach_the_engine_inside(
    method: str, buffer: Any, llm: Any, mend: Any, asked: Any
) -> None:
    inner = ContextChatEngine.from_defaults(Shelf("one"), llm=llm, memory=buffer)
    inner._retriever.found = []
    engine = AlignerChatEngine(inner, mend)
    assert await read(await call(engine, method, "q1", prev_chunks=[node("before")])) == "good 1"
    assert asked[0].context == ("before",)


# What it takes


class Own(BaseChatEngine):
    """An engine of the user's own, which keeps its memory where it likes."""

    def __init__(self, memory: Any) -> None:
        self.kept = memory

    def chat(self, message: str, chat_history: Any = None) -> AgentChatResponse:
        self.kept.put(ChatMessage(message, role="user"))
        self.kept.put(ChatMessage(BAD, role="assistant"))
        return AgentChatResponse(BAD, metadata={"own": 1})

    async def achat(self, message: str, chat_history: Any = None) -> AgentChatResponse:
        await self.kept.aput(ChatMessage(message, role="user"))
        await self.kept.aput(ChatMessage(BAD, role="assistant"))
        return AgentChatResponse(BAD, metadata={"own": 1})

    def stream_chat(self, message: str, chat_history: Any = None) -> Any:
        raise NotImplementedError

    astream_chat = stream_chat

    def reset(self) -> None:
        self.kept.reset()

    @property
    def chat_history(self) -> Any:
        return self.kept.get_all()


@pytest.mark.parametrize("method", ["chat", "achat"])
async def test_an_engine_that_hides_its_memory(method: str, buffer: Any, mend: Aligner) -> None:
    with pytest.raises(ConfigurationError, match="memory=memory"):
        AlignerChatEngine(Own(buffer), mend)
    engine = AlignerChatEngine(Own(buffer), mend, memory=buffer)
    response = await call(engine, method, "q")
    assert response.response == GOOD
    assert response.metadata["own"] == 1
    assert said(buffer) == [("user", "q"), ("assistant", GOOD)]


def test_what_corrects_already_is_not_wrapped_again(llm: Any, buffer: Any, mend: Aligner) -> None:
    engine = AlignerChatEngine(ENGINES["simple"](llm, buffer), mend)
    with pytest.raises(ConfigurationError, match="corrects its answers already"):
        AlignerChatEngine(engine, mend)
    assert AlignerChatEngine(ENGINES["simple"](llm, buffer), "folder").postprocessor.aligner == "folder"
