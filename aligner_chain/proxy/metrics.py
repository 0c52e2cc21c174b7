"""What is counted of every request, and the line that the access log has of it: numbers and names, no text and no key."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aligner_chain.exchange import Correction
from aligner_chain.hook import CorrectionHook

LOG = logging.getLogger("aligner_chain.proxy.access")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(kw_only=True, slots=True)
class Observed:
    """One request. `route` is a name of this program's, since a path can hold anything.

    `status` 499 stands for a client that went away, `code` for the error that the client was told of, if any.
    """

    route: str
    method: str
    status: int = 0
    code: str | None = None
    stream: bool = False
    message_id: str | None = None
    corrections: list[Correction] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    upstream_s: float = 0.0
    aligner_s: float = 0.0
    start: float = field(default_factory=time.perf_counter)
    total_s: float = 0.0

    def end(self) -> None:
        """Notes when the request ended."""
        self.total_s = time.perf_counter() - self.start

    @property
    def own_s(self) -> float:
        """What neither the upstream nor the Aligner took. It holds the waiting for the client to send and to read."""
        return max(0.0, self.total_s - self.upstream_s - self.aligner_s)

    def tokens(self) -> dict[str, int]:
        """Tokens by whom they are of."""
        usage = [correction.usage for correction in self.corrections]
        return {
            "upstream_prompt": _number(self.usage.get("prompt_tokens")),
            "upstream_completion": _number(self.usage.get("completion_tokens")),
            "aligner_prompt": sum(one.prompt_tokens for one in usage),
            "aligner_new": sum(one.new_tokens for one in usage),
        }

    def line(self) -> dict[str, Any]:
        """The same keys for every request."""
        return {
            "event": "request",
            "route": self.route,
            "method": self.method,
            "status": self.status,
            "code": self.code,
            "stream": self.stream,
            "message_id": self.message_id,
            "corrections": [one.id for one in self.corrections],
            "outcomes": [one.outcome for one in self.corrections],
            "tokens": self.tokens(),
            "upstream_s": round(self.upstream_s, 6),
            "aligner_s": round(self.aligner_s, 6),
            "own_s": round(self.own_s, 6),
            "total_s": round(self.total_s, 6),
        }


class Metrics:
    """The Prometheus metrics of one proxy, in a registry of its own."""

    def __init__(self, hook: CorrectionHook | None) -> None:
        self._registry = CollectorRegistry()
        kept = self._registry
        self._requests = Counter("aligner_proxy_requests", "Requests.", ["route", "status"], registry=kept)
        self._outcomes = Counter("aligner_proxy_corrections", "Corrections by outcome.", ["outcome"], registry=kept)
        self._tokens = Counter("aligner_proxy_tokens", "Tokens by whom they are of.", ["of"], registry=kept)
        self._seconds = {
            name: Histogram(f"aligner_proxy_{name}_seconds", told, buckets=_SECONDS, registry=kept)
            for name, told in (
                ("upstream", "From a request to the upstream to the last byte of its answer."),
                ("aligner", "How long a whole answer waited for its correction."),
                ("own", "What neither upstream nor Aligner took, clients' waiting included."),
            )
        }
        self.in_flight = Gauge("aligner_proxy_in_flight", "Requests that run.", registry=kept)
        failures = Gauge("aligner_proxy_on_correction_failures", "Errors of on_correction so far.", registry=kept)
        failures.set_function(lambda: float(hook.failures if hook else 0))

    def tell(self, observed: Observed) -> None:
        """Counts a request that has ended, and logs its line."""
        self._requests.labels(observed.route, str(observed.status)).inc()
        for correction in observed.corrections:
            self._outcomes.labels(correction.outcome).inc()
        if observed.upstream_s:
            self._observe(observed)
        if LOG.isEnabledFor(logging.INFO):
            LOG.info(json.dumps(observed.line()))

    def page(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)

    def _observe(self, observed: Observed) -> None:
        for name, seconds in (("upstream", observed.upstream_s), ("own", observed.own_s)):
            self._seconds[name].observe(seconds)
        if observed.corrections:
            self._seconds["aligner"].observe(observed.aligner_s)
        for of, number in observed.tokens().items():
            self._tokens.labels(of).inc(number)


def _number(value: object) -> int:
    """What an upstream counted, or 0 where that is no number that a counter holds exactly."""
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0
