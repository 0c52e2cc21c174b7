"""What a trace shows of the Aligner: LangChain's callbacks and events, LangSmith, OpenTelemetry."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import add
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langsmith import Client
from langsmith.run_helpers import tracing_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from upstreams import StreamingUpstream

from aligner_chain import Aligner, telemetry
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.base import Request, Ticket
from aligner_chain.engines.scripted import ScriptedEngine
from aligner_chain.errors import CapabilityError
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector


class Trace(BaseCallbackHandler):
    def __init__(self) -> None:
        self.runs: dict[UUID, dict[str, Any]] = {}

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **run: Any) -> None:
        self.runs[run_id] = {"prompt": prompts[0], **run}

    def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:
        self.runs.get(run_id, {}).update(response=response)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self.runs[run_id].update(error=error)


async def test_the_aligner_is_a_run_of_its_own(fixer: AlignerCorrector) -> None:
    trace = Trace()
    fixer.invoke("bad", {"callbacks": [trace]})
    await fixer.ainvoke("bad", {"callbacks": [trace]})
    fixer.batch(["bad", "bad"], {"callbacks": [trace]})
    assert len(trace.runs) == 4
    for run in trace.runs.values():
        assert "q" in run["prompt"]
        assert run["parent_run_id"] is not None
        assert {"aligner:internal", "nostream"} <= set(run["tags"])
        assert run["metadata"].items() >= {"ls_model_name": "counting@1", "ls_model_type": "llm"}.items()
        assert run["response"].generations[0][0].text == "good"
        assert run["response"].llm_output["token_usage"].keys() == {
            "prompt_tokens",
            "completion_tokens",
            "total_tokens",
        }


async def test_a_failure_shows_in_the_trace(fixer: AlignerCorrector) -> None:
    trace = Trace()
    fixer.batch(["bad", "crash"], {"callbacks": [trace]}, return_exceptions=True)
    await fixer.abatch(["crash"], {"callbacks": [trace]}, return_exceptions=True)
    assert ["error" in run for run in trace.runs.values()] == [False, True, True]


class IncapableEngine(ScriptedEngine):
    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        raise CapabilityError("this engine cannot do it")


async def test_an_error_of_the_setup_is_always_raised_and_leaves_no_open_run() -> None:
    aligner = Aligner(
        IncapableEngine(lambda exchange: ""), metadata=AlignerMetadata(name="x", version="1", template="scripted")
    )
    corrector, trace = AlignerCorrector(aligner, question="q", on_error="pass_through"), Trace()
    with pytest.raises(CapabilityError):
        corrector.batch(["a", "b"], {"callbacks": [trace]})
    with pytest.raises(CapabilityError):
        await corrector.ainvoke("c", {"callbacks": [trace]})
    assert ["error" in run for run in trace.runs.values()] == [True, True, True]


def test_the_users_token_count_is_the_upstreams(models: SimpleNamespace, fixer: AlignerCorrector) -> None:
    usage: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    message = AIMessage("bad", usage_metadata=usage, response_metadata={"model_name": "m"})
    with get_usage_metadata_callback() as counted:
        (models.Scripted(answers=[message]) | fixer).invoke("q")
    assert counted.usage_metadata["m"]["total_tokens"] == 3
    assert len(counted.usage_metadata) == 1


async def test_events_show_the_run(models: SimpleNamespace, fixer: AlignerCorrector) -> None:
    events = [event async for event in (models.Chat() | fixer).astream_events("bad", version="v2")]
    assert [e["event"] for e in events if e["name"] == "Aligner"] == ["on_llm_start", "on_llm_end"]


# LangSmith, its client sending to a server on this machine


class _Runs(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.runs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(202)
        self.end_headers()

    def do_PATCH(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def langsmith_server() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Runs)
    server.runs = []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def posted(server: Any) -> dict[str, dict[str, Any]]:
    """The runs that were started, by their name."""
    return {run["name"]: run for run in server.runs if "run_type" in run and "start_time" in run}


async def test_langsmith_sees_the_aligner_below_the_corrector(
    models: SimpleNamespace, fixer: AlignerCorrector, langsmith_server: Any
) -> None:
    client = Client(f"http://127.0.0.1:{langsmith_server.server_port}", api_key="x", auto_batch_tracing=False, info={})
    chain = models.Chat() | StrOutputParser() | fixer
    for run in (chain.invoke, chain.ainvoke):
        langsmith_server.runs.clear()
        with tracing_context(enabled=True, client=client):
            result = run("bad")
            assert (await result if asyncio.iscoroutine(result) else result) == "A(good)"
        runs = posted(langsmith_server)
        assert {name: run["run_type"] for name, run in runs.items()} == {
            "RunnableSequence": "chain",
            "FakeChat": "llm",
            "StrOutputParser": "parser",
            "AlignerCorrector": "chain",
            "Aligner": "llm",
        }
        assert runs["Aligner"]["parent_run_id"] == runs["AlignerCorrector"]["id"]
        assert runs["AlignerCorrector"]["parent_run_id"] == runs["RunnableSequence"]["id"]
        assert runs["Aligner"]["extra"]["metadata"]["ls_model_name"] == "counting@1"


async def test_langsmith_sees_nothing_inside_an_aligned_model(models: SimpleNamespace, langsmith_server: Any) -> None:
    client = Client(f"http://127.0.0.1:{langsmith_server.server_port}", api_key="x", auto_batch_tracing=False, info={})
    replies = [AIMessage("FIX\ngood") for _ in range(4)]
    corrector = AlignerCorrector(Aligner.from_chat_model(models.Scripted(answers=replies)), prompt_source="explicit")
    model = AlignedChatModel(llm=StreamingUpstream(), corrector=corrector)
    with tracing_context(enabled=True, client=client):
        answers = [model.invoke("q"), await model.ainvoke("q")]
        answers += [reduce(add, model.stream("q")), reduce(add, [piece async for piece in model.astream("q")])]
    assert [answer.text for answer in answers] == ["good"] * 4
    assert set(posted(langsmith_server)) == {"AlignedChatModel"}
    assert "a bad answer" not in str(langsmith_server.runs)


# OpenTelemetry


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Spans of this test alone: a process has one global tracer provider and never gives it back."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", lambda: provider.get_tracer("aligner_chain"))
    return exporter


async def test_each_correction_is_a_span(fixer: AlignerCorrector, exported: InMemorySpanExporter) -> None:
    fixer.batch(["bad", "fine"])
    await fixer.ainvoke("bad")
    assert [span.name for span in exported.get_finished_spans()] == ["text_completion counting@1"] * 3
    first, second, _ = (dict(span.attributes or {}) for span in exported.get_finished_spans())
    correction_id = first.pop("gen_ai.response.id")
    assert UUID(str(correction_id))
    assert first == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "aligner-chain",
        "gen_ai.request.model": "counting@1",
        "gen_ai.response.model": "counting@1",
        "gen_ai.output.type": "text",
        "gen_ai.usage.input_tokens": 0,
        "gen_ai.usage.output_tokens": 0,
        "aligner.outcome": "corrected",
        "aligner.edits": 1,
        "aligner.forwards": 0,
    }
    assert second["aligner.outcome"] == "approved"


async def test_a_failed_correction_is_a_failed_span(fixer: AlignerCorrector, exported: InMemorySpanExporter) -> None:
    passing = AlignerCorrector(fixer.aligner, question="q", on_error="pass_through", stream_unchecked=True)
    passing.invoke("crash")
    list(passing.stream("crash"))
    spans = exported.get_finished_spans()
    assert [(span.status.status_code.name, span.attributes["error.type"]) for span in spans if span.attributes] == [
        ("ERROR", "EngineError")
    ] * 2
    assert "out of luck" not in str([(span.attributes, span.events) for span in spans])


async def test_a_stream_is_one_span_also_where_its_reader_stops(playing: Any, exported: InMemorySpanExporter) -> None:
    aligner = playing("a good answer")
    corrector = AlignerCorrector(aligner, question="q", stream_unchecked=True)
    aligner.engine.beats.release(100)
    assert "".join(corrector.stream("a bad answer")) == "a good answer"
    stopped = playing("a good answer")
    stopped.engine.beats.release(5)
    stream = AlignerCorrector(stopped, question="q", stream_unchecked=True).stream("a bad answer")
    next(stream)
    stream.close()
    spans = exported.get_finished_spans()
    assert [span.status.status_code.name for span in spans] == ["UNSET", "ERROR"]
    assert (spans[1].attributes or {})["error.type"] == "GeneratorExit"


def test_spans_stand_below_the_applications_own(fixer: AlignerCorrector, exported: InMemorySpanExporter) -> None:
    with telemetry._tracer().start_as_current_span("request") as request:
        fixer.invoke("bad")
    span = exported.get_finished_spans()[0]
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id


_WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from aligner_chain import Aligner, Exchange
[correction] = Aligner.scripted(lambda exchange: "good").correct([Exchange.of("q", "bad")])
assert correction.text == "good"
"""


def test_nothing_is_missed_without_opentelemetry() -> None:
    subprocess.run([sys.executable, "-c", _WITHOUT], check=True)
