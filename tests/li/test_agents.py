"""Agents whose answer is corrected before anything holds it. LlamaIndex's names in `ctx.store` are its own: these pin them."""

from __future__ import annotations

from typing import Any

import pytest
from llama_docs import DRAFT, ShopModel
from llama_index.core import Document, Settings, SummaryIndex
from llama_index.core.agent.workflow import AgentOutput, AgentStream, AgentWorkflow
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Context

from aligner_chain import Aligner, Exchange
from aligner_chain.errors import EngineError
from aligner_chain.exchange import Correction
from aligner_chain.llama_index import (
    AlignerFunctionAgent,
    AlignerQueryEngine,
    AlignerReActAgent,
    AlignerResponsePostprocessor,
)
from aligner_chain.llama_index.memory import saying

PASSAGE = "A kettle can be returned for 14 days."
RIGHT = DRAFT.replace("30 days", "14 days")

kinds = pytest.mark.parametrize("kind", [AlignerFunctionAgent, AlignerReActAgent])


@pytest.fixture
def told() -> list[Correction]:
    return []


@pytest.fixture
def postprocessor(told: list[Correction]) -> AlignerResponsePostprocessor:
    aligner = Aligner.scripted(lambda exchange: exchange.answer.replace("30 days", "14 days"))
    return AlignerResponsePostprocessor(aligner, on_correction=told.append)


@pytest.fixture(params=["function", "engine"])
def tool(request: pytest.FixtureRequest) -> Any:
    """One that finds the passage: as its own text, or as a node behind an answer."""
    Settings.llm = ShopModel()  # put back by the fixture in conftest.py
    if request.param == "engine":
        engine = SummaryIndex.from_documents([Document(text=PASSAGE)]).as_query_engine()
        return QueryEngineTool.from_defaults(AlignerQueryEngine(engine, Aligner.scripted(lambda exchange: RIGHT)))

    def search(input: str) -> str:  # noqa: A002  LlamaIndex's own name for it
        """Searches the shop's policy."""
        return PASSAGE

    return FunctionTool.from_defaults(search)


@kinds
@pytest.mark.parametrize("alone", [True, False])
async def test_an_agent_remembers_and_tells_of_the_corrected_answer_only(
    kind: Any, alone: bool, tool: Any, postprocessor: Any, told: list[Correction]
) -> None:
    agent = kind(
        name="clerk", description="A clerk", tools=[tool], system_prompt="Be brief.", postprocessor=postprocessor
    )
    running = agent if alone else AgentWorkflow(agents=[agent], root_agent="clerk")
    memory = ChatMemoryBuffer.from_defaults(token_limit=4000)
    handler = running.run(user_msg="How long?", memory=memory)
    events = [event async for event in handler.stream_events()]
    assert str(await handler) == RIGHT
    [asked] = [one.exchange for one in told]
    assert asked.context == (PASSAGE,)
    assert [turn.text for turn in asked.turns] == ["Be brief.", "How long?"]
    assert (memory.get_all()[-1].content or "").endswith(RIGHT)
    shown = [event for event in events if isinstance(event, AgentOutput | AgentStream) and RIGHT in str(event)]
    assert {type(event) for event in shown} == {AgentOutput, AgentStream}
    assert "30 days" not in str([*events, *memory.get_all()])


@kinds
async def test_an_agent_that_streams_shows_what_its_model_writes(kind: Any, tool: Any, postprocessor: Any) -> None:
    handler = kind(tools=[tool], postprocessor=postprocessor, streaming=True).run(user_msg="How long?")
    streamed = [event.delta async for event in handler.stream_events() if isinstance(event, AgentStream)]
    assert "30 days" in "".join(streamed)
    assert str(await handler) == RIGHT


@kinds
async def test_an_answer_whose_correction_is_raised_is_not_remembered(kind: Any, tool: Any) -> None:
    def fail(exchange: Exchange) -> str:
        raise ConnectionError("the line is down")

    agent = kind(tools=[tool], postprocessor=AlignerResponsePostprocessor(Aligner.scripted(fail)))
    context, memory = Context(agent), ChatMemoryBuffer.from_defaults(token_limit=4000)
    with pytest.raises(EngineError, match="the line is down"):
        await agent.run(user_msg="How long?", ctx=context, memory=memory)
    agent.postprocessor = AlignerResponsePostprocessor(Aligner.scripted(lambda exchange: "It is 14 days [1]."))
    assert str(await agent.run(user_msg="How long?", ctx=context, memory=memory)) == "It is 14 days [1]."
    answers = [message.content or "" for message in memory.get_all() if message.role == "assistant"]
    assert DRAFT not in "".join(answers)
    assert answers[-1].endswith("It is 14 days [1].")


@kinds
async def test_what_a_tool_raised_is_no_passage(kind: Any, postprocessor: Any, told: list[Correction]) -> None:
    Settings.llm = ShopModel()

    def search(input: str) -> str:  # noqa: A002  LlamaIndex's own name for it
        """Searches the shop's policy."""
        raise ConnectionError("the secret password is wrong")

    await kind(tools=[search], postprocessor=postprocessor).run(user_msg="How long?")
    assert [one.exchange.context for one in told] == [()]


def test_reasoning_stays_before_the_text() -> None:
    image = ImageBlock(url="https://example.org/thought.png")
    message = ChatMessage(role="assistant", blocks=[image, TextBlock(text="bad"), TextBlock(text="worse")])
    assert saying(message, "good").blocks == [image, TextBlock(text="good")]


def test_an_aligner_may_stand_for_its_postprocessor() -> None:
    Settings.llm = ShopModel()
    agent = AlignerFunctionAgent("clerk", postprocessor=Aligner.scripted(lambda exchange: RIGHT))
    assert (agent.name, agent.streaming, agent.postprocessor.upstream) == (
        "clerk",
        False,
        Settings.llm.metadata.model_name,
    )
