"""The official client of OpenAI, and LangChain's, with the proxy as their base URL: every answer beside the upstream's own."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("prometheus_client")

import openai
from openai_server import OpenAIServer
from proxying import KEY, proxy
from pydantic import BaseModel

from aligner_chain import Correction

SUMMARY = {"outcome", "reason", "correction_id", "aligner", "edits"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
    },
}
SCHEMA = {"name": "joke", "schema": {"type": "object", "properties": {"setup": {"type": "string"}}}}


class Joke(BaseModel):
    setup: str


TEXTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unknown fields": {"extra_body": {"top_k": 3, "priority": "bad"}},
    "cut": {"max_completion_tokens": 3},
    "tools that it leaves": {"tools": [TOOL], "tool_choice": "none"},
}
PASSED: dict[str, tuple[str, dict[str, Any]]] = {
    "tools": ("weather in Rome?", {"tools": [TOOL]}),
    "forced tool": ("why?", {"tools": [TOOL], "tool_choice": "required"}),
    "schema": ("a joke", {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
    "json": ("a joke with 'setup'", {"response_format": {"type": "json_object"}}),
    "json by itself": ("a joke with 'setup'", {"extra_body": {"response_format": {"type": "json_object"}}}),
    "refusal": ("please refuse", {}),
}


@pytest.fixture(scope="module")
def model() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture(scope="module")
def told() -> list[Correction]:
    return []


@pytest.fixture(scope="module")
def url(model: OpenAIServer, told: list[Correction]) -> Iterator[str]:
    with proxy(model.url, on_correction=told.append) as base:
        yield base


@pytest.fixture(autouse=True)
def anew(model: OpenAIServer, told: list[Correction]) -> None:
    model.forget()
    told.clear()


def asking(question: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "gpt-test", "messages": [{"role": "user", "content": question}], **fields}


@functools.cache
def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=KEY)


def whole(url: str, request: dict[str, Any]) -> list[Any]:
    return [client_of(url).chat.completions.create(**request).model_dump()]


def streamed(url: str, request: dict[str, Any]) -> list[Any]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return [piece.model_dump() for piece in client_of(url).chat.completions.create(**request, **options)]


async def awhole(url: str, request: dict[str, Any]) -> list[Any]:
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
        return [(await client.chat.completions.create(**request)).model_dump()]


async def astreamed(url: str, request: dict[str, Any]) -> list[Any]:
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
        pieces = await client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
        return [piece.model_dump() async for piece in pieces]


WAYS = {"whole": whole, "streamed": streamed, "awhole": awhole, "astreamed": astreamed}
SYNC = ["whole", "streamed"]


async def both(way: str, model: OpenAIServer, url: str, request: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What the upstream says itself, and what comes through the proxy, of two requests that are the same for it."""
    results = []
    for base in (model.url, url):
        model.forget()
        given = WAYS[way](base, request)
        results.append(given if isinstance(given, list) else await given)
    return results[0], results[1]


def notes(answers: list[Any]) -> list[Any]:
    """What the proxy told of each choice, taken out of the answers."""
    return [choice.pop("aligner") for one in answers for choice in one["choices"] if "aligner" in choice]


def text(answers: list[Any]) -> str:
    """The text in all of them, taken out."""
    said = [choice.get("message") or choice["delta"] for one in answers for choice in one["choices"]]
    return "".join(one.pop("content") or "" for one in said)


def left(answers: list[Any]) -> list[Any]:
    """What is not just a further piece of the text."""
    return [
        one
        for one in answers
        if not one["choices"]
        or one["choices"][0]["finish_reason"]
        or any((one["choices"][0].get("delta") or {}).values())
    ]


@pytest.mark.parametrize(("case", "way"), [*product(TEXTS, SYNC), ("plain", "awhole"), ("plain", "astreamed")])
async def test_a_text_is_corrected_and_all_else_is_the_upstreams_own(
    case: str, way: str, model: OpenAIServer, url: str, told: list[Correction]
) -> None:
    direct, proxied = await both(way, model, url, asking("what is bad?", TEXTS[case]))
    [note] = notes(proxied)
    assert set(note) == SUMMARY
    assert note["outcome"] == "corrected"
    original, corrected = text(direct), text(proxied)
    assert original.startswith("bad answer")
    assert corrected == original.replace("bad", "good")
    assert left(proxied) == left(direct)
    [correction] = told
    assert (correction.id, correction.exchange.message_id) == (note["correction_id"], direct[0]["id"])
    assert correction.exchange.upstream == "gpt-test-2026-01-01"
    assert [turn.text for turn in correction.exchange.turns] == ["what is bad?"]


@pytest.mark.parametrize(("case", "way"), [*product(PASSED, SYNC), ("tools", "awhole"), ("tools", "astreamed")])
async def test_what_is_not_for_an_aligner_passes_as_it_is(
    case: str, way: str, model: OpenAIServer, url: str, told: list[Correction]
) -> None:
    question, fields = PASSED[case]
    direct, proxied = await both(way, model, url, asking(question, fields))
    [note] = notes(proxied)
    assert note["outcome"] == "skipped"
    assert note["reason"]
    assert proxied == direct
    assert [one.outcome for one in told] == ["skipped"]


def test_the_upstream_gets_what_the_client_sent(model: OpenAIServer, url: str) -> None:
    request = asking("how?", {"temperature": 0.1, "extra_body": {"unheard": {"of": [1, None]}}, "user": "me"})
    whole(model.url, request)
    whole(url, request)
    direct, proxied = model.requests
    assert proxied == direct


def test_structured_output_parses(url: str) -> None:
    [message] = [client_of(url).chat.completions.parse(**asking("a joke", {}), response_format=Joke).choices[0].message]
    assert message.parsed == Joke(setup="bad setup")


def test_the_clients_stream_helper_reads_the_stream(url: str) -> None:
    with client_of(url).chat.completions.stream(**asking("how?", {})) as events:
        done = events.get_final_completion()
    assert done.choices[0].message.content == "good answer to: how?"


@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_an_upstreams_error_is_the_clients_error(way: str, model: OpenAIServer, url: str) -> None:
    request = {
        "model": "m",
        "messages": [{"role": "tool", "tool_call_id": "lost", "content": "x"}, {"role": "user", "content": "?"}],
    }
    found = []
    for base in (model.url, url):
        with pytest.raises(openai.BadRequestError) as caught:
            WAYS[way](base, request)
        found.append((caught.value.status_code, caught.value.body))
    assert found[0] == found[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_correction_that_failed_is_an_error_and_is_not_asked_for_again(
    streaming: bool, model: OpenAIServer, url: str, told: list[Correction]
) -> None:
    with pytest.raises(openai.APIError) as caught:
        list(client_of(url).chat.completions.create(**asking("break it", {}), stream=streaming))
    assert caught.value.code == "engine"
    assert "bad answer" not in json.dumps(caught.value.body)
    assert len(model.requests) == 1  # the client would ask twice more for a 502 that does not say otherwise
    assert [one.outcome for one in told] == ["failed"]


@pytest.mark.parametrize("streaming", [False, True])
def test_langchain_gets_corrected_answers(streaming: bool, model: OpenAIServer, url: str) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI
    llm = chat(model="gpt-test", base_url=url, api_key=KEY, streaming=streaming, use_responses_api=False)
    answer = llm.invoke("how?")
    assert answer.text == "good answer to: how?"
    assert answer.response_metadata["model_name"] == "gpt-test-2026-01-01"
    called = llm.bind_tools([TOOL]).invoke("weather in Rome?")
    assert [call["name"] for call in called.tool_calls] == ["get_weather"]
    assert called.text == "a bad plan"
