"""A chat model around a chat model, for those who must never see an uncorrected word."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Self
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field, field_validator, model_validator

from aligner_chain import __version__
from aligner_chain.errors import CapabilityError
from aligner_chain.langchain.context import asilently, silent, silently
from aligner_chain.langchain.correcting import Correcting, raise_or_return
from aligner_chain.langchain.corrector import AlignerCorrector, required
from aligner_chain.langchain.jobs import CONFIGURABLE, Asked
from aligner_chain.langchain.messages import still_true, upstream_in
from aligner_chain.streaming import closing_once

_INHERITED = ("cache", "rate_limiter", "output_version", "profile", "disable_streaming", "tags", "callbacks")
_KEYS = tuple(spec.id for spec in CONFIGURABLE)
_OF_THE_TEXT = ("aligner_enabled", "aligner_question")


class AlignedChatModel(BaseChatModel):
    """A chat model whose answers are corrected before anyone sees them: `AlignedChatModel(llm=llm)`.

    `llm | AlignerCorrector()` still shows the uncorrected text where a chain is watched: in the events of its steps and in
    the message stream of a graph. Here model and Aligner are one run, so streams, events, traces, states and agents hold
    the corrected text only. Tool calls pass as they are, from their first piece on; tokens are counted once, those of
    `llm`. The Aligner gives its own in `Correction.usage` and OpenTelemetry, but has no run of its own in a trace, whose
    input would be the uncorrected answer.

    The question is the prompt itself. What a corrector reads from `config["configurable"]` works here too, and can be
    given to a call, or bound: `model.bind(aligner_subject="customer-7")`. Join feedback to a record by the `correction_id` in
    `response_metadata["aligner"]`, since LangChain tells a model nothing of its run when it streams. Structured output is
    left to `llm` and never corrected. A cache of LangChain holds the corrected answers (and with
    `on_error="pass_through"` those whose correction failed).

    ??? info "Instantiate"

        ```python
        from aligner_chain.langchain import AlignedChatModel, AlignerCorrector

        model = AlignedChatModel(llm=llm, corrector=AlignerCorrector(timeout=20))
        ```

    ??? info "Invoke, stream, async"

        ```python
        model.invoke("Can I still return my kettle?").text
        for chunk in model.stream("Can I still return my kettle?"):
            print(chunk.text, end="")
        await model.ainvoke("Can I still return my kettle?")
        ```

        The first text waits for the end of `llm`'s answer and for the correction; `stream_unchecked=True` of the
        corrector sends it while it is decoded.

    ??? info "Tool calling"

        ```python
        agent = create_agent(model, tools=[search])
        ```

    Args:
        llm: the chat model that answers. Bind tools and settings to the outer model, not to this one.
        corrector: what corrects it. Default: `AlignerCorrector(prompt_source="explicit")`.

    Raises:
        TypeError: `llm` is no chat model, but something made of one; the message says what to do instead.
    """

    llm: BaseChatModel
    corrector: AlignerCorrector = Field(default_factory=lambda: AlignerCorrector(prompt_source="explicit"))

    @field_validator("llm", mode="before")
    @classmethod
    def _is_chat_model(cls, llm: Any) -> Any:
        if not isinstance(llm, BaseChatModel):
            raise TypeError(_not_a_chat_model(llm))
        return llm

    @field_validator("corrector", mode="before")
    @classmethod
    def _is_corrector(cls, corrector: Any) -> Any:
        return required(corrector)

    @model_validator(mode="after")
    def _inherit(self) -> Self:
        """Takes over what LangChain applies around a model's own work, since it is not applied to `llm` any more."""
        for name in _INHERITED:
            inherited = getattr(self.llm, name, None)
            # LangChain's own validators set some of them to None.
            given = name in self.model_fields_set and getattr(self, name) is not None
            if not given and inherited is not None:
                # Not by assignment, which would count as set by the user when the object is copied or compared.
                self.__dict__[name] = inherited
        self.__dict__["metadata"] = _metadata(self.llm.metadata or {}, self.metadata or {})
        return self

    @property
    def _llm_type(self) -> str:
        return "aligned-chat-model"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """Everything that the text depends on, since a cache is keyed by it."""
        return {
            "llm": {"_type": self.llm._llm_type, **self.llm._identifying_params},
            "corrector": self.corrector.identifying_params,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.llm._get_ls_params(stop=stop, **_without_keys(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of a cache: `llm`'s own, and what else the text depends on. Whom a record is about changes no text."""
        ours = {**self.corrector.identifying_params, **_keys(kwargs, _OF_THE_TEXT)}
        inner = self.llm._get_llm_string(stop=stop, **_without_keys(kwargs))
        return f"{inner}---{json.dumps(ours, sort_keys=True, default=str)}"

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> AIMessage:
        return super().invoke(input, config, stop=stop, **_with_keys(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> AIMessage:
        return await super().ainvoke(input, config, stop=stop, **_with_keys(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        yield from super().stream(input, config, stop=stop, **_with_keys(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        async with closing_once(super().astream(input, config, stop=stop, **_with_keys(config, kwargs))) as pieces:
            async for piece in pieces:
                yield piece

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of `text`, as `llm` counts them."""
        return self.llm.get_token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """The tokens of messages, as `llm` counts them."""
        return self.llm.get_num_tokens_from_messages(messages, tools)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings = _without_keys(kwargs)
        with silent():
            if self.llm._should_stream(async_api=False, **settings):
                result = generate_from_stream(self._raw(messages, stop, settings))
            else:
                # Without its run manager `llm` reports to nobody: there is one run, one count of tokens, no raw text.
                result = self.llm._generate(messages, stop=stop, **settings)
            run_id = run_manager.run_id if run_manager else None
            asked = Asked(messages, _keys(kwargs), run_id, _upstream(result))
            correcting = Correcting(self.corrector)
            jobs = [correcting.answer(asked, answer) for answer in _answers(result, run_id)]
            correcting.settle(jobs)
            return _with_answers(result, [raise_or_return(correcting.result(job)) for job in jobs])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings = _without_keys(kwargs)
        with silent():
            if self.llm._should_stream(async_api=True, **settings):
                result = await agenerate_from_stream(self._araw(messages, stop, settings))
            else:
                result = await self.llm._agenerate(messages, stop=stop, **settings)
            run_id = run_manager.run_id if run_manager else None
            asked = Asked(messages, _keys(kwargs), run_id, _upstream(result))
            correcting = Correcting(self.corrector)
            jobs = [correcting.answer(asked, answer) for answer in _answers(result, run_id)]
            await correcting.asettle(jobs)
            return _with_answers(result, [raise_or_return(correcting.result(job)) for job in jobs])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = Asked(messages, _keys(kwargs))
        for piece in silently(self._pieces(asked, stop, _without_keys(kwargs))):
            yield ChatGenerationChunk(message=_as_chunk(piece))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = Asked(messages, _keys(kwargs))
        async with closing_once(asilently(self._apieces(asked, stop, _without_keys(kwargs)))) as pieces:
            async for piece in pieces:
                yield ChatGenerationChunk(message=_as_chunk(piece))

    def _pieces(
        self, asked: Asked, stop: list[str] | None, settings: Mapping[str, Any]
    ) -> Generator[AIMessage, None, None]:
        correcting = Correcting(self.corrector)
        with correcting.held_answer(asked) as held:
            for chunk in self._raw(asked.messages, stop, settings):
                yield from held.add(_message(chunk))
            if held.pieces:
                yield from correcting.pieces(correcting.answer(asked, held.whole()), silent=held.released)

    async def _apieces(
        self, asked: Asked, stop: list[str] | None, settings: Mapping[str, Any]
    ) -> AsyncGenerator[AIMessage, None]:
        correcting = Correcting(self.corrector)
        with correcting.held_answer(asked) as held:
            async for chunk in self._araw(asked.messages, stop, settings):
                for piece in held.add(_message(chunk)):
                    yield piece
            if held.pieces:
                job = correcting.answer(asked, held.whole())
                async with closing_once(correcting.apieces(job, silent=held.released)) as pieces:
                    async for piece in pieces:
                        yield piece

    def _raw(
        self, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]
    ) -> Iterator[ChatGenerationChunk]:
        """`llm`'s stream, which is one piece where it cannot stream."""
        if type(self.llm)._stream is not BaseChatModel._stream:
            yield from self.llm._stream(messages, stop=stop, **settings)
        else:
            yield _one_chunk(self.llm._generate(messages, stop=stop, **settings))

    async def _araw(
        self, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]
    ) -> AsyncIterator[ChatGenerationChunk]:
        kind = type(self.llm)
        if kind._stream is not BaseChatModel._stream or kind._astream is not BaseChatModel._astream:
            async for chunk in self.llm._astream(messages, stop=stop, **settings):
                yield chunk
        else:
            yield _one_chunk(await self.llm._agenerate(messages, stop=stop, **settings))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds tools in the form that `llm` gives them.

        Raises:
            NotImplementedError: `llm` has no tools.
            CapabilityError: `llm` binds them in a way that leaves nothing to wrap.
        """
        bound = self.llm.bind_tools(tools, tool_choice=tool_choice, **kwargs)
        if not isinstance(bound, RunnableBinding) or not isinstance(bound.bound, BaseChatModel):
            raise CapabilityError(
                f"{type(self.llm).__name__}.bind_tools returns a {type(bound).__name__} in which there is no chat model to "
                "correct. Correct behind it instead:  llm.bind_tools(tools) | AlignerCorrector()"
            )
        aligned = self.model_copy(update={"llm": bound.bound})
        return bound.model_copy(update={"bound": aligned})

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """`llm`'s own: structured output is not corrected."""
        return self.llm.with_structured_output(schema, include_raw=include_raw, **kwargs)


def _metadata(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> dict[str, Any]:
    """What traces are told of the model: with the versions of everybody's packages, in newer LangChain `lc_versions`."""
    versions = {**inner.get("lc_versions", {}), **outer.get("lc_versions", {}), "aligner-chain": __version__}
    return {**inner, **outer, "lc_versions": versions}


def _with_keys(config: RunnableConfig | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a call, with what its config says of the correction. A model's own work is not shown the config."""
    return {**_keys(ensure_config(config).get("configurable", {})), **settings}


def _keys(settings: Mapping[str, Any], names: Sequence[str] = _KEYS) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def _without_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _KEYS}


def _answers(result: ChatResult, run_id: UUID | None) -> list[AIMessage]:
    """The messages of a result, under the ids that LangChain is going to give them, for the record."""
    answers = []
    for place, generation in enumerate(result.generations):
        message = generation.message
        if not isinstance(message, AIMessage):
            raise TypeError(f"The chat model answered with a {type(message).__name__}, not with an AIMessage.")
        if message.id is None and run_id is not None:
            message.id = f"lc_run--{run_id}-{place}"
        answers.append(message)
    return answers


def _upstream(result: ChatResult) -> str | None:
    """The model that wrote the answers, which LangChain adds to a message only later."""
    generation = result.generations[0]
    return upstream_in(
        {**(result.llm_output or {}), **(generation.generation_info or {}), **generation.message.response_metadata}
    )


def _with_answers(result: ChatResult, answers: Sequence[AIMessage]) -> ChatResult:
    generations = [
        ChatGeneration(message=answer, generation_info=_info(generation, answer))
        for generation, answer in zip(result.generations, answers, strict=True)
    ]
    return ChatResult(generations=generations, llm_output=result.llm_output)


def _info(generation: ChatGeneration, answer: AIMessage) -> dict[str, Any] | None:
    """What a provider tells of a generation, which LangChain adds to the message; not of tokens that are gone."""
    info = generation.generation_info
    return info if not info or answer.content == generation.message.content else still_true(info)


def _message(chunk: ChatGenerationChunk) -> BaseMessage:
    """The message of a chunk, with what LangChain would add to it from the generation."""
    message = chunk.message
    message.response_metadata = {**(chunk.generation_info or {}), **message.response_metadata}
    return message


def _one_chunk(result: ChatResult) -> ChatGenerationChunk:
    """A whole result as the only piece of a stream."""
    generation = result.generations[0]
    chunk = _as_chunk(_answers(result, None)[0])
    info = {**(result.llm_output or {}), **(generation.generation_info or {})}
    return ChatGenerationChunk(message=chunk, generation_info=info or None)


def _as_chunk(message: AIMessage) -> AIMessageChunk:
    if isinstance(message, AIMessageChunk):
        return message
    calls = [*message.tool_calls, *message.invalid_tool_calls]
    pieces = [
        tool_call_chunk(name=call["name"], args=_arguments(call["args"]), id=call["id"], index=place)
        for place, call in enumerate(calls)
    ]
    return AIMessageChunk(
        content=message.content,
        id=message.id,
        name=message.name,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        tool_call_chunks=pieces,
        chunk_position="last",
    )


def _arguments(arguments: Any) -> str | None:
    return arguments if arguments is None or isinstance(arguments, str) else json.dumps(arguments)


def _not_a_chat_model(llm: object) -> str:
    found = f"AlignedChatModel wraps a chat model, and this is a {type(llm).__name__}."
    if isinstance(llm, RunnableBinding):
        return f"{found} Bind to the outer model instead:  AlignedChatModel(llm=llm).bind_tools(tools)  or  .bind(...)"
    return (
        f"{found} Wrap the chat model inside of it, such as  AlignedChatModel(llm=first).with_fallbacks([AlignedChatModel("
        "llm=second)]), or correct behind it:  that | AlignerCorrector()"
    )
