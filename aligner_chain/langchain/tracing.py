"""The Aligner's work as a run of its own, so that a trace shows its prompt, its output, its tokens and its errors.

It is the run of a text model: the run of a chat model would show as one more message of the conversation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import closing
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForChainRun,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForChainRun,
    CallbackManagerForLLMRun,
)
from langchain_core.callbacks.manager import ahandle_event
from langchain_core.outputs import Generation, LLMResult

from aligner_chain.aligner import Aligner
from aligner_chain.exchange import Correction, Exchange, uuid7
from aligner_chain.langchain.context import NO_STREAM
from aligner_chain.langchain.recorder import INTERNAL_TAG
from aligner_chain.streaming import closing_once

_TAGS = [INTERNAL_TAG, NO_STREAM]
_SERIALIZED = {"name": "Aligner", "id": ["aligner_chain", "aligner", "Aligner"]}


def correct_traced(
    aligner: Aligner,
    exchanges: Sequence[Exchange],
    parents: Sequence[CallbackManagerForChainRun],
    timeout: float | None = None,
) -> list[Correction]:
    """One call of the Aligner for all exchanges, with a run for each of them below the corrector's run of it.

    Without `parents` there are no runs.
    """
    runs = [_start(parent, exchange, aligner.identity) for parent, exchange in zip(parents, exchanges, strict=False)]
    try:
        corrections = aligner.correct(exchanges, timeout=timeout)
    except BaseException as error:
        for run in runs:
            run.on_llm_error(error)
        raise
    for run, correction in zip(runs, corrections, strict=False):
        _end(run, correction)
    return corrections


async def acorrect_traced(
    aligner: Aligner,
    exchanges: Sequence[Exchange],
    parents: Sequence[AsyncCallbackManagerForChainRun],
    timeout: float | None = None,  # noqa: ASYNC109  (the Aligner's own)
) -> list[Correction]:
    """The same for asyncio."""
    runs = [
        await _astart(parent, exchange, aligner.identity) for parent, exchange in zip(parents, exchanges, strict=False)
    ]
    try:
        corrections = await aligner.acorrect(exchanges, timeout=timeout)
    except BaseException as error:
        for run in runs:
            await run.on_llm_error(error)
        raise
    for run, correction in zip(runs, corrections, strict=False):
        await _aend(run, correction)
    return corrections


def stream_traced(
    aligner: Aligner,
    exchange: Exchange,
    parents: Sequence[CallbackManagerForChainRun],
    timeout: float | None = None,
) -> Generator[str | Correction, None, None]:
    """`Aligner.stream` with a run, below the corrector's one if there is one, that tells each piece."""
    runs = [_start(parent, exchange, aligner.identity) for parent in parents]
    try:
        with closing(aligner.stream(exchange, timeout=timeout, unchecked=True)) as pieces:
            for piece in pieces:
                for run in runs:
                    _end(run, piece) if isinstance(piece, Correction) else run.on_llm_new_token(piece)
                runs = [] if isinstance(piece, Correction) else runs
                yield piece
    except BaseException as error:
        for run in runs:
            run.on_llm_error(error)
        raise


async def astream_traced(
    aligner: Aligner,
    exchange: Exchange,
    parents: Sequence[AsyncCallbackManagerForChainRun],
    timeout: float | None = None,  # noqa: ASYNC109  (the Aligner's own)
) -> AsyncGenerator[str | Correction, None]:
    """The same for asyncio."""
    runs = [await _astart(parent, exchange, aligner.identity) for parent in parents]
    try:
        async with closing_once(aligner.astream(exchange, timeout=timeout, unchecked=True)) as pieces:
            async for piece in pieces:
                for run in runs:
                    await (_aend(run, piece) if isinstance(piece, Correction) else run.on_llm_new_token(piece))
                runs = [] if isinstance(piece, Correction) else runs
                yield piece
    except BaseException as error:
        for run in runs:
            await run.on_llm_error(error)
        raise


def _end(run: CallbackManagerForLLMRun, correction: Correction) -> None:
    if correction.error is None:
        run.on_llm_end(_result(correction))
    else:
        run.on_llm_error(correction.error)


async def _aend(run: AsyncCallbackManagerForLLMRun, correction: Correction) -> None:
    if correction.error is None:
        await run.on_llm_end(_result(correction))
    else:
        await run.on_llm_error(correction.error)


def _start(parent: CallbackManagerForChainRun, exchange: Exchange, aligner: str) -> CallbackManagerForLLMRun:
    manager = CallbackManager.configure(
        parent.get_child(), inheritable_tags=_TAGS, inheritable_metadata=_metadata(aligner)
    )
    return manager.on_llm_start(_SERIALIZED, [_prompt(exchange)], **_parameters(aligner))[0]


async def _astart(
    parent: AsyncCallbackManagerForChainRun, exchange: Exchange, aligner: str
) -> AsyncCallbackManagerForLLMRun:
    manager = AsyncCallbackManager.configure(
        parent.get_child(), inheritable_tags=_TAGS, inheritable_metadata=_metadata(aligner)
    )
    run: dict[str, Any] = {
        "run_id": uuid7(),
        "parent_run_id": manager.parent_run_id,
        "tags": manager.tags,
        "metadata": manager.metadata,
    }
    # The manager's own on_llm_start leaves out every other handler as soon as one of them runs inline.
    await ahandle_event(
        manager.handlers, "on_llm_start", "ignore_llm", _SERIALIZED, [_prompt(exchange)], **run, **_parameters(aligner)
    )
    return AsyncCallbackManagerForLLMRun(
        handlers=manager.handlers,
        inheritable_handlers=manager.inheritable_handlers,
        inheritable_tags=manager.inheritable_tags,
        inheritable_metadata=manager.inheritable_metadata,
        **run,
    )


def _prompt(exchange: Exchange) -> str:
    asked = "\n".join(f"{turn.role}: {turn.text}" for turn in exchange.turns)
    return f"{asked}\nanswer: {exchange.answer}"


def _metadata(aligner: str) -> dict[str, Any]:
    return {"ls_provider": "aligner-chain", "ls_model_name": aligner, "ls_model_type": "llm"}


def _parameters(aligner: str) -> dict[str, Any]:
    return {"name": "Aligner", "invocation_params": {"_type": "aligner", "model": aligner}}


def _result(correction: Correction) -> LLMResult:
    usage = correction.usage
    tokens = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.new_tokens,
        "total_tokens": usage.prompt_tokens + usage.new_tokens,
    }
    generation = Generation(text=correction.text, generation_info={"outcome": correction.outcome})
    return LLMResult(generations=[[generation]], llm_output={"token_usage": tokens, "model_name": correction.aligner})
