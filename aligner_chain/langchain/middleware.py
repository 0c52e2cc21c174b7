"""`create_agent(..., middleware=[AlignerMiddleware(corrector)])`: an agent whose final answers are corrected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage

from aligner_chain.errors import MissingExtraError
from aligner_chain.langchain.context import hidden
from aligner_chain.langchain.corrector import AlignerCorrector, required

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ImportError as error:
    raise MissingExtraError("langchain", "agents") from error


class AlignerMiddleware(AgentMiddleware):
    """Corrects each final answer of an agent before it enters the state.

    Turns that call tools pass, and so do answers with a `response_format`, whose parsed value would disagree with a
    corrected text. The question is the conversation of the request, its system prompt included.

    Put it first in the list, outside of middleware that retries or falls back, so that it corrects what they settle on.

    Args:
        corrector: what corrects the answers. Default: `AlignerCorrector(prompt_source="explicit")`.
        hide_raw: keep the uncorrected tokens out of LangGraph's message streams, which then show each corrected answer as
            one message. Traces and `astream_events` still show the model's own run; `AlignedChatModel` hides it there too.

    ??? example "An agent"

        ```python
        from langchain.agents import create_agent
        from aligner_chain.langchain import AlignerCorrector, AlignerMiddleware

        agent = create_agent(llm, tools=[search], middleware=[AlignerMiddleware(AlignerCorrector())])
        agent.invoke({"messages": [("human", "Can I still return my kettle?")]})
        ```
    """

    def __init__(self, corrector: AlignerCorrector | None = None, *, hide_raw: bool = True) -> None:
        super().__init__()
        self.corrector = required(corrector or AlignerCorrector(prompt_source="explicit"))
        self.hide_raw = hide_raw

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        with hidden() if self.hide_raw else nullcontext():
            response = handler(request)
        place = _final_answer(response)
        if place is None:
            return response
        return _with_answer(response, place, self.corrector.invoke(_conversation(request, response, place)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        with hidden() if self.hide_raw else nullcontext():
            response = await handler(request)
        place = _final_answer(response)
        if place is None:
            return response
        return _with_answer(response, place, await self.corrector.ainvoke(_conversation(request, response, place)))


def _final_answer(response: ModelResponse[Any]) -> int | None:
    """Where the answer stands among the messages of a response, or None where there is none to correct."""
    if response.structured_response is not None:
        return None
    places = [place for place, message in enumerate(response.result) if isinstance(message, AIMessage)]
    return places[-1] if places else None


def _conversation(request: ModelRequest[Any], response: ModelResponse[Any], place: int) -> Sequence[BaseMessage]:
    system = [SystemMessage(request.system_prompt)] if request.system_prompt else []
    return [*system, *request.messages, response.result[place]]


def _with_answer(response: ModelResponse[Any], place: int, answer: AIMessage) -> ModelResponse[Any]:
    return replace(response, result=[*response.result[:place], answer, *response.result[place + 1 :]])
