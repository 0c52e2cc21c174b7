"""What stands before the page: it answers this machine's browser about the page, and the page can load from nowhere else.

A page of some other site that is open in the same browser could else send decisions here, or read the texts by pointing a
name of its own at 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HOSTS = frozenset({"127.0.0.1", "localhost"})
PATHS = (
    "/page.js",
    "/assets/",
    "/static/",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/heartbeat/",
)
"""What the page asks for. Gradio would also take uploads, hand out files and ask other servers."""

# Gradio makes functions of the templates that its HTML parts are given, hence 'unsafe-eval'; these are its own and never
# a text of the store. A script in the page runs only with the nonce of this answer.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; manifest-src 'self'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}


class Guard:
    """An ASGI application around the page's.

    It refuses what is addressed to another host than this one, what another site sends, and what is no part of the page.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http" or not _is_ours(dict(scope["headers"])):
            await _refuse(send, 403)
        elif scope["path"] == "/":
            await self._send_page(scope, receive, send)
        elif scope["path"].startswith(PATHS):
            await self._app(scope, receive, send)
        else:
            await _refuse(send, 404)

    async def _send_page(self, scope: Message, receive: Receive, send: Send) -> None:
        """The page itself, whose scripts get the nonce. It holds nothing of the store: that is asked for later."""
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message = {}
        body = bytearray()

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))

        await self._app({**scope, "headers": plain}, receive, collect)
        nonce = secrets.token_urlsafe(18)
        page = bytes(body).replace(b"<script", f'<script nonce="{nonce}"'.encode())
        headers = dict(start["headers"]) | _HEADERS
        headers[b"content-length"] = str(len(page)).encode()
        headers[b"content-security-policy"] = _POLICY.format(nonce=nonce).encode()
        await send({**start, "headers": list(headers.items())})
        await send({"type": "http.response.body", "body": page})


def _is_ours(headers: dict[bytes, bytes]) -> bool:
    """Whether a request is addressed to this machine, and comes from the page or from no page at all."""
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin")
    named = _hostname(f"//{host}") in HOSTS
    return named and (origin is None or origin.decode("latin-1") == f"http://{host}")


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send(
        {
            "type": "http.response.body",
            "body": b"This is not for you.\n" if status == 403 else b"There is no such page.\n",
        }
    )
