"""The desk as a LlamaIndex app: BM25 retrieval, a small upstream that answers, and the Aligner around its synthesizer.

app = served_app("demo-out")                 # what `aligner-bootstrap demo --rag` left there
response = app.query("My kettle arrived 26 days ago. May I still send it back? Who pays the postage?")
print(response, response.metadata["aligner"], response.source_nodes)
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.aligner import Aligner
from aligner_chain.engines.base import Generation, Sampling
from aligner_chain.errors import ConfigurationError, MissingExtraError
from aligner_chain.exchange import Correction, Turn
from aligner_chain.serving import read_served
from bootstrap.demo import rag_world

if TYPE_CHECKING:
    from llama_index.core.llms import CustomLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.retrievers import BaseRetriever

POLICY_FILE, HOME = "policy.jsonl", "home"
_MAX_NEW = 64
_TEMPERATURE = 0.7
"""At 1 so small an upstream garbles one answer of seven."""
_WINDOW = 2048
"""What LlamaIndex is told of the upstream's window; its prompt helper refuses smaller ones. The prompts are far shorter."""


def require_llama_index() -> None:
    """Raises `MissingExtraError` where LlamaIndex or its BM25 retriever is missing."""
    try:
        found = importlib.util.find_spec("llama_index.retrievers.bm25")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise MissingExtraError("llama-index-retrievers-bm25", "demo")


def write_policy(policy: Mapping[str, int], folder: Path) -> None:
    """Writes the corpus, one policy line to a line: `{"id", "text"}`."""
    lines = [
        json.dumps({"id": f"policy-{number:03}", "text": rag_world.passage(product, window)})
        for number, (product, window) in enumerate(policy.items(), 1)
    ]
    (folder / POLICY_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_policy(folder: Path) -> list[dict[str, str]]:
    """The corpus that `write_policy` wrote.

    Raises:
        ConfigurationError: there is none.
    """
    path = folder / POLICY_FILE
    if not path.is_file():
        message = f"There is no {path}. Make it first:  aligner-bootstrap demo --rag --out {folder}"
        raise ConfigurationError(message)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def served_app(
    folder: str | Path, *, on_correction: Callable[[Correction], object] | None = None, seed: int = 0
) -> RetrieverQueryEngine:
    """The app over the corpus of a demo's folder and the pair that its registry serves.

    Args:
        folder: the `--out` of `aligner-bootstrap demo --rag`.
        on_correction: called with every `Correction`.
        seed: of the upstream's sampling.

    Raises:
        ConfigurationError: the folder holds no corpus or no served pair.
        MissingExtraError: LlamaIndex or its BM25 retriever is missing.
    """
    require_llama_index()
    folder = Path(folder)
    corpus, served = read_policy(folder), read_served(folder / HOME)
    if served is None or served.upstream is None:
        message = f"{folder / HOME} serves no pair. Make one:  aligner-bootstrap demo --rag --out {folder}"
        raise ConfigurationError(message)
    llm = upstream_llm(served.upstream.path, identity=served.upstream.identity, seed=seed)
    return rag_app(corpus, llm, Aligner.from_pretrained(served.aligner.path), on_correction=on_correction)


def rag_app(
    corpus: Sequence[Mapping[str, str]],
    llm: CustomLLM,
    aligner: Aligner,
    *,
    on_correction: Callable[[Correction], object] | None = None,
) -> RetrieverQueryEngine:
    """A query engine of LlamaIndex whose answers the Aligner corrects by the passages that were retrieved."""
    require_llama_index()
    from llama_index.core import PromptTemplate
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer

    from aligner_chain.llama_index import AlignerResponsePostprocessor, AlignerSynthesizer

    synthesizer = get_response_synthesizer(
        llm=llm, text_qa_template=PromptTemplate(rag_world.QUESTION_AND_PASSAGES), response_mode=ResponseMode.COMPACT
    )
    # So small an Aligner now and then finds no end; such an answer is served as it was, and counted.
    postprocessor = AlignerResponsePostprocessor(aligner, on_correction=on_correction, on_error="pass_through")
    return RetrieverQueryEngine(
        retriever=rag_retriever(corpus),
        response_synthesizer=AlignerSynthesizer(synthesizer, postprocessor),
    )


def rag_retriever(corpus: Sequence[Mapping[str, str]]) -> BaseRetriever:
    """BM25 over the corpus, by the names of products."""
    require_llama_index()
    from llama_index.core.schema import TextNode
    from llama_index.retrievers.bm25 import BM25Retriever  # type: ignore[import-untyped]

    retriever: BaseRetriever = BM25Retriever.from_defaults(
        nodes=[TextNode(id_=line["id"], text=line["text"]) for line in corpus],
        similarity_top_k=rag_world.RETRIEVED,
        token_pattern=rag_world.NAME_PARTS,
        skip_stemming=True,
    )
    return retriever


def upstream_llm(folder: str | Path, *, identity: str, seed: int = 0) -> CustomLLM:
    """A language model of LlamaIndex over a model folder; callers at the same time share batches."""
    from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
    from llama_index.core.llms.callbacks import llm_completion_callback

    from aligner_chain.engines.huggingface import shared_engine
    from aligner_chain.templates import chat_request, plain_text

    engine, sampling = shared_engine(folder), Sampling(temperature=_TEMPERATURE, seed=seed)

    class Upstream(CustomLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(context_window=_WINDOW, num_output=_MAX_NEW, model_name=identity)

        @llm_completion_callback()
        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            return read(submit(prompt).result())

        @llm_completion_callback()
        async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            return read(await asyncio.wrap_future(submit(prompt).future))

        @llm_completion_callback()
        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
            def whole() -> CompletionResponseGen:
                response = read(submit(prompt).result())
                yield CompletionResponse(text=response.text, delta=response.text)

            return whole()

        @classmethod
        def class_name(cls) -> str:
            return "DemoUpstream"

    def submit(prompt: str) -> Any:
        turns = (Turn(role="user", text=prompt),)
        [ticket] = engine.submit([chat_request(engine.tokenizer, turns, sampling=sampling, max_new=_MAX_NEW)])
        return ticket

    def read(generation: Generation) -> CompletionResponse:
        return CompletionResponse(text=plain_text(engine.tokenizer).decode(generation.ids))

    return Upstream()
