"""The seam between the Aligner and whatever runs the model: requests in, tickets out.

An engine knows tokens (or, with `capabilities.tokens=False`, texts) and nothing of criteria or policies. One that
cannot do a thing says so in its `Capabilities`; asking for it anyway is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

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
    sampling: bool = False
    deadline: bool = False
    stream: bool = False
    window: int | None = None
    """Most tokens of prompt and output together; None where the engine does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy; the noise is keyed by `seed` and the request's key."""

    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The answer as it would stand at the start of the output.

    `ids` are its tokens; `spans` the characters (start, end) of the answer that each of them stands for.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One thing to decode.

    `key` seeds sampling noise, so that a row's text does not depend on its neighbours. `max_new=0` scores only.
    `choices` are token ids whose log-probabilities at the first position are wanted; `bias` (nats) is added to
    logits at the first position. `adapter` is an immutable name, pinned when the request is admitted.
    `deadline_s` is counted from submission. With `stream` the ticket tells of each token as it comes.
    """

    key: str
    prompt: tuple[int, ...] = ()
    max_new: int = 0
    draft: Draft | None = None
    score_draft: bool = False
    choices: tuple[int, ...] = ()
    bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: tuple[int, ...] = ()
    adapter: str | None = None
    deadline_s: float | None = None
    stream: bool = False
    exchange: Exchange | None = None
    criteria: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What came of a request. `ids` excludes the token that ended it; `text` is for engines without tokens.

    `choice_logprobs` are of the unbiased distribution at the first position; `draft_logprobs` has one value per
    token of the draft, each given the prompt and the draft before it.
    """

    key: str
    ids: tuple[int, ...] = ()
    text: str | None = None
    finish: Finish = "eos"
    approved: bool = False
    criteria: tuple[str, ...] = ()
    draft_logprobs: tuple[float, ...] | None = None
    choice_logprobs: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    usage: Usage = field(default_factory=Usage)


class Ticket:
    """One request in flight. Cancelling is a wish: the engine drops the row at its next step.

    `ids` is the output so far of a request with `stream`; an engine adds to it with `push`.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.future: Future[Generation] = Future()
        self.cancelled = False
        self.ids: list[int] = []
        self._wake: Callable[[], None] = _nobody_watches

    def push(self, token: int) -> None:
        """Adds a token to the output so far; called by the engine's thread alone."""
        self.ids.append(token)
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


def _nobody_watches() -> None:
    """What a token wakes before anyone watches."""


class Engine(Protocol):
    """Runs requests. `submit` returns at once; the tickets of one call may finish in any order."""

    @property
    def capabilities(self) -> Capabilities: ...

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]: ...

    def load(self, adapter: str, path: Path) -> None:
        """Makes an adapter available under a new name; a name is never loaded twice."""

    def close(self) -> None:
        """Lets running requests finish, refuses new ones and frees the model."""
