"""A public fake: a function plays the Aligner. For tests and documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from aligner_chain.engines.base import Generation, Request
from aligner_chain.engines.text import TextEngine, exchange_of
from aligner_chain.exchange import Exchange


class ScriptedEngine(TextEngine):
    """`script` gets an exchange and returns the corrected text; the same text approves the answer."""

    def __init__(self, script: Callable[[Exchange], str]) -> None:
        super().__init__(workers=1)
        self._script = script

    def _answered(self, requests: Sequence[Request]) -> Iterable[Generation | Exception]:
        return map(self._answer, requests)

    def _answer(self, request: Request) -> Generation | Exception:
        exchange = exchange_of(request)
        try:
            text = self._script(exchange)
        except Exception as error:  # noqa: BLE001  (the caller's function: its error belongs to this one exchange)
            return error
        return Generation(key=request.key, text=text, approved=text == exchange.answer)
