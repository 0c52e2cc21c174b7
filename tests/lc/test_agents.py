"""Agents and graphs: what enters the state, and on which surface uncorrected text can be seen at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelResponse
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel
from upstreams import StreamingUpstream, Upstream, search

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.errors import EngineError
from aligner_chain.exchange import Turn
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector, AlignerMiddleware, aligner_node

RAW = "a bad answer"
CORRECTED = "a good answer"


@pytest.fixture
def fixer(fix: Aligner, told: list[Correction]) -> AlignerCorrector:
    return AlignerCorrector(fix, on_correction=told.append)


def graph_of(node: Any, **settings: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", node)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile(**settings)


def calling(runnable: Runnable) -> Callable[[Any], Any]:
    return lambda state: {"messages": [runnable.invoke(state["messages"])]}


FORMS: dict[str, Callable[[Any, AlignerCorrector], Any]] = {
    "agent over an aligned model": lambda llm, c: create_agent(AlignedChatModel(llm=llm, corrector=c), [search]),
    "agent with middleware": lambda llm, c: create_agent(llm, [search], middleware=[AlignerMiddleware(c)]),
    "aligned model in a node": lambda llm, c: graph_of(calling(AlignedChatModel(llm=llm, corrector=c))),
    "aligner_node with a model": lambda llm, c: graph_of(aligner_node(c, llm=llm)),
    "chain in a node, nostream": lambda llm, c: graph_of(calling(llm.with_config(tags=["nostream"]) | c)),
    "chain in a node": lambda llm, c: graph_of(calling(llm | c)),
    "agent with middleware, hide_raw=False": lambda llm, c: create_agent(
        llm, [search], middleware=[AlignerMiddleware(c, hide_raw=False)]
    ),
}
SHOW_RAW_MESSAGES = {"chain in a node", "agent with middleware, hide_raw=False"}
HIDE_RAW_EVENTS = {"agent over an aligned model", "aligned model in a node"}
STATE = {"messages": [("human", "q")]}

every_form = pytest.mark.parametrize("form", FORMS)
every_model = pytest.mark.parametrize("kind", [Upstream, StreamingUpstream])


class Read(NamedTuple):
    """Everything a surface showed, and the text that its reader ends up with."""

    shown: str
    last: str


async def by_invoke(graph: Any) -> Read:
    messages = graph.invoke(STATE)["messages"]
    return Read(str(messages), messages[-1].text)


async def by_ainvoke(graph: Any) -> Read:
    messages = (await graph.ainvoke(STATE))["messages"]
    return Read(str(messages), messages[-1].text)


async def by_values(graph: Any) -> Read:
    parts = list(graph.stream(STATE, stream_mode="values"))
    return Read(str(parts), parts[-1]["messages"][-1].text)


async def by_updates(graph: Any) -> Read:
    parts = [part async for part in graph.astream(STATE, stream_mode="updates")]
    [update] = parts[-1].values()
    return Read(str(parts), update["messages"][-1].text)


async def by_messages(graph: Any) -> Read:
    messages = [message for message, _ in graph.stream(STATE, stream_mode="messages")]
    return Read(str(messages), "".join(message.text for message in messages))


async def by_amessages(graph: Any) -> Read:
    messages = [message async for message, _ in graph.astream(STATE, stream_mode="messages")]
    return Read(str(messages), "".join(message.text for message in messages))


async def by_events(graph: Any) -> Read:
    events = [event async for event in graph.astream_events(STATE, version="v2")]
    return Read(str(events), events[-1]["data"]["output"]["messages"][-1].text)


async def by_v3_messages(graph: Any) -> Read:
    if not hasattr(graph, "stream_events"):
        pytest.skip("this LangGraph has no v3 streams")
    with warnings.catch_warnings(action="ignore"):  # "experimental"
        texts = [str(message.text) for message in graph.stream_events(STATE, version="v3").messages]
    return Read(str(texts), texts[-1])


@every_model
@every_form
@pytest.mark.parametrize("way", [by_invoke, by_ainvoke, by_values, by_updates], ids=lambda way: way.__name__)
async def test_a_state_never_holds_the_raw_text(fixer: AlignerCorrector, way: Any, form: str, kind: Any) -> None:
    read = await way(FORMS[form](kind(), fixer))
    assert (read.last, RAW in read.shown) == (CORRECTED, False)


@every_model
@every_form
@pytest.mark.parametrize("way", [by_messages, by_amessages, by_v3_messages], ids=lambda way: way.__name__)
async def test_a_message_stream_shows_it_only_where_asked_for(
    fixer: AlignerCorrector, way: Any, form: str, kind: Any
) -> None:
    read = await way(FORMS[form](kind(), fixer))
    # LangGraph shows a message id once: whoever saw the raw one never sees the corrected one.
    assert read.last == (RAW if form in SHOW_RAW_MESSAGES else CORRECTED)


@every_model
@every_form
async def test_events_hide_it_only_with_an_aligned_model(fixer: AlignerCorrector, form: str, kind: Any) -> None:
    read = await by_events(FORMS[form](kind(), fixer))
    assert read.last == CORRECTED
    assert (RAW in read.shown) is (form not in HIDE_RAW_EVENTS)


class Router(Upstream):
    """Asks another model inside its own call, which then inherits what runs around it."""

    inner: Any = None

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.inner.invoke(messages))])


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form not in SHOW_RAW_MESSAGES | {"chain in a node, nostream"}]
)
async def test_what_a_model_asks_inside_is_hidden_too(fixer: AlignerCorrector, form: str) -> None:
    graph = FORMS[form](Router(inner=StreamingUpstream()), fixer)
    for way in (by_messages, by_amessages, by_v3_messages):
        read = await way(graph)
        assert (read.last, RAW in read.shown) == (CORRECTED, False)
    assert RAW not in (await by_events(graph)).shown or form not in HIDE_RAW_EVENTS


async def test_a_chat_model_as_the_aligner_is_hidden_too(told: list[Correction]) -> None:
    replies = Upstream(reply="FIX\na good answer")
    corrector = AlignerCorrector(Aligner.from_chat_model(replies), on_correction=told.append)
    for form in HIDE_RAW_EVENTS:
        read = await by_events(FORMS[form](StreamingUpstream(), corrector))
        assert (read.last, RAW in read.shown) == (CORRECTED, False)


@every_form
async def test_a_checkpoint_holds_the_corrected_answer_once(fix: Aligner, form: str) -> None:
    graph = FORMS[form](StreamingUpstream(), AlignerCorrector(fix))
    graph.checkpointer = InMemorySaver()
    thread: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke(STATE, thread)
    await graph.ainvoke({"messages": [("human", "and again")]}, thread)
    texts = [message.text for message in graph.get_state(thread).values["messages"]]
    assert texts == ["q", CORRECTED, "and again", CORRECTED]
    assert RAW not in str(list(graph.get_state_history(thread)))


AGENTS = [form for form in FORMS if form.startswith("agent")]


@pytest.mark.parametrize("form", AGENTS)
@every_model
async def test_a_turn_that_calls_a_tool_passes(
    fixer: AlignerCorrector, told: list[Correction], kind: Any, form: str
) -> None:
    agent = FORMS[form](kind(), fixer)
    question = {"messages": [("human", "call")]}
    for result in (agent.invoke(question), await agent.ainvoke(question)):
        _, call, found, answer = result["messages"]
        assert (call.text, call.tool_calls[0]["args"]) == ("a bad plan", {"q": "bad"})
        assert isinstance(found, ToolMessage)
        assert found.text == "bad"
        assert answer.text == CORRECTED
    assert [c.outcome for c in told] == ["skipped", "corrected"] * 2


async def test_the_question_is_the_whole_conversation(fixer: AlignerCorrector, asked: list[Exchange]) -> None:
    agent = create_agent(Upstream(), [search], middleware=[AlignerMiddleware(fixer)], system_prompt="be kind")
    agent.invoke({"messages": [("human", "call")]})
    await agent.ainvoke({"messages": [("human", "call")]})
    turns = [("system", "be kind"), ("user", "call"), ("assistant", "a bad plan"), ("tool", "bad")]
    assert [exchange.turns for exchange in asked] == [tuple(Turn(role=role, text=text) for role, text in turns)] * 2


class Structured(AgentMiddleware):
    """Plays an agent with a response format, whose parsed value stands beside the message."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return ModelResponse(result=[AIMessage(RAW)], structured_response={"answer": RAW})

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return self.wrap_model_call(request, handler)


async def test_an_answer_that_was_parsed_already_is_left_as_it_is(fixer: AlignerCorrector) -> None:
    agent = create_agent(Upstream(), middleware=[AlignerMiddleware(fixer), Structured()])
    for result in (agent.invoke(STATE), await agent.ainvoke(STATE)):
        assert (result["messages"][-1].text, result["structured_response"]) == (RAW, {"answer": RAW})


class Verdict(BaseModel):
    """What the agent ends with."""

    q: str


@pytest.mark.parametrize("form", AGENTS)
async def test_an_answer_in_the_form_of_a_tool_is_left_as_it_is(
    fixer: AlignerCorrector, told: list[Correction], form: str
) -> None:
    class Answering(Upstream):
        """Calls the tool that stands for the answer."""

        def bind_tools(self, tools: Any, **kw: Any) -> Any:
            return super().bind_tools([tool for tool in tools if "Verdict" in str(tool)])

    model: Any = AlignedChatModel(llm=Answering(), corrector=fixer) if "aligned" in form else Answering()
    middleware = [] if "aligned" in form else [AlignerMiddleware(fixer)]
    agent = create_agent(model, [search], middleware=middleware, response_format=ToolStrategy(Verdict))
    question: Any = {"messages": [("human", "call")]}
    for result in (agent.invoke(question), await agent.ainvoke(question)):
        assert result["structured_response"] == Verdict(q="bad")
    assert "corrected" not in [c.outcome for c in told]


class Retrying(AgentMiddleware):
    """Asks twice and takes the second answer."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        handler(request)
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        await handler(request)
        return await handler(request)


async def test_outside_of_a_retry_only_the_settled_answer_is_corrected(
    fixer: AlignerCorrector, told: list[Correction]
) -> None:
    outside = create_agent(Upstream(), middleware=[AlignerMiddleware(fixer), Retrying()])
    assert outside.invoke(STATE)["messages"][-1].text == CORRECTED
    assert (await outside.ainvoke(STATE))["messages"][-1].text == CORRECTED
    assert len(told) == 2
    create_agent(Upstream(), middleware=[Retrying(), AlignerMiddleware(fixer)]).invoke(STATE)
    assert len(told) == 4


async def test_a_failure_ends_the_agent_or_passes(fix: Aligner) -> None:
    crash = {"messages": [("human", "crash")]}
    raising = create_agent(Upstream(), middleware=[AlignerMiddleware(AlignerCorrector(fix))])
    with pytest.raises(EngineError):
        raising.invoke(crash)
    with pytest.raises(EngineError):
        await raising.ainvoke(crash)
    passing = AlignerMiddleware(AlignerCorrector(fix, on_error="pass_through"))
    answer = create_agent(Upstream(), middleware=[passing]).invoke(crash)["messages"][-1]
    assert (answer.text, answer.response_metadata["aligner"]["outcome"]) == (RAW, "failed")


def test_the_model_that_others_share_is_not_tagged(fixer: AlignerCorrector) -> None:
    llm = Upstream(tags=["mine"])
    create_agent(llm, middleware=[AlignerMiddleware(fixer)]).invoke(STATE)
    assert llm.tags == ["mine"]


def test_the_middlewares_own_corrector_records_nothing() -> None:
    assert AlignerMiddleware().corrector.prompt_source == "explicit"


# aligner_node behind a node that answers


def two_nodes(fixer: AlignerCorrector, **settings: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("llm", calling(StreamingUpstream()))
    builder.add_node("correct", aligner_node(fixer))
    builder.add_edge(START, "llm")
    builder.add_edge("llm", "correct")
    builder.add_edge("correct", END)
    return builder.compile(**settings)


async def test_a_node_behind_the_model_puts_the_correction_in_the_answers_place(fixer: AlignerCorrector) -> None:
    graph = two_nodes(fixer, checkpointer=InMemorySaver())
    for number, run in enumerate((graph.invoke, graph.ainvoke)):
        thread: Any = {"configurable": {"thread_id": str(number)}}
        result = run(STATE, thread)
        messages = (await result if number else result)["messages"]
        assert [message.text for message in messages] == ["q", CORRECTED]
        assert [m.text for m in graph.get_state(thread).values["messages"]] == ["q", CORRECTED]


@pytest.mark.parametrize(
    "state",
    [
        [HumanMessage("q"), AIMessage(RAW, id="1")],
        {"talk": [HumanMessage("q"), AIMessage(RAW, id="1")]},
        type("State", (), {"talk": [HumanMessage("q"), AIMessage(RAW, id="1")]})(),
    ],
    ids=["list", "mapping", "object"],
)
async def test_any_form_of_state(fix: Aligner, state: Any) -> None:
    node = aligner_node(AlignerCorrector(fix), messages_key="talk")
    for update in (node.invoke(state), await node.ainvoke(state)):
        assert [(m.text, m.id) for m in update["talk"]] == [(CORRECTED, "1")]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"messages": [HumanMessage("q")]}, r"aligner_node\(corrector, llm=llm\)"),
        ({"messages": []}, r"aligner_node\(corrector, llm=llm\)"),
        ({"talk": []}, "messages_key="),
        (object(), "messages_key="),
    ],
)
async def test_a_state_without_an_answer_is_an_error_with_a_way_out(
    fixer: AlignerCorrector, state: Any, says: str
) -> None:
    with pytest.raises(TypeError, match=says):
        aligner_node(fixer).invoke(state)
    with pytest.raises(TypeError, match=says):
        await aligner_node(fixer).ainvoke(state)


async def test_a_node_that_asks_binds_tools_and_keeps_calls(fixer: AlignerCorrector, told: list[Correction]) -> None:
    node = aligner_node(fixer, llm=Upstream().bind_tools([search]))
    state = {"messages": [SystemMessage("s"), HumanMessage("call")]}
    for update in (node.invoke(state), await node.ainvoke(state)):
        assert update["messages"][0].tool_calls[0]["args"] == {"q": "bad"}
    assert [c.reason for c in told] == ["the answer calls a tool"] * 2


def test_a_chain_cannot_be_an_agents_model_with_tools(fixer: AlignerCorrector) -> None:
    """LangChain's own limit: a sequence binds no tools. `AlignedChatModel` does."""
    with pytest.raises(AttributeError, match="bind_tools"):
        create_agent(Upstream() | fixer, [search]).invoke(STATE)
    assert create_agent(Upstream() | fixer, []).invoke(STATE)["messages"][-1].text == CORRECTED


async def test_an_agents_state_can_be_corrected_behind_it(fixer: AlignerCorrector) -> None:
    chain = create_agent(Upstream(), [search]) | fixer
    assert chain.invoke(STATE).text == CORRECTED
    assert (await chain.ainvoke(STATE)).text == CORRECTED
