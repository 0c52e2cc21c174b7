"""LlamaIndex's instrumentation: our own events, where the spans stand, and which text its events hold."""

from __future__ import annotations

from typing import Any

import pytest
from llama import BAD, GOOD, QUERIES, QUESTION, Listening, ScriptedLLM, call, node, rag, read, streaming
from llama_index.core.base.response.schema import Response
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.response_synthesizers import get_response_synthesizer

from aligner_chain import Aligner, Correction
from aligner_chain.llama_index import AlignEndEvent, AlignerQueryEngine, AlignerSynthesizer, AlignStartEvent

OURS = ("AlignStartEvent", "AlignEndEvent")


@pytest.mark.parametrize("method", ["postprocess_response", "apostprocess_response"])
@pytest.mark.parametrize("make", [Response, streaming], ids=["whole", "stream"])
async def test_the_aligners_work_is_told(make: Any, method: str, postprocessor: Any, told: list[Correction]) -> None:
    with Listening() as listening, instrument_tags({"request": 7}):
        given = make(BAD, source_nodes=[node("one"), node("two")])
        await read(await call(postprocessor, method, given, query_str=QUESTION))
    start, end = listening.heard.of(*OURS)
    assert isinstance(start, AlignStartEvent)
    assert isinstance(end, AlignEndEvent)
    assert (start.query, start.answer, start.passages) == (QUESTION, BAD, 2)
    assert (end.query, end.answer, end.corrected, end.changed) == (QUESTION, BAD, GOOD, True)
    assert (end.outcome, end.reason, end.correction_id) == ("corrected", "", told[0].id)
    assert end.duration_s >= 0
    assert start.tags == end.tags == {"request": 7}


async def test_every_outcome_is_told(correcting: Any) -> None:
    passing = correcting(on_error="pass_through")
    with Listening() as listening:
        for answer in (GOOD, "empty", "a crash", "Empty Response"):
            await passing.apostprocess_response(Response(answer), query_str=QUESTION)
    ends = listening.heard.of("AlignEndEvent")
    # The last one never reached the Aligner.
    assert [(end.outcome, end.changed) for end in ends] == [("approved", False), ("kept", False), ("failed", False)]
    assert len(listening.heard.of("AlignStartEvent")) == 3


def test_a_refused_correction_is_told_as_it_was_served(correcting: Any) -> None:
    refused = correcting(Aligner.scripted(lambda exchange: "none"))
    with Listening() as listening:
        refused.postprocess_response(Response("so [1]", source_nodes=[node("one")]), query_str=QUESTION)
    [end] = listening.heard.of("AlignEndEvent")
    assert (end.corrected, end.outcome, end.reason) == ("so [1]", "kept", "all citations are lost")


async def test_an_unchecked_stream_is_told_at_its_end(correcting: Any) -> None:
    unchecked = correcting(stream_unchecked=True)
    with Listening() as listening:
        list(unchecked.postprocess_response(streaming(BAD), query_str=QUESTION).response_gen)
    [end] = listening.heard.of("AlignEndEvent")
    assert (end.corrected, end.outcome) == (GOOD, "corrected")


@pytest.mark.parametrize("method", QUERIES)
async def test_spans_nest_and_events_tell_before_from_after(method: str, llm: ScriptedLLM, postprocessor: Any) -> None:
    prefix = "a" if method == "aquery" else ""
    inner = get_response_synthesizer(llm=llm)
    with Listening() as listening:
        await call(rag(AlignerSynthesizer(inner, postprocessor)), method, QUESTION)
    parents = listening.parents()
    ours = f"AlignerSynthesizer.{prefix}synthesize"
    assert parents[f"CompactAndRefine.{prefix}synthesize"] == ours
    assert parents[f"AlignerResponsePostprocessor._{prefix}postprocess_response"] == ours
    assert parents[ours] == f"RetrieverQueryEngine._{method}"
    [synthesized], [queried] = listening.heard.of("SynthesizeEndEvent"), listening.heard.of("QueryEndEvent")
    assert (synthesized.response.response, queried.response.response) == (BAD, GOOD)
    [end] = listening.heard.of("AlignEndEvent")
    assert end.span_id.startswith("AlignerResponsePostprocessor.")


@pytest.mark.parametrize("method", QUERIES)
async def test_spans_of_the_query_engine_nest(method: str, llm: ScriptedLLM, postprocessor: Any) -> None:
    with Listening() as listening:
        await call(AlignerQueryEngine(rag(get_response_synthesizer(llm=llm)), postprocessor), method, QUESTION)
    parents = listening.parents()
    assert parents[f"RetrieverQueryEngine.{method}"] == f"AlignerQueryEngine._{method}"
    assert parents[f"AlignerQueryEngine._{method}"] == f"AlignerQueryEngine.{method}"
    inner, outer = listening.heard.of("QueryEndEvent")
    assert (inner.response.response, outer.response.response) == (BAD, GOOD)


def test_a_listener_that_fails_disturbs_nothing(postprocessor: Any) -> None:
    from llama_index.core.instrumentation import get_dispatcher

    class Failing(BaseEventHandler):
        def handle(self, event: Any, **kw: Any) -> None:
            raise OSError("the disk is full")

    failing = Failing()
    get_dispatcher().add_event_handler(failing)
    try:
        assert postprocessor.postprocess_response(Response(BAD), query_str=QUESTION).response == GOOD
    finally:
        get_dispatcher().event_handlers.remove(failing)


def test_events_can_be_written() -> None:
    event = AlignStartEvent(query="q", answer="a", passages=0)
    assert event.model_dump()["class_name"] == event.class_name() == "AlignStartEvent"
    assert AlignEndEvent.class_name() == "AlignEndEvent"
