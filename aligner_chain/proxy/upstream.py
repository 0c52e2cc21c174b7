"""The way to the upstream: one pool of connections, which keeps nothing of one client for another."""

from __future__ import annotations

import math
import urllib.request
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import httpcore
import httpx
from starlette.types import Scope

from aligner_chain.proxy.connections import Connections
from aligner_chain.proxy.errors import Refused, cut
from aligner_chain.proxy.headers import Headers, value_of
from aligner_chain.proxy.settings import Settings

CONNECT_S = 10.0
IDLE_S = 5.0
PREFIX = b"/v1"
BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, httpcore.UnsupportedProtocol)
"""The errors of a connection, but for being late."""
_INFLATED_BYTES = 2**16  # at a time, since a few bytes can hold very many


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An upstream's answer: the names of its headers are in lower case, and `raw` is its body as it comes."""

    status: int
    headers: Headers
    raw: AsyncIterable[bytes]

    async def pieces(self, most: float = math.inf) -> AsyncIterator[bytes]:
        """The body without a compression, which some upstreams apply though they are asked not to.

        Raises:
            Refused: It is greater than `most` bytes, or its compression cannot be undone.
        """
        coding, taken = value_of(self.headers, b"content-encoding"), 0
        async for piece in self.raw if coding in (None, "", "identity") else _inflated(self.raw):
            taken += len(piece)
            if taken > most:
                raise cut(f"is greater than the {most} bytes that the proxy holds of one")
            yield piece


class Upstream:
    """Sends requests to the upstream."""

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.upstream)
        self._base = httpcore.URL(settings.upstream)
        self._path = parts.path.rstrip("/").encode()
        waits = {"connect": CONNECT_S, "pool": CONNECT_S, "read": settings.upstream_s, "write": settings.upstream_s}
        self._extensions: dict[str, Any] = {"timeout": waits}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context() if parts.scheme == "https" else None,
            proxy=_forward_proxy(parts.scheme, parts.hostname or ""),
            max_connections=None,
            max_keepalive_connections=settings.limits.in_flight,
            keepalive_expiry=IDLE_S,
            network_backend=Connections(),
        )

    @asynccontextmanager
    async def answer(self, scope: Scope, headers: Headers, body: bytes | AsyncIterator[bytes]) -> AsyncIterator[Answer]:
        """The upstream's answer to a client's request, as far as its head; leaving the block closes it.

        Raises:
            Refused: It cannot be reached, says nothing in time, or breaks off within the block.
        """
        url, extensions = self._url(scope), self._extensions
        sent = body or None  # No body at all is something else than one without a byte.
        with _told():
            async with self._pool.stream(
                scope["method"], url, headers=headers, content=sent, extensions=extensions
            ) as response:
                lowered = [(name.lower(), value) for name, value in response.headers]
                yield Answer(status=response.status, headers=lowered, raw=cast("AsyncIterable[bytes]", response.stream))

    async def close(self) -> None:
        """Closes all connections."""
        await self._pool.aclose()

    def _url(self, scope: Scope) -> httpcore.URL:
        # What is above the base URL is not the client's; the decoded path shows dots however they were written.
        if ".." in scope["path"].split("/"):
            raise Refused(400, "invalid_path", "The path must not hold '..'.")
        path = (scope.get("raw_path") or scope["path"].encode()).removeprefix(PREFIX)
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        base = self._base
        return httpcore.URL(scheme=base.scheme, host=base.host, port=base.port, target=self._path + path + query)


def _forward_proxy(scheme: str, host: str) -> httpcore.Proxy | None:
    """The proxy that the environment names for this upstream: HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, but for NO_PROXY."""
    named = urllib.request.getproxies()
    url = named.get(scheme) or named.get("all")
    if not url or urllib.request.proxy_bypass(host):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    user = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return httpcore.Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", auth=user)


async def _inflated(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The bytes in a body of gzip or deflate, never many at a time."""
    inflating = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either of the two, by its head
    try:
        async for data in pieces:
            yield inflating.decompress(data, _INFLATED_BYTES)
            while inflating.unconsumed_tail:
                yield inflating.decompress(inflating.unconsumed_tail, _INFLATED_BYTES)
    except zlib.error:
        raise cut("is compressed in a way that cannot be read") from None
    if not inflating.eof:
        raise cut("broke off before its end")


@contextmanager
def _told() -> Iterator[None]:
    """The errors of the connection as what a client is told; their own words can hold a key from a URL."""
    try:
        yield
    except httpcore.TimeoutException as error:
        told = f"The upstream did not answer in time ({type(error).__name__})."
        raise Refused(504, "upstream_timeout", told, kind="upstream_error") from None
    except BROKEN as error:
        told = f"The upstream could not be reached, or broke off ({type(error).__name__})."
        raise Refused(502, "upstream_unreachable", told) from None
