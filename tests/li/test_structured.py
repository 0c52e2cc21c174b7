"""Structured output: Pydantic responses, one field of them, and JSON that comes as a text."""

from __future__ import annotations

from typing import Any

import pytest
from llama import QUESTION, ScriptedLLM, as_json, call, node, rag, read, streaming
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from pydantic import AliasChoices, BaseModel, Field, field_validator

from aligner_chain import Aligner, ConfigurationError, Correction, Exchange
from aligner_chain.llama_index import AlignerQueryEngine, AlignerResponsePostprocessor, AlignerSynthesizer


class Report(BaseModel):
    title: str = Field(default="r", max_length=9)
    answer: str
    stars: int = 3
    answers: list[str] = Field(default_factory=list)

    @field_validator("answer")
    @classmethod
    def _polite(cls, text: str) -> str:
        if "rude" in text:
            raise ValueError("that is rude")
        return text


def given(**fields: Any) -> PydanticResponse:
    return PydanticResponse(Report(**{"answer": "a bad answer", **fields}), source_nodes=[node("one")])


def test_a_pydantic_response_passes(postprocessor: Any, asked: list[Exchange], told: list[Correction]) -> None:
    response = given()
    result = postprocessor.postprocess_response(response, query_str=QUESTION)
    assert result.response is response.response
    assert (result.answer, result.stars) == ("a bad answer", 3)
    assert result.metadata["aligner"]["outcome"] == "skipped"
    assert "pydantic_field=" in result.metadata["aligner"]["reason"]
    assert asked == []
    assert [(one.outcome, one.text) for one in told] == [("skipped", response.response.model_dump_json())]


def test_one_field_is_corrected_and_the_rest_kept(correcting: Any, asked: list[Exchange]) -> None:
    response = given(stars=1, answers=["a bad one"])
    result = correcting(pydantic_field="answer").postprocess_response(response, query_str=QUESTION)
    assert isinstance(result.response, Report)
    assert result.response == Report(answer="a good answer", stars=1, answers=["a bad one"])
    assert response.response == Report(answer="a bad answer", stars=1, answers=["a bad one"])
    assert asked[0].answer == "a bad answer"


@pytest.mark.parametrize(("field", "correction", "told_why"), [("answer", "so rude", "rude"), ("title", "x" * 10, "9")])
def test_a_correction_that_the_model_refuses_is_not_served(field: str, correction: str, told_why: str) -> None:
    strict = AlignerResponsePostprocessor(Aligner.scripted(lambda exchange: correction), pydantic_field=field)
    response = given()
    result = strict.postprocess_response(response, query_str=QUESTION)
    assert result.response is response.response
    assert result.metadata["aligner"]["outcome"] == "kept"
    assert told_why in result.metadata["aligner"]["reason"]


@pytest.mark.parametrize("field", ["anser", "stars", "answers"])
def test_a_field_without_a_text_is_an_error_that_names_those_with_one(correcting: Any, field: str) -> None:
    """Trap 2: a PydanticResponse has every attribute that one asks for."""
    with pytest.raises(ConfigurationError, match=r"Its fields that hold text: title, answer\."):
        correcting(pydantic_field=field).postprocess_response(given(), query_str=QUESTION)


def test_a_pydantic_response_without_a_model_passes(correcting: Any) -> None:
    for postprocessor in (correcting(), correcting(pydantic_field="answer")):
        result = postprocessor.postprocess_response(PydanticResponse(None), query_str=QUESTION)
        assert (result.response, result.metadata["aligner"]["outcome"]) == (None, "skipped")


def test_an_empty_field_is_skipped(correcting: Any, asked: list[Exchange]) -> None:
    result = correcting(pydantic_field="answer").postprocess_response(given(answer=" "), query_str=QUESTION)
    assert (result.answer, result.metadata["aligner"]["outcome"], asked) == (" ", "skipped", [])


def test_of_other_responses_the_field_is_no_matter(correcting: Any) -> None:
    result = correcting(pydantic_field="answer").postprocess_response(Response("bad"), query_str=QUESTION)
    assert result.response == "good"


@pytest.mark.parametrize("method", ["query", "aquery"])
@pytest.mark.parametrize("form", ["synthesizer", "query engine"])
@pytest.mark.parametrize("way", ["output_cls", "tree", "structured llm"])
async def test_real_structured_answers(way: str, form: str, method: str, correcting: Any, told: Any) -> None:
    model = ScriptedLLM(reply=as_json(answer="a bad answer", stars=5))
    mode = ResponseMode.TREE_SUMMARIZE if way == "tree" else ResponseMode.COMPACT
    if way == "structured llm":
        inner = get_response_synthesizer(llm=model.as_structured_llm(Report), response_mode=mode)
    else:
        inner = get_response_synthesizer(llm=model, output_cls=Report, response_mode=mode)
    postprocessor = correcting(pydantic_field="answer")
    if form == "synthesizer":
        engine: Any = rag(AlignerSynthesizer(inner, postprocessor))
    else:
        engine = AlignerQueryEngine(rag(inner), postprocessor)
    response = await call(engine, method, QUESTION)
    assert isinstance(response, PydanticResponse)
    assert response.response == Report(answer="a good answer", stars=5)
    assert len(response.source_nodes) == 3
    assert [one.outcome for one in told] == ["corrected"]


# JSON as a text, which is what a structured answer streams as


@pytest.mark.parametrize("method", ["query", "aquery"])
async def test_a_structured_answer_that_streams_is_skipped(
    method: str, correcting: Any, asked: list[Exchange], told: list[Correction]
) -> None:
    text = as_json(answer="a bad answer", stars=5)
    inner = get_response_synthesizer(
        llm=ScriptedLLM(reply=text), output_cls=Report, streaming=True, response_mode=ResponseMode.TREE_SUMMARIZE
    )
    response = await call(rag(AlignerSynthesizer(inner, correcting())), method, QUESTION)
    assert await read(response) == text
    assert [(one.outcome, one.reason) for one in told] == [("skipped", "the answer is structured output")]
    assert asked == []


JSON = {
    "another value": ('{"mood": "bad"}', '{"mood": "good"}', "corrected"),
    "another kind": ('{"mood": "bad"}', '{"mood": 3}', "kept"),
    "another key": ('{"mood": "bad"}', '{"tone": "good"}', "kept"),
    "no JSON": ('["bad"]', "good", "kept"),
    "a fence": ('```json\n{"mood": "bad"}\n```', '```json\n{"mood": "good"}\n```', "corrected"),
    "no fence": ('```json\n{"mood": "bad"}\n```', '{"mood": "good"}', "kept"),
}


@pytest.mark.parametrize(("answer", "correction", "outcome"), JSON.values(), ids=JSON)
async def test_json_is_validated_on_request(answer: str, correction: str, outcome: str, correcting: Any) -> None:
    validating = correcting(Aligner.scripted(lambda exchange: correction), structured="validate")
    served = correction if outcome == "corrected" else answer
    for response in (Response(answer), streaming(answer)):
        result = validating.postprocess_response(response, query_str=QUESTION)
        assert await read(result) == served
        assert result.metadata["aligner"]["outcome"] == outcome
    plain = validating.postprocess_response(Response("plain text"), query_str=QUESTION)
    assert plain.response == correction  # only what is JSON must stay it


def test_json_in_a_field_keeps_its_shape_too(correcting: Any) -> None:
    for structured, outcome in (("skip", "skipped"), ("validate", "kept")):
        losing = correcting(Aligner.scripted(lambda _: "none"), pydantic_field="answer", structured=structured)
        result = losing.postprocess_response(given(answer='{"mood": "bad"}'), query_str=QUESTION)
        assert (result.answer, result.metadata["aligner"]["outcome"]) == ('{"mood": "bad"}', outcome)


class Particular(BaseModel):
    """What a model may be like that must not be made anew for the sake of one field."""

    title: str
    body: str = Field(validation_alias=AliasChoices("text", "body"))
    note: str | None = None

    @field_validator("title")
    @classmethod
    def _loud(cls, title: str) -> str:
        return title + "!"

    @field_validator("note", mode="before")
    @classmethod
    def _parts(cls, note: Any) -> Any:
        return "|".join(note["parts"]) if note is not None else None


class Frozen(BaseModel, frozen=True):
    answer: str


def test_the_other_fields_are_not_validated_again(correcting: Any) -> None:
    response = PydanticResponse(Particular(title="T", text="a bad answer"))
    result = correcting(pydantic_field="body").postprocess_response(response, query_str=QUESTION)
    assert (result.response.title, result.response.body) == ("T!", "a good answer")


def test_a_frozen_model_is_corrected_in_a_copy(correcting: Any) -> None:
    response = PydanticResponse(Frozen(answer="a bad answer"))
    result = correcting(pydantic_field="answer").postprocess_response(response, query_str=QUESTION)
    assert (result.response.answer, response.response.answer) == ("a good answer", "a bad answer")


def test_a_validator_that_breaks_refuses_the_correction(correcting: Any, told: list[Correction]) -> None:
    response = PydanticResponse(Particular(title="T", text="x", note={"parts": ["bad"]}))
    result = correcting(pydantic_field="note").postprocess_response(response, query_str=QUESTION)
    assert result.response is response.response
    assert [one.outcome for one in told] == ["kept"]


def test_a_field_that_holds_nothing_is_an_empty_answer(correcting: Any, told: list[Correction]) -> None:
    response = PydanticResponse(Particular(title="T", text="x"))
    correcting(pydantic_field="note").postprocess_response(response, query_str=QUESTION)
    assert [one.outcome for one in told] == ["skipped"]
