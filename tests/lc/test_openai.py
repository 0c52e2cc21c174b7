"""The real ChatOpenAI before the corrector: both APIs of OpenAI, both shapes of content, every way to run a chain."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable, Iterator
from functools import reduce
from operator import add
from typing import Any

import pytest

pytest.importorskip("langchain_openai")

from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from openai_server import OpenAIServer
from pydantic import BaseModel

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.exchange import Turn
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector

# Of a stream that is parsed into a class, openai warns by itself.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

MODEL = "gpt-test-2026-01-01"
CHAT = {"chat": {}, "chat-v1": {"output_version": "v1"}}
RESPONSES = {name.replace("chat", "responses"): {**shape, "use_responses_api": True} for name, shape in CHAT.items()}
APIS = CHAT | RESPONSES
THINKING = {"reasoning": {"summary": "auto"}}
twice = pytest.mark.parametrize("run", ["invoke", "astream"], indirect=True)
"""For what does not depend on the way: once whole and once streamed."""
only_responses = pytest.mark.parametrize("llm", RESPONSES, indirect=True)
"""Chat Completions has neither reasoning nor annotations."""


async def _invoke(chain: Runnable, *given: Any) -> list[Any]:
    return [chain.invoke(*given)]


async def _ainvoke(chain: Runnable, *given: Any) -> list[Any]:
    return [await chain.ainvoke(*given)]


async def _batch(chain: Runnable, value: Any, *config: Any) -> list[Any]:
    return chain.batch([value], *config)


async def _abatch(chain: Runnable, value: Any, *config: Any) -> list[Any]:
    return await chain.abatch([value], *config)


async def _stream(chain: Runnable, *given: Any) -> list[Any]:
    return list(chain.stream(*given))


async def _astream(chain: Runnable, *given: Any) -> list[Any]:
    return [piece async for piece in chain.astream(*given)]


Run = Callable[..., Awaitable[list[Any]]]
WHOLE = {"invoke": _invoke, "ainvoke": _ainvoke, "batch": _batch, "abatch": _abatch}
STREAMED = {"stream": _stream, "astream": _astream}
WAYS = WHOLE | STREAMED


class Upstream(BaseCallbackHandler):
    """What ChatOpenAI itself handed on, a message or the chunks of one, and copies of what it was at that time."""

    run_inline = True

    def __init__(self) -> None:
        self.pieces: list[AIMessage] = []
        self.copies: list[AIMessage] = []
        self.run_ids: list[str] = []

    @property
    def answer(self) -> AIMessage:
        return _whole(self.pieces)

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **_: Any) -> None:
        if isinstance(chunk, ChatGenerationChunk):
            self._note(chunk.message)

    def on_llm_end(self, response: LLMResult, *, run_id: Any, **_: Any) -> None:
        [[generation]] = response.generations
        if isinstance(generation, ChatGeneration):
            self.run_ids.append(str(run_id))
            if not self.pieces:
                self._note(generation.message)

    def _note(self, message: Any) -> None:
        self.pieces.append(message)
        self.copies.append(copy.deepcopy(message))


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


JSON_QUESTION = "a joke as json with 'setup' and 'punchline'"
BAD_JOKE = {"setup": "bad setup", "punchline": "bad punchline"}


def get_weather(location: str, days: int) -> str:
    """The weather at a place."""
    return f"sunny in {location} for {days} days"


def get_time(location: str) -> str:
    """The time at a place."""
    return f"noon in {location}"


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as started:
        yield started


@pytest.fixture(params=APIS)
def llm(request: pytest.FixtureRequest, server: OpenAIServer) -> ChatOpenAI:
    server.forget()
    return _chat(server, **APIS[request.param])


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a chain in one of the ways and returns the pieces of its output."""
    return WAYS[request.param]


@pytest.fixture
def upstream_said() -> Upstream:
    return Upstream()


@pytest.fixture
def fixer(told: list[Correction]) -> AlignerCorrector:
    """Corrects "bad" to "good", and is given no question."""
    return AlignerCorrector(Aligner.scripted(_good), on_correction=told.append)


def _good(exchange: Exchange) -> str:
    return exchange.answer.replace("bad", "good")


def _chat(server: OpenAIServer, **settings: Any) -> ChatOpenAI:
    # ChatOpenAI asks for the usage of a stream by itself only where the URL is OpenAI's own.
    return ChatOpenAI(base_url=server.url, api_key="x", model="gpt-test", max_retries=0, stream_usage=True, **settings)


def _is_responses(llm: ChatOpenAI) -> bool:
    return bool(llm.use_responses_api)


def _whole(pieces: list[Any]) -> Any:
    return reduce(add, pieces)


def _corrected(content: Any) -> Any:
    """The content with "good" for "bad" in its text and without annotations, but nothing else changed."""
    if isinstance(content, str):
        return content.replace("bad", "good")
    return [
        {key: value for key, value in block.items() if key != "annotations"}
        | {"text": block["text"].replace("bad", "good")}
        if block["type"] == "text"
        else block
        for block in content
    ]


async def test_the_question_is_found_and_the_answer_corrected(
    llm: ChatOpenAI, run: Run, fixer: AlignerCorrector, told: list[Correction], upstream_said: Upstream
) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "be brief"), ("human", "{q}")])
    result = _whole(await run(prompt | llm | fixer, {"q": "say hi"}, {"callbacks": [upstream_said]}))
    assert result.text == "good answer to: say hi"
    [correction] = told
    assert correction.exchange == Exchange(
        turns=(Turn(role="system", text="be brief"), Turn(role="user", text="say hi")),
        answer="bad answer to: say hi",
        upstream=MODEL,
        message_id=result.id,
        run_id=upstream_said.run_ids[0],
    )


async def test_only_the_text_is_changed(
    llm: ChatOpenAI, run: Run, fixer: AlignerCorrector, upstream_said: Upstream
) -> None:
    result = _whole(await run(llm | fixer, "say hi", {"callbacks": [upstream_said]}))
    given, told_of = upstream_said.answer, result.response_metadata.pop("aligner")
    assert (told_of["outcome"], told_of["edits"]) == ("corrected", 1)
    assert result == given.model_copy(update={"content": _corrected(given.content)})
    assert upstream_said.copies == upstream_said.pieces


async def test_what_openai_tells_of_the_answer_is_kept(llm: ChatOpenAI, run: Run, fixer: AlignerCorrector) -> None:
    result = _whole(await run(llm | fixer, "say hi"))
    usage = result.usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (2, 6, 8)
    assert result.response_metadata["model_name"] == MODEL
    if _is_responses(llm):
        assert result.id == result.response_metadata["id"]
        assert result.response_metadata["status"] == "completed"
    else:
        assert result.id.startswith("lc_run--")
        assert result.response_metadata["finish_reason"] == "stop"


@twice
async def test_a_truncated_answer_still_says_so(llm: ChatOpenAI, run: Run, fixer: AlignerCorrector) -> None:
    result = _whole(await run(llm.bind(max_tokens=3) | fixer, "say hi"))
    assert result.text == "good answer t"
    if _is_responses(llm):
        assert result.response_metadata["incomplete_details"] == {"reason": "max_output_tokens"}
    else:
        assert result.response_metadata["finish_reason"] == "length"


async def test_tokens_are_counted_once(llm: ChatOpenAI, run: Run, fixer: AlignerCorrector) -> None:
    with get_usage_metadata_callback() as counted:
        await run(llm | fixer, "say hi")
    assert {name: usage["total_tokens"] for name, usage in counted.usage_metadata.items()} == {MODEL: 8}


@only_responses
async def test_reasoning_is_kept_and_annotations_go_with_the_text_they_pointed_at(
    llm: ChatOpenAI, run: Run, fixer: AlignerCorrector, upstream_said: Upstream
) -> None:
    result = _whole(await run(llm.bind(**THINKING) | fixer, "cite the sky", {"callbacks": [upstream_said]}))
    given = upstream_said.answer
    assert [block["type"] for block in given.content] == ["reasoning", "text"]
    assert given.content[1]["annotations"][0]["url"] == "https://example.org/bad"
    assert result.content == _corrected(given.content)
    assert result.content_blocks[0]["reasoning"] == "a bad thought"
    assert result.text == "good answer to: cite the sky"
    assert upstream_said.copies == upstream_said.pieces


@twice
@only_responses
async def test_an_approved_answer_keeps_its_annotations(llm: ChatOpenAI, run: Run, upstream_said: Upstream) -> None:
    approving = AlignerCorrector(Aligner.scripted(lambda exchange: exchange.answer))
    result = _whole(await run(llm | approving, "cite the sky", {"callbacks": [upstream_said]}))
    assert result.response_metadata.pop("aligner")["outcome"] == "approved"
    assert result == upstream_said.answer
    assert result.content[0]["annotations"][0]["url"] == "https://example.org/bad"


@pytest.mark.parametrize("way", ["batch", "abatch"])
async def test_each_answer_of_a_batch_meets_its_own_question(
    llm: ChatOpenAI, way: str, fixer: AlignerCorrector, told: list[Correction]
) -> None:
    questions, chain = [f"say {number}" for number in range(20)], llm | fixer
    results = chain.batch(questions) if way == "batch" else await chain.abatch(questions)
    assert [result.text for result in results] == [f"good answer to: {question}" for question in questions]
    assert [correction.exchange.question for correction in told] == questions


async def test_each_of_many_streams_at_once_meets_its_own_question(
    llm: ChatOpenAI, fixer: AlignerCorrector, told: list[Correction]
) -> None:
    questions = [f"say {number}" for number in range(10)]
    results = await asyncio.gather(*(_astream(llm | fixer, question) for question in questions))
    assert [_whole(pieces).text for pieces in results] == [f"good answer to: {question}" for question in questions]
    assert {one.exchange.question: one.exchange.answer for one in told} == {
        question: f"bad answer to: {question}" for question in questions
    }


@pytest.mark.parametrize("choice", ["auto", "get_weather"])
async def test_tool_calls_pass_as_the_very_objects_they_were(
    llm: ChatOpenAI,
    run: Run,
    choice: str,
    fixer: AlignerCorrector,
    told: list[Correction],
    upstream_said: Upstream,
) -> None:
    chain = llm.bind_tools([get_weather, get_time], tool_choice=choice) | fixer
    pieces = await run(chain, "the weather in Rome for 3 days?", {"callbacks": [upstream_said]})
    assert list(map(id, pieces)) == list(map(id, upstream_said.pieces))
    assert _whole(pieces).tool_calls == [_weather_call(pieces)]
    assert upstream_said.copies == upstream_said.pieces
    assert [(one.outcome, one.reason) for one in told] == [("skipped", "the answer calls a tool")]


def _weather_call(pieces: list[Any]) -> dict[str, Any]:
    args = {"location": "Rome", "days": 3}
    return {"name": "get_weather", "args": args, "id": _whole(pieces).tool_calls[0]["id"], "type": "tool_call"}


@twice
async def test_parallel_tool_calls_pass(llm: ChatOpenAI, run: Run, fixer: AlignerCorrector) -> None:
    chain = llm.bind_tools([get_weather, get_time]) | fixer
    result = _whole(await run(chain, "the weather and the time in Rome?"))
    assert [call["name"] for call in result.tool_calls] == ["get_weather", "get_time"]


def test_a_stream_is_let_go_at_the_first_piece_of_a_tool_call(
    llm: ChatOpenAI, fixer: AlignerCorrector, upstream_said: Upstream
) -> None:
    chain = llm.bind_tools([get_weather]) | fixer
    stream = chain.stream("the weather in Rome?", {"callbacks": [upstream_said]})
    read = [len(upstream_said.pieces) for _ in stream]
    calling = next(place for place, piece in enumerate(upstream_said.pieces, 1) if piece.tool_call_chunks)
    assert calling > 2, "pieces of text come before the call"
    assert read == [calling] * calling + list(range(calling + 1, len(upstream_said.pieces) + 1))


@twice
async def test_a_text_answer_of_a_model_with_tools_is_corrected(
    llm: ChatOpenAI, run: Run, fixer: AlignerCorrector, told: list[Correction]
) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{q}")])
    result = _whole(await run(prompt | llm.bind_tools([get_weather]) | fixer, {"q": "say hi"}))
    assert result.text == "good answer to: say hi"
    assert told[0].exchange.question == "say hi"


async def test_the_answer_after_a_tool_is_corrected(
    llm: ChatOpenAI, run: Run, fixer: AlignerCorrector, told: list[Correction]
) -> None:
    chain, question = llm.bind_tools([get_weather]) | fixer, HumanMessage("the weather in Rome for 3 days?")
    calling = _whole(await run(chain, [question]))
    said = ToolMessage(get_weather(**calling.tool_calls[0]["args"]), tool_call_id=calling.tool_calls[0]["id"])
    result = _whole(await run(chain, [question, calling, said]))
    assert result.text == f"good answer to: {question.text} (sunny in Rome for 3 days)"
    assert [(turn.role, turn.text) for turn in told[-1].exchange.turns] == [
        ("user", question.text),
        ("assistant", "a bad plan"),
        ("tool", said.text),
    ]


@pytest.mark.parametrize("way", WHOLE)
async def test_a_refusal_is_the_very_object_it_was(
    llm: ChatOpenAI, way: str, fixer: AlignerCorrector, told: list[Correction], upstream_said: Upstream
) -> None:
    [result] = await WHOLE[way](llm | fixer, "please refuse", {"callbacks": [upstream_said]})
    assert [result] == upstream_said.copies
    assert result is upstream_said.answer
    assert "no bad words about: please refuse" in str(result)
    assert [(one.outcome, one.reason) for one in told] == [("skipped", "the answer is a refusal")]


@pytest.mark.parametrize("way", STREAMED)
async def test_a_streamed_refusal_is_unchanged(
    llm: ChatOpenAI, way: str, fixer: AlignerCorrector, upstream_said: Upstream
) -> None:
    result = _whole(await STREAMED[way](llm | fixer, "please refuse", {"callbacks": [upstream_said]}))
    assert result == upstream_said.answer
    # Of a streamed Chat Completion, ChatOpenAI itself drops the refusal.
    assert ("no bad words about: please refuse" in str(result)) == _is_responses(llm)


FORMATS = {
    "class": Joke,
    "schema": {"type": "json_schema", "json_schema": {"name": "joke", "schema": Joke.model_json_schema()}},
    "json-mode": {"type": "json_object"},
}


@twice
@pytest.mark.parametrize("form", FORMATS)
async def test_json_text_is_left_alone(
    llm: ChatOpenAI,
    run: Run,
    form: str,
    fixer: AlignerCorrector,
    told: list[Correction],
    upstream_said: Upstream,
) -> None:
    asking = llm.bind(response_format=FORMATS[form])
    result = _whole(await run(asking | fixer, JSON_QUESTION, {"callbacks": [upstream_said]}))
    assert result == upstream_said.answer
    assert json.loads(result.text) == BAD_JOKE
    [correction] = told
    assert correction.outcome == "skipped"
    assert correction.reason.startswith("the answer is structured output")


@twice
async def test_the_corrector_stands_before_a_parser_of_json(llm: ChatOpenAI, run: Run, fixer: AlignerCorrector) -> None:
    asking = llm.bind(response_format=FORMATS["json-mode"])
    results = await run(asking | fixer | JsonOutputParser(), JSON_QUESTION)
    assert results[-1] == BAD_JOKE


@twice
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
async def test_after_structured_output_there_is_no_answer_left_to_correct(
    llm: ChatOpenAI, run: Run, method: str, fixer: AlignerCorrector
) -> None:
    chain = llm.with_structured_output(Joke, method=method) | fixer
    with pytest.raises(TypeError, match=r"This Joke holds no answer to correct.*\n.*right after the model"):
        await run(chain, JSON_QUESTION)


@twice
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
async def test_structured_output_can_be_made_of_a_corrected_answer(
    llm: ChatOpenAI, server: OpenAIServer, run: Run, method: str, fixer: AlignerCorrector
) -> None:
    chain = llm | fixer | StrOutputParser() | llm.with_structured_output(Joke, method=method)
    assert (await run(chain, JSON_QUESTION))[-1] == Joke(**BAD_JOKE)
    asked = json.dumps(server.requests[-1])
    assert f"good answer to: {JSON_QUESTION}" in asked
    assert "bad answer" not in asked


@twice
async def test_the_next_turn_sends_the_corrected_answer(
    llm: ChatOpenAI, server: OpenAIServer, run: Run, fixer: AlignerCorrector, told: list[Correction]
) -> None:
    chain, question = llm | fixer, HumanMessage("say hi")
    answer = _whole(await run(chain, [question]))
    await run(chain, [question, answer, HumanMessage("say it again")])
    sent = json.dumps(server.requests[-1])
    assert "good answer to: say hi" in sent
    assert "bad answer" not in sent
    assert [turn.text for turn in told[-1].exchange.turns] == ["say hi", "good answer to: say hi", "say it again"]


@twice
async def test_a_history_on_the_server_knows_nothing_of_the_correction(
    server: OpenAIServer, run: Run, fixer: AlignerCorrector, told: list[Correction]
) -> None:
    chain, question = _chat(server, use_previous_response_id=True) | fixer, HumanMessage("say hi")
    answer = _whole(await run(chain, [question]))
    await run(chain, [question, answer, HumanMessage("say it again")])
    sent = server.requests[-1]
    assert sent["previous_response_id"] == answer.id
    assert [item["content"] for item in sent["input"]] == ["say it again"]
    assert [turn.text for turn in told[-1].exchange.turns] == ["say hi", "good answer to: say hi", "say it again"]


def test_a_streamed_answer_comes_back_as_chunks(llm: ChatOpenAI, fixer: AlignerCorrector) -> None:
    pieces = list((llm | fixer).stream("say hi"))
    assert {type(piece) for piece in pieces} == {AIMessageChunk}
    assert _whole(pieces).chunk_position == "last"
    assert "".join((llm | fixer | StrOutputParser()).stream("say hi")) == "good answer to: say hi"


CASES: dict[str, Callable[[Any], Runnable]] = {
    "say hi": lambda model: model,
    "say it briefly": lambda model: model.bind(max_tokens=3),
    "the weather in Rome for 3 days?": lambda model: model.bind_tools([get_weather]),
    "please refuse": lambda model: model,
    JSON_QUESTION: lambda model: model.bind(response_format={"type": "json_object"}),
}


@twice
@pytest.mark.parametrize("question", CASES)
async def test_an_aligned_model_answers_as_the_chain_does(
    llm: ChatOpenAI, server: OpenAIServer, run: Run, question: str, fixer: AlignerCorrector, told: list[Correction]
) -> None:
    answers, settings = [], CASES[question]
    for chain in (settings(llm) | fixer, settings(AlignedChatModel(llm=llm, corrector=fixer))):
        server.forget()
        answers.append(_without_run(_whole(await run(chain, question))))
    assert answers[0] == answers[1]
    assert [told[0].outcome, told[0].exchange.turns] == [told[1].outcome, told[1].exchange.turns]


@only_responses
@twice
async def test_an_aligned_model_keeps_its_reasoning(
    llm: ChatOpenAI, server: OpenAIServer, run: Run, fixer: AlignerCorrector
) -> None:
    answers = []
    for chain in (llm.bind(**THINKING) | fixer, AlignedChatModel(llm=llm, corrector=fixer).bind(**THINKING)):
        server.forget()
        answers.append(_without_run(_whole(await run(chain, "cite the sky"))))
    assert answers[0] == answers[1]
    assert [block["type"] for block in answers[1].content] == ["reasoning", "text"]


def _without_run(message: AIMessage) -> AIMessage:
    """The message without what is new at every run."""
    metadata = {key: value for key, value in message.response_metadata.items() if key != "aligner"}
    kept = None if message.id.startswith("lc_run--") else message.id
    return message.model_copy(update={"id": kept, "response_metadata": metadata})


async def test_an_aligned_model_shows_no_uncorrected_word(
    llm: ChatOpenAI, run: Run, fixer: AlignerCorrector, upstream_said: Upstream
) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{q}")])
    chain = prompt | AlignedChatModel(llm=llm, corrector=fixer)
    with get_usage_metadata_callback() as counted:
        result = _whole(await run(chain, {"q": "say hi"}, {"callbacks": [upstream_said]}))
    assert upstream_said.answer == result
    assert result.text == "good answer to: say hi"
    assert "bad" not in "".join(piece.text for piece in upstream_said.copies)
    assert {name: usage["total_tokens"] for name, usage in counted.usage_metadata.items()} == {MODEL: 8}


async def test_the_events_of_an_aligned_model_show_no_uncorrected_word(
    llm: ChatOpenAI, fixer: AlignerCorrector
) -> None:
    chain = AlignedChatModel(llm=llm, corrector=fixer) | StrOutputParser()
    events = [event async for event in chain.astream_events("say hi", version="v2")]
    streamed = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(streamed) == "good answer to: say hi"
    assert "bad answer" not in str(events)


def test_a_cache_tells_servers_apart() -> None:
    corrector = AlignerCorrector(Aligner.scripted(lambda exchange: exchange.answer))
    urls = ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    models = [ChatOpenAI(model="gpt-4o", api_key="x", base_url=url) for url in urls]
    assert len({AlignedChatModel(llm=model, corrector=corrector)._get_llm_string() for model in models}) == 2
    assert models[0].profile
    assert AlignedChatModel(llm=models[0], corrector=corrector).profile == models[0].profile
