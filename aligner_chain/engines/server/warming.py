"""Prefix warming: while the upstream writes, a server reads what is certain of a prompt by then.

`/v1/completions` takes whole prompts only. But a server with a prefix cache keeps what it read, in blocks of tokens. So a
request for one token, of which nothing is used, leaves only the rest to be read when the whole prompt comes to that server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from aligner_chain.engines.base import Ticket
from aligner_chain.engines.server.endpoints import Endpoint
from aligner_chain.engines.server.servers import Servers
from aligner_chain.engines.server.wire import ServerOptions
from aligner_chain.telemetry import count

_log = logging.getLogger(__name__)

LEAST = 64
"""Tokens below which nothing is sent: to read them later costs a server less than one more request does."""
SENT = "aligner.server.prefixes_sent"
"""Counts the beginnings of prompts that were sent."""
FAILED = "aligner.server.prefixes_failed"
"""Counts those that a server did not take. Their prompts go on without."""


@dataclass(slots=True, eq=False)
class _Growing:
    """A prompt that grows: the tokens of it that were sent, to where, and the request that is on its way."""

    sent: int = 0
    endpoint: Endpoint | None = None
    task: asyncio.Task[None] | None = None
    failed: bool = False


class Warming:
    """The prompts of one engine that still grow. All of it runs in the event loop.

    What is sent never comes before a correction: there is none while those that are `busy` and what was sent are as many as
    may be at the servers at once. A prompt has one request on its way at most, and none after one that failed.
    """

    def __init__(self, servers: Servers, options: ServerOptions, busy: Callable[[], int]) -> None:
        self._servers, self._options, self._busy = servers, options, busy
        self._growing: dict[Ticket, _Growing] = {}
        self._running: set[asyncio.Task[None]] = set()

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._growing

    def begin(self, ticket: Ticket) -> None:
        """Takes in a prompt, and sends what is known of it."""
        self._growing[ticket] = _Growing()
        self.grow(ticket)

    def grow(self, ticket: Ticket) -> None:
        """Sends what is known of a prompt by now, if that is worth a request."""
        growing = self._growing.get(ticket)
        if growing is None or growing.task is not None or growing.failed or ticket.sealed:
            return
        block = self._servers.prefix_block
        whole = len(ticket.request.prompt) // block * block  # a server keeps whole blocks only
        if whole < LEAST or (growing.sent and whole - growing.sent < max(self._options.warm_every, block)):
            return
        if self._busy() + len(self._running) >= self._options.concurrency:
            return
        growing.endpoint = self._servers.freest(growing.endpoint)
        if growing.endpoint is not None:
            growing.sent = whole
            self._send(ticket, growing, growing.endpoint)

    def end(self, ticket: Ticket) -> Endpoint | None:
        """Lets go of a prompt that is whole, and returns the server that read its beginning.

        What is on its way stays so: the server reads blocks with it that the whole prompt needs as well.
        """
        return self._growing.pop(ticket).endpoint

    def drop(self, ticket: Ticket) -> None:
        """Lets go of a prompt that nobody wants any more, and has the server stop."""
        growing = self._growing.pop(ticket, None)
        if growing is not None and growing.task is not None:
            growing.task.cancel()

    def close(self) -> list[Ticket]:
        """Stops everything, and returns the tickets of the prompts that still grew."""
        for task in self._running:
            task.cancel()
        left, self._growing = list(self._growing), {}
        return left

    def _send(self, ticket: Ticket, growing: _Growing, endpoint: Endpoint) -> None:
        def done(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            growing.task = None
            self.grow(ticket)  # of which more may be known by now

        prompt = ticket.request.prompt[: growing.sent]
        growing.task = asyncio.get_running_loop().create_task(self._sent(prompt, growing, endpoint))
        self._running.add(growing.task)
        growing.task.add_done_callback(done)

    async def _sent(self, prompt: tuple[int, ...], growing: _Growing, endpoint: Endpoint) -> None:
        count(SENT)
        try:
            await self._servers.warm(prompt, endpoint)
        except Exception as error:  # noqa: BLE001  The prompt is none the worse for it, whatever it was.
            growing.failed = True
            count(FAILED)
            _log.debug("The first %d tokens of a prompt were not read ahead of the rest: %s", len(prompt), error)
