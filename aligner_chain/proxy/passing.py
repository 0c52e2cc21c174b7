"""What is not a chat completion goes to the upstream and back as it is, piece by piece."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from starlette.types import Receive, Scope, Send

from aligner_chain.proxy.guard import body_of
from aligner_chain.proxy.headers import for_client, for_upstream, value_of
from aligner_chain.proxy.metrics import Observed
from aligner_chain.proxy.upstream import Answer, Upstream


class Passing:
    """The endpoint of every other path below /v1."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        observed: Observed = scope["observed"]
        start = time.perf_counter()
        body = await _body(scope, receive)
        async with self._upstream.answer(scope, for_upstream(scope["headers"], length=True), body) as answer:
            await pass_on(answer, send, raw=True)
            observed.upstream_s = time.perf_counter() - start


async def pass_on(answer: Answer, send: Send, *, raw: bool) -> None:
    """Sends an upstream's answer on; `raw` as it was compressed."""
    headers = for_client(answer.headers, raw=raw)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    async for piece in answer.raw if raw else answer.pieces():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(scope: Scope, receive: Receive) -> bytes | AsyncIterator[bytes]:
    """The body as it comes, or b"" where the request says that it has none: a stream of nothing would still be one."""
    headers = scope["headers"]
    if value_of(headers, b"content-length") or value_of(headers, b"transfer-encoding"):
        return body_of(receive)
    return b"".join([piece async for piece in body_of(receive)])
