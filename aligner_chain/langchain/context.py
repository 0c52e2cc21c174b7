"""What calls inherit that other people's code makes inside: a chat model that asks another one, an Aligner that is one.

Such a call finds its callbacks and tags in a context variable of LangChain, and neither in the tags of the model around
it nor in the run manager that this one was given.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langsmith.run_helpers import tracing_context

from aligner_chain.streaming import closing_once

NO_STREAM = "nostream"
"""The tag by which LangGraph leaves a model's run out of its message streams."""

_T = TypeVar("_T")


@contextmanager
def hidden() -> Iterator[None]:
    """Whatever runs in this block stays out of the message streams of the graph around it."""
    with _inherited(tags=[*ensure_config()["tags"], NO_STREAM]):
        yield


@contextmanager
def silent() -> Iterator[None]:
    """Whatever runs in this block tells none of the callbacks around it, and not LangSmith.

    Handlers that are registered for the whole process (configure hooks, such as `collect_runs`) cannot be kept out.
    """
    with _inherited(callbacks=[]), tracing_context(enabled=False):
        yield


def silently(pieces: Generator[_T, None, None]) -> Iterator[_T]:
    """A generator whose every step is `silent`, but not what its consumer does in between."""
    with closing(pieces):
        while True:
            with silent():
                try:
                    piece = next(pieces)
                except StopIteration:
                    return
            yield piece


async def asilently(pieces: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
    """The same for asyncio."""
    async with closing_once(pieces):
        while True:
            with silent():
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    return
            yield piece


@contextmanager
def _inherited(**changes: Any) -> Iterator[None]:
    config: Any = {**(var_child_runnable_config.get() or {}), **changes}
    token = var_child_runnable_config.set(config)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
