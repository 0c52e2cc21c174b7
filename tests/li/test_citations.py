"""Marks that others read in an answer: citations of nodes, and what parts accumulated answers."""

from __future__ import annotations

from typing import Any

import pytest
from llama import QUESTION, ScriptedLLM, Shelf, call, node, rag, read, streaming
from llama_index.core.base.response.schema import Response
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer

from aligner_chain import Aligner, Correction
from aligner_chain.llama_index import AlignerQueryEngine, AlignerResponsePostprocessor, AlignerSynthesizer

THREE = [node("one"), node("two"), node("three")]
CHANGES = {
    "a lost one": ("so [1], so [2]", "so [1]", "the correction lost [2]"),
    "an added one": ("so [1]", "so [1], so [3]", "the correction added [3]"),
    "another one": ("so [1]", "so [2]", "the correction lost [1]"),
    "several": ("[3] and [1]", "none", "all citations are lost"),
    "a spelt one": ("so [1]", "so (1)", "a sentence lost its citation"),
    "kept": ("bad [1][2]", "good [1][2]", ""),
    "moved": ("bad [1], [2]", "[2] good [1]", ""),
    "no node": ("a list [7]", "a list", ""),
    "no node either": ("a list", "a list [0]", ""),
    "more than there are": ("a list", "a list [4] [12345]", "a passage is cited that is not there"),
    "a repetition": ("so [1] and [1]", "so [1]", ""),
    "no number": ("see [a] and [ 1 ]", "see", ""),
}


@pytest.mark.parametrize(("answer", "correction", "reason"), CHANGES.values(), ids=CHANGES)
async def test_a_citation_is_neither_lost_nor_added(answer: str, correction: str, reason: str) -> None:
    """Trap 10."""
    postprocessor = AlignerResponsePostprocessor(Aligner.scripted(lambda exchange: correction))
    for given in (Response(answer, source_nodes=THREE), streaming(answer, source_nodes=THREE)):
        result = postprocessor.postprocess_response(given, query_str=QUESTION)
        assert await read(result) == (answer if reason else correction)
        assert (result.metadata["aligner"]["outcome"], result.metadata["aligner"]["reason"]) == (
            "kept" if reason else "corrected",
            reason,
        )
        assert (result.metadata["aligner"]["edits"] == 0) == bool(reason)


def test_without_nodes_a_number_is_no_citation() -> None:
    postprocessor = AlignerResponsePostprocessor(Aligner.scripted(lambda exchange: "none"))
    assert postprocessor.postprocess_response(Response("a list [1]"), query_str=QUESTION).response == "none"


def test_a_refused_correction_is_told_as_kept(correcting: Any, told: list[Correction]) -> None:
    refused = correcting(Aligner.scripted(lambda exchange: "none"))
    refused.postprocess_response(Response("so [1]", source_nodes=THREE), query_str=QUESTION)
    assert [(one.outcome, one.text, one.edits) for one in told] == [("kept", "so [1]", ())]


def test_citations_are_guarded_also_where_the_nodes_are_not_read() -> None:
    postprocessor = AlignerResponsePostprocessor(Aligner.scripted(lambda exchange: "none"), use_context=False)
    given = Response("so [1]", source_nodes=THREE)
    assert postprocessor.postprocess_response(given, query_str=QUESTION).response == "so [1]"


@pytest.mark.parametrize("method", ["query", "aquery"])
@pytest.mark.parametrize("mode", [ResponseMode.ACCUMULATE, ResponseMode.COMPACT_ACCUMULATE])
async def test_the_parts_of_accumulated_answers_survive(mode: ResponseMode, method: str, llm: ScriptedLLM) -> None:
    def spoil(exchange: Any) -> str:
        return exchange.answer.replace("bad", "good").replace("Response 1:", "First:")

    for script, outcome in ((lambda e: e.answer.replace("bad", "good"), "corrected"), (spoil, "kept")):
        inner = get_response_synthesizer(llm=llm, response_mode=mode)
        response = await call(rag(AlignerSynthesizer(inner, Aligner.scripted(script))), method, QUESTION)
        assert response.metadata["aligner"]["outcome"] == outcome
        assert response.response.startswith("Response 1: a good" if outcome == "corrected" else "Response 1: a bad")
        assert response.response.count("-" * 21) == (2 if mode == ResponseMode.ACCUMULATE else 0)


@pytest.mark.parametrize("method", ["query", "aquery"])
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
@pytest.mark.parametrize("correction", ["a good answer [2]", "a good answer"])
async def test_a_citation_engine_keeps_its_citations(form: str, method: str, correction: str, told: Any) -> None:
    llm = ScriptedLLM(reply="a bad answer [2]")
    postprocessor = AlignerResponsePostprocessor(
        Aligner.scripted(lambda exchange: correction), on_correction=told.append
    )
    shelf = Shelf("one", "two")
    if form == "synthesizer":
        synthesizer = AlignerSynthesizer(get_response_synthesizer(llm=llm), postprocessor)
        engine: Any = CitationQueryEngine(shelf, llm=llm, response_synthesizer=synthesizer)
    else:
        engine = AlignerQueryEngine(CitationQueryEngine(shelf, llm=llm), postprocessor)
    response = await call(engine, method, QUESTION)
    assert response.response == "a good answer [2]"  # where the correction lost the mark, it was put back
    assert [one.outcome for one in told] == ["corrected"]
    assert [one.action for one in told[0].findings] == ([] if "[2]" in correction else ["restore"])
    assert [one.node.get_content() for one in response.source_nodes] == ["Source 1:\none\n", "Source 2:\ntwo\n"]
    assert told[0].exchange.context == ("Source 1:\none\n", "Source 2:\ntwo\n")


def test_every_answer_has_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Also one that the Aligner never saw, or whose correction the postprocessor refused: there the last line holds."""
    caplog.set_level("INFO", logger="aligner_chain.decisions")
    postprocessor = AlignerResponsePostprocessor(Aligner.scripted(lambda exchange: "none"), use_context=False)
    for answer in ("so [1]", "Empty Response"):
        postprocessor.postprocess_response(Response(answer, source_nodes=THREE), query_str=QUESTION)
    lines = [record.decision for record in caplog.records]  # type: ignore[attr-defined]
    assert [line["outcome"] for line in lines] == ["corrected", "kept", "skipped"]
    assert lines[0]["id"] == lines[1]["id"]
