"""Prompts keep the keys that they have without us, and can be changed under them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from llama import GOOD, QUESTION, ScriptedLLM, Shelf, node, rag
from llama_index.core import PromptTemplate
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode, TreeSummarize, get_response_synthesizer
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from aligner_chain import Aligner
from aligner_chain.llama_index import AlignerQueryEngine, AlignerSynthesizer

Wrap = Callable[[Any], Any]


def bare(synthesizer: Any) -> Any:
    return synthesizer


def router(llm: Any, wrap: Wrap) -> Any:
    tool = QueryEngineTool.from_defaults(rag(get_response_synthesizer(llm=llm)), description="all")
    return RouterQueryEngine(
        LLMSingleSelector.from_defaults(llm=llm), [tool], llm=llm, summarizer=wrap(TreeSummarize(llm=llm))
    )


def sub_questions(llm: Any, wrap: Wrap) -> Any:
    tool = QueryEngineTool.from_defaults(rag(get_response_synthesizer(llm=llm)), name="all", description="all")
    return SubQuestionQueryEngine(
        LLMQuestionGenerator.from_defaults(llm=llm), wrap(get_response_synthesizer(llm=llm)), [tool]
    )


ENGINES: dict[str, Callable[[Any, Wrap], Any]] = {
    "retriever": lambda llm, wrap: rag(wrap(get_response_synthesizer(llm=llm))),
    "router": router,
    "citation": lambda llm, wrap: CitationQueryEngine(
        Shelf("one"), llm=llm, response_synthesizer=wrap(get_response_synthesizer(llm=llm))
    ),
    "sub-questions": sub_questions,
}
MODES = [mode for mode in ResponseMode if mode not in (ResponseMode.CONTEXT_ONLY, ResponseMode.NO_TEXT)]


@pytest.mark.parametrize("mode", MODES)
def test_a_synthesizer_has_the_prompts_of_the_one_inside(mode: ResponseMode, llm: ScriptedLLM, mend: Aligner) -> None:
    inner = get_response_synthesizer(llm=llm, response_mode=mode)
    synthesizer = AlignerSynthesizer(inner, mend)
    assert synthesizer.get_prompts() == inner.get_prompts()
    for key in inner.get_prompts():
        changed = PromptTemplate("changed {query_str}")
        synthesizer.update_prompts({key: changed})
        assert inner.get_prompts()[key] == synthesizer.get_prompts()[key] == changed


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
def test_an_engine_has_the_prompts_that_it_has_without_us(
    engine: str, form: str, llm: ScriptedLLM, mend: Aligner
) -> None:
    """Trap 1: a key of one more level could be read but not be written."""
    plain = ENGINES[engine](llm, bare)
    if form == "synthesizer":
        ours = ENGINES[engine](llm, lambda inner: AlignerSynthesizer(inner, mend))
    else:
        ours = AlignerQueryEngine(ENGINES[engine](llm, bare), mend)
    assert ours.get_prompts().keys() == plain.get_prompts().keys()
    assert plain.get_prompts()
    for key in plain.get_prompts():
        changed = PromptTemplate(f"changed {key} {{query_str}}")
        ours.update_prompts({key: changed})
        assert ours.get_prompts()[key].get_template() == changed.get_template()


@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
def test_a_changed_prompt_is_the_one_that_is_asked(form: str, llm: ScriptedLLM, mend: Aligner) -> None:
    inner = get_response_synthesizer(llm=llm)
    engine: Any = rag(AlignerSynthesizer(inner, mend))
    if form == "query engine":
        engine = AlignerQueryEngine(rag(inner), mend)
    engine.update_prompts({"response_synthesizer:text_qa_template": PromptTemplate("in short: {query_str}")})
    assert engine.query(QUESTION).response == GOOD
    assert llm.prompts == [f"in short: {QUESTION}"]


def test_a_module_that_is_not_there_is_still_an_error(llm: ScriptedLLM, mend: Aligner) -> None:
    engine = AlignerQueryEngine(rag(get_response_synthesizer(llm=llm)), mend)
    with pytest.raises(ValueError, match="nonsense"):
        engine.update_prompts({"nonsense:text_qa_template": PromptTemplate("x")})


def test_a_transforming_engine_cannot_change_prompts_with_us_or_without(llm: ScriptedLLM, mend: Aligner) -> None:
    """Trap 1, a limit of LlamaIndex's own: its keys have one level more than it can read."""
    plain = rag(get_response_synthesizer(llm=llm))
    for inner in (plain, AlignerQueryEngine(plain, mend)):
        engine = TransformQueryEngine(inner, HyDEQueryTransform(llm=llm))
        [key] = [key for key in engine.get_prompts() if key.endswith(":text_qa_template")]
        assert key == "query_engine:response_synthesizer:text_qa_template"
        with pytest.raises(ValueError, match="too many values"):
            engine.update_prompts({key: PromptTemplate("x")})


def test_prompts_of_a_synthesizer_reach_its_answer(llm: ScriptedLLM, mend: Aligner) -> None:
    synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=llm, response_mode=ResponseMode.GENERATION), mend)
    synthesizer.update_prompts({"simple_template": PromptTemplate("tell: {query_str}")})
    synthesizer.synthesize(QUESTION, [node("one")])
    assert llm.prompts == [f"tell: {QUESTION}"]
