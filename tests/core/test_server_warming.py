"""What goes ahead of a prompt that still grows, into a server's prefix cache: what, when, where to, and that nothing hangs on it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import by_heart
import pytest
from completions_server import CompletionsServer, Dialect, Fault

from aligner_chain import Aligner, Exchange, Turn
from aligner_chain.engines.base import Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.server import ServerOptions
from aligner_chain.engines.server.endpoints import BREAK_AFTER, STAY, Endpoints
from aligner_chain.engines.server.warming import FAILED, LEAST, SENT
from aligner_chain.errors import (
    CapabilityError,
    ConfigurationError,
    ContextOverflowError,
    EngineError,
    OverloadedError,
)
from aligner_chain.session import Session
from aligner_chain.telemetry import counted

BLOCK, EVERY = 16, 128
TURNS = (Turn(role="user", text="May I return it? " * 10),)
ANSWER = "You may return it within 90 days, and we pay for it. " * 12  # every character is a token
WHOLE = Exchange(turns=TURNS, answer=ANSWER)
SHORT = Exchange.of("Free?", "Yes, it is.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    return by_heart.always(tmp_path_factory.mktemp("nay"), make_tokenizer(), window=2048)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[HuggingFaceEngine]:
    made = HuggingFaceEngine.from_pretrained(folder)
    yield made
    made.close()


@pytest.fixture
def serve(engine: HuggingFaceEngine, folder: Path) -> Iterator[Callable[..., tuple[Aligner, list[CompletionsServer]]]]:
    """Starts servers with prefix caches of these blocks, and connects to them."""
    with ExitStack() as stack:

        def start(*blocks: int | None, **options: Any) -> tuple[Aligner, list[CompletionsServer]]:
            servers = [
                stack.enter_context(CompletionsServer(engine, dialect=Dialect(prefix_block=block)))
                for block in blocks or (BLOCK,)
            ]
            aligner = Aligner.from_server(
                [one.url for one in servers],
                model="aligner",
                checkpoint=folder,
                options=ServerOptions(**{"warm_every": EVERY, **options}),
            )
            stack.callback(aligner.close)
            stack.callback(lambda: [one.go_on.set() for one in servers])
            for one in servers:
                one.asked.clear()
            return aligner, servers

        yield start


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def heard(aligner: Aligner) -> None:
    """Waits until the engine has heard of all that was fed, and no server is asked anything."""
    engine: Any = aligner.engine
    done = threading.Event()
    engine._loop.call_soon_threadsafe(done.set)  # behind what was fed
    assert done.wait(30)
    until(lambda: not engine._warming._running)


def fed(aligner: Aligner, session: Session, text: str = ANSWER) -> Session:
    heard(aligner)
    for place in range(0, len(text), 40):
        session.feed(text[place : place + 40])
        heard(aligner)
    return session


# What is sent, and when


def test_the_prompt_goes_ahead_in_whole_blocks_and_the_correction_is_the_same(serve: Any) -> None:
    aligner, [server] = serve()
    [expected] = aligner.correct([WHOLE])
    [whole] = [body["prompt"] for body in server.asked]
    server.asked.clear()
    correction = fed(aligner, aligner.begin(TURNS)).finish()
    assert (correction.text, correction.outcome) == (expected.text, expected.outcome) == ("No.", "corrected")
    assert correction.scores == pytest.approx(expected.scores, abs=1e-6)
    *ahead, last = server.asked
    assert last["prompt"] == whole
    lengths = [len(body["prompt"]) for body in ahead]
    assert lengths[0] == len(TURNS[0].text) // BLOCK * BLOCK  # the question, before any of the answer
    steps = [after - before for before, after in pairwise(lengths)]
    assert len(steps) == len(ANSWER) // EVERY
    assert all(EVERY <= step < EVERY + 64 and step % BLOCK == 0 for step in steps)
    assert len(whole) - lengths[-1] < EVERY + 64
    for body in ahead:
        assert body["prompt"] == whole[: len(body["prompt"])]
        assert body["max_tokens"] == 1
        assert not {"logprobs", "prompt_logprobs", "stream", "prediction"} & body.keys()


async def test_every_way_to_end_a_session_sends_the_whole_prompt_once(serve: Any) -> None:
    aligner, [server] = serve()
    expected = aligner.correct([WHOLE])[0].text
    ends = [
        fed(aligner, aligner.begin(TURNS)).finish().text,
        (await fed(aligner, aligner.begin(TURNS)).afinish()).text,
        "".join(map(str, list(fed(aligner, aligner.begin(TURNS)).stream(unchecked=True))[:-1])),
        "".join([str(one) async for one in fed(aligner, aligner.begin(TURNS)).astream(unchecked=True)][:-1]),
    ]
    assert ends == [expected] * 4
    assert sum(body["max_tokens"] > 1 for body in server.asked) == 1 + 4
    assert sum(bool(body.get("stream")) for body in server.asked) == 2


def test_what_is_short_is_not_worth_a_request(serve: Any) -> None:
    aligner, [server] = serve()
    fed(aligner, aligner.begin(SHORT.turns), "x" * (LEAST - 30)).finish()
    assert len(server.asked) == 1


def test_no_less_than_a_block_is_sent(serve: Any) -> None:
    aligner, [server] = serve(256)
    fed(aligner, aligner.begin(TURNS)).cancel()
    assert [len(body["prompt"]) for body in server.asked] == [256, 512, 768]


@pytest.mark.parametrize(
    ("blocks", "options", "reads_along"),
    [
        ((BLOCK,), {}, True),
        ((BLOCK,), {"warm_every": 0}, False),
        ((BLOCK,), {"prefix_block": 0}, False),
        ((0,), {}, False),
        ((None,), {}, False),
        ((None,), {"prefix_block": 16}, True),
        ((BLOCK, 128), {}, True),
        ((BLOCK, None), {}, False),
    ],
    ids=["cache", "off", "told-none", "no-cache", "silent", "silent-but-known", "two", "one-of-two"],
)
def test_it_reads_along_where_a_prefix_cache_is_known_of(
    serve: Any, blocks: tuple[int | None, ...], options: dict[str, int], reads_along: bool
) -> None:
    aligner, servers = serve(*blocks, **options)
    assert aligner.engine.capabilities.overlap is reads_along
    assert fed(aligner, aligner.begin(TURNS)).finish().text == "No."
    assert (sum(len(one.asked) for one in servers) > 1) is reads_along
    if not reads_along:
        with pytest.raises(CapabilityError, match="prefix_block=16"):
            aligner.engine.open(Request(key="", prompt=(1,) * 99))


@pytest.mark.parametrize("wrong", [{"warm_every": -1}, {"prefix_block": -1}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="not below"):
        ServerOptions(**wrong)


# Nothing hangs on it


FAULTS = [Fault(status=500), Fault(status=429, retry_after="60"), Fault(nonsense=True), Fault(cut=True)]


@pytest.mark.parametrize("fault", FAULTS, ids=["error", "busy", "nonsense", "cut"])
def test_what_fails_is_dropped_and_counted(serve: Any, fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    aligner, [server] = serve()
    sent, failed = counted(SENT), counted(FAILED)
    with caplog.at_level(logging.DEBUG, "aligner_chain"):
        for _ in range(BREAK_AFTER + 1):  # so often in a row that a server is left alone
            server.faults.append(fault)
            assert fed(aligner, aligner.begin(TURNS)).finish().text == "No."
    assert len(server.asked) == 2 * (BREAK_AFTER + 1), "after a failure a prompt is not sent ahead again"
    assert (counted(SENT) - sent, counted(FAILED) - failed) == (BREAK_AFTER + 1,) * 2
    told = [record for record in caplog.records if "read ahead" in record.message]
    assert [record.levelno for record in told] == [logging.DEBUG] * (BREAK_AFTER + 1)
    assert "return" not in caplog.text


def test_one_that_hangs_is_not_waited_for_and_is_the_only_one_of_its_prompt(serve: Any) -> None:
    aligner, [server] = serve()
    server.faults.append(Fault(hang=True))
    session = aligner.begin(TURNS)
    until(lambda: server.asked)
    for place in range(0, len(ANSWER), 40):
        session.feed(ANSWER[place : place + 40])
    assert session.finish(timeout=30).text == "No."
    assert len(server.asked) == 2
    aligner.close()  # nor does the end of the engine wait for it
    assert not server.go_on.is_set()


def test_nothing_is_sent_while_the_servers_have_enough_to_do(serve: Any) -> None:
    aligner, [server] = serve(concurrency=1)
    server.faults.append(Fault(hang=True))
    other = threading.Thread(target=aligner.correct, args=([SHORT],))
    other.start()
    until(lambda: server.asked)
    session = aligner.begin(TURNS)
    heard(aligner)
    assert len(server.asked) == 1
    session.cancel()
    server.go_on.set()
    other.join(30)


def test_what_is_sent_counts_as_well(serve: Any) -> None:
    aligner, [server] = serve(concurrency=2)
    server.faults += [Fault(hang=True)] * 3
    sessions = [aligner.begin(TURNS) for _ in range(3)]
    until(lambda: len(server.asked) == 2)
    threading.Event().wait(0.05)
    assert len(server.asked) == 2
    server.faults.clear()
    assert sessions[2].finish(timeout=30).outcome == "skipped"  # it has no answer
    assert aligner.correct([SHORT], timeout=30)[0].text == "No.", "a correction does not wait for it"


def test_a_prompt_that_is_refused_at_its_end_says_why(serve: Any) -> None:
    aligner, [server] = serve(concurrency=1, max_waiting=1)
    sessions = [fed(aligner, aligner.begin(TURNS), "x" * 40) for _ in range(2)]
    server.faults.append(Fault(hang=True))
    threads = [threading.Thread(target=aligner.correct, args=([SHORT],)) for _ in range(2)]
    server.asked.clear()
    for thread in threads:
        thread.start()
        until(lambda: server.asked)
    until(lambda: len(aligner.engine._waiting))
    refused = sessions[0].finish()
    assert isinstance(refused.error, OverloadedError)
    server.go_on.set()
    for thread in threads:
        thread.join(30)
    assert sessions[1].finish().text == "No."
    overflowing = aligner.engine.open(Request(key="", prompt=(1,) * 99))
    overflowing.seal(Request(key="", prompt=(1,) * 99, max_new=9999))
    with pytest.raises(ContextOverflowError, match="window holds 2048"):
        overflowing.result(30)
    lacking = aligner.engine.open(Request(key="", prompt=(1,) * 99))
    lacking.seal(Request(key="", prompt=(1,) * 99, max_new=1, stop=("x",)))
    with pytest.raises(CapabilityError, match="stop"):
        lacking.result(30)


def test_an_engine_that_is_closed_meanwhile_fails_the_answer_and_nothing_else(serve: Any) -> None:
    aligner, _ = serve()
    session = fed(aligner, aligner.begin(TURNS), ANSWER[:100])
    ticket = aligner.engine.open(Request(key="", prompt=(1,) * 99))
    aligner.close()
    with pytest.raises(EngineError, match="closed"):
        ticket.result(0)
    session.feed(ANSWER[100:])
    correction = session.finish()
    assert isinstance(correction.error, EngineError)
    assert "closed" in str(correction.error)
    session.cancel()


def test_whoever_does_not_finish_leaves_nothing_behind(serve: Any) -> None:
    aligner, [server] = serve()
    server.faults.append(Fault(hang=True))
    session = aligner.begin(TURNS)
    until(lambda: server.asked)
    session.cancel()
    heard(aligner)
    session.feed(ANSWER)
    heard(aligner)
    del session
    assert len(server.asked) == 1
    assert not aligner.engine._warming._growing


# Where to


def test_the_correction_goes_where_its_beginning_was_read(serve: Any) -> None:
    aligner, servers = serve(BLOCK, BLOCK)
    for _ in range(8):
        assert fed(aligner, aligner.begin(TURNS)).finish().text == "No."
        [(used, unused)] = [(one.asked, other.asked) for one, other in (servers, servers[::-1]) if one.asked]
        assert len(used) > 2
        assert not unused
        used.clear()


def test_another_server_takes_over_from_the_one_that_read_the_beginning(serve: Any) -> None:
    aligner, servers = serve(BLOCK, BLOCK, retries=1)
    session = fed(aligner, aligner.begin(TURNS), ANSWER[:200])
    [gone] = [one for one in servers if one.asked]
    gone.kill()
    assert session.finish().text == "No."


def test_a_server_with_much_more_to_do_is_left_for_the_freest() -> None:
    endpoints = Endpoints(["http://a", "http://b"], ServerOptions(), check=None)  # type: ignore[arg-type]
    one, other = endpoints.all
    one.running = STAY
    assert [endpoints.freest(one) for _ in range(9)] == [one] * 9
    one.running += 1
    assert endpoints.freest(one) is other
    other.away = True
    assert endpoints.freest(other) is one
    one.away = True
    assert endpoints.freest() is None
