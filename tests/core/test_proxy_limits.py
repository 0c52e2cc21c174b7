"""Clients that are slow, great, hostile or gone: each gets its answer, the next one too, and no log holds a text or a key."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

import httpx
from proxying import CLIENT, KEY, Upstream, asked, completion, proxy, saying
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from aligner_chain.proxy.settings import Limits

SECRET = "Mrs Diaz"
LIMITS = Limits(body_bytes=20_000, header_bytes=8_000, in_flight=4, body_s=0.5, grace_s=5)


@pytest.fixture(scope="module")
def base(behind: Upstream) -> Iterator[str]:
    with proxy(behind.url, limits=LIMITS) as url:
        yield url


@pytest.fixture(autouse=True)
def still_answering(behind: Upstream, base: str, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each of these clients an ordinary one is served, and the log holds no text and no key."""
    behind.handler = saying({"content": f"bad {SECRET}"})
    behind.requests.clear()
    for name in ("aligner_chain", "uvicorn", "starlette"):
        caplog.set_level(logging.DEBUG, name)
    yield
    behind.handler = saying({"content": f"bad {SECRET}"})
    headers = {"authorization": f"Bearer {KEY}"}
    response = CLIENT.post(f"{base}/chat/completions", json=asked(f"who is {SECRET}?"), headers=headers)
    assert response.json()["choices"][0]["message"]["content"] == f"good {SECRET}"
    while "aligner_proxy_in_flight 0.0" not in CLIENT.get(base.replace("/v1", "/metrics")).text:
        pass  # The client has its answer a moment before the request has ended.
    records = [json.dumps(record.__dict__, default=str) + record.getMessage() for record in caplog.records]
    assert any("chatcmpl-1" in one for one in records)
    assert not [one for one in records if SECRET in one or KEY in one or re.search(r"\bsk-", one)]  # "Task-1" may be


def connect(base: str) -> socket.socket:
    port = httpx.URL(base).port
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    made.settimeout(20)
    return made


def head(length: int | str, *lines: str, kind: str = "application/json") -> bytes:
    first = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", f"Content-Type: {kind}"]
    return "\r\n".join([*first, f"Content-Length: {length}", *lines, "", ""]).encode()


def spoken(base: str, *data: bytes, ended: bool = False) -> bytes:
    """What comes back for these bytes, until the other side has nothing to add or cuts the connection."""
    with connect(base) as client:
        try:
            for piece in data:
                client.sendall(piece)
            if ended:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        got = b""
        try:
            while piece := client.recv(65536):
                got += piece
        except ConnectionResetError:
            pass
        return got


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def post(base: str, body: bytes, **kwargs: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | kwargs.pop("headers", {})
    return CLIENT.post(f"{base}/chat/completions", content=body, headers=headers, **kwargs)


@pytest.mark.parametrize(
    ("body", "kind", "expected", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"", "application/json", 400, "invalid_json"),
        (b"\xff\xfe\xfd", "application/json", 400, "invalid_json"),
        (f"[{SECRET}]".encode(), "application/json", 400, "invalid_json"),
        (b'"text"', "application/json", 400, "invalid_json"),
        (b"[" * 19_000, "application/json", 400, "invalid_json"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "application/json", 400, "invalid_json"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "multipart/form-data; boundary=x", 415, "unsupported_media_type"),
        (b"x" * 20_001, "application/json", 413, "request_too_large"),
    ],
)
def test_a_body_that_is_none_is_refused_in_openais_words(
    base: str, behind: Upstream, body: bytes, kind: str, expected: int, code: str
) -> None:
    response = post(base, body, headers={"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (expected, code)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert behind.requests == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None},
        {"messages": {"role": "user"}},
        {
            "messages": [
                None,
                7,
                [],
                {"role": 3},
                {"content": {"a": 1}},
                {"role": "user", "content": [1, {"type": "text"}]},
            ]
        },
        {"messages": [{"role": "user", "content": "\ud800"}], "response_format": "json", "stream": "yes"},
    ],
)
def test_what_is_odd_in_a_request_is_the_upstreams_to_refuse(base: str, behind: Upstream, body: Any) -> None:
    async def handler(_: Request) -> Response:
        return JSONResponse({"error": "odd"}, status_code=400)

    behind.handler = handler
    sent = json.dumps(body).encode()
    assert (post(base, sent).json(), behind.bodies[-1]) == ({"error": "odd"}, sent)
    behind.handler = saying({"content": "bad"})
    assert post(base, sent).status_code in (200, 422)


def test_a_giant_body_is_refused_before_it_is_taken(base: str, behind: Upstream) -> None:
    assert status(spoken(base, head(10**12))) == 413
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    assert status(spoken(base, chunked, *[b"1000\r\n" + b"x" * 4096 + b"\r\n"] * 10)) in (413, 0)
    assert CLIENT.post(f"{base}/files", content=b"x" * 30_000).status_code == 413
    assert behind.requests == []


def test_a_slow_body_is_given_up(base: str, behind: Upstream) -> None:
    with connect(base) as client:
        client.sendall(head(100) + b'{"mod')
        answer = client.recv(65536)
    assert status(answer) == 408
    assert behind.requests == []


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", head(100), head(100) + b'{"messages": [', head(0)[:-2]])
def test_a_connection_that_is_cut_leaves_nothing_behind(base: str, behind: Upstream, sent: bytes) -> None:
    with connect(base) as client:
        client.sendall(sent)
        client.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )  # a reset, no farewell
    assert behind.requests == []


@pytest.mark.parametrize(
    "line",
    [
        f"X-Big: {'x' * 9000}",
        "X-Aligner-Subject: a\x00b",
        "Bad Name: x",
        "Content-Length: 7",
        "Transfer-Encoding: chunked, bad",
    ],
)
def test_headers_that_are_none_are_refused(base: str, behind: Upstream, line: str) -> None:
    body = json.dumps(asked()).encode()
    assert status(spoken(base, head(len(body), line), body)) in (400, 431)
    assert behind.requests == []


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 9000]
)
def test_what_is_no_request_is_refused(base: str, behind: Upstream, sent: bytes) -> None:
    assert status(spoken(base, sent, ended=True)) in (400, 404, 405, 0)
    assert behind.requests == []


def test_an_upstream_cannot_write_headers_into_an_answer(base: str, behind: Upstream) -> None:
    evil = completion({"content": "bad"}, id="x\r\nset-cookie: a=b", model="m\r\nx: y")

    async def handler(_: Request) -> Response:
        return JSONResponse(evil)

    behind.handler = handler
    response = post(base, json.dumps(asked()).encode(), headers={"x-aligner-metadata": "header"})
    assert response.status_code == 200
    assert {"set-cookie", "x"}.isdisjoint(response.headers)
    path = f"{base}/models/a%0d%0aX-Evil:%201"
    assert CLIENT.get(path).status_code == 404
    assert len(behind.requests) == 1


def test_a_body_that_is_nested_deeply_harms_nothing(base: str, behind: Upstream) -> None:
    """Python 3.11 does not read it; later ones do, and find no messages in it when it is answered."""
    response = post(base, b'{"a":' * 3000 + b"1" + b"}" * 3000)
    expected = ((422, "prompt_not_found"), 1) if behind.requests else ((400, "invalid_json"), 0)
    assert ((response.status_code, response.json()["error"]["code"]), len(behind.requests)) == expected


def test_who_still_sends_a_body_that_is_refused_is_not_cut_off(base: str, behind: Upstream) -> None:
    """To close on unread bytes resets the connection, and then the answer is lost for whoever sends first and reads later."""
    with connect(base) as client:
        client.sendall(head(10**6) + b"{")
        answer = client.recv(65536)
        while not answer.endswith(b"}"):
            answer += client.recv(65536)
        for _ in range(10):
            client.sendall(b"x" * 99_999)
        client.sendall(b"x" * 9)
        assert client.recv(65536) == b""
    assert status(answer) == 413
    assert b"connection: close" in answer.lower()
    assert behind.requests == []


def test_more_requests_at_a_time_than_allowed_are_told_to_come_back(base: str, behind: Upstream) -> None:
    waiting, go = threading.Semaphore(0), threading.Event()

    async def handler(_: Request) -> Response:
        waiting.release()
        await asyncio.to_thread(go.wait, 20)
        return JSONResponse(completion({"content": "bad"}))

    behind.handler = handler
    body = json.dumps(asked()).encode()
    with ThreadPoolExecutor(LIMITS.in_flight) as pool:
        running = [pool.submit(post, base, body) for _ in range(LIMITS.in_flight)]
        for _ in running:
            assert waiting.acquire(timeout=20)
        refused = post(base, body)
        health = CLIENT.get(base.replace("/v1", "/healthz"))
        go.set()
        assert [one.result().status_code for one in running] == [200] * LIMITS.in_flight
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert health.status_code == 200


def test_a_client_that_goes_away_cancels_the_upstream(base: str, behind: Upstream) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def handler(request: Request) -> Response:
        begun.set()
        while not await request.is_disconnected():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        ended.set()
        return Response()

    behind.handler = handler
    body = json.dumps(asked()).encode()
    with connect(base) as client:
        client.sendall(head(len(body)) + body)
        assert begun.wait(20)
    assert ended.wait(20)


SERVE = """
import sys
from aligner_chain import Aligner
from aligner_chain.proxy import Settings, serve
serve(Settings(upstream=sys.argv[1], aligner=Aligner.scripted(lambda one: one.answer.replace("bad", "good"))), port=0)
print("ended")
"""


def test_sigterm_lets_running_requests_end_and_takes_no_new_ones(behind: Upstream) -> None:
    begun, go = threading.Event(), threading.Event()

    async def handler(_: Request) -> Response:
        begun.set()
        await asyncio.to_thread(go.wait, 20)
        return JSONResponse(completion({"content": f"bad {SECRET}"}))

    behind.handler = handler
    command = [sys.executable, "-c", SERVE, behind.url]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    with (
        subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process,
        ThreadPoolExecutor() as pool,
    ):
        assert process.stderr is not None
        base = json.loads(process.stderr.readline())["base_url"]
        running = pool.submit(post, base, json.dumps(asked()).encode())
        assert begun.wait(20)
        process.send_signal(signal.SIGTERM)
        while True:
            try:
                connect(base).close()
            except ConnectionError:
                break
        go.set()
        assert running.result().json()["choices"][0]["message"]["content"] == f"good {SECRET}"
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "ended\n")
    decision, request = [json.loads(line) for line in err.splitlines()]
    assert (decision["event"], decision["outcome"]) == ("correction", "corrected")
    assert (request["event"], request["status"], request["outcomes"]) == ("request", 200, ["corrected"])
    assert request["corrections"] == [decision["id"]]
    assert SECRET not in err
    assert KEY not in err
