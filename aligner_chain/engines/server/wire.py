"""HTTP to a model server: one pool of connections, and the one place where errors of httpx become ours."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aligner_chain.engines.server.completions import Json, unreadable
from aligner_chain.errors import ConfigurationError, MissingExtraError, ServerError

if TYPE_CHECKING:
    import httpx

KEY = "ALIGNER_API_KEY"
"""The environment variable of the key that servers ask for."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server is talked to. The key comes from the environment (`ALIGNER_API_KEY`) and is shown nowhere."""

    timeout_s: float = 60.0
    """Seconds without a byte after which an attempt is given up; an output that is not streamed comes at its end."""
    connect_s: float = 5.0
    """Seconds for a connection."""
    concurrency: int = 64
    """Requests at the servers at once; the others wait here."""
    max_waiting: int = 4096
    """Answers that may wait here. More are refused with `OverloadedError`, except those of one call that finds none."""
    retries: int = 3
    """Attempts after the first one, for what another attempt may help."""
    patience_s: float = 30.0
    """Seconds that a server may ask to wait (Retry-After) before the attempt is given up instead."""
    tls: str | Path | ssl.SSLContext | None = None
    """A file of the certificates to trust, or a context (for client certificates); None: httpx's own."""
    window: int | None = None
    """Most tokens of prompt and output together, where neither server nor checkpoint says it."""
    warm_every: int = 256
    """New tokens of a prompt that still grows after which a server is made to read them; 0: never before the end."""
    prefix_block: int | None = None
    """Tokens in a block of the servers' prefix cache; None: what they say (vLLM, in `/metrics`), 0: they have none."""
    api_key: str | None = field(default_factory=lambda: os.environ.get(KEY), repr=False)
    """The key. Set it in the environment, not in code."""

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigurationError(f"{KEY} holds characters that no key has, perhaps a line's end. Set it anew.")
        others = (self.retries, self.max_waiting, self.warm_every, self.prefix_block or 0)
        if min(self.concurrency, self.timeout_s, self.connect_s) <= 0 or min(others) < 0:
            raise ConfigurationError(f"{self}: times and concurrency must be above 0, other numbers not below.")


def base_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses without a slash at their ends. Raises `ConfigurationError` for what is no address of a server."""
    urls = tuple(one.rstrip("/") for one in ([url] if isinstance(url, str) else url))
    if not urls:
        raise ConfigurationError(
            'No server was given. Name one: Aligner.from_server("http://host:8000/v1", model=...).'
        )
    for one in urls:
        parts = urlsplit(one)
        if parts.username or parts.password:
            raise ConfigurationError(f"An address must not hold a password. Put the server's key into {KEY} instead.")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigurationError(f'{one!r} is not the address of a server, such as "http://host:8000/v1".')
    return urls


class Wire:
    """Sends and receives JSON. It belongs to the event loop in which it is used first."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._client: httpx.AsyncClient | None = None

    async def get(self, url: str) -> Any:
        """The JSON at an address. Raises `ServerError`."""
        return _json(await self.text(url))

    async def post(self, url: str, body: Json) -> Any:
        """The JSON that answers a body. Raises `ServerError`."""
        return _json(await self.text(url, body))

    async def text(self, url: str, body: Json | None = None) -> str:
        """The text at an address, or that answers a body. Raises `ServerError`."""
        async with self._gate(url):
            client = self._open()
            response = await (client.get(url) if body is None else client.post(url, json=body))
            self._require_good(response)
            return response.text

    @asynccontextmanager
    async def events(self, url: str, body: Json) -> AsyncIterator[AsyncIterator[Any]]:
        """The events (SSE) that answer a body, as they come; leaving the block closes the stream.

        Raises `ServerError`, also where the stream ends before it says that it is complete.
        """
        async with self._gate(url), self._open().stream("POST", url, json=body) as response:
            if response.is_error:
                await response.aread()
            self._require_good(response)
            async with aclosing(_events(response)) as events:
                yield events

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            options = self._options
            key = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
            # Beside what is asked for: beginnings of prompts, and servers that are looked at.
            most = 2 * options.concurrency + 8
            self._client = httpx.AsyncClient(
                headers={**key, "User-Agent": "aligner-chain"},
                verify=_trusted(options.tls),
                timeout=httpx.Timeout(options.timeout_s, connect=options.connect_s, pool=None),
                limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            )
        return self._client

    @asynccontextmanager
    async def _gate(self, url: str) -> AsyncIterator[None]:
        import httpx

        try:
            yield
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            what = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
            raise ServerError(self._safe(f"{url} did not answer ({what}).")) from error

    def _require_good(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        told = self._safe(_told(response.text))
        raise ServerError(
            f"{response.request.url} answered {response.status_code}{f': {told}' if told else ''}.",
            status=response.status_code,
            retry_after_s=_seconds(response.headers.get("retry-after")),
        )

    def _safe(self, text: str) -> str:
        """A text without the key, which some servers repeat when they refuse it."""
        return text.replace(self._options.api_key, "***") if self._options.api_key else text


def require_httpx() -> None:
    """Raises `MissingExtraError` where httpx is not installed."""
    try:
        import httpx  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("httpx", "server") from error


async def _events(response: httpx.Response) -> AsyncGenerator[Any, None]:
    async for line in response.aiter_lines():
        name, _, value = line.partition(":")
        if name == "data" and value.strip() == "[DONE]":
            return
        if name == "data":
            yield _json(value)
    raise ServerError(f"The stream of {response.request.url} ended before it was complete.")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise unreadable(text) from error


def _told(text: str) -> str:
    """What a server says of its error, in the form of OpenAI's or FastAPI's errors, or as it is."""
    try:
        said = json.loads(text)
    except ValueError:
        return text[:300].strip()
    told = said.get("error", said.get("detail", said.get("message", said))) if isinstance(said, dict) else said
    return str(told.get("message", told) if isinstance(told, dict) else told)[:300].strip().rstrip(".")


def _seconds(retry_after: str | None) -> float | None:
    """The seconds that a Retry-After header asks to wait, which is a number or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
        return max(0.0, (date - datetime.now(date.tzinfo or UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _trusted(tls: str | Path | ssl.SSLContext | None) -> ssl.SSLContext | bool:
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls or True
    try:
        return ssl.create_default_context(cafile=str(tls))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{tls} cannot be read as certificates to trust (PEM): {error}.") from error
