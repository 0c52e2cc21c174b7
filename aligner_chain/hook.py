"""`on_correction`: telling of each correction without ever disturbing the chain."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aligner_chain.exchange import Correction

_LOG = logging.getLogger(__name__)


class CorrectionHook:
    """Calls `on_correction`; nothing that it does wrong reaches the chain. `failures` counts what did go wrong."""

    def __init__(self, function: Callable[[Correction], object]) -> None:
        self.function = function
        self.failures = 0

    @classmethod
    def of(cls, function: object) -> CorrectionHook | None:
        """The hook of an `on_correction`; None for none. Raises `TypeError` for what cannot be called."""
        if function is None or isinstance(function, CorrectionHook):
            return function
        if not callable(function):
            raise TypeError(
                f"on_correction takes a function of one Correction, and this is a {type(function).__name__}. Such a function "
                "is  corrections.append  of a list, or  Collector(CorrectionStore(...)).submit"
            )
        return cls(function)

    def __deepcopy__(self, memo: object) -> CorrectionHook:
        return self  # Whom it tells is not copied along with what holds it.

    def __call__(self, correction: Correction) -> None:
        with self._guarded():
            result = self.function(correction)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(
                    "on_correction is a coroutine function, but the call was made without asyncio: the correction was not "
                    "handed over. Use the asynchronous methods (ainvoke, aquery, achat), or give a plain function."
                )

    async def acall(self, correction: Correction) -> None:
        """The same for asyncio, where a coroutine is awaited."""
        with self._guarded():
            result = self.function(correction)
            if inspect.isawaitable(result):
                await result

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # noqa: BLE001  Whatever the user's function raises, the answer must still be served.
            self.failures += 1
            _LOG.exception("on_correction failed; the answer is served all the same")
