"""The standard tests that LangChain sets for every chat model, for AlignedChatModel around the real ChatOpenAI."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any, ClassVar

import pytest

pytest.importorskip("langchain_openai")
pytest.importorskip("langchain_tests")

import httpx
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from openai_server import OpenAIServer

from aligner_chain import Aligner
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector

# Warnings of openai and of LangChain about what the suite itself asks for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema"),
    pytest.mark.filterwarnings("ignore:OpenAI may require a filename"),
]

DETAILS = ["reasoning_output", "cache_read_input"]


class AlignedChatOpenAI(AlignedChatModel):
    """Takes the settings of ChatOpenAI, because the suites make their models of a model's settings."""

    def __init__(self, **settings: Any) -> None:
        aligner = Aligner.scripted(lambda exchange: exchange.answer.replace("bad", "good"))
        super().__init__(llm=ChatOpenAI(**settings), corrector=AlignerCorrector(aligner))


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as started:
        yield started


class TestUnit(ChatModelUnitTests):
    """The suite skips test_serdes, because AlignedChatModel does not offer to be written down."""

    chat_model_class = AlignedChatOpenAI
    chat_model_params: ClassVar = {"model": "gpt-test", "api_key": "x"}

    # ChatOpenAI has to find the key; the form of the content is what AlignedChatModel takes over from it.
    init_from_env_params = (
        {"OPENAI_API_KEY": "test", "LC_OUTPUT_VERSION": "v1"},
        {"model": "gpt-test"},
        {"output_version": "v1"},
    )


class TestChatCompletions(ChatModelIntegrationTests):
    chat_model_class = AlignedChatOpenAI
    api: ClassVar[dict[str, Any]] = {}

    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_pdf_inputs = True
    supports_audio_inputs = True
    supports_anthropic_inputs = True
    supports_image_tool_message = True
    supports_pdf_tool_message = True
    model_override_value = "gpt-other"
    supported_usage_metadata_details: ClassVar = {"invoke": DETAILS, "stream": DETAILS}
    # test_stream_time replays answers that were recorded over the network. Here, nothing goes over a network.
    enable_vcr_tests = False

    @pytest.fixture(autouse=True)
    def _on_this_machine(self, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """The suite downloads an image, a document and a sound, whose content is of no consequence here."""
        self.url = server.url
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "aligner-chain")
        monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, content=b"some bytes"))

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-test", "base_url": self.url, "api_key": "x", "stream_usage": True, **self.api}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._answer(stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._answer(stream)

    def _answer(self, stream: bool) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params)
        return reduce(add, model.stream("Hello")) if stream else model.invoke("Hello")


class TestResponses(TestChatCompletions):
    api: ClassVar = {"use_responses_api": True}
    supports_audio_inputs = False  # ChatOpenAI sends none to the Responses API.


class TestStreamingUpstream(TestChatCompletions):
    """The wrapped model streams even where the outer one is invoked."""

    api: ClassVar = {"streaming": True}
