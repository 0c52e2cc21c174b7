"""What carries the bytes to the upstream and back: asyncio's own transports below httpcore's pool.

Those that httpcore brings go through anyio, which enters a cancel scope and changes what the selector watches at every read. A
stream of an upstream is many small reads, and they cost twice as much processor time that way.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore

HELD_BYTES = 2**18
"""Bytes of an upstream that wait to be read, after which it is not listened to: who reads slowly must not fill the memory."""
_NEXT_ADDRESS_S = 0.25  # as in RFC 8305, where a name has several addresses


class Connections(httpcore.AsyncNetworkBackend):
    """Opens connections for a pool."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's name)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection, without TLS yet. Of the pool's options the proxy uses neither of the last two."""
        loop = asyncio.get_running_loop()
        # uvloop, which uvicorn takes where it is installed, tries one address after the other.
        trying: Any = {"happy_eyeballs_delay": _NEXT_ADDRESS_S} if isinstance(loop, asyncio.BaseEventLoop) else {}
        connecting = loop.create_connection(Connection, host, port, **trying)
        with _told(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                _, connection = await connecting
        opened: Connection = connection
        return opened


class Connection(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection, as asyncio writes to it and httpcore reads it."""

    def __init__(self) -> None:
        self._transport: Any = None  # a transport of either kind, with TLS or without
        self._data = bytearray()
        self._ended = self._paused = False
        self._error: Exception | None = None
        self._reading: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's word that it is open."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Asyncio's hand-over of what has come."""
        self._data += data
        if len(self._data) > HELD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Asyncio's word that no more will come; it then closes the connection."""
        self._ended = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Asyncio's word that it is closed."""
        self._ended, self._error = True, error
        self._wake()
        self._writable.set()

    def pause_writing(self) -> None:
        """Asyncio's word that the upstream takes bytes more slowly than they are written."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Asyncio's word that it has taken them."""
        self._writable.set()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """What has come, at once where something has; b"" at the end. Raises `ReadTimeout` or `ReadError`."""
        if not self._data and not self._ended:
            await self._more(timeout)
        if not self._data and self._error is not None:
            raise httpcore.ReadError(str(self._error)) from self._error
        data = bytes(self._data[:max_bytes])
        del self._data[:max_bytes]
        if self._paused and len(self._data) <= HELD_BYTES:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Writes, and waits while too much waits to be sent. Raises `WriteTimeout` or `WriteError`."""
        self._transport.write(buffer)
        if not self._writable.is_set():
            with _told(httpcore.WriteTimeout, httpcore.WriteError):
                async with asyncio.timeout(timeout):
                    await self._writable.wait()
        if self._ended and self._transport.is_closing():
            raise httpcore.WriteError("The connection is closed.")

    async def aclose(self) -> None:
        """Closes it at once: what is left unread nobody wants."""
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """The same connection with TLS. Raises `ConnectTimeout` or `ConnectError`."""
        starting = asyncio.get_running_loop().start_tls(
            self._transport, self, ssl_context, server_hostname=server_hostname
        )
        with _told(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                self._transport = await starting
        return self

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks of a connection. One that has something to read while it is idle is not used again."""
        if info == "is_readable":
            return bool(self._data) or self._ended
        return self._transport.get_extra_info(info)

    async def _more(self, seconds: float | None) -> None:
        """Waits until something has come or the end has. A timer alone, since this is what a stream spends its time with."""
        loop = asyncio.get_running_loop()
        self._reading = reading = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._late)
        try:
            await reading
        finally:
            self._reading = None
            if timer is not None:
                timer.cancel()

    def _late(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_exception(httpcore.ReadTimeout())

    def _wake(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)


@contextmanager
def _told(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """The errors of asyncio as those that httpcore knows."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:  # those of TLS and of names that nobody has among them
        raise failed(str(error)) from error
