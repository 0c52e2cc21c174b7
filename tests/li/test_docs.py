"""The examples of docs/llama_index.md, one after the other, as a reader would type them, and what the page says beside."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from llama_docs import DRAFT, ShopModel
from llama_index.core import Document, Settings, SummaryIndex
from llama_index.core.base.base_selector import SelectorResult, SingleSelection
from llama_index.core.base.response.schema import Response
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import TreeSummarize, get_response_synthesizer
from llama_index.core.selectors import LLMMultiSelector
from llama_index.core.tools import QueryEngineTool

from aligner_chain import Aligner, Exchange
from aligner_chain.llama_index import (
    AlignerChatEngine,
    AlignerQueryEngine,
    AlignerResponsePostprocessor,
    AlignerSynthesizer,
)
from bootstrap import CorrectionStore

PAGE = Path(__file__).parents[2] / "docs" / "llama_index.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = list(re.finditer(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
PASSAGE = "A kettle can be returned for 14 days."
RIGHT = "You have 14 days [1]."

PRINTED = [
    "",
    f"{RIGHT} corrected\n" * 2,
    f"{DRAFT} -> {RIGHT}\n",
    f"{RIGHT} kettle\n",
    f"{RIGHT} corrected\n",
    f"{RIGHT} {RIGHT}\n" * 6,
    f"{RIGHT} {RIGHT}\n" * 2,
    f"{RIGHT}\n",
    f"{RIGHT} | {RIGHT}\n" * 2,
    f"{RIGHT}\n" * 2,
    f"{RIGHT}\n" * 4,
    f"corrected: {DRAFT} -> {RIGHT}\n",
    f"{RIGHT}\n{DRAFT}\n",
    "20.0\n",
]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the examples are given: a model, an index, a name of their own and an empty folder."""
    monkeypatch.chdir(tmp_path)
    Settings.llm = ShopModel()  # put back by the fixture in conftest.py
    return {"__name__": "page", "llm": Settings.llm, "index": SummaryIndex.from_documents([Document(text=PASSAGE)])}


@pytest.fixture
def index(names: dict[str, Any]) -> Any:
    return names["index"]


@pytest.fixture
def postprocessor() -> AlignerResponsePostprocessor:
    return AlignerResponsePostprocessor(Aligner.scripted(noting([])))


def noting(asked: list[Exchange]) -> Any:
    """The page's script for an Aligner, which also notes what it is asked."""

    def correct(exchange: Exchange) -> str:
        asked.append(exchange)
        return exchange.answer.replace("30 days", "14 days")

    return correct


def run(example: re.Match[str], names: dict[str, Any]) -> Coroutine[Any, Any, None] | None:
    """Runs an example; one that awaits, as a notebook can, is handed on to be awaited."""
    lines = "\n" * TEXT.count("\n", 0, example.start(1))  # so that an error names the line of the page
    code = compile(lines + example[1], str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    running = eval(code, names)
    return running if inspect.iscoroutine(running) else None


async def run_all(names: dict[str, Any]) -> None:
    """Runs the page where a loop runs already."""
    for example in EXAMPLES:
        if running := run(example, names):
            await running
    names["collector"].close()


def test_the_examples_run_in_a_script(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for example in EXAMPLES:
        if running := run(example, names):
            asyncio.run(running)
        printed.append(capsys.readouterr().out)
    assert printed == PRINTED
    names["collector"].close()
    recorded, passed = CorrectionStore("corrections.db").corrections()
    assert recorded.exchange.context == (PASSAGE,)
    assert (recorded.exchange.subject, recorded.exchange.tenant) == ("customer-7", "shop")
    assert (recorded.exchange.split_key, recorded.outcome, passed.outcome) == ("kettles", "corrected", "skipped")


async def test_the_examples_run_in_a_notebook(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    await run_all(names)
    assert capsys.readouterr().out == "".join(PRINTED)


# What the page says of LlamaIndex itself. Where one of these fails, LlamaIndex has changed, and the page has to.


def test_keywords_that_nothing_knows_are_ignored(index: Any, postprocessor: Any) -> None:
    synthesizer = AlignerSynthesizer(None, postprocessor)
    assert str(index.as_query_engine(response_postprocessors=[postprocessor]).query("q")) == DRAFT
    for mode in ("context", "condense_plus_context", "simple"):
        assert str(index.as_chat_engine(mode, response_synthesizer=synthesizer).chat("q")) == DRAFT
    given = index.as_query_engine(response_synthesizer=synthesizer, streaming=True)
    assert isinstance(given.query("q"), Response)


def test_an_engine_looks_for_a_model_even_where_its_synthesizer_has_one(index: Any, postprocessor: Any) -> None:
    llm, Settings._llm = Settings.llm, None
    synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=llm), postprocessor)
    with pytest.raises(ImportError, match="openai"):
        index.as_query_engine(response_synthesizer=synthesizer)
    assert str(index.as_query_engine(llm=llm, response_synthesizer=synthesizer).query("q")) == RIGHT


async def test_condense_question_wants_a_streaming_engine_and_reports_no_nodes(index: Any, postprocessor: Any) -> None:
    ready = AlignerQueryEngine(index.as_query_engine(), postprocessor)
    with pytest.raises(ValueError, match="Streaming is not enabled"):
        CondenseQuestionChatEngine.from_defaults(ready).stream_chat("q")
    ready = AlignerQueryEngine(index.as_query_engine(streaming=True), postprocessor)
    chat = CondenseQuestionChatEngine.from_defaults(ready)
    assert "".join(chat.stream_chat("q").response_gen) == RIGHT
    answer = await chat.astream_chat("q")
    assert "".join([text async for text in answer.async_response_gen()]) == RIGHT
    assert answer.source_nodes == []


def test_a_context_engine_retrieves_for_the_last_message_and_the_aligner_is_given_the_conversation(index: Any) -> None:
    asked: list[Exchange] = []
    chat = AlignerChatEngine(index.as_chat_engine("context"), Aligner.scripted(noting(asked)))
    chat.chat("How long?")
    answer = chat.chat("And its lid?")
    assert answer.sources[0].raw_input == {"message": "And its lid?"}
    assert [turn.text for turn in asked[1].turns] == ["How long?", RIGHT, "And its lid?"]


def test_a_router_sums_up_without_nodes_and_its_answer_has_them(index: Any) -> None:
    asked: list[Exchange] = []
    aligner = Aligner.scripted(noting(asked))

    class Both(LLMMultiSelector):
        def _select(self, choices: Any, query: Any) -> Any:
            return SelectorResult(selections=[SingleSelection(index=at, reason="") for at in range(len(choices))])

    tools = [QueryEngineTool.from_defaults(index.as_query_engine(), name=name, description=name) for name in "ab"]
    selector = Both.from_defaults()
    summarizer: Any = AlignerSynthesizer(TreeSummarize(), aligner)
    assert str(RouterQueryEngine(selector, tools, summarizer=summarizer).query("q")) == RIGHT
    assert str(AlignerQueryEngine(RouterQueryEngine(selector, tools), aligner).query("q")) == RIGHT
    assert [exchange.context for exchange in asked] == [(), (PASSAGE, PASSAGE)]


def test_sub_questions_that_raise_are_left_out(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNER_HOME", str(Path.cwd()))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    tool = QueryEngineTool.from_defaults(AlignerQueryEngine(index.as_query_engine()), name="shop", description="Shop")
    questions = LLMQuestionGenerator.from_defaults()
    engine = SubQuestionQueryEngine.from_defaults([tool], question_gen=questions, verbose=False, use_async=False)
    assert str(engine.query("q")) == "Empty Response"


def test_accumulated_answers_are_one_text_and_no_text_is_the_word_none(index: Any) -> None:
    asked: list[Exchange] = []
    aligner = Aligner.scripted(noting(asked))
    AlignerQueryEngine(index.as_query_engine(response_mode="accumulate"), aligner).query("q")
    assert [exchange.answer for exchange in asked] == [f"Response 1: {DRAFT}"]
    assert str(Response("")) == "None"
    stream: Any = AlignerQueryEngine(index.as_query_engine(streaming=True), aligner).query("q")
    assert "".join(stream.response_gen) == RIGHT
    assert str(stream) == "None"
