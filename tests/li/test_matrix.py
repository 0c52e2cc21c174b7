"""Each kind of response through each form, with and without asyncio: what changes, and what must not."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from llama import BAD, GOOD, QUESTION, Handing, ScriptedLLM, async_streaming, call, rag, read, streaming
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import BaseModel

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.llama_index import AlignerQueryEngine, AlignerResponsePostprocessor, AlignerSynthesizer


class Verdict(BaseModel):
    answer: str
    sure: bool = True


KINDS = {
    "Response": Response,
    "StreamingResponse": StreamingResponse,
    "AsyncStreamingResponse": AsyncStreamingResponse,
    "PydanticResponse": PydanticResponse,
}
FORMS = ("postprocessor", "synthesizer", "query engine", "synthesizer in an engine", "parts of the query engine")


def response_of(kind: str, text: str, nodes: list[NodeWithScore]) -> Any:
    settings: Any = {"source_nodes": nodes, "metadata": {one.node_id: one.metadata for one in nodes}}
    if kind == "Response":
        return Response(text, **settings)
    if kind == "PydanticResponse":
        return PydanticResponse(Verdict(answer=text), **settings)
    stream = streaming if kind == "StreamingResponse" else async_streaming
    return stream(text[:3], text[3:], **settings)


async def through(form: str, prefix: str, postprocessor: Any, response: Any, nodes: list[NodeWithScore]) -> Any:
    if form == "postprocessor":
        return await call(postprocessor, f"{prefix}postprocess_response", response, query_str=QUESTION)
    if form == "synthesizer":
        return await call(AlignerSynthesizer(Handing(response), postprocessor), f"{prefix}synthesize", QUESTION, nodes)
    if form == "synthesizer in an engine":
        engine: Any = rag(AlignerSynthesizer(Handing(response), postprocessor), *nodes)
        return await call(engine, f"{prefix}query", QUESTION)
    engine = AlignerQueryEngine(rag(Handing(response), *nodes), postprocessor)
    if form == "query engine":
        return await call(engine, f"{prefix}query", QUESTION)
    query = QueryBundle(QUESTION)
    found = await call(engine, f"{prefix}retrieve", query)
    return await call(engine, f"{prefix}synthesize", query, found)


@pytest.mark.parametrize("prefix", ["", "a"], ids=["sync", "async"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_answer_is_corrected_and_all_else_kept(
    kind: str,
    form: str,
    prefix: str,
    correcting: Any,
    nodes: list[NodeWithScore],
    asked: list[Exchange],
    told: list[Correction],
) -> None:
    given = response_of(kind, BAD, nodes)
    before = [getattr(given, field.name) for field in fields(given)]
    metadata = dict(given.metadata)

    result = await through(form, prefix, correcting(pydantic_field="answer", upstream="up@1"), given, nodes)

    assert isinstance(result, KINDS[kind])
    assert result is not given
    text = result.response.answer if kind == "PydanticResponse" else await read(result)
    assert text == GOOD
    assert result.source_nodes is given.source_nodes
    assert result.metadata == {
        **metadata,
        "aligner": {
            "outcome": "corrected",
            "reason": "",
            "correction_id": told[0].id,
            "aligner": "scripted@1",
            "edits": 1,
        },
    }
    # The given one sits in the events of a trace as well.
    assert all(getattr(given, f.name) is was for f, was in zip(fields(given)[:3], before, strict=False))
    assert given.metadata == metadata

    [correction], [exchange] = told, asked
    assert correction.exchange == exchange
    assert (exchange.question, exchange.answer, exchange.upstream) == (QUESTION, BAD, "up@1")
    assert exchange.context == ("page: 1\n\none", "two", "three")
    assert (correction.text, correction.outcome) == (GOOD, "corrected")


@pytest.mark.parametrize("prefix", ["", "a"], ids=["sync", "async"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_approved_answer_is_served_to_the_byte(
    kind: str, form: str, prefix: str, correcting: Any, nodes: list[NodeWithScore], told: list[Correction]
) -> None:
    answer = " \tA góod\r\nanswer \U0001f600 \n"
    result = await through(form, prefix, correcting(pydantic_field="answer"), response_of(kind, answer, nodes), nodes)
    assert (result.response.answer if kind == "PydanticResponse" else await read(result)) == answer
    assert (result.metadata["aligner"]["outcome"], result.metadata["aligner"]["edits"]) == ("approved", 0)
    assert [(one.outcome, one.text) for one in told] == [("approved", answer)]


@pytest.mark.parametrize("prefix", ["", "a"], ids=["sync", "async"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_original_is_told_on_request(
    kind: str, prefix: str, correcting: Any, nodes: list[NodeWithScore]
) -> None:
    keeping = correcting(pydantic_field="answer", keep_original=True)
    result = await through("postprocessor", prefix, keeping, response_of(kind, BAD, nodes), nodes)
    await read(result)
    assert result.metadata["aligner"]["original"] == BAD
    assert result.metadata["aligner"]["edit_list"] == [{"start": 2, "end": 5, "before": "bad", "after": "good"}]


@pytest.mark.parametrize("kind", ["StreamingResponse", "AsyncStreamingResponse"])
async def test_a_stream_tells_of_its_correction_once_it_was_read(
    kind: str, postprocessor: AlignerResponsePostprocessor, nodes: list[NodeWithScore], told: list[Correction]
) -> None:
    result = await through("postprocessor", "a", postprocessor, response_of(kind, BAD, nodes), nodes)
    assert result.metadata["aligner"] == {}
    assert told == []
    await read(result)
    assert result.metadata["aligner"]["outcome"] == "corrected"


def test_metadata_that_a_response_lacks_is_made(postprocessor: AlignerResponsePostprocessor) -> None:
    given = Response(BAD)
    result = postprocessor.postprocess_response(given, query_str=QUESTION)
    assert (given.metadata, list(result.metadata or {})) == (None, ["aligner"])


def test_the_question_comes_as_a_bundle_or_as_a_text(
    postprocessor: AlignerResponsePostprocessor, asked: list[Exchange]
) -> None:
    postprocessor.postprocess_response(Response(BAD), QueryBundle(QUESTION))
    postprocessor.postprocess_response(Response(BAD), query_bundle=QueryBundle(QUESTION, custom_embedding_strs=["x"]))
    postprocessor.postprocess_response(Response(BAD), query_str=QUESTION)
    assert [exchange.question for exchange in asked] == [QUESTION] * 3
    with pytest.raises(ValueError, match="not as both"):
        postprocessor.postprocess_response(Response(BAD), QueryBundle(QUESTION), QUESTION)


def test_an_aligner_or_a_folder_stands_for_a_postprocessor(mend: Aligner) -> None:
    for form in (
        AlignerSynthesizer(Handing(Response(BAD)), mend),
        AlignerQueryEngine(rag(Handing(Response(BAD))), mend),
    ):
        assert form.postprocessor.aligner is mend
    assert AlignerQueryEngine(rag(Handing(Response(BAD))), "folder").postprocessor.aligner == "folder"
    assert AlignerSynthesizer(Handing(Response(BAD))).postprocessor.aligner is None


def test_a_node_or_an_engine_that_writes_our_key_hides_nothing(postprocessor: Any, told: list[Correction]) -> None:
    found = NodeWithScore(node=TextNode(id_="aligner", text="one", metadata={"page": 1}))
    engine = rag(AlignerSynthesizer(get_response_synthesizer(llm=ScriptedLLM()), postprocessor), found)
    assert str(engine.query(QUESTION)) == GOOD
    merged = Response(BAD, metadata={"aligner": {"outcome": "corrected", "correction_id": "of a part"}})
    assert str(postprocessor.postprocess_response(merged, query_str=QUESTION)) == GOOD
    assert len(told) == 2
