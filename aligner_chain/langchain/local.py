"""A chat model over a local upstream: a folder, a hub id, or whatever the registry serves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field

from aligner_chain.engines.base import Generation, Sampling, Ticket
from aligner_chain.errors import CapabilityError, ConfigurationError, ContextOverflowError
from aligner_chain.langchain.messages import turns_of
from aligner_chain.shared import ahold_upstream, hold_upstream, served_now

if TYPE_CHECKING:
    from aligner_chain.engines.huggingface import HuggingFaceEngine

_PER_CALL = ("temperature", "seed", "max_new_tokens")
_Held: TypeAlias = "tuple[HuggingFaceEngine, str]"
_THOUGHTS = ("reasoning", "thinking", "redacted_thinking")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    engine: HuggingFaceEngine
    ticket: Ticket
    identity: str


class LocalChatModel(BaseChatModel):
    """A LangChain chat model that runs a Hugging Face causal LM in this process: `LocalChatModel("path-or-hub-id")`.

    The weights are loaded at the first call and shared by all objects that name the same model; calls that come in at
    the same time, from threads or tasks, share batches. The same prompt with the same settings and seed gives the
    same answer, whatever runs beside it. `response_metadata` holds `model_name`, `upstream` (the identity, as
    `name@version`) and `finish_reason` ("length" where the answer ended because its budget did).

    `temperature`, `seed` and `max_new_tokens` can also be given to a call, or bound: `llm.bind(temperature=1.0)`.

    Args:
        model: a folder or hub id. None follows the registry, as `served()` does.
        temperature: 0 is greedy.
        seed: of the sampling noise.
        max_new_tokens: most tokens of an answer; fewer where the model's window has no room for them.
        identity: `name@version` of the model. Default: made from `model` and `revision`, or what the registry says.
        revision: branch, tag or commit of a hub id.
        device: "auto" is CUDA where there is one, else the CPU.
        dtype: "auto" is bf16 on a GPU, fp32 on the CPU.

    Raises:
        ConfigurationError: no upstream is served, or a call was given a setting that there is not.
        CheckpointError: the folder holds no model that can be loaded.
        CapabilityError: a message holds something else than text.
        ContextOverflowError: the prompt leaves no room for an answer in the model's window.
    """

    model: str | None
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0
    max_new_tokens: int = Field(default=512, gt=0)
    identity: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    model_config = ConfigDict(extra="forbid")

    def __init__(self, model: str | os.PathLike[str] | None, **kwargs: Any) -> None:
        super().__init__(**{"model": None if model is None else os.fspath(model), **kwargs})
        self._target()  # Whether an upstream is served should be known here, and not in the middle of a chain.

    @classmethod
    def served(cls, **kwargs: Any) -> LocalChatModel:
        """A chat model over the upstream that `$ALIGNER_HOME` serves; between two calls it may follow a promotion.

        A call keeps the upstream that it began with. After a promotion the one before answers until the new one is loaded.

        Args:
            kwargs: settings, as for the class.

        Raises:
            ConfigurationError: no upstream is served; the message lists the ways out.
        """
        return cls(None, **kwargs)

    def bind_tools(self, *_: Any, **__: Any) -> NoReturn:
        """Raises `NotImplementedError`, as LangChain expects of a model without tools."""
        raise NotImplementedError(
            "LocalChatModel calls no tools. Give the agent a model that does, or none:  create_agent(model, tools=[])"
        )

    @property
    def _llm_type(self) -> str:
        return "aligner-chain-local"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        path, identity = self._target()
        return {"model": path, "identity": identity, **{name: getattr(self, name) for name in _PER_CALL}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        return {**params, "ls_provider": "aligner-chain", "ls_model_name": self._target()[1]}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        _check(messages, kwargs)
        with self._held() as held:
            call = self._submit(held, messages, stop, kwargs)
            return _result(call, call.ticket.result(), stop or ())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        _check(messages, kwargs)
        async with self._aheld() as held:
            call = await run_in_executor(None, self._submit, held, messages, stop, kwargs)  # A long text takes a while.
            try:
                return _result(call, await asyncio.wrap_future(call.ticket.future), stop or ())
            except asyncio.CancelledError:
                call.ticket.cancel()
                raise

    @contextmanager
    def _held(self) -> Iterator[_Held]:
        """The engine and identity for one call; a served one stays the same, and open, until the block is left."""
        if self.model is not None:
            yield self._named(), self._target()[1]
            return
        with hold_upstream(self.device, self.dtype) as (engine, identity):
            yield engine, self.identity or identity

    @asynccontextmanager
    async def _aheld(self) -> AsyncIterator[_Held]:
        """The same without blocking the event loop while the weights are loaded."""
        if self.model is not None:
            yield await run_in_executor(None, self._named), self._target()[1]
            return
        async with ahold_upstream(self.device, self.dtype) as (engine, identity):
            yield engine, self.identity or identity

    def _named(self) -> HuggingFaceEngine:
        from aligner_chain.engines.huggingface import shared_engine

        return shared_engine(self._target()[0], revision=self.revision, device=self.device, dtype=self.dtype)

    def _submit(
        self, held: _Held, messages: Sequence[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]
    ) -> _Call:
        from aligner_chain.templates import chat_request

        engine, identity = held
        chosen = {name: settings.get(name, getattr(self, name)) for name in _PER_CALL}
        sampling = Sampling(temperature=chosen["temperature"], seed=chosen["seed"])
        request = chat_request(
            engine.tokenizer, turns_of(messages), sampling=sampling, max_new=chosen["max_new_tokens"]
        )
        room = _room(len(request.prompt), request.max_new, engine.capabilities.window)
        return _Call(
            engine=engine,
            ticket=engine.submit([replace(request, max_new=room, stop=tuple(stop or ()))])[0],
            identity=identity,
        )

    def _target(self) -> tuple[str, str]:
        """The folder or hub id to run, and its identity."""
        if self.model is not None:
            return self.model, self.identity or _identity(self.model, self.revision)
        upstream = served_now("upstream")
        return str(upstream.path), self.identity or upstream.identity


def _identity(model: str, revision: str | None) -> str:
    folder = Path(model).expanduser().absolute()
    if not folder.is_dir():
        return f"{model}@{revision or 'main'}"
    # A registry keeps version 3 of the kind "upstream" in upstream/3.
    return f"{folder.parent.name}@{folder.name}" if folder.name.isdigit() else f"{folder.name}@local"


def _check(messages: Sequence[BaseMessage], settings: Mapping[str, Any]) -> None:
    if unknown := sorted(settings.keys() - set(_PER_CALL)):
        raise ConfigurationError(
            f"LocalChatModel does not know {', '.join(unknown)}. A call can set {', '.join(_PER_CALL)} and stop."
        )
    for message in messages:
        blocks = [] if isinstance(message.content, str) else message.content
        kinds = {block.get("type") for block in blocks if isinstance(block, dict)} - {"text"}
        if kinds := kinds - set(_THOUGHTS if isinstance(message, AIMessage) else ()):
            raise CapabilityError(
                f"A local upstream reads text only, and a message holds {', '.join(sorted(map(str, kinds)))}. "
                "Take it out, or ask a chat model that reads it."
            )


def _room(prompt: int, wanted: int, window: int | None) -> int:
    room = wanted if window is None else min(wanted, window - prompt)
    if room <= 0:
        raise ContextOverflowError(
            f"The prompt has {prompt} tokens and the model's window {window}: there is no room for an answer. "
            "Shorten the conversation, or run a model with a longer window."
        )
    return room


def _result(call: _Call, generation: Generation, stop: Sequence[str]) -> ChatResult:
    text, stopped = _cut(str(call.engine.tokenizer.decode(generation.ids, skip_special_tokens=True)), stop)
    usage = generation.usage
    message = AIMessage(
        content=text,
        usage_metadata={
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.new_tokens,
            "total_tokens": usage.prompt_tokens + usage.new_tokens,
        },
        response_metadata={
            "model_name": call.identity.rpartition("@")[0],
            "upstream": call.identity,
            "finish_reason": "length" if generation.finish == "length" and not stopped else "stop",
        },
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop sequences, and whether there was one."""
    ends = [text.find(end) for end in stop if end and end in text]
    return (text[: min(ends)], True) if ends else (text, False)
