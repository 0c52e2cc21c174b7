"""Engines that take others: around ours, inside of ours, and what is then corrected how often."""

from __future__ import annotations

from typing import Any

import pytest
from llama import BAD, GOOD, QUERIES, QUESTION, ScriptedLLM, Shelf, asked_in, call, node, rag, read
from llama_index.core import PromptTemplate, Settings
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.evaluation import BaseEvaluator, EvaluationResult
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform, StepDecomposeQueryTransform
from llama_index.core.query_engine import (
    CitationQueryEngine,
    CustomQueryEngine,
    MultiStepQueryEngine,
    RetryQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import TreeSummarize, get_response_synthesizer
from llama_index.core.schema import QueryBundle
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from aligner_chain import Aligner, ConfigurationError, Correction, Exchange
from aligner_chain.llama_index import AlignerQueryEngine, AlignerSynthesizer

pytestmark = pytest.mark.parametrize("method", QUERIES)


@pytest.fixture
def plain(llm: ScriptedLLM) -> Any:
    return rag(get_response_synthesizer(llm=llm))


def tool(engine: Any, name: str = "one") -> QueryEngineTool:
    return QueryEngineTool.from_defaults(engine, name=name, description=name)


# Not twice


async def test_what_corrects_already_is_not_wrapped_again(method: str, plain: Any, llm: Any, mend: Aligner) -> None:
    """Trap 11."""
    synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=llm), mend)
    aligned = [AlignerQueryEngine(plain, mend), rag(synthesizer), CitationQueryEngine(Shelf("one"), llm, synthesizer)]
    for engine in aligned:
        with pytest.raises(ConfigurationError, match="corrects its answers already"):
            AlignerQueryEngine(engine, mend)
    with pytest.raises(ConfigurationError, match="corrects its answers already"):
        AlignerSynthesizer(synthesizer, mend)
    assert (await call(aligned[0], method, QUESTION)).response == GOOD


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("inside", ["synthesizer", "query engine"])
async def test_deeper_down_it_is_corrected_once(
    inside: str, stream: bool, method: str, llm: Any, twice: Aligner, asked: list[Exchange]
) -> None:
    """Trap 11: a router hands out what its engine answered."""
    inner = get_response_synthesizer(llm=llm, streaming=stream)
    aligned: Any = rag(AlignerSynthesizer(inner, twice))
    if inside == "query engine":
        aligned = AlignerQueryEngine(rag(inner), twice)
    llm.reply = lambda prompt: '[{"choice": 1, "reason": "r"}]' if "choices" in prompt else BAD
    router = RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), [tool(aligned)], llm=llm)
    response = await call(AlignerQueryEngine(router, twice), method, QUESTION)
    assert await read(response) == f"{BAD} (checked)"
    assert len(asked) == 1
    assert response.metadata["aligner"]["outcome"] == "corrected"
    assert response.metadata["selector_result"].ind == 0


async def test_a_response_that_was_corrected_comes_back_as_it_is(method: str, correcting: Any, twice: Any) -> None:
    postprocessor = correcting(twice)
    first = await call(postprocessor, method.replace("query", "postprocess_response"), Response(BAD), query_str="q")
    again = await call(postprocessor, method.replace("query", "postprocess_response"), first, query_str="q")
    assert again is first
    stranger = Response(BAD, metadata={"aligner": "a node whose id is that"})
    assert postprocessor.postprocess_response(stranger, query_str="q").response == f"{BAD} (checked)"


# Router


@pytest.mark.parametrize("stream", [False, True])
async def test_a_router_with_one_pick(method: str, stream: bool, llm: Any, postprocessor: Any, asked: Any) -> None:
    llm.reply = lambda prompt: '[{"choice": 2, "reason": "r"}]' if "choices" in prompt else BAD
    engines = [rag(get_response_synthesizer(llm=llm, streaming=stream), text) for text in ("one", "two")]
    router = RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), [tool(engine) for engine in engines], llm=llm)
    response = await call(AlignerQueryEngine(router, postprocessor), method, QUESTION)
    assert await read(response) == GOOD
    assert (asked[0].question, asked[0].context) == (QUESTION, ("two",))
    assert {"aligner", "selector_result"} <= response.metadata.keys()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_router_summarises_several_answers_and_they_are_no_passages(
    stream: bool, method: str, llm: Any, postprocessor: Any, asked: list[Exchange], told: list[Correction]
) -> None:
    """Trap 13."""
    picks = '[{"choice": 1, "reason": "r"}, {"choice": 2, "reason": "r"}]'
    llm.reply = lambda prompt: picks if "choices" in prompt else BAD
    engines = [tool(rag(get_response_synthesizer(llm=llm), text), text) for text in ("one", "two")]
    summarizer: Any = AlignerSynthesizer(TreeSummarize(llm=llm, streaming=stream), postprocessor)
    router = RouterQueryEngine(LLMMultiSelector.from_defaults(llm=llm), engines, llm=llm, summarizer=summarizer)
    response = await call(router, method, QUESTION)
    assert await read(response) == GOOD
    assert [(one.question, one.answer, one.context) for one in asked] == [(QUESTION, BAD, ())]
    assert len(told) == 1
    assert [one.node.get_content() for one in response.source_nodes] == ["one", "two"]


async def test_around_a_router_with_several_picks_the_passages_are_read(
    method: str, llm: Any, postprocessor: Any, asked: list[Exchange]
) -> None:
    picks = '[{"choice": 1, "reason": "r"}, {"choice": 2, "reason": "r"}]'
    llm.reply = lambda prompt: picks if "choices" in prompt else BAD
    engines = [tool(rag(get_response_synthesizer(llm=llm), text), text) for text in ("one", "two")]
    router = RouterQueryEngine(LLMMultiSelector.from_defaults(llm=llm), engines, llm=llm)
    response = await call(AlignerQueryEngine(router, postprocessor), method, QUESTION)
    assert (response.response, asked[0].context) == (GOOD, ("one", "two"))


# Retry


class Picky(BaseEvaluator):
    """Lets pass what holds a word, and notes what it was shown."""

    def __init__(self, word: str) -> None:
        self.word, self.shown = word, []

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        """It has none."""

    async def aevaluate(self, query: Any = None, response: Any = None, contexts: Any = None, **kw: Any) -> Any:
        self.shown.append(response)
        return EvaluationResult(response=response, passing=self.word in response, feedback="try again")


async def test_a_retrying_engine_around_ours_judges_the_corrected_answer(
    method: str, plain: Any, mend: Aligner, asked: list[Exchange]
) -> None:
    """Trap 12."""
    picky = Picky("good")
    engine = RetryQueryEngine(AlignerQueryEngine(plain, mend), picky)
    assert (await call(engine, method, QUESTION)).response == GOOD
    assert picky.shown == [GOOD]
    assert len(asked) == 1


async def test_a_retrying_engine_inside_of_ours_judges_the_original(
    method: str, plain: Any, llm: ScriptedLLM, mend: Aligner, asked: list[Exchange]
) -> None:
    Settings.llm = llm  # its way of asking again takes no other
    picky = Picky("good")
    engine = AlignerQueryEngine(RetryQueryEngine(plain, picky, max_retries=1), mend)
    assert (await call(engine, method, QUESTION)).response == GOOD
    assert picky.shown == [BAD]
    assert [exchange.question for exchange in asked] == [QUESTION]


async def test_each_retry_is_corrected_for_its_own_question(
    method: str, plain: Any, llm: ScriptedLLM, twice: Aligner, asked: list[Exchange]
) -> None:
    Settings.llm = llm
    engine = RetryQueryEngine(AlignerQueryEngine(plain, twice), Picky("nothing"), max_retries=1)
    assert (await call(engine, method, QUESTION)).response == f"{BAD} (checked)"
    assert [exchange.question == QUESTION for exchange in asked] == [True, False]
    assert QUESTION in asked[1].question


async def test_ours_inside_and_outside_of_a_retrying_engine_corrects_once(
    method: str, plain: Any, twice: Aligner, asked: list[Exchange]
) -> None:
    engine = AlignerQueryEngine(RetryQueryEngine(AlignerQueryEngine(plain, twice), Picky("bad")), twice)
    assert (await call(engine, method, QUESTION)).response == f"{BAD} (checked)"
    assert len(asked) == 1


# Sub-questions


class Splitting(BaseQuestionGenerator):
    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        """It has none."""

    def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return [SubQuestion(sub_question=f"what of {one.name}?", tool_name=one.name) for one in tools]

    async def agenerate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)


def split(llm: Any, synthesizer: Any, *engines: Any) -> SubQuestionQueryEngine:
    tools = [tool(engine, name) for engine, name in zip(engines, ("first", "second"), strict=True)]
    return SubQuestionQueryEngine(Splitting(), synthesizer, tools, verbose=False)


@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
async def test_the_answer_to_sub_questions_is_corrected(
    form: str, method: str, llm: Any, postprocessor: Any, asked: list[Exchange]
) -> None:
    engines = [rag(get_response_synthesizer(llm=llm), text) for text in ("one", "two")]
    inner = get_response_synthesizer(llm=llm)
    if form == "synthesizer":
        engine: Any = split(llm, AlignerSynthesizer(inner, postprocessor), *engines)
    else:
        engine = AlignerQueryEngine(split(llm, inner, *engines), postprocessor)
    response = await call(engine, method, QUESTION)
    assert (response.response, len(asked), asked[0].question) == (GOOD, 1, QUESTION)
    assert asked[0].context == (
        f"Sub question: what of first?\nResponse: {BAD}",
        f"Sub question: what of second?\nResponse: {BAD}",
        "one",
        "two",
    )


async def test_each_answer_to_a_sub_question_can_be_corrected(method: str, llm: Any, mend: Any, asked: Any) -> None:
    llm.reply = lambda prompt: f"bad: {asked_in(prompt)}"
    aligned = rag(AlignerSynthesizer(get_response_synthesizer(llm=llm), mend), "one")
    wrapped = AlignerQueryEngine(rag(get_response_synthesizer(llm=llm), "two"), mend)
    engine = split(llm, get_response_synthesizer(llm=llm), aligned, wrapped)
    response = await call(engine, method, QUESTION)
    assert response.response == f"bad: {QUESTION}"
    assert sorted((one.question, one.context) for one in asked) == [
        ("what of first?", ("one",)),
        ("what of second?", ("two",)),
    ]
    assert "good: what of first?" in response.source_nodes[0].node.get_content()


# Others


@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
async def test_a_transforming_engine_inside_of_ours_keeps_the_question(
    form: str, method: str, llm: Any, postprocessor: Any, asked: list[Exchange]
) -> None:
    class Louder(BaseQueryTransform):
        def _run(self, query_bundle: QueryBundle, metadata: Any) -> QueryBundle:
            return QueryBundle(query_bundle.query_str.upper())

        def _get_prompts(self) -> dict[str, Any]:
            return {}

        def _update_prompts(self, prompts: Any) -> None:
            """It has none."""

    inner = get_response_synthesizer(llm=llm)
    if form == "synthesizer":
        engine: Any = TransformQueryEngine(rag(AlignerSynthesizer(inner, postprocessor)), Louder())
    else:
        engine = AlignerQueryEngine(TransformQueryEngine(rag(inner), Louder()), postprocessor)
    assert (await call(engine, method, QUESTION)).response == GOOD
    assert asked[0].question == (QUESTION.upper() if form == "synthesizer" else QUESTION)
    around = TransformQueryEngine(AlignerQueryEngine(rag(inner), postprocessor), Louder())
    assert (await call(around, method, QUESTION)).response == GOOD
    assert asked[1].question == QUESTION.upper()


@pytest.mark.parametrize("answer", [BAD, Response(BAD, source_nodes=[node("one")])], ids=["text", "response"])
async def test_an_engine_of_the_users_own(answer: Any, method: str, postprocessor: Any, asked: list[Exchange]) -> None:
    class Own(CustomQueryEngine):
        def custom_query(self, query_str: str) -> Any:
            return answer

    engine = AlignerQueryEngine(Own(), postprocessor)
    assert (await call(engine, method, QUESTION)).response == GOOD
    assert asked[0].question == QUESTION
    picky = Picky("good")
    assert (await call(RetryQueryEngine(engine, picky), method, QUESTION)).response == GOOD


async def test_a_tool_answers_as_its_engine_does(method: str, plain: Any, mend: Aligner) -> None:
    made = tool(AlignerQueryEngine(plain, mend))
    output = await made.acall(input=QUESTION) if method == "aquery" else made.call(input=QUESTION)
    assert str(output) == GOOD
    assert output.raw_output.metadata["aligner"]["outcome"] == "corrected"


@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
async def test_an_engine_of_several_steps(form: str, method: str, llm: Any, plain: Any, mend: Any, asked: Any) -> None:
    """With the synthesizer it drops all metadata, ours too: a limit of LlamaIndex's own."""
    transform = StepDecomposeQueryTransform(llm=llm, step_decompose_query_prompt=PromptTemplate("step: {query_str}"))
    settings: Any = {"query_engine": plain, "query_transform": transform, "num_steps": 1}
    inner = get_response_synthesizer(llm=llm)
    if form == "synthesizer":
        engine: Any = MultiStepQueryEngine(response_synthesizer=AlignerSynthesizer(inner, mend), **settings)
    else:
        engine = AlignerQueryEngine(MultiStepQueryEngine(response_synthesizer=inner, **settings), mend)
    response = await call(engine, method, QUESTION)
    assert (response.response, asked[-1].question) == (GOOD, QUESTION)
    assert ("aligner" in response.metadata) == (form == "query engine")
    assert "sub_qa" in response.metadata


async def test_the_wrapper_shares_the_engines_callbacks(method: str, plain: Any, mend: Aligner) -> None:
    manager = CallbackManager()
    plain.callback_manager = manager
    assert AlignerQueryEngine(plain, mend).callback_manager is manager
    other = CallbackManager()
    assert AlignerQueryEngine(plain, mend, callback_manager=other).callback_manager is other


async def test_retrieving_alone_corrects_nothing(method: str, plain: Any, mend: Aligner, asked: list) -> None:
    engine = AlignerQueryEngine(plain, mend)
    found = await call(engine, method.replace("query", "retrieve"), QueryBundle(QUESTION))
    assert found == plain._retriever.found
    assert asked == []


async def test_an_engine_without_asyncio_of_its_own_retrieves_in_a_thread(method: str, mend: Aligner) -> None:
    class Own(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            return BAD

        def retrieve(self, query_bundle: QueryBundle) -> Any:
            return [node("one")]

    engine = AlignerQueryEngine(Own(), mend)
    [found] = await call(engine, method.replace("query", "retrieve"), QueryBundle(QUESTION))
    assert found.node.get_content() == "one"


@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
async def test_streams_of_engines_are_of_the_kind_of_the_call(form: str, method: str, llm: Any, mend: Any) -> None:
    inner = get_response_synthesizer(llm=llm, streaming=True)
    engine: Any = rag(AlignerSynthesizer(inner, mend))
    if form == "query engine":
        engine = AlignerQueryEngine(rag(inner), mend)
    assert isinstance(await call(engine, method, QUESTION), AsyncStreamingResponse) == (method == "aquery")
