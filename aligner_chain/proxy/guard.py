"""What stands before every request: how many there may be, how great and how slow, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligner_chain.proxy import errors
from aligner_chain.proxy.errors import RETRY_AFTER_S, Refused
from aligner_chain.proxy.events import Event
from aligner_chain.proxy.headers import value_of
from aligner_chain.proxy.metrics import Metrics, Observed
from aligner_chain.proxy.settings import Limits

CLIENT_GONE = 499
FAREWELL_S = 2.0
"""Seconds that a client has to take an error in, and to send what is left of a body that nobody wants."""
CHAT = "/v1/chat/completions"

_LOG = logging.getLogger(__name__)


class Guard:
    """An ASGI middleware for all below /v1. What runs behind it finds its `Observed` in the scope, under "observed"."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        observed = Observed(route=_route(scope["path"]), method=_method(scope["method"]))
        self._running += 1
        self._metrics.in_flight.inc()
        try:
            await self._watched({**scope, "observed": observed}, Inbox(receive, scope, self._limits), send, observed)
        finally:
            self._running -= 1
            self._metrics.in_flight.dec()
            observed.end()
            self._metrics.tell(observed)

    async def _watched(self, scope: Scope, inbox: Inbox, send: Send, observed: Observed) -> None:
        """Runs the request until it is answered or its client is gone, which cancels upstream and Aligner."""
        work = asyncio.create_task(self._answered(scope, inbox, Outbox(send, observed), observed))
        gone = asyncio.create_task(inbox.gone())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                observed.status, observed.code = CLIENT_GONE, "client_gone"
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answered(self, scope: Scope, inbox: Inbox, outbox: Outbox, observed: Observed) -> None:
        try:
            self._admit(inbox)
            async with asyncio.timeout(self._limits.request_s) as limit:
                await self._app(scope, inbox.receive, outbox.send)
        except ClientGoneError:
            observed.status, observed.code = CLIENT_GONE, "client_gone"
        except Exception as error:  # noqa: BLE001  Whatever it is, the client gets an answer and the server goes on.
            late = isinstance(error, TimeoutError) and limit.expired()
            refused = errors.out_of_time(self._limits.request_s) if late else errors.of(error)
            if refused.code == "internal_error":
                _LOG.error("a request failed: %s", type(error).__name__)  # its message can quote texts
            observed.code = refused.code
            # A client that reads nothing would else keep its place among the requests for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await outbox.refuse(refused, inbox)

    def _admit(self, inbox: Inbox) -> None:
        if self._running > self._limits.in_flight:
            told = f"{self._limits.in_flight} requests run already, and the proxy takes no more at a time."
            raise Refused(429, "too_many_requests", told, headers={"retry-after": str(RETRY_AFTER_S)})
        inbox.check_lengths()


class Inbox:
    """What comes from the client: a body within its limits, and after it nothing but the news that the client is gone."""

    def __init__(self, receive: Receive, scope: Scope, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._length = value_of(scope["headers"], b"content-length")
        self._chunked = value_of(scope["headers"], b"transfer-encoding") is not None
        self._head = sum(len(name) + len(value) for name, value in scope["headers"])
        self._taken = 0
        self._whole = asyncio.Event()
        self._until = asyncio.get_running_loop().time() + limits.body_s

    def check_lengths(self) -> None:
        """Raises `Refused` for headers that are too great, and for a body that says itself that it is, or says two lengths."""
        if self._head > self._limits.header_bytes:  # The server bounds only what comes in several pieces.
            told = f"The headers are greater than the {self._limits.header_bytes} bytes that the proxy takes."
            raise Refused(431, "headers_too_large", told)
        if (
            self._length is not None and self._chunked
        ):  # Whoever stands before the proxy may have believed the other one.
            raise Refused(400, "invalid_length", "A request has a Content-Length or a Transfer-Encoding, and not both.")
        if self._length is not None and self._length.isdecimal() and int(self._length) > self._limits.body_bytes:
            raise self._too_great()

    @property
    def whole(self) -> bool:
        """Whether all of the body has come."""
        return self._whole.is_set()

    async def receive(self) -> Message:
        """The next message of the body, as ASGI has it.

        Raises:
            Refused: The body is too great or too slow.
            ClientGoneError: The client went away.
        """
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            told = f"The body did not come within {self._limits.body_s:g} s."
            raise Refused(408, "body_timeout", told) from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._taken += len(message.get("body", b""))
        if self._taken > self._limits.body_bytes:
            raise self._too_great()
        if not message.get("more_body", False):
            self._whole.set()
        return message

    async def drain(self) -> None:
        """Throws away what is left of the body. To close on it would reset the connection, and the answer with it."""
        more = not self.whole
        while more:
            message = await self._receive()
            more = message["type"] != "http.disconnect" and message.get("more_body", False)

    async def gone(self) -> None:
        """Returns when the client is gone, which can only be seen once its body is whole."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _too_great(self) -> Refused:
        told = f"The body is greater than the {self._limits.body_bytes} bytes that the proxy takes."
        return Refused(413, "request_too_large", told)


class Outbox:
    """What goes to the client; it notes the status, and answers with an error where nothing has been sent."""

    def __init__(self, send: Send, observed: Observed) -> None:
        self._send, self._observed = send, observed

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._observed.status = message["status"]
        await self._send(message)

    async def refuse(self, refused: Refused, inbox: Inbox) -> None:
        """Sends the error, as the last event of a stream that has begun; no `[DONE]` follows it.

        Any other answer that has begun is left unfinished, so that the server cuts the connection. Where the body is not whole
        the connection is closed, once the client has sent the rest.
        """
        if self._observed.stream:
            await self.send({"type": "http.response.body", "body": Event.of(refused.body).wire})
            return
        if self._observed.status:
            return
        body = refused.text.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
        headers += [] if inbox.whole else [(b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        await inbox.drain()
        await self.send({"type": "http.response.body", "body": b""})


class ClientGoneError(Exception):
    """The client went away before its body was whole."""


async def body_of(receive: Receive) -> AsyncIterator[bytes]:
    """The body of a request in pieces."""
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


def _route(path: str) -> str:
    return path if path in (CHAT, "/v1/models") else "/v1/*"


def _method(method: str) -> str:
    return method if method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "OTHER"
