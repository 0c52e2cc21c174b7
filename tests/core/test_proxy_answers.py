"""Upstreams of every kind behind the proxy: what of their answers is corrected, what goes on, and what a failure is."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

import httpx
from proxying import (
    CLIENT,
    DONE,
    KEY,
    Upstream,
    asked,
    better,
    chunk,
    completion,
    deltas,
    event,
    proxy,
    saying,
    streaming,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from aligner_chain import Aligner, Correction, cli
from aligner_chain.errors import ConfigurationError
from aligner_chain.proxy import serve
from aligner_chain.proxy.settings import Settings, function_at

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(autouse=True)
def anew(behind: Upstream) -> None:
    behind.requests.clear()
    behind.bodies.clear()


@pytest.fixture(scope="module")
def told() -> list[Correction]:
    return []


@pytest.fixture(scope="module")
def base(behind: Upstream, told: list[Correction]) -> Iterator[str]:
    with proxy(behind.url, on_correction=told.append) as url:
        yield url


@pytest.fixture
def ask(behind: Upstream, base: str, told: list[Correction]) -> Callable[..., httpx.Response]:
    told.clear()

    def asking(handler: Any, body: dict[str, Any] | None = None, **kwargs: Any) -> httpx.Response:
        behind.handler = handler
        return CLIENT.post(f"{base}/chat/completions", json=body or asked(), timeout=20, **kwargs)

    return asking


def contents(response: httpx.Response) -> list[Any]:
    return [choice["message"].get("content") for choice in response.json()["choices"]]


def outcomes(response: httpx.Response) -> list[str]:
    return [choice["aligner"]["outcome"] for choice in response.json()["choices"]]


PART = {"type": "text", "text": "bad"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,bad"}}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "bad"}]}


@pytest.mark.parametrize(
    ("message", "content", "outcome"),
    [
        ({"content": "bad"}, "good", "corrected"),
        ({"content": "fine"}, "fine", "approved"),
        ({"content": "bad", "reasoning_content": "bad"}, "good", "corrected"),
        ({"content": "bad", "images": [IMAGE]}, "good", "corrected"),
        ({"content": [THOUGHT, PART, PART]}, [THOUGHT, {"type": "text", "text": "goodgood"}], "corrected"),
        ({"content": [PART, IMAGE, PART]}, [PART, IMAGE, PART], "skipped"),
        ({"content": [{"type": "refusal", "refusal": "bad"}]}, [{"type": "refusal", "refusal": "bad"}], "skipped"),
        ({"content": "bad", "tool_calls": [CALL]}, "bad", "skipped"),
        ({"content": "bad", "function_call": CALL["function"]}, "bad", "skipped"),
        ({"content": "bad", "refusal": "bad"}, "bad", "skipped"),
        ({"content": "bad", "audio": {"id": "a", "transcript": "bad"}}, "bad", "skipped"),
        ({"content": '{"bad": "bad"}'}, '{"bad": "bad"}', "skipped"),
        ({"content": '```json\n["bad"]\n```'}, '```json\n["bad"]\n```', "skipped"),
        ({"content": None}, None, "skipped"),
        ({"content": 7}, 7, "skipped"),
        ({}, None, "skipped"),
    ],
)
def test_only_the_text_of_an_answer_is_corrected(
    ask: Callable[..., httpx.Response], message: dict[str, Any], content: Any, outcome: str
) -> None:
    response = ask(saying(message))
    sent = response.json()
    assert (contents(response), outcomes(response)) == ([content], [outcome])
    assert sent["choices"][0].pop("aligner")
    if "content" in message:
        sent["choices"][0]["message"]["content"] = message["content"]
    assert sent == completion(message)


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object"}},
        {"guided_choice": ["bad"]},
        {"grammar": 'root ::= "bad"'},
        {"structured_outputs": {"regex": "b.d"}},
    ],
)
def test_an_answer_of_a_prescribed_form_passes(ask: Callable[..., httpx.Response], field: dict[str, Any]) -> None:
    assert contents(ask(saying({"content": "bad"}), asked(**field))) == ["bad"]
    assert contents(ask(saying({"content": "bad"}), asked(response_format={"type": "text"}))) == ["good"]


def test_each_choice_is_corrected_for_itself_under_an_id_of_its_own(
    ask: Callable[..., httpx.Response], told: list[Correction]
) -> None:
    response = ask(
        saying({"content": "bad"}, {"content": "fine"}, {"content": "bad", "tool_calls": [CALL]}), asked(n=3)
    )
    assert outcomes(response) == ["corrected", "approved", "skipped"]
    assert {one.exchange.message_id for one in told} == {"chatcmpl-1", "chatcmpl-1-1", "chatcmpl-1-2"}


def test_log_probabilities_and_sources_of_another_text_go_and_it_is_said(ask: Callable[..., httpx.Response]) -> None:
    def handler(text: str) -> Any:
        made = completion({"content": text, "annotations": [{"type": "url_citation"}]})
        made["choices"][0] |= {"logprobs": {"content": [{"token": text}]}, "token_ids": [1, 2]}

        async def answer(_: Request) -> Response:
            return JSONResponse(made)

        return answer

    [fine] = ask(handler("fine")).json()["choices"]
    assert (fine["logprobs"], fine["aligner"].get("dropped")) == ({"content": [{"token": "fine"}]}, None)
    assert fine["token_ids"] == [1, 2]
    [corrected] = ask(handler("bad")).json()["choices"]
    assert (corrected["logprobs"], corrected["token_ids"], corrected["message"]["annotations"]) == (None, None, [])
    assert corrected["aligner"]["dropped"] == ["logprobs", "token_ids", "annotations"]


def test_a_strict_client_gets_the_note_in_a_header(ask: Callable[..., httpx.Response]) -> None:
    response = ask(saying({"content": "bad"}), headers={"X-Aligner-Metadata": "header"})
    assert response.json() == completion({"content": "good"})
    [note] = json.loads(response.headers["x-aligner"])
    assert note["outcome"] == "corrected"
    events = [chunk({"content": "bad"}), chunk(finish="stop"), DONE]
    streamed = ask(streaming(*events), headers={"X-Aligner-Metadata": "header"})
    assert streamed.text == "".join([chunk({"content": "good"}), *events[1:]])


def test_what_a_header_says_of_the_person_is_in_the_record_and_stays_here(
    ask: Callable[..., httpx.Response], behind: Upstream, told: list[Correction]
) -> None:
    known = {"X-Aligner-Subject": "ann", "X-Aligner-Tenant": "t", "X-Aligner-Split-Key": "k"}
    ask(saying({"content": "bad"}), headers=known)
    [correction] = told
    assert (correction.exchange.subject, correction.exchange.tenant, correction.exchange.split_key) == ("ann", "t", "k")
    assert not any(name.startswith("x-aligner") for name in behind.requests[0].headers)


def test_the_conversation_is_read_with_its_roles(ask: Callable[..., httpx.Response], told: list[Correction]) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    ask(saying({"content": "bad"}), {"model": "m", "messages": messages})
    assert [(turn.role, turn.text) for turn in told[0].exchange.turns] == [
        ("system", "be brief"),
        ("user", "ab"),
        ("tool", "sunny"),
    ]


def test_a_question_without_words_is_never_corrected_blind(ask: Callable[..., httpx.Response]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": [IMAGE]}]}
    response = ask(saying({"content": "bad"}), body)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "prompt_not_found")
    assert ask(saying({"tool_calls": [CALL]}), body).status_code == 200  # what is not for the Aligner needs no question


def test_keys_and_headers_go_through_and_those_of_a_connection_do_not(
    ask: Callable[..., httpx.Response], behind: Upstream
) -> None:
    async def handler(_: Request) -> Response:
        own = {"x-request-id": "r1", "connection": "x-hop", "x-hop": "1", "set-cookie": "a=b", "server": "theirs"}
        return JSONResponse(completion({"content": "fine"}), headers=own)

    sent = {
        "authorization": f"Bearer {KEY}",
        "openai-organization": "o",
        "connection": "x-one",
        "x-one": "1",
        "te": "x",
    }
    response = ask(handler, headers=sent)
    CLIENT.cookies.clear()  # as if another client asked
    ask(handler)
    first, second = behind.requests
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.headers["openai-organization"] == "o"
    assert {"x-one", "te"}.isdisjoint(first.headers)
    assert first.headers["host"] in behind.url
    assert (response.headers["x-request-id"], response.headers["set-cookie"]) == ("r1", "a=b")
    assert {"x-hop", "server"}.isdisjoint(response.headers)
    assert "cookie" not in second.headers  # one client's cookies are not sent with another's request


def test_other_paths_pass_as_they_are(base: str, behind: Upstream) -> None:
    async def handler(request: Request) -> Response:
        return Response(f"bad {request.url.path}?{request.url.query}", status_code=207, media_type="text/x-odd")

    behind.handler = handler
    got = CLIENT.get(f"{base}/models/a%2Fb?limit=2")
    assert (got.status_code, got.headers["content-type"]) == (207, "text/x-odd; charset=utf-8")
    assert behind.requests[0].scope["raw_path"] == b"/v1/models/a%2Fb"
    assert got.text.endswith("?limit=2")
    pieces = (piece for piece in [b"bad ", b"audio"])
    assert CLIENT.post(f"{base}/audio/transcriptions", content=pieces).status_code == 207
    assert behind.bodies[1] == b"bad audio"
    assert CLIENT.get(f"{base}/x/..%2f..%2fadmin").status_code == 400
    assert len(behind.requests) == 2


def test_other_paths_can_be_refused(behind: Upstream) -> None:
    behind.handler = saying({"content": "bad"})
    with proxy(behind.url, only_chat=True) as url:
        for refused in (CLIENT.post(f"{url}/responses", json={}), CLIENT.post(f"{url}/models", json={})):
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "only_chat")
        assert behind.requests == []
        assert CLIENT.get(f"{url}/models").status_code == 200
        assert contents(CLIENT.post(f"{url}/chat/completions/", json=asked())) == ["good"]


def test_whoever_forgets_where_the_api_is_gets_told(base: str, behind: Upstream) -> None:
    lost = CLIENT.post(base.removesuffix("/v1") + "/chat/completions", json=asked())
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
    assert "/v1" in lost.json()["error"]["message"]
    assert behind.requests == []


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_an_upstreams_error_goes_on_with_its_body(ask: Callable[..., httpx.Response], status: int) -> None:
    async def handler(_: Request) -> Response:
        return Response(b'{"error": "bad"}', status_code=status, headers={"retry-after": "7", "x-odd": "1"})

    response = ask(handler)
    assert (response.status_code, response.content) == (status, b'{"error": "bad"}')
    assert (response.headers["retry-after"], response.headers["x-odd"]) == ("7", "1")


@pytest.mark.parametrize(
    "body", [b"bad", b"[]", b'{"choices": "bad"}', b'{"choices": [{"text": "bad"}]}', b"[" * 100_000]
)
def test_an_answer_that_cannot_be_read_is_not_let_through_unseen(
    ask: Callable[..., httpx.Response], behind: Upstream, body: bytes
) -> None:
    async def handler(_: Request) -> Response:
        return Response(body, media_type="application/json")

    response = ask(handler)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_cut")
    with proxy(behind.url, on_error="pass_through") as url:
        assert CLIENT.post(f"{url}/chat/completions", json=asked()).content == body


@pytest.mark.parametrize("stream", [False, True])
def test_with_pass_through_a_failed_correction_serves_the_original(behind: Upstream, stream: bool) -> None:
    events = [chunk({"content": "bad"}), chunk(finish="stop"), DONE]
    behind.handler = streaming(*events) if stream else saying({"content": "bad"})
    with proxy(behind.url, on_error="pass_through") as url:
        response = CLIENT.post(f"{url}/chat/completions", json=asked("break it"))
    if not stream:
        assert (contents(response), outcomes(response)) == (["bad"], ["failed"])
        return
    first, last = deltas(response.text)
    assert (first["choices"][0]["delta"], last["choices"][0]["aligner"]["outcome"]) == ({"content": "bad"}, "failed")


def test_an_upstream_that_is_not_there_is_a_502_and_one_that_is_silent_a_504(behind: Upstream) -> None:
    async def silent(_: Request) -> Response:
        await asyncio.sleep(1)
        return Response()

    with proxy("http://127.0.0.1:9/v1") as url:
        gone = CLIENT.post(f"{url}/chat/completions", json=asked())
    assert (gone.status_code, gone.json()["error"]["code"]) == (502, "upstream_unreachable")
    behind.handler = silent
    with proxy(behind.url, upstream_s=0.2) as url:
        late = CLIENT.post(f"{url}/chat/completions", json=asked())
    assert (late.status_code, late.json()["error"]["code"]) == (504, "upstream_timeout")


def test_a_hook_that_fails_disturbs_nobody_and_is_counted(behind: Upstream) -> None:
    def hook(_: Correction) -> None:
        raise RuntimeError("no store")

    behind.handler = saying({"content": "bad"})
    logging.getLogger("aligner_chain.hook").disabled = True
    try:
        with proxy(behind.url, on_correction=hook) as url:
            assert contents(CLIENT.post(f"{url}/chat/completions", json=asked())) == ["good"]
            page = CLIENT.get(url.replace("/v1", "/metrics")).text
    finally:
        logging.getLogger("aligner_chain.hook").disabled = False
    assert "aligner_proxy_on_correction_failures 1.0" in page


def test_health_and_metrics_tell_how_it_does(behind: Upstream) -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 7}
    with proxy(behind.url) as url:
        for handler, question in (
            (saying({"content": "bad"}, usage=usage), "q"),
            (saying({"content": "bad"}), "break"),
        ):
            behind.handler = handler
            CLIENT.post(f"{url}/chat/completions", json=asked(question))
        root = url.removesuffix("/v1")
        assert CLIENT.get(f"{root}/healthz").json() == {"status": "ok"}
        assert CLIENT.get(f"{root}/readyz").json() == {"ready": True, "aligner": "scripted@1", "pair": None}
        page = CLIENT.get(f"{root}/metrics").text
    for line in (
        'aligner_proxy_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        'aligner_proxy_requests_total{route="/v1/chat/completions",status="502"} 1.0',
        'aligner_proxy_corrections_total{outcome="corrected"} 1.0',
        'aligner_proxy_corrections_total{outcome="failed"} 1.0',
        'aligner_proxy_tokens_total{of="upstream_prompt"} 11.0',
        'aligner_proxy_tokens_total{of="upstream_completion"} 7.0',
        "aligner_proxy_upstream_seconds_count 2.0",
        "aligner_proxy_aligner_seconds_count 2.0",
        "aligner_proxy_own_seconds_count 2.0",
        "aligner_proxy_in_flight 0.0",
    ):
        assert line in page


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "127.0.0.1:80", "http:///v1", "http://me:pw@host/v1", "http://host/v1?key=pw"]
)
def test_an_upstream_that_cannot_be_one_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(upstream=url, aligner=Aligner.scripted(better))
    assert "me:pw" not in str(caught.value)


def test_the_function_of_a_hook_is_found_by_its_name() -> None:
    assert function_at("json:dumps") is json.dumps
    assert function_at("logging:Logger.info") is logging.Logger.info
    for wrong in ("json", "json:nothing", "no_such_module:f", "json:__doc__", ":f"):
        with pytest.raises(ConfigurationError, match=r"PYTHONPATH|cannot be called"):
            function_at(wrong)


def test_an_event_that_says_an_error_ends_the_stream(ask: Callable[..., httpx.Response]) -> None:
    error = event({"error": {"message": "overloaded"}})
    response = ask(streaming(chunk({"content": "bad"}), error, chunk({"content": " more"}), DONE))
    assert response.text == error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--upstream", "http://127.0.0.1:9/v1"], "export ALIGNER_MODEL"),
        (["--upstream", "http://127.0.0.1:9/v1", "--on-correction", "nowhere:f"], "PYTHONPATH=."),
        (["--upstream", "nowhere"], "base URL"),
    ],
)
def test_the_command_says_what_it_lacks_before_it_serves(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path))
    assert cli.main(["serve", *options]) == 2
    assert said in capsys.readouterr().err


def test_an_address_that_is_taken_is_said() -> None:
    settings = Settings(upstream="http://127.0.0.1:9/v1", aligner=Aligner.scripted(better))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="--port"):
        serve(settings, port=taken.getsockname()[1])
