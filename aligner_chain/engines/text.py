"""What engines without a tokenizer of their own have in common: texts in, texts out, in a thread of their own."""

from __future__ import annotations

import contextvars
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aligner_chain.engines.base import Capabilities, Generation, Request, Ticket
from aligner_chain.errors import AlignerError, CapabilityError, EngineError
from aligner_chain.exchange import Exchange


class TextEngine(ABC):
    """Answers requests from their `exchange` and `criteria`. `workers` is the number of `submit` calls run at once."""

    capabilities = Capabilities(tokens=False)

    def __init__(self, workers: int) -> None:
        self.closed = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="aligner-chain-engine")

    @abstractmethod
    def _answered(self, requests: Sequence[Request]) -> Iterable[Generation | Exception]:
        """One generation, or the error in its place, for each request in its turn."""

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        """Queues the requests; those of one call are answered together.

        Raises `CapabilityError` for what needs tokens and `EngineError` after `close`.
        """
        for request in requests:
            _require_text_only(request)
        if self.closed:
            raise EngineError("The engine is closed. Make a new Aligner.")
        tickets = [Ticket(request) for request in requests]
        # The caller's context goes along, so that what an engine calls belongs to the caller's trace.
        self._pool.submit(contextvars.copy_context().run, self._run, tickets)
        return tickets

    def open(self, request: Request) -> Ticket:
        """Raises `CapabilityError`: what is behind this engine reads a whole text at once."""
        raise CapabilityError("This engine cannot read a prompt that still grows. Submit the whole request.")

    def load(self, adapter: str, path: Path) -> None:
        """Raises `CapabilityError`: there is no model here to put an adapter on."""
        raise CapabilityError("This engine has no adapters. Load one with HuggingFaceEngine.from_pretrained.")

    def unload(self, adapter: str) -> None:
        """Raises `CapabilityError`, as `load` does."""
        raise CapabilityError("This engine has no adapters.")

    def close(self) -> None:
        """Finishes what was submitted and refuses new requests."""
        self.closed = True
        self._pool.shutdown(wait=True)

    def _run(self, tickets: Sequence[Ticket]) -> None:
        wanted = [ticket for ticket in tickets if ticket.future.set_running_or_notify_cancel()]
        try:
            for ticket, answer in zip(wanted, self._answered([ticket.request for ticket in wanted]), strict=True):
                _settle(ticket, answer)
        except Exception as error:  # noqa: BLE001  (foreign code: what it raises belongs to these tickets)
            for ticket in wanted:
                if not ticket.future.done():
                    _settle(ticket, error)


def exchange_of(request: Request) -> Exchange:
    """The exchange of a request, without which a text engine has nothing to read."""
    if request.exchange is None:
        raise CapabilityError("This engine needs Request.exchange, since it has no tokenizer of its own.")
    return request.exchange


def _settle(ticket: Ticket, answer: Generation | Exception) -> None:
    if isinstance(answer, Generation):
        ticket.future.set_result(answer)
    else:
        ticket.future.set_exception(_as_engine_error(answer))


def _as_engine_error(cause: Exception) -> AlignerError:
    if isinstance(cause, AlignerError):
        return cause
    error = EngineError(f"The engine failed: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error


def _require_text_only(request: Request) -> None:
    asked = {
        "choices": request.choices,
        "bias": request.bias,
        "score_draft": request.score_draft,
        "adapter": request.adapter is not None,
        "stop": request.stop,
        "sampling": request.sampling.temperature > 0,
        "deadline_s": request.deadline_s is not None,
        "stream": request.stream,
        "prompt": request.prompt,
    }
    wrong = [name for name, value in asked.items() if value]
    if wrong:
        raise CapabilityError(
            f"This engine answers with texts and cannot do {', '.join(wrong)}. Use a trained Aligner: "
            "Aligner.from_pretrained(path)."
        )
    exchange_of(request)
