"""What LlamaIndex needs around an answer: a language model, nodes, engines and listeners, all without a network."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.chat_engine.types import AgentChatResponse, StreamingAgentChatResponse
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

QUESTION = "is it good?"
BAD, GOOD = "a bad answer", "a good answer"


class ScriptedLLM(CustomLLM):
    """Answers what `reply` makes of the prompt, whole or word by word, and notes each prompt."""

    reply: Callable[[str], str] | str = BAD
    prompts: list[str] = []  # noqa: RUF012  A pydantic field: each object has its own.
    model: str = "upstream-1"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=8192, num_output=64, model_name=self.model)

    def complete(self, prompt: str, formatted: bool = False, **kw: Any) -> CompletionResponse:
        self.prompts.append(prompt)
        return CompletionResponse(text=self.reply if isinstance(self.reply, str) else self.reply(prompt))

    def stream_complete(self, prompt: str, formatted: bool = False, **kw: Any) -> CompletionResponseGen:
        text = self.complete(prompt).text

        def pieces() -> CompletionResponseGen:
            told = ""
            for delta in re.findall(r"\s*\S+|\s+$", text):
                told += delta
                yield CompletionResponse(text=told, delta=delta)

        return pieces()


def asked_in(prompt: str) -> str:
    """The query in a prompt of LlamaIndex's own."""
    return re.findall(r"Query: (.*)", prompt)[-1]


class Shelf(BaseRetriever):
    """Finds always the same nodes."""

    def __init__(self, *found: NodeWithScore | str) -> None:
        self.found = [one if isinstance(one, NodeWithScore) else node(one) for one in found]
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self.found)


class Mirror(BaseRetriever):
    """Finds a node that names the question."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [node(f"about {query_bundle.query_str}")]


def node(text: str, **metadata: Any) -> NodeWithScore:
    return NodeWithScore(node=TextNode(text=text, metadata=metadata), score=0.5)


class Handing(BaseSynthesizer):
    """Hands out a response that is ready, whatever is asked."""

    def __init__(self, response: Any) -> None:
        self.response = response
        super().__init__(llm=MockLLM())

    def synthesize(self, query: Any, nodes: Any, additional_source_nodes: Any = None, **kw: Any) -> Any:
        return self.response

    async def asynthesize(self, query: Any, nodes: Any, additional_source_nodes: Any = None, **kw: Any) -> Any:
        return self.response

    def get_response(self, query_str: str, text_chunks: Sequence[str], **kw: Any) -> Any:
        return self.response

    async def aget_response(self, query_str: str, text_chunks: Sequence[str], **kw: Any) -> Any:
        return self.response

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: dict[str, Any]) -> None:
        """It has none."""


def rag(synthesizer: BaseSynthesizer, *found: NodeWithScore | str) -> RetrieverQueryEngine:
    """A query engine of LlamaIndex over three nodes, or those given."""
    return RetrieverQueryEngine(Shelf(*found or ("one", "two", "three")), response_synthesizer=synthesizer)


def pieces(*texts: str) -> Generator[str, None, None]:
    yield from texts


async def apieces(*texts: str) -> AsyncGenerator[str, None]:
    for text in texts:
        yield text


def streaming(*texts: str, **settings: Any) -> StreamingResponse:
    return StreamingResponse(pieces(*texts), **settings)


def async_streaming(*texts: str, **settings: Any) -> AsyncStreamingResponse:
    return AsyncStreamingResponse(apieces(*texts), **settings)


async def read(response: Any) -> str:
    """The text of any answer of LlamaIndex, read to its end."""
    if isinstance(response, AsyncStreamingResponse):
        return "".join([piece async for piece in response.async_response_gen()])
    if isinstance(response, StreamingResponse):
        return "".join(response.response_gen)
    if isinstance(response, StreamingAgentChatResponse):
        if response.achat_stream is None:
            return "".join(response.response_gen)
        return "".join([piece async for piece in response.async_response_gen()])
    if isinstance(response, Response | AgentChatResponse):
        return response.response or ""
    return str(response)


QUERIES = ("query", "aquery")
CHATS = ("chat", "achat", "stream_chat", "astream_chat")


async def call(thing: Any, method: str, *given: Any, **named: Any) -> Any:
    """Calls a method, awaiting those that LlamaIndex prefixes with an a."""
    called = getattr(thing, method)(*given, **named)
    return await called if method.startswith("a") else called


class Heard(BaseEventHandler):
    """Every event that LlamaIndex's instrumentation tells of."""

    events: list[Any] = []  # noqa: RUF012  A pydantic field: each object has its own.

    @classmethod
    def class_name(cls) -> str:
        return "Heard"

    def handle(self, event: Any, **kw: Any) -> None:
        self.events.append(event)

    def of(self, *names: str) -> list[Any]:
        return [event for event in self.events if event.class_name() in names]


class Listening:
    """Listens at the root of LlamaIndex's dispatchers: `events` and `spans`."""

    def __init__(self) -> None:
        self.heard, self.traced = Heard(), SimpleSpanHandler()

    def __enter__(self) -> Listening:
        root = get_dispatcher()
        root.add_event_handler(self.heard)
        root.add_span_handler(self.traced)
        return self

    def __exit__(self, *error: object) -> None:
        root = get_dispatcher()
        root.event_handlers.remove(self.heard)
        root.span_handlers.remove(self.traced)

    def parents(self) -> dict[str, str | None]:
        """For each span that ended, by its name, the name of the span around it."""
        named = {span.id_: span.id_.rpartition("-")[0].rsplit("-", 4)[0] for span in self.traced.completed_spans}
        return {named[span.id_]: named.get(span.parent_id or "") for span in self.traced.completed_spans}


def as_json(**fields: Any) -> str:
    return json.dumps(fields)
