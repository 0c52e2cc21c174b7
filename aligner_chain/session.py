"""A correction that begins while the upstream still writes: the Aligner reads along, so that little is left to read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from aligner_chain.engines.base import Engine, Request, Ticket
from aligner_chain.exchange import Correction, Exchange, uuid7
from aligner_chain.streaming import closing_once
from aligner_chain.thoughts import said

if TYPE_CHECKING:
    from aligner_chain.aligner import Aligner

STEP = 32
"""Characters of an answer, some 8 tokens, that must have come before the engine hears of them."""


class Reading:
    """What an engine reads of a prompt that still grows. `beginning` gives the ids that are certain; None: it reads nothing.

    Nothing in here raises: an upstream's stream never breaks off because of it, and what is wrong shows at the finish.
    """

    def __init__(
        self, engine: Engine, beginning: Callable[[str], tuple[int, ...]] | None, adapter: str | None = None
    ) -> None:
        self._engine, self._beginning, self._adapter = engine, beginning, adapter
        self._ticket: Ticket | None = None

    def __del__(self) -> None:
        """Whoever drops a session without a word leaves nothing behind in the engine."""
        self.stop()

    def tell(self, answer: str) -> None:
        """Tells the engine how the prompt begins with the answer so far, until it no longer fits."""
        if self._beginning is None:
            return
        try:
            self._read(self._beginning(answer))
        except Exception:  # noqa: BLE001  The finish does all of it again, and there it is raised or told of.
            self.stop()

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        """As the engine's own; but one request ends what was begun, where the engine still has it."""
        ticket, self._ticket, self._beginning = self._ticket, None, None
        if ticket is not None and len(requests) == 1 and not ticket.future.done():
            ticket.seal(requests[0])
            return [ticket]
        if ticket is not None:
            ticket.cancel()
        return self._engine.submit(requests)

    def stop(self) -> None:
        """Has the engine forget what it read."""
        ticket, self._ticket, self._beginning = self._ticket, None, None
        if ticket is not None:
            ticket.cancel()

    def _read(self, prompt: tuple[int, ...]) -> None:
        if not prompt:
            self.stop()
        elif self._ticket is None:
            self._ticket = self._engine.open(Request(key=str(uuid7()), prompt=prompt, adapter=self._adapter))
        else:
            self._ticket.feed(prompt)


class Session:
    """The correction of an answer that is still being written, from `Aligner.begin`.

        with aligner.begin(turns) as session:
            for chunk in upstream:
                session.feed(chunk)
            correction = session.finish()

    It ends by one of `finish`, `afinish`, `stream` and `astream`, which give what `Aligner.correct` and `Aligner.stream` give
    for the whole answer, or by `cancel`; leaving the block cancels what was not finished. Their `timeout` counts from their
    call. `exchange` is for who knows more of the answer at its end, such as its ids: it takes the place of what was begun,
    and its text that of what was fed. One thread or task at a time may use a session.

    `aligner` is the Aligner as this session has it: the first exchange that it corrects ends the session.
    """

    def __init__(
        self,
        aligner: Aligner,
        reading: Reading,
        exchange: Exchange,
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
    ) -> None:
        self.aligner = aligner
        self._reading, self._exchange, self._criteria, self._strength = reading, exchange, criteria, strength
        self._answer, self._told = "", 0
        reading.tell("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def feed(self, chunk: str) -> None:
        """Adds to the answer. It takes less than a millisecond, waits for nothing and never raises for what the text is."""
        self._answer += chunk
        if len(self._answer) - self._told >= STEP:
            self._told = len(self._answer)
            self._reading.tell(said(self._answer) if self.aligner.policy.thoughts else self._answer)

    def cancel(self) -> None:
        """Has the engine forget what it read; for an upstream that broke off. After a finish it does nothing."""
        self._reading.stop()

    def finish(self, timeout: float | None = None, *, exchange: Exchange | None = None) -> Correction:
        """The correction of the answer, which is now whole."""
        with self:
            [correction] = self.aligner.correct(
                [self._whole(exchange)], criteria=self._criteria, strength=self._strength, timeout=timeout
            )
        return correction

    async def afinish(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  (the same name and meaning as in `finish`)
        *,
        exchange: Exchange | None = None,
    ) -> Correction:
        """`finish` without blocking the event loop."""
        with self:
            [correction] = await self.aligner.acorrect(
                [self._whole(exchange)], criteria=self._criteria, strength=self._strength, timeout=timeout
            )
        return correction

    def stream(
        self, timeout: float | None = None, *, exchange: Exchange | None = None, unchecked: bool = False
    ) -> Generator[str | Correction, None, None]:
        """The served text in pieces, and last the `Correction`; `unchecked` as in `Aligner.stream`."""
        with self:
            yield from self.aligner.stream(
                self._whole(exchange),
                criteria=self._criteria,
                strength=self._strength,
                timeout=timeout,
                unchecked=unchecked,
            )

    async def astream(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  (the same name and meaning as in `stream`)
        *,
        exchange: Exchange | None = None,
        unchecked: bool = False,
    ) -> AsyncGenerator[str | Correction, None]:
        """`stream` without blocking the event loop."""
        streamed = self.aligner.astream(
            self._whole(exchange),
            criteria=self._criteria,
            strength=self._strength,
            timeout=timeout,
            unchecked=unchecked,
        )
        with self:
            async with closing_once(streamed) as pieces:
                async for piece in pieces:
                    yield piece

    def _whole(self, exchange: Exchange | None) -> Exchange:
        return exchange or replace(self._exchange, answer=self._answer)
