"""Several servers as one: which is asked next, what is tried again, and which are left alone for a while."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from aligner_chain.engines.server.wire import ServerOptions
from aligner_chain.errors import CheckpointError, ModelNotServedError, OverloadedError, ServerError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

BUSY = 429
AGAIN = frozenset({BUSY, 502, 503, 504})
"""What HTTP says where another attempt may help; so it may after a connection that failed."""
ELSEWHERE = frozenset({401, 403, 404})
"""What it says where this server is not what it was, so that another one may be."""
BREAK_AFTER = 3
"""Failures in a row after which a server is left alone."""
REST_S, LONGEST_REST_S = 1.0, 30.0
"""Seconds before it is looked at: at first, doubled each time, and at most. Drawn from the upper half."""
PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
"""Seconds below which the first pause before another attempt is drawn, doubled with each one, and at most."""
STAY = 8
"""Requests that a server may have more than the freest one, and still get a prompt whose beginning it has read."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server. `failures` are those in a row; one that is `away` is asked nothing until it was seen to be back.

    `refused` says why it is not asked at all: it serves something else.
    """

    url: str
    running: int = 0
    failures: int = 0
    away: bool = False
    refused: CheckpointError | None = None

    @property
    def usable(self) -> bool:
        return not self.away and self.refused is None


class Endpoints:
    """Asks whichever server is free. `check` looks at one that was away, and raises while it is not as it should be.

    A request that failed goes to another server at once, or to the same one after a pause. A server that failed several
    times in a row gets no requests while it rests; then it is looked at again and again, after ever longer rests.
    """

    def __init__(
        self, urls: Sequence[str], options: ServerOptions, check: Callable[[Endpoint], Awaitable[None]]
    ) -> None:
        self.all = tuple(Endpoint(url) for url in urls)
        self._options, self._check = options, check
        self._looking = set[asyncio.Task[None]]()
        self._back = asyncio.Event()

    async def ask(self, call: Callable[[Endpoint], Awaitable[_T]], near: Endpoint | None = None) -> _T:
        """What `call` makes of a server that answers; of `near` first, if it has not much more to do than the others.

        Raises what all servers were refused for, `OverloadedError` and `ServerError`.
        """
        tried: list[Endpoint] = []
        while True:
            endpoint = await self._next(tried, near)
            try:
                return await self._used(endpoint, call)
            except ServerError as error:
                tried.append(endpoint)
                if not self._again(error, tried):
                    raise self._final(error, tried) from error
                await self._pause(error, tried)

    def freest(self, near: Endpoint | None = None) -> Endpoint | None:
        """The server with the fewest requests, or `near` as in `ask`; None where all are away."""
        usable = [one for one in self.all if one.usable]
        return _chosen(usable, [], near) if usable else None

    def leave(self, endpoint: Endpoint) -> None:
        """Asks a server nothing more until it is back."""
        if endpoint.usable:
            endpoint.away = True
            task = asyncio.get_running_loop().create_task(self._until_back(endpoint))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def _used(self, endpoint: Endpoint, call: Callable[[Endpoint], Awaitable[_T]]) -> _T:
        endpoint.running += 1
        try:
            result = await call(endpoint)
        except ServerError as error:
            endpoint.failures += _is_failure(error)
            if endpoint.failures >= BREAK_AFTER or (error.status in ELSEWHERE and self._another([endpoint])):
                self.leave(endpoint)
            raise
        finally:
            endpoint.running -= 1
        endpoint.failures = 0
        return result

    async def _until_back(self, endpoint: Endpoint) -> None:
        """Looks at a server until it is as it should be; what comes back may serve another model."""
        rest, told = REST_S, False
        while endpoint.away:
            await asyncio.sleep(rest * random.uniform(0.5, 1.0))
            rest = min(2 * rest, LONGEST_REST_S)
            try:
                await self._check(endpoint)
            except ModelNotServedError as error:  # an adapter that was loaded while it ran is gone when it starts again
                if not told:
                    _log.warning("%s is asked nothing until it serves the model again: %s", endpoint.url, error)
                told = True
                continue
            except CheckpointError as error:
                endpoint.refused = error
                _log.warning("%s is not asked any more: %s", endpoint.url, error)
            except ServerError:
                continue
            endpoint.away, endpoint.failures = False, 0
        self._back.set()

    async def _next(self, tried: Sequence[Endpoint], near: Endpoint | None) -> Endpoint:
        """The server to ask: one that was not tried yet, with the fewest requests."""
        while True:
            if usable := [one for one in self.all if one.usable]:
                return _chosen(usable, tried, near)
            refusals = [one.refused for one in self.all if one.refused]
            if len(refusals) == len(self.all):
                raise refusals[0]
            if not tried:
                raise self._nobody()
            self._back.clear()
            try:
                await asyncio.wait_for(self._back.wait(), self._options.patience_s)
            except TimeoutError:
                raise self._nobody() from None

    def _nobody(self) -> ServerError:
        return ServerError(
            f"{', '.join(one.url for one in self.all if one.away)}: the last requests had no answer, so no more are sent "
            "until there is one to a look at it. Ways out: see whether the server runs (aligner-chain serve-check), name "
            'several servers, or serve uncorrected answers meanwhile (on_error="pass_through").'
        )

    def _again(self, error: ServerError, tried: Sequence[Endpoint]) -> bool:
        if len(tried) > self._options.retries or (error.retry_after_s or 0) > self._options.patience_s:
            return False
        if error.status is None or error.status in AGAIN:
            return True
        return (_is_failure(error) or error.status in ELSEWHERE) and self._another(tried)

    def _another(self, tried: Sequence[Endpoint]) -> bool:
        return any(one.usable and one not in tried for one in self.all)

    async def _pause(self, error: ServerError, tried: Sequence[Endpoint]) -> None:
        if self._another(tried):
            return
        # Full jitter: whoever failed together must not come back together.
        pause = random.uniform(0, min(PAUSE_S * 2 ** (len(tried) - 1), LONGEST_PAUSE_S))
        await asyncio.sleep(max(pause, error.retry_after_s or 0))

    def _final(self, error: ServerError, tried: Sequence[Endpoint]) -> ServerError | OverloadedError:
        text = f"{str(error).rstrip('.')} ({len(tried)} attempts)." if len(tried) > 1 else str(error)
        if error.status == BUSY:
            return OverloadedError(
                f"{text} The server has more to do than it takes. Ways out: call again later, more servers, or a lower "
                "ServerOptions(concurrency=)."
            )
        return ServerError(text, status=error.status, retry_after_s=error.retry_after_s)


def _chosen(usable: Sequence[Endpoint], tried: Sequence[Endpoint], near: Endpoint | None) -> Endpoint:
    freest = min(usable, key=lambda one: (tried.count(one), one.running, random.random()))
    if near is None or near not in usable or near in tried or near.running > freest.running + STAY:
        return freest
    return near


def _is_failure(error: ServerError) -> bool:
    """Whether the server is to blame; 200 is an answer that cannot be read."""
    return error.status is None or error.status >= 500 or error.status == 200
