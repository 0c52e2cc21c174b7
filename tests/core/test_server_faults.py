"""Servers that fail, are busy, are gone, or are not what they were taken for."""

from __future__ import annotations

import json
import logging
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import by_heart
import pytest
from completions_server import CompletionsServer, Dialect, Fault

from aligner_chain import Aligner, Exchange
from aligner_chain.cli import main
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.server import ServerOptions
from aligner_chain.engines.server.completions import Answer
from aligner_chain.engines.server.endpoints import BREAK_AFTER
from aligner_chain.engines.server.wire import KEY
from aligner_chain.errors import (
    CheckpointError,
    ConfigurationError,
    CorrectionTimeoutError,
    EngineError,
    OverloadedError,
    ServerError,
    ServerMismatchError,
)

ASKED = Exchange.of("Free?", "Yes, it is.")
SECRET = "sk-very-secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    return by_heart.always(tmp_path_factory.mktemp("nay"), make_tokenizer())


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[HuggingFaceEngine]:
    made = HuggingFaceEngine.from_pretrained(folder)
    yield made
    made.close()


@pytest.fixture
def server(engine: HuggingFaceEngine) -> Iterator[CompletionsServer]:
    with CompletionsServer(engine) as made:
        yield made


@pytest.fixture
def other(engine: HuggingFaceEngine) -> Iterator[CompletionsServer]:
    with CompletionsServer(engine) as made:
        yield made


@pytest.fixture
def connect(folder: Path) -> Iterator[Callable[..., Aligner]]:
    """Connects to servers, and forgets what they were asked until then."""
    made = []

    def to(*servers: CompletionsServer, **options: Any) -> Aligner:
        urls = [one.url for one in servers]
        aligner = Aligner.from_server(urls, model="aligner", checkpoint=folder, options=ServerOptions(**options))
        for one in servers:
            one.asked.clear()
        made.append(aligner)
        return aligner

    yield to
    for aligner in made:
        aligner.close()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, retry_after="0"),
        Fault(status=429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
        Fault(status=502),
        Fault(status=503),
        Fault(status=504),
        Fault(cut=True),
    ],
)
def test_what_another_attempt_may_help_is_tried_again(connect: Any, server: CompletionsServer, fault: Fault) -> None:
    aligner = connect(server)
    server.faults += [fault, fault]
    [correction] = aligner.correct([ASKED])
    assert (correction.text, correction.error) == ("No.", None)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 404, 413, 422, 500])
def test_what_no_other_attempt_helps_is_asked_once(connect: Any, server: CompletionsServer, status: int) -> None:
    aligner = connect(server)
    server.faults.append(Fault(status=status, message="it is wrong"))
    [correction] = aligner.correct([ASKED])
    assert isinstance(correction.error, ServerError)
    assert correction.error.status == status
    assert "it is wrong" in str(correction.error)
    assert len(server.asked) == 1
    assert aligner.correct([ASKED])[0].text == "No."


def test_it_gives_up_in_the_end_and_says_what_the_server_said(connect: Any, server: CompletionsServer) -> None:
    aligner = connect(server, retries=2)
    server.always = Fault(status=503, message="loading the model")
    [correction] = aligner.correct([ASKED])
    assert isinstance(correction.error, ServerError)
    assert "loading the model (3 attempts)" in str(correction.error)
    assert len(server.asked) == 3
    assert correction.text == ASKED.answer


def test_it_comes_back_no_sooner_than_the_server_asks(connect: Any, server: CompletionsServer) -> None:
    aligner = connect(server)
    server.faults.append(Fault(status=503, retry_after="20"))
    [correction] = aligner.correct([ASKED], timeout=1)
    assert isinstance(correction.error, CorrectionTimeoutError)
    assert len(server.asked) == 1


def test_a_server_that_asks_to_wait_for_long_is_not_waited_for(connect: Any, server: CompletionsServer) -> None:
    aligner = connect(server)
    server.faults.append(Fault(status=429, retry_after="3600"))
    [correction] = aligner.correct([ASKED])
    assert isinstance(correction.error, OverloadedError)
    assert len(server.asked) == 1


def test_nonsense_is_an_error_that_says_so(connect: Any, server: CompletionsServer) -> None:
    aligner = connect(server)
    server.faults.append(Fault(nonsense=True))
    [correction] = aligner.correct([ASKED])
    assert isinstance(correction.error, ServerError)
    assert "It works!" in str(correction.error)
    assert "/v1" in str(correction.error)


def test_what_is_null_in_an_answer_is_nothing() -> None:
    answer = Answer()
    for said in (
        {"error": None, "choices": [{"text": "Yes", "logprobs": None, "token_ids": [5], "finish_reason": None}]},
        {"choices": [{"text": None, "token_ids": None, "finish_reason": "stop"}], "usage": None},
        {"choices": None, "usage": {"completion_tokens_details": {"accepted_prediction_tokens": 2}}},
    ):
        answer.add(said, "token_ids")
    assert (answer.ids, answer.text, answer.finish, answer.accepted) == ([5], "Yes", "stop", 2)
    with pytest.raises(ServerError, match="broke off: too long"):
        answer.add({"error": {"message": "too long", "code": 400}}, "token_ids")


def test_a_server_that_hangs_is_given_up(connect: Any, server: CompletionsServer) -> None:
    aligner = connect(server, timeout_s=0.3, retries=0)
    server.faults.append(Fault(hang=True))
    [correction] = aligner.correct([ASKED])
    assert isinstance(correction.error, ServerError)
    assert "ReadTimeout" in str(correction.error)


def test_a_stream_that_is_cut_goes_on_where_it_stopped(
    connect: Any, server: CompletionsServer, other: CompletionsServer
) -> None:
    aligner = connect(server, other)
    for one in (server, other):
        one.faults.append(Fault(cut=True, events=2))
    *pieces, last = aligner.stream(ASKED, unchecked=True)
    assert "".join(map(str, pieces)) == last.text == "No."
    first, second, third = sorted(server.asked + other.asked, key=lambda body: len(body["prompt"]))
    assert [len(body["prompt"]) - len(first["prompt"]) for body in (second, third)] == [2, 4]
    assert [first["max_tokens"] - body["max_tokens"] for body in (second, third)] == [2, 4]


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=500), Fault(nonsense=True), Fault(cut=True)])
def test_another_server_takes_over(
    connect: Any, server: CompletionsServer, other: CompletionsServer, fault: Fault
) -> None:
    aligner = connect(server, other)
    server.always = fault
    assert {one.text for one in aligner.correct([ASKED] * 8)} == {"No."}
    assert len(other.asked) == 8


def test_beside_a_server_that_cannot_name_tokens_both_are_asked_for_the_likeliest(
    connect: Any, engine: HuggingFaceEngine, server: CompletionsServer
) -> None:
    with CompletionsServer(engine, dialect=Dialect(stumbles=True)) as drafting:
        can = connect(server, drafting).engine.abilities
        assert (can.named, can.logprobs) == (False, 20)


def test_a_server_killed_under_load_loses_no_request(
    connect: Any, server: CompletionsServer, other: CompletionsServer
) -> None:
    aligner = connect(server, other, concurrency=16)
    exchanges = [Exchange.of(f"Free? {number}", "Yes, it is.") for number in range(120)]
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(aligner.correct, exchanges[start::4]) for start in range(4)]
        while len(server.asked) < 10:
            time.sleep(0.001)
        server.kill()
        corrections = [one for call in running for one in call.result(60)]
    assert len(server.asked) < 120
    assert [one.error for one in corrections if one.error] == []
    assert {one.text for one in corrections} == {"No."}


def test_a_server_that_fails_again_and_again_is_left_alone_and_looked_at_when_it_is_back(
    connect: Any, server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner_chain.engines.server.endpoints.REST_S", 0.5)
    aligner = connect(server, retries=0)
    server.always = Fault(status=503)
    for _ in range(BREAK_AFTER):
        aligner.correct([ASKED])
    asked = len(server.asked)
    [refused] = aligner.correct([ASKED])
    assert isinstance(refused.error, ServerError)
    assert "no more are sent until" in str(refused.error)
    assert len(server.asked) == asked, "nothing was sent"
    server.always = None
    server.seen.clear()
    while aligner.correct([ASKED])[0].error is not None:
        time.sleep(0.02)
    assert "/v1/models" in server.seen, "it was looked at before it was asked"


@pytest.mark.parametrize("outage", [True, False])
def test_a_server_without_the_model_is_left_out_until_it_has_it_again(
    outage: bool,
    connect: Any,
    server: CompletionsServer,
    other: CompletionsServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr("aligner_chain.engines.server.endpoints.REST_S", 0.01)
    aligner = connect(server, other)
    if outage:
        server.always = Fault(status=503)
        assert {one.text for one in aligner.correct([ASKED] * 8)} == {"No."}
    server.always, server.model = None, "another"
    with caplog.at_level(logging.WARNING):
        deadline = time.monotonic() + 20
        while "is asked nothing until" not in caplog.text and time.monotonic() < deadline:
            assert {one.text for one in aligner.correct([ASKED] * 2)} == {"No."}
        assert f"until it serves the model again: {server.url} serves no model 'aligner', but another" in caplog.text
        looks, deadline = server.seen.count("/v1/models"), time.monotonic() + 20
        while server.seen.count("/v1/models") < looks + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.text.count("is asked nothing until") == 1, "it is told once, and not at every look"
    server.model, other.always, answered = "aligner", Fault(status=503), len(server.asked)
    assert {one.text for one in aligner.correct([ASKED] * 2)} == {"No."}
    assert len(server.asked) > answered


def test_a_server_that_does_less_by_now_is_left_out_for_good(
    connect: Any,
    server: CompletionsServer,
    other: CompletionsServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aligner_chain.engines.server.endpoints.REST_S", 0.01)
    aligner = connect(server, other)
    server.always = Fault(status=503)
    assert {one.text for one in aligner.correct([ASKED] * 8)} == {"No."}
    server.always, server.dialect = None, Dialect(prompt_logprobs=False)
    with caplog.at_level(logging.WARNING):
        deadline = time.monotonic() + 20
        while "is not asked any more" not in caplog.text and time.monotonic() < deadline:
            assert {one.text for one in aligner.correct([ASKED] * 2)} == {"No."}
    assert f"{server.url} is not asked any more: {server.url} does less than the other servers" in caplog.text


def test_a_server_that_is_away_at_first_joins_later(
    connect: Any, engine: HuggingFaceEngine, server: CompletionsServer
) -> None:
    late = CompletionsServer(engine)
    port = late.server_port
    late.server_close()
    gone = CompletionsServer.__new__(CompletionsServer)
    gone.server_port, gone.asked = port, []
    aligner = connect(gone, server)
    assert aligner.correct([ASKED])[0].text == "No."
    with CompletionsServer(engine, port=port) as late:
        deadline = time.monotonic() + 20
        while not late.asked and time.monotonic() < deadline:
            assert {one.text for one in aligner.correct([ASKED] * 4)} == {"No."}
        assert late.asked


def test_what_is_in_flight_is_bounded_and_too_much_is_refused(connect: Any, server: CompletionsServer) -> None:
    aligner = connect(server, concurrency=2, max_waiting=3)
    server.faults += [Fault(hang=True)] * 2
    waiting = threading.Thread(target=aligner.correct, args=([ASKED] * 6,))
    waiting.start()
    while len(server.asked) < 2:
        time.sleep(0.01)
    [refused] = aligner.correct([ASKED])
    assert isinstance(refused.error, OverloadedError)
    assert len(server.asked) == 2
    server.always = None
    server.go_on.set()
    waiting.join(60)
    assert not waiting.is_alive()


def test_the_key_is_sent_and_shown_nowhere(
    folder: Path, engine: HuggingFaceEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with CompletionsServer(engine, key=SECRET) as server, caplog.at_level(logging.DEBUG):
        aligner = Aligner.from_server(server.url, "aligner", checkpoint=folder)
        server.faults.append(Fault(status=400, message=f"bad key {SECRET}"))
        [correction] = aligner.correct([ASKED])
        shown = [repr(aligner.engine), repr(aligner.engine.__dict__), repr(correction), str(correction.error)]
        assert server.authorised == {f"Bearer {SECRET}"}
        aligner.close()
        server.key = "another"
        with pytest.raises(ServerError, match="ALIGNER_API_KEY") as refused:
            Aligner.from_server(server.url, "aligner", checkpoint=folder)
    shown += [str(refused.value), caplog.text]
    assert not [text for text in shown if SECRET in text]


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}ü"])
def test_a_key_that_is_none_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ConfigurationError, match=KEY) as refused:
        ServerOptions()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", ["host:8000", "http://user:pass@host/v1", "ftp://host/v1", "http:///v1", []])
def test_what_is_no_address_is_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Aligner.from_server(url, "aligner")
    assert "pass@" not in str(refused.value)


def test_a_wrong_name_of_the_model_is_refused_with_the_names_that_are_served(folder: Path, server: Any) -> None:
    with pytest.raises(ServerMismatchError, match=r"no model 'aligned', but aligner.*--served-model-name"):
        Aligner.from_server(server.url, "aligned", checkpoint=folder)


@pytest.mark.parametrize("tokenize", [True, False])
def test_a_server_with_another_tokenizer_is_refused(
    folder: Path, tmp_path: Path, make_tokenizer: Any, tokenize: bool
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["and", "or", "not", "none"])  # so the ids of our own special tokens are others
    shifted = HuggingFaceEngine.from_pretrained(by_heart.always(tmp_path, tokenizer))
    with (
        CompletionsServer(shifted, dialect=Dialect(tokenize=tokenize)) as server,
        pytest.raises(ServerMismatchError, match="has another tokenizer for" if tokenize else "not with a verdict"),
    ):
        Aligner.from_server(server.url, "aligner", checkpoint=folder)
    shifted.close()


def test_a_checkpoint_that_lacks_its_files_says_which(folder: Path, server: Any, tmp_path: Path) -> None:
    shutil.copy(folder / "aligner.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*save_pretrained"):
        Aligner.from_server(server.url, "aligner", checkpoint=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Aligner.from_server(server.url, "aligner", checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"hf download nobody/nothing --include aligner\.json"):
        Aligner.from_server(server.url, "aligner", checkpoint="nobody/nothing")


def test_nobody_at_the_address(folder: Path, engine: HuggingFaceEngine) -> None:
    with CompletionsServer(engine) as server:
        pass
    with pytest.raises(EngineError, match=r"did not answer \(ConnectError.*finished loading"):
        Aligner.from_server(server.url, "aligner", checkpoint=folder)


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate with")
def test_a_certificate_of_ones_own_is_trusted_where_it_is_named(
    folder: Path, engine: HuggingFaceEngine, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    with CompletionsServer(engine) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        with pytest.raises(ServerError, match="CERTIFICATE_VERIFY_FAILED"):
            Aligner.from_server(url, "aligner", checkpoint=folder)
        aligner = Aligner.from_server(url, "aligner", checkpoint=folder, options=ServerOptions(tls=certificate))
        assert aligner.correct([ASKED])[0].text == "No."
        aligner.close()
    with pytest.raises(ConfigurationError, match="PEM"):
        Aligner.from_server(url, "aligner", checkpoint=folder, options=ServerOptions(tls=tmp_path / "none.pem"))


def test_serve_check_tells_line_by_line(folder: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-check", server.url, "--model", "aligner", "--checkpoint", str(folder)]) == 0
    told = {line[:27].strip(): line[28:] for line in capsys.readouterr().out.splitlines()}
    assert list(told) == [
        *("reachable", "model", "checkpoint", "tokenizer and template", "window", "takes token ids", "tells token ids"),
        *("log-probabilities", "prompt log-probabilities", "streaming", "reads along", "a correction"),
    ]
    assert told["window"] == "512 tokens"
    assert told["a correction"].startswith("corrected in ")


def test_serve_check_ends_at_the_first_problem(folder: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-check", server.url, "--model", "aligner", "--json"]) == 1
    *found, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [one["name"] for one in found] == ["reachable", "model"]
    assert (last["name"], last["ok"]) == ("problem", False)
    assert 'checkpoint="folder-or-hub-id"' in last["told"]
