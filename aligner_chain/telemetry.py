"""OpenTelemetry spans, one per correction, by the semantic conventions for generative AI.

They appear where `opentelemetry-api` is installed (the extra `otel`) and the application has set up a tracer provider;
else nothing happens. Spans hold names, numbers and outcomes, and never a text.

What is rare is counted beside them (`count`), for this process and as an OpenTelemetry metric of the same name.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from aligner_chain.exchange import Correction, Exchange

MISMATCHED = "aligner.pair.mismatched"
"""Counts the corrections of answers by another upstream than the one that was promoted with their Aligner."""

_OPERATION = "text_completion"
_counts: Counter[str] = Counter()
_counting = threading.Lock()


def count(name: str) -> None:
    """Adds one to a counter."""
    with _counting:
        _counts[name] += 1
    if (counter := _counter(name)) is not None:
        counter.add(1)


def counted(name: str) -> int:
    """What a counter of this process has come to."""
    return _counts[name]


class Spans:
    """The spans of one call of the Aligner, open from its start."""

    def __init__(self, model: str, exchanges: Sequence[Exchange]) -> None:
        tracer = _tracer()
        self._open: list[Any] = [] if tracer is None else [_started(tracer, model, exchange) for exchange in exchanges]

    def end(self, corrections: Sequence[Correction]) -> None:
        """Ends each span with what became of its exchange."""
        for span, correction in zip(self._open, corrections, strict=False):
            span.set_attributes(_result(correction))
            if correction.error is not None:
                _fail(span, correction.error)
            span.end()
        self._open = []

    def fail(self, error: BaseException) -> None:
        """Ends the spans that are still open with an error."""
        for span in self._open:
            _fail(span, error)
            span.end()
        self._open = []


@contextmanager
def spans(model: str, exchanges: Sequence[Exchange]) -> Iterator[Spans]:
    """Opens a span per exchange; one that nobody ended has failed."""
    opened = Spans(model, exchanges)
    try:
        yield opened
    except BaseException as error:
        opened.fail(error)
        raise


def _tracer() -> Any:
    """The application's tracer, or None where it has set up none."""
    trace = _api()
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace.get_tracer("aligner_chain")


@cache
def _api() -> Any:
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace


@cache
def _counter(name: str) -> Any:
    try:
        from opentelemetry import metrics
    except ImportError:
        return None
    return metrics.get_meter("aligner_chain").create_counter(name)


def _started(tracer: Any, model: str, exchange: Exchange) -> Any:
    attributes = {
        "gen_ai.operation.name": _OPERATION,
        "gen_ai.provider.name": "aligner-chain",
        "gen_ai.request.model": model,
        "gen_ai.output.type": "text",
        "aligner.upstream": exchange.upstream,
    }
    return tracer.start_span(f"{_OPERATION} {model}", attributes=_known(attributes))


def _result(correction: Correction) -> Mapping[str, Any]:
    usage = correction.usage
    return _known(
        {
            "gen_ai.response.id": correction.id,
            "gen_ai.response.model": correction.aligner,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.new_tokens,
            "aligner.outcome": correction.outcome,
            "aligner.edits": len(correction.edits),
            "aligner.pair": correction.pair,
            "aligner.pair.mismatched": correction.mismatched if correction.pair is not None else None,
            "aligner.forwards": usage.forwards,
            "aligner.score.keep": correction.scores.get("keep"),
            "aligner.score.leave": correction.scores.get("leave"),
        }
    )


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _fail(span: Any, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", type(error).__qualname__)
    # Not record_exception: an error's message can quote the texts.
    span.set_status(Status(StatusCode.ERROR))
