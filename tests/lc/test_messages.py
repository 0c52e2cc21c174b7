"""What a correction may change in a message (its text) and what it must not (everything else)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from aligner_chain import Aligner, Correction
from aligner_chain.langchain import AlignerCorrector


@pytest.fixture
def fixer(told: list[Correction]) -> AlignerCorrector:
    """Corrects "bad" to "good" and approves everything else."""
    aligner = Aligner.scripted(lambda exchange: exchange.answer.replace("bad", "good"))
    return AlignerCorrector(aligner, question="q", on_correction=told.append)


THOUGHT = {"type": "reasoning", "reasoning": "hm", "extras": {"signature": "abc="}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize("kind", [AIMessage, AIMessageChunk])
def test_everything_but_the_text_is_kept(fixer: AlignerCorrector, kind: type[AIMessage]) -> None:
    given = kind(
        "a bad answer",
        id="resp_1",
        name="bot",
        additional_kwargs={"logprobs": [1]},
        response_metadata={"model_name": "m", "finish_reason": "stop"},
        usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
    )
    before = copy.deepcopy(given)
    result = fixer.invoke(given)
    assert given == before
    assert type(result) is kind
    told_of = result.response_metadata.pop("aligner")
    assert result == given.model_copy(update={"content": "a good answer"})
    assert given.response_metadata == before.response_metadata
    assert told_of.keys() == {"outcome", "reason", "correction_id", "aligner", "edits"}
    assert (told_of["outcome"], told_of["aligner"], told_of["edits"]) == ("corrected", "scripted@1", 1)


def test_the_metadata_names_the_correction(fixer: AlignerCorrector, told: list[Correction]) -> None:
    result = fixer.invoke(AIMessage("bad"))
    assert result.response_metadata["aligner"]["correction_id"] == told[0].id


def test_an_approved_answer_is_a_copy_with_metadata(fixer: AlignerCorrector) -> None:
    given = AIMessage([{"type": "text", "text": "fine", "annotations": [{"start": 0}]}, IMAGE], id="1")
    result = fixer.invoke(given)
    assert result is not given
    assert result.content == given.content
    assert result.response_metadata["aligner"]["outcome"] == "approved"
    assert "aligner" not in given.response_metadata


def test_the_original_only_when_asked_for(fixer: AlignerCorrector) -> None:
    plain = fixer.invoke(AIMessage("a bad answer"))
    assert "a bad answer" not in str(plain)
    keeping = AlignerCorrector(fixer.aligner, question="q", keep_original=True)
    told_of = keeping.invoke(AIMessage("a bad answer")).response_metadata["aligner"]
    assert told_of["original"] == "a bad answer"
    assert told_of["edit_list"] == [{"start": 2, "end": 5, "before": "bad", "after": "good"}]
    assert told_of["edits"] == 1


def test_what_tells_of_the_original_tokens_goes_with_them(fixer: AlignerCorrector) -> None:
    metadata = {"model_name": "m", "logprobs": {"content": [{"token": "bad"}]}}
    assert "logprobs" not in fixer.invoke(AIMessage("bad", response_metadata=metadata)).response_metadata
    assert fixer.invoke(AIMessage("fine", response_metadata=metadata)).response_metadata["logprobs"]
    assert metadata.keys() == {"model_name", "logprobs"}


CONTENTS = {
    "one block": ([{"type": "text", "text": "bad"}], [{"type": "text", "text": "good"}]),
    "bare strings": (["bad", " answer"], ["good answer"]),
    "text blocks side by side": (
        [{"type": "text", "text": "a bad ", "index": 0}, {"type": "text", "text": "answer"}],
        [{"type": "text", "text": "a good answer", "index": 0}],
    ),
    "reasoning and image keep their places": (
        [THOUGHT, {"type": "text", "text": "bad", "id": "t1"}, IMAGE],
        [THOUGHT, {"type": "text", "text": "good", "id": "t1"}, IMAGE],
    ),
    "annotations and citations are dropped": (
        [{"type": "text", "text": "bad", "annotations": [{"start_index": 0}], "citations": [{"cited_text": "x"}]}],
        [{"type": "text", "text": "good"}],
    ),
}


@pytest.mark.parametrize(("content", "expected"), CONTENTS.values(), ids=CONTENTS.keys())
def test_content_blocks(fixer: AlignerCorrector, content: list[Any], expected: list[Any]) -> None:
    given = AIMessage(content)
    before = copy.deepcopy(given)
    assert fixer.invoke(given).content == expected
    assert given == before


CALL = {"name": "search", "args": {"q": "bad"}, "id": "c1", "type": "tool_call"}
BROKEN_CALL = {"name": "search", "args": "{", "id": "c1", "error": None, "type": "invalid_tool_call"}
CALL_PIECE = {"name": "search", "args": '{"q', "id": "c1", "index": 0, "type": "tool_call_chunk"}

UNTOUCHED = {
    "tool call": (AIMessage("bad", tool_calls=[CALL]), "the answer calls a tool"),
    "invalid tool call": (AIMessage("bad", invalid_tool_calls=[BROKEN_CALL]), "the answer calls a tool"),
    "piece of a call": (AIMessageChunk("bad", tool_call_chunks=[CALL_PIECE]), "the answer calls a tool"),
    "function call": (AIMessage("bad", additional_kwargs={"function_call": {"name": "f"}}), "the answer calls a tool"),
    "empty": (AIMessage(""), "the answer is empty"),
    "whitespace": (AIMessage(" \n"), "the answer is empty"),
    "reasoning only": (AIMessage([THOUGHT]), "the answer is empty"),
    "refusal": (AIMessage([{"type": "refusal", "refusal": "no, that is bad"}]), "the answer is a refusal"),
    "refusal beside text": (
        AIMessage([{"type": "text", "text": "bad"}, {"type": "refusal", "refusal": "no"}]),
        "the answer is a refusal",
    ),
    "refusal of an unknown provider": (
        AIMessage([{"type": "non_standard", "value": {"type": "refusal", "refusal": "no"}}]),
        "the answer is a refusal",
    ),
    "refusal in Chat Completions": (
        AIMessage("bad", additional_kwargs={"refusal": "no"}),
        "the answer is a refusal",
    ),
    "JSON object": (AIMessage('{"mood": "bad"}'), "the answer is structured output"),
    "fenced JSON": (AIMessage('```json\n["bad"]\n```'), "the answer is structured output"),
    "parsed by the provider": (
        AIMessage("bad", additional_kwargs={"parsed": {}}),
        "the answer is structured output that was parsed already",
    ),
    "text around an image": (
        AIMessage([{"type": "text", "text": "bad"}, IMAGE, {"type": "text", "text": "bad"}]),
        "the text stands on both sides of other content",
    ),
}


@pytest.mark.parametrize(("message", "reason"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
async def test_untouched_messages_are_the_same_object(
    fixer: AlignerCorrector, told: list[Correction], message: AIMessage, reason: str
) -> None:
    before = copy.deepcopy(message)
    assert fixer.invoke(message) is message
    assert await fixer.ainvoke(message) is message
    assert fixer.batch([message])[0] is message
    assert message == before
    assert [(c.outcome, c.reason, c.exchange.question) for c in told] == [("skipped", reason, "q")] * 3


@pytest.mark.parametrize("answer", ["bad [1] and {2}", "[bad] {", '{"mood": bad}', "see:\n```json\n{}\n```\nbad"])
def test_text_that_only_looks_like_json_is_corrected(fixer: AlignerCorrector, answer: str) -> None:
    assert fixer.invoke(answer) == answer.replace("bad", "good")


@pytest.mark.parametrize("answer", ["```\n" + "\n" * 100_000 + "x", "```json" + " " * 100_000, "`" * 100_000])
def test_a_fence_that_never_ends_costs_no_time(fixer: AlignerCorrector, told: list[Correction], answer: str) -> None:
    fixer.invoke(answer)
    assert told[0].outcome == "approved"


def test_deeply_nested_brackets_are_text(fixer: AlignerCorrector, told: list[Correction]) -> None:
    fixer.invoke("[" * 100_000)
    assert told[0].outcome == "approved"


def test_untouched_without_a_question_is_no_error_and_no_record(told: list[Correction]) -> None:
    blind = AlignerCorrector(
        Aligner.scripted(lambda exchange: "x"), prompt_source="explicit", on_correction=told.append
    )
    message = AIMessage("", tool_calls=[CALL])
    assert blind.invoke(message) is message
    assert blind.invoke("") == ""
    assert told == []
