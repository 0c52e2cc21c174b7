"""The way to the upstream: one pool of connections, which keeps nothing of one client for another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
from starlette.types import Scope

from aligner_chain.proxy.errors import Refused
from aligner_chain.proxy.headers import Headers
from aligner_chain.proxy.settings import Settings

CONNECT_S = 10.0
PREFIX = b"/v1"


class Upstream:
    """Sends requests to the upstream."""

    def __init__(self, settings: Settings) -> None:
        self._base = settings.upstream.rstrip("/")
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.upstream_s, connect=CONNECT_S, pool=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=settings.limits.in_flight),
            follow_redirects=False,
            # A client's cookies are its own: without this they would be sent with everybody's requests.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    @asynccontextmanager
    async def answer(
        self, scope: Scope, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AsyncIterator[httpx.Response]:
        """The upstream's answer to a client's request, as far as its head; leaving the block closes it.

        Raises:
            Refused: It cannot be reached, says nothing in time, or breaks off within the block.
        """
        with _told():
            request = self._client.build_request(scope["method"], self._url(scope), headers=headers, content=body)
            response = await self._client.send(request, stream=True)
            try:
                yield response
            finally:
                await response.aclose()

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    def _url(self, scope: Scope) -> str:
        path = (scope.get("raw_path") or scope["path"].encode()).removeprefix(PREFIX).decode("ascii", "replace")
        # What is above the base URL is not the client's; the decoded path shows dots however they were written.
        if ".." in scope["path"].split("/"):
            raise Refused(400, "invalid_path", "The path must not hold '..'.")
        query = scope["query_string"].decode("ascii", "replace")
        return f"{self._base}{path}" + (f"?{query}" if query else "")


@contextmanager
def _told() -> Iterator[None]:
    """The errors of the connection as what a client is told; their own words can hold a key from a URL."""
    try:
        yield
    except httpx.TimeoutException as error:
        told = f"The upstream did not answer in time ({type(error).__name__})."
        raise Refused(504, "upstream_timeout", told, kind="upstream_error") from None
    except (httpx.RequestError, httpx.InvalidURL) as error:
        told = f"The upstream could not be reached, or broke off ({type(error).__name__})."
        raise Refused(502, "upstream_unreachable", told) from None
