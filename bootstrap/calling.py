"""How a paid chat model is called, by an annotator and by a judge: not too often, and again where a call fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aligner_chain.errors import ConfigurationError

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

CONCURRENCY = 8
"""Calls in flight at once."""
ATTEMPTS = 4
"""Times that a call is tried, with growing pauses, before it has failed."""


def limited(chat_model: Runnable[Any, Any], *, requests_per_minute: float | None, attempts: int) -> Runnable[Any, Any]:
    """The chat model, where every try of every call waits for its turn and a call that fails is tried again.

    Args:
        chat_model: any chat model of LangChain.
        requests_per_minute: the most calls in a minute, retries among them; None: as many as come.
        attempts: times that a call is tried, with growing pauses.

    Raises:
        ConfigurationError: `chat_model` is none.
    """
    from langchain_core.rate_limiters import InMemoryRateLimiter
    from langchain_core.runnables import RunnableLambda

    require_chat_model(chat_model)
    asked: Runnable[Any, Any] = chat_model
    if requests_per_minute is not None:
        per_second = requests_per_minute / 60
        limiter = InMemoryRateLimiter(
            requests_per_second=per_second,
            check_every_n_seconds=min(0.1, 0.5 / per_second),
            max_bucket_size=max(1.0, per_second),
        )

        def wait_for_turn(prompt: Any) -> Any:
            limiter.acquire()
            return prompt

        asked = RunnableLambda(wait_for_turn) | chat_model
    return asked.with_retry(stop_after_attempt=attempts)


def require_chat_model(given: object) -> None:
    """Raises `ConfigurationError` for what is no chat model of LangChain, or a chain that ends like one."""
    from langchain_core.runnables import Runnable

    if not isinstance(given, Runnable):
        raise ConfigurationError(f"{type(given).__name__} is no chat model of LangChain. Give an instance of one.")


def require_positive(**numbers: float | None) -> None:
    """Raises `ConfigurationError` where a number is neither None nor more than 0; the message names it."""
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise ConfigurationError(f"{name} must be more than 0, not {number:g}.")
