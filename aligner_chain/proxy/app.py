"""The proxy as an ASGI application: the endpoints, and what is there from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aligner_chain.hook import CorrectionHook
from aligner_chain.proxy.chat import Chat
from aligner_chain.proxy.errors import Refused
from aligner_chain.proxy.guard import CHAT, Guard
from aligner_chain.proxy.metrics import Metrics
from aligner_chain.proxy.passing import Passing
from aligner_chain.proxy.settings import Settings
from aligner_chain.proxy.upstream import Upstream
from aligner_chain.shared import ahold, hold_if_loaded


def create_app(settings: Settings) -> Starlette:
    """The application. Its Aligner is loaded and warm before the first request.

    Raises at its start, as its server reports it, the errors of `Aligner.from_pretrained`.
    """
    hook = CorrectionHook(settings.on_correction) if settings.on_correction else None
    upstream, metrics = Upstream(settings), Metrics(hook)

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        async with ahold(settings.aligner) as aligner:
            await asyncio.to_thread(aligner.warm_up)
        try:
            yield
        finally:
            await upstream.close()

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        with hold_if_loaded(settings.aligner) as aligner:
            pair = aligner.pair.pair if aligner and aligner.pair else None
            told = {"ready": aligner is not None, "aligner": aligner.identity if aligner else None, "pair": pair}
        return JSONResponse(told, status_code=200 if told["ready"] else 503)

    async def page(_: Request) -> Response:
        return Response(metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def refused(_: Request) -> Response:
        raise Refused(404, "only_chat", _ONLY_CHAT)

    async def elsewhere(_: Request) -> Response:
        return JSONResponse(Refused(404, "not_found", _ELSEWHERE).body, status_code=404)

    passing = Passing(upstream)
    others = [Route(_OTHERS, passing, methods=_METHODS)]
    if settings.only_chat:
        others = [Route("/v1/models", passing, methods=["GET"]), Route(_OTHERS, refused, methods=_METHODS)]
    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", page),
            *(Route(path, Chat(settings, upstream, hook), methods=["POST"]) for path in (CHAT, f"{CHAT}/")),
            *others,
            Route("/{path:path}", elsewhere, methods=_METHODS),
        ],
        middleware=[Middleware(Guard, limits=settings.limits, metrics=metrics)],
        lifespan=running,
    )


_OTHERS = "/v1/{path:path}"
_ONLY_CHAT = (
    "This proxy serves chat completions and the list of models alone (--only-chat), since no other answer would be corrected. "
    "Ask /v1/chat/completions."
)
_ELSEWHERE = "There is nothing here. What this proxy serves is below /v1: the base URL of a client ends with it."
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
