"""The connections to the upstream: with TLS, through a proxy of the environment, and with one that takes its time."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

pytest.importorskip("prometheus_client")

from proxying import (
    CLIENT,
    DONE,
    asked,
    chunk,
    completion,
    head_of,
    proxy,
    saying,
    served,
    speaking,
    streaming,
    upstream,
    whole_request,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

CERTIFICATE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
FOR_THIS_MACHINE = ["-addext", "subjectAltName=IP:127.0.0.1"]


def test_an_upstream_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificate, is not installed")
    files = {"ssl_keyfile": str(tmp_path / "key"), "ssl_certfile": str(tmp_path / "certificate")}
    out = ["-keyout", files["ssl_keyfile"], "-out", files["ssl_certfile"]]
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", *CERTIFICATE, *FOR_THIS_MACHINE, *out]
    subprocess.run(command, check=True, capture_output=True)

    async def answer(request: Request) -> Response:
        events = [chunk({"content": "bad"}), chunk(finish="stop"), DONE]
        streams = (await request.json()).get("stream")
        return await (streaming(*events) if streams else saying({"content": "bad"}))(request)

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    with served(app, **files) as port:
        url = f"https://127.0.0.1:{port}/v1"
        with proxy(url) as base:
            unknown = CLIENT.post(f"{base}/chat/completions", json=asked())
        monkeypatch.setenv("SSL_CERT_FILE", files["ssl_certfile"])
        with proxy(url) as base:
            known = [CLIENT.post(f"{base}/chat/completions", json=asked(stream=stream)) for stream in (False, True)]
        with tunnel() as (forward, targets):
            monkeypatch.setenv("HTTPS_PROXY", forward)
            with proxy(url) as base:
                known += [CLIENT.post(f"{base}/chat/completions", json=asked(stream=True))]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert all("good" in response.text for response in known)
    assert targets == [f"127.0.0.1:{port}"]


@contextmanager
def tunnel() -> Iterator[tuple[str, list[str]]]:
    """A proxy for one connection with TLS, and to where it was asked for."""
    targets: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connect() -> None:
            near, _ = listener.accept()
            targets.append(near.recv(2**16).split()[1].decode())
            host, _, port = targets[0].partition(":")
            far = socket.create_connection((host, int(port)))
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            Thread(target=relay, args=(far, near), daemon=True).start()
            relay(near, far)

        Thread(target=connect, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", targets


def relay(one: socket.socket, other: socket.socket) -> None:
    with one, other, suppress(OSError):
        while data := one.recv(2**16):
            other.sendall(data)


def test_the_proxy_of_the_environment_is_used_but_where_it_says_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps(completion({"content": "bad"})).encode()
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, upstream(saying({"content": "bad"})) as direct:

        def forward() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.append(whole_request(connection))
                connection.sendall(head_of("application/json") + body)

        Thread(target=forward, daemon=True).start()
        monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40w@127.0.0.1:{listener.getsockname()[1]}")
        for excepted in ("", "127.0.0.1"):
            monkeypatch.setenv("NO_PROXY", excepted)
            with proxy(direct.url) as base:
                assert "good" in CLIENT.post(f"{base}/chat/completions", json=asked()).text
    [request] = seen
    assert request.startswith(f"POST {direct.url}/chat/completions HTTP/1.1".encode())
    assert b"Proxy-Authorization: Basic bWU6cEB3" in request
    assert len(direct.requests) == 1


def test_a_body_goes_on_as_fast_as_it_is_taken_and_comes_whole() -> None:
    body = bytes(range(256)) * 2**16
    with upstream(saying({"content": "fine"})) as behind, proxy(behind.url) as base:
        assert CLIENT.post(f"{base}/files", content=body).status_code == 200
        assert behind.bodies == [body]


def test_an_upstream_that_takes_nothing_is_given_up() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        proxy(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", upstream_s=0.3) as base,
    ):
        response = CLIENT.post(f"{base}/files", content=b"x" * 2**24)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")
    assert "WriteTimeout" in response.json()["error"]["message"]  # and not all of it handed over, and then waited for


def test_what_an_upstream_says_unasked_is_nobodys_answer() -> None:
    """A connection that has something to read before a request was sent is not used for one."""
    body = json.dumps(completion({"content": "fine"})).encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    forged = answer.replace(b"fine", b"evil")
    with speaking(answer, forged) as url, proxy(url) as base:
        texts = [CLIENT.post(f"{base}/chat/completions", json=asked()).text for _ in range(3)]
    assert not [text for text in texts if "evil" in text]
