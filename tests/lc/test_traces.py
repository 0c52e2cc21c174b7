"""What a trace shows of the Aligner: LangChain's callbacks and events, LangSmith, OpenTelemetry."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessage

from aligner_chain import Aligner
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.base import Request, Ticket
from aligner_chain.engines.scripted import ScriptedEngine
from aligner_chain.errors import CapabilityError
from aligner_chain.langchain import AlignerCorrector


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
