"""Upstreams that send what no client should get, and clients that try to slip something past: a clear end, and memory stays flat."""

from __future__ import annotations

import gzip
import json
import socket
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

import httpx
from proxying import (
    CLIENT,
    DONE,
    Upstream,
    asked,
    chunk,
    completion,
    deltas,
    head_of,
    proxy,
    saying,
    speaking,
    streaming,
)
from starlette.requests import Request
from starlette.responses import Response

from aligner_chain.proxy.settings import Limits

MOST = 100_000
LIMITS = Limits(answer_bytes=MOST, request_s=2)
MIB = 2**20
SSE, JSON = "text/event-stream", "application/json"
CUT = gzip.compress(json.dumps(completion({"content": "bad"})).encode())[:-4]
"""All of the text is in it, and what it ends with, by which it could be known to be whole, is not."""


@pytest.fixture(scope="module")
def base(behind: Upstream) -> Iterator[str]:
    with proxy(behind.url, limits=LIMITS) as url:
        yield url


def ask(base: str, **fields: Any) -> httpx.Response:
    return CLIENT.post(f"{base}/chat/completions", json=asked(**fields))


def code_of(response: httpx.Response) -> str:
    """The error that a client is told of, in a stream or without one."""
    told = deltas(response.text)[-1] if response.headers["content-type"].startswith(SSE) else response.json()
    assert '"bad"' not in response.text
    return str(told["error"]["code"])


@pytest.mark.parametrize(
    ("kind", "forever"),
    [
        pytest.param(JSON, b"[" * 2**16, id="an answer without end"),
        pytest.param(SSE, b"x" * 2**16, id="a line without end"),
        pytest.param(SSE, b"data: x\n" * 2**13, id="an event without end"),
        pytest.param(SSE, chunk({"content": "bad"}).encode() * 500, id="a text without end"),
    ],
)
def test_what_has_no_end_is_cut_where_it_would_fill_the_memory(kind: str, forever: bytes) -> None:
    with speaking(head_of(kind), forever=forever) as url, proxy(url, limits=LIMITS) as base:
        assert code_of(ask(base, stream=kind == SSE)) == "upstream_cut"


@pytest.mark.parametrize("kind", [JSON, SSE])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_few_bytes_that_hold_very_many_are_never_all_unpacked(kind: str, coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress
    bomb = pack(b" " * 64 * MIB)
    with (
        speaking(head_of(kind, f"content-encoding: {coding}"), bomb) as url,
        proxy(url, limits=LIMITS) as base,
    ):
        ask(base)
        tracemalloc.start()
        try:
            assert code_of(ask(base)) == "upstream_cut"
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 8 * MIB


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_compressed_unasked_is_read(coding: str, stream: bool, behind: Upstream, base: str) -> None:
    events = chunk({"content": "bad"}) + chunk(finish="stop") + DONE
    body = events if stream else json.dumps(completion({"content": "bad"}))
    packed = (gzip.compress if coding == "gzip" else zlib.compress)(body.encode())

    async def handler(_: Request) -> Response:
        return Response(packed, media_type=SSE if stream else JSON, headers={"content-encoding": coding})

    behind.handler = handler
    response = ask(base)
    assert "content-encoding" not in response.headers
    assert "good" in response.text


@pytest.mark.parametrize(
    ("coding", "body"),
    [("br", b"\x0b\x02\x80bad\x03"), ("gzip", b"bad"), ("gzip", CUT), ("gzip", b"")],
    ids=["unknown", "none", "cut", "empty"],
)
def test_a_compression_that_cannot_be_undone_is_told(coding: str, body: bytes, behind: Upstream, base: str) -> None:
    async def handler(_: Request) -> Response:
        return Response(body, media_type=JSON, headers={"content-encoding": coding})

    behind.handler = handler
    response = ask(base)
    assert (response.status_code, code_of(response)) == (502, "upstream_cut")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"bad\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ncontent-length: 3\r\n\r\nbad",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ncontent-type: application/json\r\n\r\nbad",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\nbad\r\n",
    ],
    ids=["nothing", "no http", "no header", "a giant header", "two lengths", "too short", "no chunk"],
)
def test_an_upstream_that_speaks_no_http_is_an_error(answer: bytes) -> None:
    with speaking(answer) as url, proxy(url) as base:
        response = ask(base)
        assert (response.status_code, code_of(response)) == (502, "upstream_unreachable")


def test_a_number_that_no_counter_holds_disturbs_nobody(behind: Upstream) -> None:
    behind.handler = saying({"content": "bad"}, usage={"prompt_tokens": 10**400, "completion_tokens": 7})
    with proxy(behind.url) as url:
        assert ask(url).json()["choices"][0]["message"]["content"] == "good"
        page = wait_for(url, "aligner_proxy_in_flight 0.0")  # The client has its answer a moment before that.
    assert 'aligner_proxy_tokens_total{of="upstream_prompt"} 0.0' in page
    assert 'aligner_proxy_tokens_total{of="upstream_completion"} 7.0' in page


def test_a_byte_order_mark_hides_no_text_from_the_checks(behind: Upstream, base: str) -> None:
    behind.handler = streaming("\ufeff" + chunk({"content": "bad"}), chunk(finish="stop"), DONE)
    text = ask(base, stream=True).text
    assert "good" in text
    assert '"bad"' not in text


def test_a_stream_by_another_spelling_is_one(behind: Upstream, base: str) -> None:
    async def handler(_: Request) -> Response:
        events = chunk({"content": "bad"}) + chunk(finish="stop") + DONE
        return Response(events, headers={"content-type": "Text/Event-Stream"})

    behind.handler = handler
    assert "good" in ask(base).text


def test_an_upstream_that_breaks_off_behind_the_end_has_said_all() -> None:
    events = (chunk({"content": "bad"}) + chunk(finish="stop") + DONE).encode()
    head = head_of(SSE, "transfer-encoding: chunked")
    with speaking(head, b"%x\r\n%b\r\n" % (len(events), events)) as url, proxy(url) as base:
        text = ask(base, stream=True).text
    assert "good" in text
    assert text.endswith(DONE)


@pytest.mark.parametrize("path", ["chat/completions", "files"])
def test_a_body_of_two_lengths_is_refused(path: str, behind: Upstream, base: str) -> None:
    """Whoever stands before the proxy may have believed the other one, and taken the rest for a request of its own."""
    behind.requests.clear()
    lines = [f"POST /v1/{path} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    lines += [
        "Content-Length: 4",
        "Transfer-Encoding: chunked",
        "",
        "0",
        "",
        "GET /v1/models HTTP/1.1",
        "Host: x",
        "",
        "",
    ]
    answer = spoken(base, "\r\n".join(lines).encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"invalid_length" in answer
    assert answer.count(b"HTTP/1.1") == 1
    assert behind.requests == []


def test_requests_in_one_packet_get_their_own_answers_in_turn(behind: Upstream, base: str) -> None:
    behind.handler = saying({"content": "bad"})
    body = json.dumps(asked()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n"
    answer = spoken(base, head.encode() + b"\r\n" + body, head.encode() + b"Connection: close\r\n\r\n" + body)
    assert answer.count(b"HTTP/1.1 200") == answer.count(b'"content": "good"') == 2


def test_a_compressed_request_is_not_unpacked(behind: Upstream, base: str) -> None:
    behind.requests.clear()
    headers = {"content-type": JSON, "content-encoding": "gzip"}
    bomb = gzip.compress(b" " * 64 * MIB)
    response = CLIENT.post(f"{base}/chat/completions", content=bomb, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert behind.requests == []


@pytest.mark.parametrize("path", ["chat/completions", "files"])
def test_who_does_not_read_holds_neither_the_memory_nor_a_place(path: str) -> None:
    """The upstream floods, the client asks and reads nothing: the flood stops at full buffers, and the time limit at the client."""
    tool = chunk({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 60_000}}]}).encode()
    with (
        speaking(head_of(SSE), forever=tool) as url,
        proxy(url, limits=Limits(request_s=1, in_flight=1, answer_bytes=10**12)) as base,
        connected(base) as client,
    ):
        body = json.dumps(asked(stream=True)).encode()
        tracemalloc.start()
        try:
            client.sendall(f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\n".encode())
            client.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            for number in (1, 0):
                wait_for(base, f"aligner_proxy_in_flight {number}.0")
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 8 * MIB


def wait_for(base: str, line: str) -> str:
    """The page of the metrics, as soon as it has this line."""
    until = time.monotonic() + 20
    while line not in (page := CLIENT.get(base.replace("/v1", "/metrics")).text):
        assert time.monotonic() < until, page
    return page


def connected(base: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", httpx.URL(base).port or 0), timeout=20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return client


def spoken(base: str, *data: bytes) -> bytes:
    """What comes back for these bytes, until the other side cuts the connection."""
    with connected(base) as client:
        for piece in data:
            client.sendall(piece)
        got = b""
        while piece := client.recv(65536):
            got += piece
        return got
