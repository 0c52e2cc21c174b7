"""`llm | AlignerCorrector()` finds the question, whatever the model, the chain and the way to run it; or says so."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableBranch, RunnableLambda, RunnableParallel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from versions import known_to

from aligner_chain import AlignerError, Exchange, PromptNotFoundError
from aligner_chain.exchange import Turn
from aligner_chain.langchain import AlignerCorrector, aligner_node
from aligner_chain.langchain.recorder import PromptRecorder, recorder

QUESTIONS = [f"q{index}" for index in range(25)]


def text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.text)


async def by_invoke(chain: Runnable) -> list[str]:
    return [text(chain.invoke({"q": q})) for q in QUESTIONS]


async def by_ainvoke(chain: Runnable) -> list[str]:
    return [text(await chain.ainvoke({"q": q})) for q in QUESTIONS]


async def by_batch(chain: Runnable) -> list[str]:
    return [text(answer) for answer in chain.batch([{"q": q} for q in QUESTIONS])]


async def by_abatch(chain: Runnable) -> list[str]:
    return [text(answer) for answer in await chain.abatch([{"q": q} for q in QUESTIONS])]


async def by_stream(chain: Runnable) -> list[str]:
    return ["".join(map(text, chain.stream({"q": q}))) for q in QUESTIONS]


async def by_astream(chain: Runnable) -> list[str]:
    return ["".join([text(piece) async for piece in chain.astream({"q": q})]) for q in QUESTIONS]


async def by_astream_events(chain: Runnable) -> list[str]:
    ends = []
    for q in QUESTIONS:
        events = [event async for event in chain.astream_events({"q": q}, version="v2")]
        ends.append(text(events[-1]["data"]["output"]))
    return ends


async def by_batch_of_duplicates(chain: Runnable) -> list[str]:
    answers = [text(answer) for answer in chain.batch([{"q": q} for q in QUESTIONS for _ in range(3)])]
    assert answers[::3] == answers[1::3] == answers[2::3]
    return answers[::3]


async def by_threads(chain: Runnable) -> list[str]:
    with ThreadPoolExecutor(12) as pool:
        answers = [text(answer) for answer in pool.map(lambda q: chain.invoke({"q": q}), QUESTIONS * 12)]
    assert answers == answers[: len(QUESTIONS)] * 12
    return answers[: len(QUESTIONS)]


async def by_gather(chain: Runnable) -> list[str]:
    return [text(answer) for answer in await asyncio.gather(*(chain.ainvoke({"q": q}) for q in QUESTIONS))]


async def by_gathered_astream(chain: Runnable) -> list[str]:
    async def streamed(q: str) -> str:
        return "".join([text(piece) async for piece in chain.astream({"q": q})])

    return list(await asyncio.gather(*map(streamed, QUESTIONS)))


WAYS = [
    by_invoke,
    by_ainvoke,
    by_batch,
    by_abatch,
    by_batch_of_duplicates,
    by_stream,
    by_astream,
    by_astream_events,
    by_threads,
    by_gather,
    by_gathered_astream,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("shape", ["llm|C", "llm|C|str", "llm|str|C"])
@pytest.mark.parametrize("ids", ["none", "provider", "constant"])
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
async def test_question_is_found(
    models: SimpleNamespace,
    prompt: ChatPromptTemplate,
    corrector: AlignerCorrector,
    streaming: bool,
    ids: str,
    shape: str,
    way: Callable[[Runnable], Awaitable[list[str]]],
) -> None:
    llm = (models.StreamingChat if streaming else models.Chat)(ids=ids)
    steps = {"llm": llm, "C": corrector, "str": StrOutputParser()}
    chain: Runnable = prompt
    for name in shape.split("|"):
        chain = chain | steps[name]
    assert await way(chain) == [f"<{q}|A({q})>" for q in QUESTIONS]


async def test_a_text_model_is_recorded_too(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    chain = models.Text() | corrector
    assert chain.invoke("q") == "<q|A(q)>"
    assert await chain.ainvoke("q") == "<q|A(q)>"


def test_the_whole_conversation_is_recorded_as_text(
    models: SimpleNamespace, corrector: AlignerCorrector, asked: list[Exchange]
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    question = HumanMessage([{"type": "text", "text": "and this?"}, image])
    (models.Chat() | corrector).invoke([("system", "be kind"), ("human", "hello"), ("ai", "hi"), question])
    assert asked[0].turns == (
        Turn(role="system", text="be kind"),
        Turn(role="user", text="hello"),
        Turn(role="assistant", text="hi"),
        Turn(role="user", text="and this?"),
    )


def test_messages_are_not_kept_alive(models: SimpleNamespace) -> None:
    question = HumanMessage("q")
    answer = models.Chat().invoke([question])
    references = weakref.ref(question), weakref.ref(answer)
    del question, answer
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert recorder().counts()["runs"] == 1


def test_a_question_that_is_only_an_image_is_not_known(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])
    passing = AlignerCorrector(corrector.aligner, on_error="pass_through")  # no failure of the Aligner is meant here
    with pytest.raises(PromptNotFoundError):
        (models.Chat() | passing).invoke([("system", "describe it"), image])


def test_a_changed_history_does_not_change_the_record(
    models: SimpleNamespace, corrector: AlignerCorrector, asked: list[Exchange]
) -> None:
    history = [HumanMessage("q")]
    answer = models.Chat().invoke(history)
    history[0].content = "something else"
    corrector.invoke(answer)
    assert asked[0].question == "q"


def test_duplicates_in_a_batch(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    chain = prompt | models.Chat(ids="constant") | StrOutputParser() | corrector
    assert chain.batch([{"q": "same"}] * 3 + [{"q": "other"}]) == ["<same|A(same)>"] * 3 + ["<other|A(other)>"]


def test_fallbacks_and_retries(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    broken = models.Chat(failures=9, label="broken")
    assert (prompt | broken.with_fallbacks([models.Chat()]) | corrector).invoke({"q": "q"}).text == "<q|A(q)>"
    retried = models.Chat(failures=1).with_retry(wait_exponential_jitter=False)
    assert (prompt | retried | StrOutputParser() | corrector).invoke({"q": "q"}) == "<q|A(q)>"
    assert recorder().counts()["open"] == 0


def test_chain_with_a_fallback_around_the_corrector(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    first = prompt | models.Chat(failures=9) | corrector
    second = prompt | models.Chat(label="B") | corrector
    assert first.with_fallbacks([second]).invoke({"q": "q"}).text == "<q|B(q)>"


def test_bound_branched_mapped_and_configured(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    llm = models.Chat()
    branch = RunnableBranch((lambda _: False, models.Chat(label="never")), llm.bind(stop=["x"]))
    tagged = (prompt | branch | corrector.with_config(tags=["t"])).with_config(run_name="chain")
    assert tagged.invoke({"q": "q"}).text == "<q|A(q)>"
    assert [a.text for a in (prompt | llm | corrector).map().invoke([{"q": "1"}, {"q": "2"}])] == [
        "<1|A(1)>",
        "<2|A(2)>",
    ]


def test_parallel_models_keep_their_questions(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    def ask(wording: str) -> Runnable:
        return ChatPromptTemplate.from_template(wording) | models.Chat() | corrector | StrOutputParser()

    both = RunnableParallel(a=ask("a {q}"), b=ask("b {q}"))
    assert both.invoke({"q": "q"}) == {"a": "<a q|A(a q)>", "b": "<b q|A(b q)>"}


def test_one_of_parallel_answers_is_picked(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    def ask(wording: str) -> Runnable:
        return ChatPromptTemplate.from_template(wording) | models.Chat() | StrOutputParser()

    picked = RunnableParallel(a=ask("a {q}"), b=ask("b {q}")) | (lambda both: both["b"]) | corrector
    assert picked.invoke({"q": "q"}) == "<b q|A(b q)>"


def test_the_second_of_two_prompts_in_a_row(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    def ask(wording: str) -> Runnable:
        return ChatPromptTemplate.from_template(wording) | models.Chat() | StrOutputParser()

    chain = ask("first {q}") | (lambda said: {"said": said}) | ask("second {said}") | corrector
    assert chain.invoke({"q": "q"}) == "<second A(first q)|A(second A(first q))>"


@pytest.mark.parametrize("between", [RunnableLambda(lambda m: m), StrOutputParser()], ids=["message", "text"])
def test_two_correctors_in_a_row(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector, between: Runnable
) -> None:
    chain = prompt | models.Chat() | corrector | between | corrector
    assert text(chain.invoke({"q": "q"})) == "<q|<q|A(q)>>"


def test_a_step_between_changes_the_answer(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    edited = RunnableLambda(lambda m: m.model_copy(update={"content": "edited"}))
    rebuilt = RunnableLambda(lambda m: AIMessage(f"{m.text}, rebuilt"))
    stripped = StrOutputParser() | str.upper
    assert (prompt | models.Chat() | edited | corrector).invoke({"q": "q"}).text == "<q|edited>"
    for ids in ("none", "provider", "constant"):
        assert (prompt | models.Chat(ids=ids) | rebuilt | corrector).invoke({"q": "q"}).text == "<q|A(q), rebuilt>"
        cleaned = RunnableLambda(lambda m: m.model_copy(update={"content": f"{m.text}."}))
        assert (prompt | models.Chat(ids=ids) | cleaned | corrector).invoke({"q": "q"}).text == "<q|A(q).>"
    assert (prompt | models.Chat() | stripped | corrector).invoke({"q": "q"}) == "<q|A(Q)>"


@pytest.mark.parametrize(
    "canned",
    [AIMessage("from a raw client", id="chatcmpl-1"), AIMessage("A(q)!", id=f"lc_run--{uuid4()}"), "from a raw client"],
    ids=["another id", "the id of another run", "no word of it"],
)
def test_an_answer_from_elsewhere_is_not_taken_for_the_models(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector, canned: Any
) -> None:
    """As where a model only classified the question, and a client of its own answered it."""

    def classified(_: Any) -> Any:
        models.Chat().invoke("q")
        return canned

    def within(_: Any) -> Any:
        return corrector.invoke(classified(_))

    for chain in (prompt | models.Chat() | RunnableLambda(lambda _: canned) | corrector, RunnableLambda(within)):
        with pytest.raises(PromptNotFoundError) as caught:
            chain.invoke({"q": "q"})
        assert caught.value.reason == "unknown"


async def test_one_message_object_for_several_prompts(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    """As fake models of tests return it: its identity and its id say nothing any more, but where it was asked does."""
    chain = models.Scripted(answers=[AIMessage("same")] * 6) | corrector
    assert [answer.text for answer in chain.batch(["q1", "q2", "q3"])] == ["<q1|same>", "<q2|same>", "<q3|same>"]
    assert [answer.text for answer in await chain.abatch(["q4", "q5"])] == ["<q4|same>", "<q5|same>"]
    shared = chain.first.invoke("q6")
    with pytest.raises(PromptNotFoundError):
        corrector.invoke(shared)


def test_a_model_further_out_is_no_proof_for_a_changed_answer(
    models: SimpleNamespace, corrector: AlignerCorrector
) -> None:
    inner = RunnableLambda(lambda _: "from elsewhere") | corrector
    with pytest.raises(PromptNotFoundError) as caught:
        (models.Chat() | RunnableLambda(inner.invoke)).invoke("q")
    assert caught.value.reason == "unknown"


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_without_a_chain(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    answer = models.Chat().invoke("q")
    assert corrector.invoke(answer).text == "<q|A(q)>"
    assert corrector.invoke(loads(dumps(answer), **known_to(loads, {"allowed_objects": "core"}))).text == "<q|A(q)>"


def test_an_edited_copy_is_found_by_the_run_in_its_id(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    edited = models.Chat().invoke("q").model_copy(update={"content": "edited"})
    assert corrector.invoke(edited).text == "<q|edited>"


def test_a_streamed_answer_is_found_by_the_run_in_any_of_its_chunks(
    models: SimpleNamespace, corrector: AlignerCorrector
) -> None:
    llm = models.StreamingScripted(
        answers=[[AIMessageChunk("ye", id="chatcmpl-0"), AIMessageChunk("s")] for _ in range(2)]
    )
    streams = {question: list(llm.stream(question)) for question in ("q1", "q2")}
    for question, stream in streams.items():
        [answer] = corrector.transform(iter(stream))
        assert (answer.text, answer.id) == (f"<{question}|yes>", "chatcmpl-0")


def test_second_generation_and_second_prompt(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    rows = models.Chat(choices=2).generate([[HumanMessage("q0")], [HumanMessage("q1")]]).generations
    assert corrector.invoke(rows[1][1].message).text == "<q1|A(q1)#1>"


def test_cache_hit_after_the_record_is_gone(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    chain = models.Chat(cache=InMemoryCache()) | corrector
    chain.invoke("q")
    recorder().clear()
    assert chain.invoke("q").text == "<q|A(q)>"


def test_user_callbacks_do_not_displace_the_recorder(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    for callbacks in ([], [BaseCallbackHandler()]):
        chain = models.Chat() | StrOutputParser() | corrector
        assert chain.invoke("q", {"callbacks": callbacks}) == "<q|A(q)>"


async def test_busy_threads_do_not_hold_up_asyncio(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    busy, release = ThreadPoolExecutor(1), threading.Event()
    asyncio.get_running_loop().set_default_executor(busy)
    busy.submit(release.wait)
    try:
        answer = await asyncio.wait_for((models.AsyncChat() | corrector).ainvoke("q"), timeout=60)
    finally:
        release.set()
    assert answer.text == "<q|A(q)>"


async def test_langgraph_nodes(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("llm", lambda state: {"messages": [models.Chat().invoke(state["messages"])]})
    builder.add_node("rebuild", lambda state: {"messages": [AIMessage(state["messages"][-1].text, id="mine")]})
    builder.add_node("correct", lambda state: {"messages": [corrector.invoke(state["messages"][-1])]})
    for start, end in (("__start__", "llm"), ("llm", "rebuild"), ("rebuild", "correct")):
        builder.add_edge(start, end)
    graph = builder.compile()
    # The rebuilt message is found by its text, under a root that only an inheritable handler sees.
    state = {"messages": [("human", "q")]}
    for messages in (graph.invoke(state)["messages"], (await graph.ainvoke(state))["messages"]):
        assert [m.text for m in messages] == ["q", "A(q)", "<q|A(q)>"]  # the same id replaces the answer


def test_ambiguous_questions_are_an_error(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    def ask(wording: str) -> Runnable:
        same = RunnableLambda(lambda _: AIMessage("same"))
        return ChatPromptTemplate.from_template(wording) | models.Chat() | same | StrOutputParser()

    two_prompts = RunnableParallel(a=ask("a {q}"), b=ask("b {q}")) | (lambda both: both["a"]) | corrector
    with pytest.raises(PromptNotFoundError) as caught:
        two_prompts.invoke({"q": "q"})
    assert caught.value.reason == "ambiguous"


def test_same_text_for_different_questions_is_ambiguous(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    yes = RunnableParallel(
        a=ChatPromptTemplate.from_template("a {q}") | models.Scripted(answers=[AIMessage("yes")]) | StrOutputParser(),
        b=ChatPromptTemplate.from_template("b {q}") | models.Scripted(answers=[AIMessage("yes")]) | StrOutputParser(),
    )
    with pytest.raises(PromptNotFoundError) as caught:
        (yes | (lambda both: both["a"]) | corrector).invoke({"q": "q"})
    assert caught.value.reason == "ambiguous"


def test_a_constant_provider_id_alone_is_no_proof(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    models.Chat(ids="constant").invoke("q")
    with pytest.raises(PromptNotFoundError) as caught:
        corrector.invoke(AIMessage("another answer", id="chatcmpl-0"))
    assert caught.value.reason == "unknown"
    assert corrector.invoke(AIMessage("A(q)", id="chatcmpl-0")).text == "<q|A(q)>"


@pytest.mark.parametrize("answer", [AIMessage("by hand"), "by hand", AIMessage("x", id=f"lc_run--{uuid4()}-0")])
def test_unknown_questions_are_an_error_with_ways_out(corrector: AlignerCorrector, answer: Any) -> None:
    with pytest.raises(PromptNotFoundError) as caught:
        corrector.invoke(answer)
    assert caught.value.reason == "unknown"
    assert isinstance(caught.value, AlignerError)
    for remedy in ("aligner_question", '{"question": question', '{"messages": [', "AlignerCorrector(question="):
        assert remedy in str(caught.value)


def test_a_text_that_a_function_carries_from_one_chain_to_the_next_is_unknown(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    said = (prompt | models.Chat() | StrOutputParser()).invoke({"q": "q"})
    with pytest.raises(PromptNotFoundError):
        (RunnableLambda(lambda text: text) | corrector).invoke(said)


def test_after_a_restart_the_question_must_come_with_the_state(
    models: SimpleNamespace, corrector: AlignerCorrector
) -> None:
    def graph_with(node: Any) -> Any:
        builder = StateGraph(MessagesState)
        builder.add_node("llm", lambda state: {"messages": [models.Chat().invoke(state["messages"])]})
        builder.add_node("correct", node)
        builder.add_edge(START, "llm")
        builder.add_edge("llm", "correct")
        return builder.compile(checkpointer=InMemorySaver(), interrupt_before=["correct"])

    blind = graph_with(lambda state: {"messages": [corrector.invoke(state["messages"][-1].model_copy())]})
    seeing = graph_with(aligner_node(corrector))
    thread: Any = {"configurable": {"thread_id": "1"}}
    for graph in (blind, seeing):
        graph.invoke({"messages": [("human", "q")]}, thread)
    recorder().clear()  # what a restart does
    with pytest.raises(PromptNotFoundError):
        blind.invoke(None, thread)
    assert seeing.invoke(None, thread)["messages"][-1].text == "<q|A(q)>"


def test_a_client_that_is_no_langchain_model_is_unknown(corrector: AlignerCorrector) -> None:
    with pytest.raises(PromptNotFoundError):
        (RunnableLambda(lambda q: AIMessage(f"A({q})")) | corrector).invoke("q")


def test_a_batch_larger_than_the_memory(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    chain = prompt | models.Chat(ids="constant") | StrOutputParser() | corrector
    questions = [f"q{index}" for index in range(1500)]
    assert chain.batch([{"q": q} for q in questions]) == [f"<{q}|A({q})>" for q in questions]
    assert recorder().counts() == {"chains": 0, "open": 0, "runs": recorder().kept_runs, "living": 0}


def test_memory_is_bounded(models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector) -> None:
    chain = prompt | models.StreamingChat() | corrector
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: chain.invoke({"q": str(index)}), range(recorder().kept_runs + 100)))
    for index in range(20):
        stream = chain.stream({"q": f"abandoned {index}"})
        next(stream)
        stream.close()
        abandoned = models.StreamingChat().stream("q")
        next(abandoned)
        del abandoned
    with pytest.raises(RuntimeError):
        (prompt | models.Chat(failures=1) | corrector).invoke({"q": "q"})
    gc.collect()
    assert recorder().counts() == {"chains": 0, "open": 0, "runs": recorder().kept_runs, "living": 0}
    assert len(recorder()._families) <= recorder().kept_runs
    assert recorder()._named == {}


def test_what_never_ends_is_bounded_too() -> None:
    bounded = PromptRecorder(kept_runs=2, most_runs=5)
    roots = [uuid4() for _ in range(20)]
    for root in roots:
        bounded.on_chain_start({}, {}, run_id=root)
        bounded.on_chat_model_start({}, [[HumanMessage("q")]], run_id=uuid4(), parent_run_id=root)
    assert bounded.counts() == {"chains": 5, "open": 5, "runs": 0, "living": 0}


@pytest.fixture
def gated(models: SimpleNamespace) -> Any:
    """A model that answers once its `gate` is open, and releases `reached` for each call."""

    class Gated(models.Chat):  # type: ignore[misc]
        gate: Any
        reached: Any

        async def _agenerate(self, messages: Any, *given: Any, **kw: Any) -> Any:
            self.reached.release()
            await self.gate.wait()
            return self._generate(messages)

    return Gated(gate=asyncio.Event(), reached=asyncio.Semaphore(0))


async def test_calls_that_were_cancelled_are_not_remembered(
    gated: Any, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    chain, each = prompt | gated | corrector, recorder().kept_runs // 2
    for _ in range(4):
        calls = [asyncio.create_task(chain.ainvoke({"q": str(index)})) for index in range(each)]
        for _ in calls:
            await gated.reached.acquire()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert recorder().counts()["chains"] == 0
    assert recorder().counts()["open"] <= recorder().kept_runs


async def test_however_many_calls_run_each_is_remembered(
    gated: Any, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    chain, many = prompt | gated | corrector, recorder().kept_runs + 100
    calls = [asyncio.create_task(chain.ainvoke({"q": str(index)})) for index in range(many)]
    for _ in calls:
        await gated.reached.acquire()
    gated.gate.set()
    answers = await asyncio.gather(*calls)
    assert [answer.text for answer in answers] == [f"<{index}|A({index})>" for index in range(many)]


def test_runs_of_a_chain_whose_beginning_nobody_told_are_remembered() -> None:
    """Such as of a function that LangSmith traces, or of a chain that began before the recorder was put to work."""
    asked = PromptRecorder(kept_runs=2)
    runs = [uuid4() for _ in range(5)]
    for index, run in enumerate(runs):
        asked.on_chat_model_start({}, [[HumanMessage(str(index))]], run_id=run, parent_run_id=uuid4())
    assert asked.counts()["open"] == 5
    for index, run in enumerate(runs):
        assert asked.being_answered(None, [f"lc_run--{run}"]) == (Turn(role="user", text=str(index)),)


def test_a_circle_of_runs_ends() -> None:
    circular, first, second = PromptRecorder(), uuid4(), uuid4()
    circular.on_chain_start({}, {}, run_id=first, parent_run_id=second)
    circular.on_chain_start({}, {}, run_id=second, parent_run_id=first)
    with pytest.raises(PromptNotFoundError):
        circular.find("text", first)


def test_a_living_message_keeps_its_record(models: SimpleNamespace, corrector: AlignerCorrector) -> None:
    answer = models.Chat(ids="constant").invoke("the first")
    for index in range(recorder().kept_runs + 1):
        models.Chat(ids="constant").invoke(str(index))
    assert corrector.invoke(answer).text == "<the first|A(the first)>"
    with pytest.raises(PromptNotFoundError):
        corrector.invoke(answer.model_copy())


def test_the_aligners_own_runs_are_no_candidates(
    models: SimpleNamespace, prompt: ChatPromptTemplate, corrector: AlignerCorrector
) -> None:
    (prompt | models.Chat() | corrector).invoke({"q": "q"})
    assert recorder().counts()["runs"] == 1


_LAZY = """
from langchain_core.tracers import context
from aligner_chain import Aligner
from aligner_chain.langchain import AlignerCorrector, aligner_node
hooks = len(context._configure_hooks)
AlignerCorrector(Aligner.scripted(lambda exchange: "x"), prompt_source="explicit")
AlignerCorrector(Aligner.scripted(lambda exchange: "x"), question="q").invoke("a")
assert len(context._configure_hooks) == hooks
AlignerCorrector()
AlignerCorrector()
assert len(context._configure_hooks) == hooks + 1
"""


def test_nothing_is_recorded_before_a_corrector_needs_it() -> None:
    subprocess.run([sys.executable, "-c", _LAZY], check=True)
