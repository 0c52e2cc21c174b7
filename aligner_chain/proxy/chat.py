"""One request for a chat completion: on to the upstream as it came, and back with its answers corrected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import httpcore
from starlette.types import Receive, Scope, Send

from aligner_chain.hook import CorrectionHook
from aligner_chain.proxy.answers import KEY, delivered
from aligner_chain.proxy.asking import Asked, read_request
from aligner_chain.proxy.correcting import Answering, message_id_of, together
from aligner_chain.proxy.errors import cut
from aligner_chain.proxy.events import Decoder, Event, Written
from aligner_chain.proxy.guard import body_of
from aligner_chain.proxy.headers import for_client, for_upstream, value_of
from aligner_chain.proxy.metrics import Observed
from aligner_chain.proxy.passing import pass_on
from aligner_chain.proxy.settings import Settings
from aligner_chain.proxy.streams import HeldStream
from aligner_chain.proxy.upstream import BROKEN, Answer, Upstream

OK = 200
LAST_BYTE_S = 0.05
"""Seconds that an upstream has to close a stream after its last event."""


class Chat:
    """The endpoint `POST /v1/chat/completions`."""

    def __init__(self, settings: Settings, upstream: Upstream, hook: CorrectionHook | None) -> None:
        self._settings, self._upstream, self._hook = settings, upstream, hook
        self._most = settings.limits.answer_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        observed: Observed = scope["observed"]
        body = b"".join([piece async for piece in body_of(receive)])
        asked = read_request(body, scope["headers"])
        start = time.perf_counter()
        headers = for_upstream(scope["headers"], length=False)
        async with self._upstream.answer(scope, headers, body) as answer:
            if answer.status != OK:
                await pass_on(answer, send, raw=False)
                observed.upstream_s = time.perf_counter() - start
            elif (value_of(answer.headers, b"content-type") or "").lower().startswith("text/event-stream"):
                await self._streamed(answer, asked, send, observed, start)
            else:
                content = b"".join([piece async for piece in answer.pieces(self._most)])
                observed.upstream_s = time.perf_counter() - start
                await self._whole(answer, content, asked, send, observed)

    async def _whole(self, answer: Answer, content: bytes, asked: Asked, send: Send, observed: Observed) -> None:
        completion = self._completion(content)
        headers = for_client(answer.headers, raw=False)
        if completion is not None:
            told = await self._corrected(completion, asked, observed)
            if asked.in_header:
                headers.append((b"x-aligner", json.dumps(told).encode()))
            content = json.dumps(completion).encode()
        headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _corrected(
        self, completion: dict[str, Any], asked: Asked, observed: Observed
    ) -> Sequence[Mapping[str, Any]]:
        """Puts the corrected choices into a completion, and returns what is told of each."""
        choices = completion["choices"]
        named = {"upstream": str(completion["model"]) if completion.get("model") else None}
        answering = [self._answering(asked)() for _ in choices]
        try:
            observed.corrections = await together(
                one.settle(choice["message"], **named, message_id=message_id_of(completion.get("id"), place))
                for place, (one, choice) in enumerate(zip(answering, choices, strict=True))
            )
        finally:
            _note(observed, completion.get("id"), completion.get("usage"), answering)
        served = [one.passed(correction) for one, correction in zip(answering, observed.corrections, strict=True)]
        both = [delivered(*pair) for pair in zip(choices, served, strict=True)]
        completion["choices"] = [sent if asked.in_header else {**sent, KEY: told} for sent, told in both]
        return [told for _, told in both]

    async def _streamed(self, answer: Answer, asked: Asked, send: Send, observed: Observed, start: float) -> None:
        held = HeldStream(asked, self._answering(asked))
        async with Written(send, self._settings.keep_alive_s) as written:
            observed.stream = True  # From here on the guard tells of an error by an event.
            await written.start(for_client(answer.headers, raw=False))
            pieces = answer.pieces(self._most)
            try:
                await _taken_in(pieces, held, written)
                observed.upstream_s = time.perf_counter() - start
                left = await held.end()
            finally:
                held.close()
                observed.corrections = held.corrections
                _note(observed, held.completion_id, held.usage, [one.answering for one in held.choices.values()])
            await _read_out(pieces)
            await written.end(left)

    def _answering(self, asked: Asked) -> Callable[[], Answering]:
        return lambda: Answering(self._settings, self._hook, asked)

    def _completion(self, content: bytes) -> dict[str, Any] | None:
        """The completion in a body; None where there is nothing to correct in it, or the original is to be served.

        Raises:
            Refused: It cannot be read, and `on_error` is "raise".
        """
        try:
            completion = json.loads(content)
        except (ValueError, RecursionError):
            completion = None
        if isinstance(completion, dict) and _holds_answers(completion.get("choices")):
            return completion
        errs = isinstance(completion, dict) and bool(completion.get("error"))
        if errs or self._settings.on_error == "pass_through":
            return None
        raise cut("is no chat completion that can be read")


async def _taken_in(pieces: AsyncIterator[bytes], held: HeldStream, written: Written) -> None:
    """Reads the upstream to its last event, and sends what need not wait for it."""
    decoder = Decoder()
    async for data in pieces:
        ready: list[Event] = []
        try:
            for event in decoder.feed(data):
                ready += held.add(event)
                if held.done or held.broken:
                    return
        finally:
            await written.write(ready)


async def _read_out(pieces: AsyncIterator[bytes]) -> None:
    """Reads what is behind the last event: only a connection that was read to its last byte can be used again.

    Nothing of it matters for the answer, which is whole; the upstream wrote it while the Aligner was busy.
    """
    with contextlib.suppress(TimeoutError, httpcore.TimeoutException, *BROKEN):
        async with asyncio.timeout(LAST_BYTE_S):
            async for _ in pieces:
                pass


def _holds_answers(choices: Any) -> bool:
    return isinstance(choices, list) and all(
        isinstance(one, dict) and isinstance(one.get("message"), dict) for one in choices
    )


def _note(observed: Observed, completion_id: object, usage: object, answering: Sequence[Answering]) -> None:
    observed.message_id = message_id_of(completion_id, 0)
    observed.usage = usage if isinstance(usage, dict) else {}
    observed.aligner_s = max((one.seconds for one in answering), default=0.0)
