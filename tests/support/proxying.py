"""A proxy on this machine, and upstreams for it that answer as a test says."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from aligner_chain import Aligner, Exchange
from aligner_chain.proxy import Settings, create_app
from aligner_chain.proxy.command import _server

Handler = Callable[[Request], Awaitable[Response]]
KEY = "sk-secret-0123456789"
CLIENT = httpx.Client(
    verify=False, timeout=20
)  # one, and without certificates, because reading those takes longer than a test


def better(exchange: Exchange) -> str:
    """Corrects what is bad, and fails where the question says so."""
    if "break" in exchange.question:
        raise ValueError(f"cannot correct {exchange.answer}")
    return exchange.answer.replace("bad", "good")


@contextmanager
def served(app: Any, **settings: Any) -> Iterator[int]:
    """Serves an application in a thread of its own; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    server = uvicorn.Server(uvicorn.Config(app, **{"log_level": "critical", "ws": "none", **settings}))
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def proxy(upstream: str, **settings: Any) -> Iterator[str]:
    """The base URL of a proxy before an upstream."""
    given = Settings(upstream=upstream, **{"aligner": Aligner.scripted(better), **settings})
    with served(create_app(given), **{**_server(given.limits), "log_level": "critical"}) as port:
        yield f"http://127.0.0.1:{port}/v1"


@dataclass
class Upstream:
    """What came to an upstream, and how it answers: `handler` may be changed at any time."""

    url: str = ""
    handler: Handler | None = None
    requests: list[Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    cancelled: int = 0


@contextmanager
def upstream(handler: Handler | None = None) -> Iterator[Upstream]:
    """An upstream that leaves its answers to a handler."""
    made = Upstream(handler=handler)

    async def answer(request: Request) -> Response:
        made.requests.append(request)
        made.bodies.append(await request.body())
        assert made.handler is not None
        return await made.handler(request)

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
    with served(Starlette(routes=[Route("/{path:path}", answer, methods=methods)])) as port:
        made.url = f"http://127.0.0.1:{port}/v1"
        yield made


def completion(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A chat completion of these messages."""
    choices = [
        {"index": index, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
        for index, message in enumerate(messages)
    ]
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, **fields}


def saying(*messages: dict[str, Any], **fields: Any) -> Handler:
    """A handler that always answers with this completion."""

    async def handler(_: Request) -> Response:
        return JSONResponse(completion(*messages, **fields))

    return handler


def chunk(delta: dict[str, Any] | None = None, *, finish: str | None = None, index: int = 0, **fields: Any) -> str:
    """An event with a piece of a stream."""
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish, **fields}
    return event(
        {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    )


def event(body: object) -> str:
    return f"data: {json.dumps(body)}\n\n"


DONE = "data: [DONE]\n\n"


def streaming(*events: str, wait: float = 0.0, then: Exception | None = None) -> Handler:
    """A handler that streams these events; `then` is raised after the last, which cuts the connection."""

    async def pieces() -> AsyncIterator[bytes]:
        for one in events:
            await asyncio.sleep(wait)
            yield one.encode()
        if then is not None:
            raise then

    async def handler(_: Request) -> Response:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    return handler


def asked(question: str = "how?", **fields: Any) -> dict[str, Any]:
    """A request's body."""
    return {"model": "m", "messages": [{"role": "user", "content": question}], **fields}


def deltas(text: str) -> Sequence[dict[str, Any]]:
    """The objects in a stream of events, without the last `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@contextmanager
def speaking(*pieces: bytes, forever: bytes = b"") -> Iterator[str]:
    """The base URL of an upstream that answers each request with these bytes, and then with one of them without end."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        Thread(target=_speak, args=(listener, pieces, forever), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def _speak(listener: socket.socket, pieces: Sequence[bytes], forever: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            whole_request(connection)
            for piece in pieces:
                connection.sendall(piece)
            while forever:
                connection.sendall(forever)


def whole_request(connection: socket.socket) -> bytes:
    """A request with a content length, from its first line to its last byte.

    A server that closes while something of it is unread resets the connection, and the client may lose the answer.
    """
    with connection.makefile("rb") as stream:
        head = b"".join(iter(stream.readline, b"\r\n")) + b"\r\n"
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        return head + stream.read(int(length[1]) if length else 0)


def head_of(kind: str, *lines: str) -> bytes:
    """The head of an answer that ends with its connection."""
    return "\r\n".join(["HTTP/1.1 200 OK", f"content-type: {kind}", "connection: close", *lines, "", ""]).encode()
