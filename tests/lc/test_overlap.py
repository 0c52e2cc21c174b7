"""Streams that the Aligner reads while the model still writes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from pathlib import Path
from typing import Any

import by_heart
import pytest
from completions_server import CompletionsServer, Dialect
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from playback import engine, read_by
from upstreams import StreamingUpstream, Upstream, search

from aligner_chain import Aligner, Correction, shared
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import PromptNotFoundError
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector

ANSWER = "You may return it within 90 days, and we pay for it. Ask us where to, and keep what it came in."
GOOD = "You may return it within 30 days."


class Watched(StreamingUpstream):
    """Calls `before_end` when all but the last word of its answer are out, and gives each piece an id."""

    before_end: Callable[[], Any]
    chunk_id: str | None = None
    reply: str = ANSWER

    def _stream(self, *given: Any, **kw: Any) -> Iterator[ChatGenerationChunk]:
        *pieces, last, end = super()._stream(*given, **kw)
        for piece in pieces:
            piece.message.id = self.chunk_id
            yield piece
        self.before_end()
        yield last
        yield end

    async def _astream(self, *given: Any, **kw: Any) -> AsyncIterator[ChatGenerationChunk]:
        for piece in self._stream(*given, **kw):
            yield piece


@pytest.fixture
def make(playing: Any, told: list[Correction]) -> Callable[..., AlignerCorrector]:
    """Makes a corrector whose Aligner reads prompts that still grow, and writes `GOOD` at once."""

    def make(**settings: Any) -> AlignerCorrector:
        aligner = playing(GOOD, overlap=True)
        aligner.engine.beats.release(10_000)
        return AlignerCorrector(aligner, on_correction=told.append, **settings)

    return make


@pytest.fixture
def reading(make: Any) -> AlignerCorrector:
    corrector: AlignerCorrector = make()
    return corrector


def chain_of(form: str, llm: Any, corrector: AlignerCorrector) -> Any:
    prompt = ChatPromptTemplate.from_messages([("system", "s"), ("human", "{q}")])
    return {
        "chain": prompt | llm | corrector,
        "text": prompt | llm | StrOutputParser() | corrector,
        "aligned model": prompt | AlignedChatModel(llm=llm, corrector=corrector),
    }[form]


@pytest.mark.parametrize("chunk_id", [None, "chatcmpl-0"])
@pytest.mark.parametrize("form", ["chain", "text", "aligned model"])
@pytest.mark.parametrize("unchecked", [False, True])
async def test_the_answer_is_read_before_its_end(
    make: Any, told: list[Correction], form: str, chunk_id: str | None, unchecked: bool
) -> None:
    corrector = make(stream_unchecked=unchecked)
    seen: list[str] = []
    llm = Watched(before_end=lambda: seen.append(read_by(corrector)), chunk_id=chunk_id)
    chain = chain_of(form, llm, corrector)
    for pieces in (list(chain.stream({"q": "how?"})), [piece async for piece in chain.astream({"q": "how?"})]):
        whole = "".join(getattr(piece, "text", piece) for piece in pieces)
        assert whole == GOOD
    for text in seen:
        asked, _, answer = text.partition("<|ac:answer|>")
        assert asked.endswith("<|ac:question|>how?")
        assert len(answer) > 20
        assert ANSWER.startswith(answer)
    assert len(seen) == len(told) == len(engine(corrector).opened) == 2
    assert engine(corrector).submitted == []
    assert [(one.outcome, one.exchange.answer) for one in told] == [("corrected", ANSWER)] * 2


async def test_what_comes_out_is_what_comes_out_without(make: Any, playing: Any) -> None:
    plain = playing(GOOD)
    plain.engine.beats.release(10_000)
    llm = Watched(before_end=bool, chunk_id="chatcmpl-0")
    for form in ("chain", "aligned model"):
        outputs = []
        for corrector in (make(), AlignerCorrector(plain)):
            chain = chain_of(form, llm, corrector)
            outputs += [list(chain.stream({"q": "how?"})), [piece async for piece in chain.astream({"q": "how?"})]]
        for [piece, *more] in outputs:
            piece.response_metadata["aligner"].pop("correction_id")
            assert ([piece], more) == (outputs[0], [])


@pytest.mark.parametrize("form", ["chain", "text", "aligned model"])
async def test_an_upstream_that_breaks_off_frees_the_engine(
    reading: AlignerCorrector, told: list[Correction], form: str
) -> None:
    def broken() -> None:
        raise ConnectionError("the upstream is gone")

    chain = chain_of(form, Watched(before_end=broken), reading)
    with pytest.raises(ConnectionError):
        list(chain.stream({"q": "how?"}))
    with pytest.raises(ConnectionError):
        [piece async for piece in chain.astream({"q": "how?"})]
    assert [ticket.cancelled for ticket in engine(reading).opened] == [True, True]
    assert told == []


@pytest.mark.parametrize("form", ["chain", "aligned model"])
async def test_cancelling_the_task_frees_the_engine(reading: AlignerCorrector, form: str) -> None:
    class Stuck(Watched):
        async def _astream(self, *given: Any, **kw: Any) -> AsyncIterator[ChatGenerationChunk]:
            for piece in self._stream(*given, **kw):
                yield piece
                if engine(reading).fed:
                    await asyncio.Event().wait()

    task = asyncio.ensure_future(anext(chain_of(form, Stuck(before_end=bool), reading).astream({"q": "how?"})))
    while not engine(reading).opened:  # noqa: ASYNC110  The engine has no event to wait for.
        await asyncio.sleep(0.001)
    assert not engine(reading).opened[0].cancelled
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine(reading).opened[0].cancelled


def test_a_tool_call_frees_the_engine_at_once(reading: AlignerCorrector) -> None:
    cancelled: list[bool] = []
    llm = Watched(before_end=lambda: cancelled.append(engine(reading).opened[-1].cancelled))
    bound: Any = llm.bind_tools([search])
    aligned: Any = AlignedChatModel(llm=llm, corrector=reading)
    for chain in (bound | reading, aligned.bind_tools([search])):
        pieces = list(chain.stream("call"))
        assert (pieces[0] + pieces[1:]).tool_calls[0]["args"] == {"q": "bad"}
    assert cancelled == [True, True]


async def test_what_is_not_corrected_is_not_read_on(reading: AlignerCorrector, told: list[Correction]) -> None:
    chain = Watched(before_end=bool, reply='{"a": "b c d"}') | reading
    assert [piece.text for piece in chain.stream("q")] == ['{"a": "b c d"}']
    assert [ticket.cancelled for ticket in engine(reading).opened] == [True]
    off: Any = {"configurable": {"aligner_enabled": False}}
    assert "".join(piece.text for piece in chain.stream("q", off)) == '{"a": "b c d"}'
    assert [piece.text for piece in (Upstream() | reading).stream("q")] == [GOOD]
    assert [piece.text for piece in AlignedChatModel(llm=Upstream(), corrector=reading).stream("q")] == [GOOD]
    assert (len(engine(reading).opened), len(engine(reading).submitted)) == (1, 2)
    assert [one.outcome for one in told] == ["skipped", "skipped", "corrected", "corrected"]


def test_a_question_that_is_not_known_yet_is_not_waited_for(make: Any) -> None:
    pieces = [AIMessageChunk("a bad "), AIMessageChunk("answer")]
    explicit = make(prompt_source="explicit")
    with pytest.raises(PromptNotFoundError):
        list(explicit.transform(iter(pieces)))
    wrong: Any = {"configurable": {"aligner_question": 7}}
    with pytest.raises(TypeError):
        list(explicit.transform(iter(pieces), wrong))
    for settings, config in (({"question": "q"}, {}), ({}, {"configurable": {"aligner_question": "q"}})):
        corrector = make(**settings)
        assert [piece.text for piece in corrector.transform(iter(pieces), config)] == [GOOD]
        assert "<|ac:question|>q<|ac:answer|>" in read_by(corrector)
    assert engine(explicit).opened == []


def test_two_questions_at_a_time_are_ambiguous(reading: AlignerCorrector, told: list[Correction]) -> None:
    started, go = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        go.wait(20)

    other = ChatPromptTemplate.from_template("other {q}") | Watched(before_end=wait, chunk_id="x")
    asking = Watched(before_end=bool, chunk_id="chatcmpl-0")

    def both(question: dict[str, str]) -> str:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(copy_context().run, lambda: list(other.stream(question)))
            assert started.wait(20)
            first, *rest = reading.transform(asking.stream("how?"))
            go.set()
            running.result(20)
        return "".join(piece.text for piece in (first, *rest))

    assert RunnableLambda(both).invoke({"q": "what?"}) == GOOD
    assert engine(reading).opened == []
    assert [one.exchange.question for one in told] == ["how?"]


def test_an_aligner_is_not_loaded_for_it(
    make: Any, monkeypatch: pytest.MonkeyPatch, told: list[Correction], tmp_path: Any
) -> None:
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    for source in (None, "somewhere"):
        with shared.hold_if_loaded(source) as found:
            assert found is None
    aligner = make().aligner
    monkeypatch.setattr(shared, "_NAMED", {})
    monkeypatch.setattr(shared.Aligner, "from_pretrained", lambda key: aligner)
    chain = Watched(before_end=bool) | AlignerCorrector("somewhere", on_correction=told.append)
    for opened in range(3):
        assert [piece.text for piece in chain.stream("q")] == [GOOD]
        assert len(aligner.engine.opened) == opened
    with shared.hold_if_loaded("somewhere") as found:
        assert found is aligner


def test_an_aligner_on_a_server_reads_along_too(tmp_path: Path, make_tokenizer: Any, told: list[Correction]) -> None:
    pytest.importorskip("torch", reason="the lowest versions are tested without local models")
    question = "May I return what I bought? " * 4  # long enough to be worth a request
    model = HuggingFaceEngine.from_pretrained(by_heart.always(tmp_path, make_tokenizer()))
    ahead: list[int] = []

    def before_end() -> None:
        deadline = time.monotonic() + 30
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        ahead.extend(body["max_tokens"] for body in server.asked)

    with CompletionsServer(model, dialect=Dialect(prefix_block=16)) as server:
        with closing(Aligner.from_server(server.url, "aligner", checkpoint=tmp_path)) as aligner:
            chain = chain_of(
                "aligned model", Watched(before_end=before_end), AlignerCorrector(aligner, on_correction=told.append)
            )
            server.asked.clear()
            assert "".join(piece.text for piece in chain.stream({"q": question})) == "No."
        assert ahead == [1]
        assert [body["max_tokens"] > 1 for body in server.asked] == [False, True]
    model.close()
    assert [(one.outcome, one.exchange.answer) for one in told] == [("corrected", ANSWER)]
