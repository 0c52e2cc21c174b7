"""The seam between the Aligner and whatever runs the model: requests in, tickets out.

An engine knows tokens (or, with `capabilities.tokens=False`, texts) and nothing of criteria or policies. One that
cannot do a thing says so in its `Capabilities`; asking for it anyway is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from aligner_chain.errors import CorrectionError
from aligner_chain.exchange import Exchange, Usage

Finish = Literal["eos", "stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What an engine can do. `tokens=False`: it has no tokenizer and answers with `Generation.text`."""

    tokens: bool = True
    choices: bool = False
    bias: bool = False
    score_draft: bool = False
    adapters: bool = False
    stop: bool = False
    sampling: bool = False
    deadline: bool = False
    stream: bool = False
    overlap: bool = False
    window: int | None = None
    """Most tokens of prompt and output together; None where the engine does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy; the noise is keyed by `seed` and the request's key."""

    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The answer as it would stand in the output, behind `lead` (a verdict, or nothing).

    `ids` are its tokens; `spans` the characters (start, end) of the answer that each of them stands for. `ends` are
    the tokens that, as EOS does, say behind it that nothing is added to the text.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    lead: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One thing to decode.

    `key` seeds sampling noise, so that a row's text does not depend on its neighbours. `max_new=0` scores only.
    With `score_draft`, a draft of which neither a token nor the end is less likely than `approve` (nats) is the output, and
    nothing is decoded.
    `choices` are token ids whose log-probabilities at the first position are wanted; `bias` (nats) is added to
    logits at the first position. `adapter` is an immutable name, pinned when the request is admitted.
    `stop` are texts that end the output as soon as it holds one of them. `deadline_s` is counted from submission. With `stream` the ticket tells of each token as it comes.
    """

    key: str
    prompt: tuple[int, ...] = ()
    max_new: int = 0
    draft: Draft | None = None
    score_draft: bool = False
    approve: float | None = None
    choices: tuple[int, ...] = ()
    bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    adapter: str | None = None
    deadline_s: float | None = None
    stream: bool = False
    exchange: Exchange | None = None
    criteria: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What came of a request. `ids` excludes the token that ended it; `text` is for engines without tokens.

    Where a text of `stop` ended it, `ids` hold that text, and perhaps what its last token says besides.

    `choice_logprobs` are of the unbiased distribution at the first position. `draft_logprobs` has one value per token
    of the draft: its log-probability behind the prompt and all of the draft before it with `score_draft`, else behind
    the output at the place where it was proposed, and NaN where it never was. `draft_end_logprob` is, with `score_draft`,
    that of nothing being added behind it. `scores` are those that an engine of texts has for the answer, by criterion.
    `notes` are for the reader of the correction. `error` says why an output that was paid for means nothing.
    """

    key: str
    ids: tuple[int, ...] = ()
    text: str | None = None
    finish: Finish = "eos"
    approved: bool = False
    criteria: tuple[str, ...] = ()
    draft_logprobs: tuple[float, ...] | None = None
    draft_end_logprob: float | None = None
    choice_logprobs: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    scores: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    usage: Usage = field(default_factory=Usage)
    notes: tuple[str, ...] = ()
    error: CorrectionError | None = None


class Ticket:
    """One request in flight. Cancelling is a wish: the engine drops the row at its next step.

    `ids` is the output so far of a request with `stream`; an engine adds to it with `push`. A ticket from
    `Engine.open` is not `sealed`: its prompt may still grow, and nothing is decoded yet.
    """

    def __init__(
        self,
        request: Request,
        *,
        sealed: bool = True,
        changed: Callable[[], None] | None = None,
        fault: Callable[[Request], Exception | None] | None = None,
    ) -> None:
        self.request, self.sealed = request, sealed
        self.future: Future[Generation] = Future()
        self.cancelled = False
        self.ids: list[int] = []
        self._wake: Callable[[], None] = _nobody_waits
        self._changed, self._fault = changed or _nobody_waits, fault or _no_fault

    def feed(self, prompt: Sequence[int]) -> None:
        """Says how the prompt is going to begin, all of it each time; what differs from before is taken back."""
        request = replace(self.request, prompt=tuple(prompt))
        if self._fault(request) is None:  # Else it is what the sealed request will be refused for, if it is still true.
            self.request = request
            self._changed()

    def seal(self, request: Request) -> None:
        """Gives the request as it came out in the end; from here on it is decoded."""
        self.request, self.sealed = request, True
        error = self._fault(request)
        if error is not None and not self.future.done():
            self.future.set_exception(error)
        self._changed()

    def push(self, tokens: Sequence[int]) -> None:
        """Adds tokens to the output so far; called by the engine's thread alone."""
        self.ids += tokens
        self._wake()

    def watch(self, wake: Callable[[], None]) -> None:
        """Calls `wake`, from any thread, once now, with every token to come and when the future is done."""
        self._wake = wake
        self.future.add_done_callback(lambda _: wake())
        wake()

    def result(self, timeout: float | None = None) -> Generation:
        """Waits for the generation (seconds; None: without end) and returns it, or raises the engine's error."""
        return self.future.result(timeout)

    def cancel(self) -> None:
        self.cancelled = True
        self.future.cancel()
        self._changed()


def _nobody_waits() -> None:
    """What is woken before anyone waits for it."""


def _no_fault(request: Request) -> None:
    """What an engine finds wrong that takes every request."""


class Engine(Protocol):
    """Runs requests. `submit` returns at once; the tickets of one call may finish in any order."""

    @property
    def capabilities(self) -> Capabilities: ...

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]: ...

    def open(self, request: Request) -> Ticket:
        """A ticket whose prompt is still growing (`feed`, then `seal`), for engines with `capabilities.overlap`.

        What of the prompt is known is read at once, while the upstream still writes. Raises `CapabilityError`.
        """

    def load(self, adapter: str, path: Path) -> None:
        """Makes an adapter available under a new name; a name is never loaded twice."""

    def unload(self, adapter: str) -> None:
        """Refuses new requests for an adapter, lets those that run finish, and frees it."""

    def close(self) -> None:
        """Lets running requests finish, refuses new ones and frees the model."""
