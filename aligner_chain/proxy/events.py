"""Server-sent events: reading those of the upstream, and writing a stream that shows its client that it lives."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from starlette.types import Send

from aligner_chain.proxy.errors import cut
from aligner_chain.proxy.headers import Headers

DONE = "[DONE]"
_COMMENT = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it came, without the empty line at its end, its data ("" where it is a comment) and its kind if it names one."""

    raw: str
    data: str
    kind: str = ""

    @classmethod
    def of(cls, body: dict[str, Any]) -> Event:
        """An event with an object as its data."""
        data = json.dumps(body)
        return cls(f"data: {data}", data)

    @property
    def wire(self) -> bytes:
        """What is sent for it."""
        return f"{self.raw}\n\n".encode()

    def body(self) -> dict[str, Any]:
        """The object in its data.

        Raises:
            Refused: There is none.
        """
        try:
            body = json.loads(self.data)
        except (ValueError, RecursionError):
            raise cut("holds an event that is not JSON") from None
        if not isinstance(body, dict):
            raise cut("holds an event that is no object")
        return body


class Decoder:
    """Bytes in, events out, wherever the bytes were cut."""

    def __init__(self) -> None:
        self._rest, self._lines = list[bytes](), list[str]()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that have become whole. Lines end as in the standard, and not where Python's texts would end them."""
        # A "\r" at the end may be the first half of an end, and waits with what has none yet.
        end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1
        self._rest.append(data[:end] or data)
        if not end:
            return
        whole = b"".join(self._rest)
        if not self._begun:  # A client skips the mark, and would read a text that no one checked.
            self._begun, whole = True, whole.removeprefix(codecs.BOM_UTF8)
        lines = whole.splitlines()
        self._rest = [data[end:]]
        for line in lines:
            if line:
                self._lines.append(line.decode("utf-8", "replace"))
            elif self._lines:
                yield _event(self._lines)
                self._lines = []


class Written:
    """A stream to the client. While it is silent, comments keep the connection open, which every reader of events ignores."""

    def __init__(self, send: Send, keep_alive_s: float) -> None:
        self._send, self._every = send, keep_alive_s
        self._last = 0.0
        self._beating: asyncio.Task[None] | None = None

    async def start(self, headers: Headers) -> None:
        """Sends the head."""
        kept = [(name, value) for name, value in headers if name != b"cache-control"]
        kept += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]  # the latter for nginx
        await self._send({"type": "http.response.start", "status": 200, "headers": kept})
        self._beating = asyncio.create_task(self._beat())

    async def write(self, events: Sequence[Event]) -> None:
        """Sends events, all at once, since each sending has its price."""
        if events:
            await self._body(_wire(events))

    async def end(self, events: Sequence[Event]) -> None:
        """Sends the last events and, with them, the end: many clients leave as soon as they have read `[DONE]`."""
        await self._rest()
        await self._send({"type": "http.response.body", "body": _wire(events), "more_body": False})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._rest()

    async def _body(self, data: bytes) -> None:
        self._last = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        self._last = clock()
        while True:
            await asyncio.sleep(max(self._last + self._every - clock(), 0.0))
            if clock() - self._last >= self._every:
                await self._body(_COMMENT)

    async def _rest(self) -> None:
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating


def _wire(events: Sequence[Event]) -> bytes:
    return b"".join([event.wire for event in events])


def _event(lines: list[str]) -> Event:
    kinds, data = _values(lines, "event:"), _values(lines, "data:")
    return Event("\n".join(lines), "\n".join(data), kinds[-1] if kinds else "")


def _values(lines: list[str], field: str) -> list[str]:
    return [line[len(field) :].removeprefix(" ") for line in lines if line.startswith(field)]
