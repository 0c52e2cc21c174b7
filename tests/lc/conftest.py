"""Chat models without a network, a scripted Aligner that tells which question it was given, and a tiny real upstream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, Generation, LLMResult
from langchain_core.prompts import ChatPromptTemplate

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.base import Request, Ticket
from aligner_chain.engines.scripted import ScriptedEngine
from aligner_chain.langchain import AlignerCorrector
from aligner_chain.langchain.recorder import recorder


class FakeChat(BaseChatModel):
    """Answers `label(question)`; `ids` is what a provider does: "none", "provider" (unique) or "constant"."""

    ids: str = "none"
    label: str = "A"
    failures: int = 0
    choices: int = 1
    calls: int = 0

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _answer(self, messages: list[BaseMessage]) -> tuple[str, str | None]:
        self.calls += 1
        if self.calls <= self.failures:
            raise RuntimeError("the provider is down")
        known = {"provider": f"resp_{self.calls}_{messages[-1].text}", "constant": "chatcmpl-0"}
        return f"{self.label}({messages[-1].text})", known.get(self.ids)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        text, message_id = self._answer(messages)
        texts = [text, *(f"{text}#{index}" for index in range(1, self.choices))]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, id=message_id)) for text in texts])


class StreamingFakeChat(FakeChat):
    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> Iterator[ChatGenerationChunk]:
        text, message_id = self._answer(messages)
        for piece in (text[:2], text[2:-1], text[-1:]):
            yield ChatGenerationChunk(message=AIMessageChunk(piece, id=message_id))


class AsyncFakeChat(FakeChat):
    """Needs no thread under asyncio."""

    async def _agenerate(self, messages: list[BaseMessage], *given: Any, **kw: Any) -> ChatResult:
        return self._generate(messages)


class ScriptedChat(BaseChatModel):
    """Answers with the messages it is given, and streams each as the pieces of a tuple."""

    answers: list[Any]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.answers.pop(0))])


class StreamingScriptedChat(ScriptedChat):
    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> Iterator[ChatGenerationChunk]:
        for piece in self.answers.pop(0):
            yield ChatGenerationChunk(message=piece)


class FakeText(BaseLLM):
    @property
    def _llm_type(self) -> str:
        return "fake-text"

    def _generate(self, prompts: list[str], stop: Any = None, run_manager: Any = None, **kw: Any) -> LLMResult:
        return LLMResult(generations=[[Generation(text=f"A({prompt})")] for prompt in prompts])


@pytest.fixture(autouse=True)
def _fresh_recorder() -> Iterator[None]:
    """The recorder belongs to the process, so what one test asked could answer the next one."""
    recorder().clear()
    yield
    recorder().clear()


@pytest.fixture
def models() -> SimpleNamespace:
    return SimpleNamespace(
        Chat=FakeChat,
        StreamingChat=StreamingFakeChat,
        AsyncChat=AsyncFakeChat,
        Scripted=ScriptedChat,
        StreamingScripted=StreamingScriptedChat,
        Text=FakeText,
    )


@pytest.fixture
def prompt() -> ChatPromptTemplate:
    return ChatPromptTemplate.from_messages([("human", "{q}")])


@pytest.fixture
def asked() -> list[Exchange]:
    """Every exchange that the Aligner of `corrector` was given."""
    return []


@pytest.fixture
def told() -> list[Correction]:
    """Every correction that `on_correction` of `corrector` was given."""
    return []


@pytest.fixture
def aligner(asked: list[Exchange]) -> Aligner:
    """Writes `<question|answer>`, so that a wrong question shows."""

    def correct(exchange: Exchange) -> str:
        asked.append(exchange)
        return f"<{exchange.question}|{exchange.answer}>"

    return Aligner.scripted(correct)


@pytest.fixture
def corrector(aligner: Aligner, told: list[Correction]) -> AlignerCorrector:
    return AlignerCorrector(aligner, on_correction=told.append)


@pytest.fixture
def fix(asked: list[Exchange]) -> Aligner:
    """Corrects "bad" to "good"; fails on "crash"."""

    def correct(exchange: Exchange) -> str:
        asked.append(exchange)
        if "crash" in exchange.question:
            raise RuntimeError("out of luck")
        return exchange.answer.replace("bad", "good")

    return Aligner.scripted(correct)


class CountingEngine(ScriptedEngine):
    """Notes how many requests each call brings."""

    def __init__(self, script: Any) -> None:
        super().__init__(script)
        self.batches: list[int] = []

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        self.batches.append(len(requests))
        return super().submit(requests)


@pytest.fixture
def engine() -> CountingEngine:
    def fix(exchange: Exchange) -> str:
        if "crash" in exchange.answer:
            raise RuntimeError("out of luck")
        return exchange.answer.replace("bad", "good")

    return CountingEngine(fix)


@pytest.fixture
def fixer(engine: CountingEngine, told: list[Correction]) -> AlignerCorrector:
    """Corrects "bad" to "good"; fails on "crash"."""
    aligner = Aligner(engine, metadata=AlignerMetadata(name="counting", version="1", template="scripted"))
    return AlignerCorrector(aligner, question="q", on_correction=told.append)


_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def make_upstream() -> Callable[[Path, int], Path]:
    """Writes a tiny Llama with random weights and a byte-level tokenizer with a chat template into a folder."""

    def make(folder: Path, seed: int) -> Path:
        torch = pytest.importorskip("torch", reason="the lowest versions are tested without local models")
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        special = ["<|im_start|>", "<|im_end|>", "<|end|>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
        raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, eos_token="<|end|>", additional_special_tokens=special[:2]
        )
        tokenizer.chat_template = _CHAT_TEMPLATE
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.5,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def upstream(make_upstream: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_upstream(tmp_path_factory.mktemp("upstream"), 0)


@pytest.fixture(scope="session")
def tiny_aligner(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Aligner that was never trained: what it writes is noise, but it loads, runs and has an identity."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aligner_chain.checkpoint import AlignerMetadata, write_metadata
    from aligner_chain.templates import prepare_tokenizer

    folder = tmp_path_factory.mktemp("aligner")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(upstream), AutoTokenizer.from_pretrained(upstream)
    prepare_tokenizer(tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_metadata(folder, AlignerMetadata(name="tiny", version="1", template="aligner-chain/1"))
    return folder


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path | None], Path]:
    """Makes `$ALIGNER_HOME` serve an upstream, as a promotion does: by renaming a new file into place."""
    home = tmp_path / "home"
    (home / "aligner" / "1").mkdir(parents=True)
    monkeypatch.setenv("ALIGNER_HOME", str(home))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)

    def promote(identity: str, folder: Path | None) -> Path:
        upstream = None if folder is None else {"identity": identity, "path": str(folder)}
        aligner = {"identity": "aligner@1", "path": "aligner/1"}
        written = home / "served.json.new"
        written.write_text(json.dumps({"schema": 1, "pair": identity, "upstream": upstream, "aligner": aligner}))
        written.replace(home / "served.json")
        return home

    return promote
