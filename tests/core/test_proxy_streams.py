"""Streams through the proxy, frame by frame: what waits for the checks, what does not, and how one ends that broke."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from proxying import CLIENT, DONE, Upstream, asked, better, chunk, completion, deltas, event, proxy, saying, streaming
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from aligner_chain import Aligner, Correction, Exchange, Policy
from aligner_chain.proxy.events import Decoder

ROLE = chunk({"role": "assistant", "content": ""})
THOUGHT = chunk({"reasoning_content": "bad thought"})
END = chunk(finish="stop")
USAGE = event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 9}})
CALLS = [
    chunk({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"bad": '}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
]


@pytest.fixture(scope="module")
def told() -> list[Correction]:
    return []


@pytest.fixture(scope="module")
def base(behind: Upstream, told: list[Correction]) -> Iterator[str]:
    with proxy(behind.url, on_correction=told.append) as url:
        yield url


@pytest.fixture
def ask(behind: Upstream, base: str, told: list[Correction]) -> Callable[..., str]:
    told.clear()

    def asking(*events: str, cut: bool = False, **fields: Any) -> str:
        behind.handler = streaming(*events, then=RuntimeError("cut") if cut else None)
        body = asked(**{"stream": True, **fields})
        return CLIENT.post(f"{base}/chat/completions", json=body).text

    return asking


def split(text: str) -> tuple[list[Any], list[Any]]:
    """The objects in a stream, and what was told in them of corrections."""
    objects = list(deltas(text))
    notes = [choice.pop("aligner") for one in objects for choice in one.get("choices", []) if "aligner" in choice]
    return objects, notes


def said(objects: list[Any], index: int = 0) -> str:
    choices = [choice for one in objects for choice in one["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_an_approved_answer_comes_in_the_very_frames_of_the_upstream(ask: Callable[..., str]) -> None:
    events = [
        ": OPENROUTER PROCESSING\n\n",
        ROLE,
        THOUGHT,
        chunk({"content": "fi"}, logprobs={"content": [{"token": "fi"}]}),
        chunk({"content": "ne"}),
        END,
        USAGE,
        DONE,
    ]
    text = ask(*events)
    objects, [note] = split(text)
    assert note["outcome"] == "approved"
    assert text.split("\n\n")[:5] == "".join(events).split("\n\n")[:5]
    assert objects == list(deltas("".join(events)))
    assert text.endswith(USAGE + DONE)


def test_a_correction_takes_the_place_of_the_text_alone(ask: Callable[..., str], told: list[Correction]) -> None:
    both = {"reasoning": "so", "content": "d"}
    objects, [note] = split(
        ask(
            ROLE,
            THOUGHT,
            chunk({"content": "ba"}, logprobs={"content": [1]}),
            chunk(both),
            chunk({"content": "!"}),
            END,
            DONE,
        )
    )
    assert note["outcome"] == "corrected"
    assert note["dropped"] == ["logprobs"]
    expected = [
        ROLE,
        THOUGHT,
        chunk({"content": "good!"}, logprobs=None),
        chunk({"reasoning": "so"}),
        END,
    ]
    assert objects == list(deltas("".join(expected)))
    assert told[0].exchange.answer == "bad!"


SOURCES = chunk({"annotations": [{"type": "url_citation", "url_citation": {"end_index": 3, "title": "bad"}}]})
HALF = chunk({"content": ""}, logprobs={"content": [{"token": "\\xf0"}]})
"""A token that is half of a character: no text yet, and what is known of the token."""


@pytest.mark.parametrize(
    ("before", "text", "after", "dropped"),
    [
        pytest.param([], chunk({"content": "bad"}), [SOURCES], ["annotations"], id="sources behind the text"),
        pytest.param([HALF], chunk({"content": "bad"}), [], ["logprobs"], id="a token without text"),
        pytest.param([], chunk({"content": "bad"}, token_ids=[1]), [], ["token_ids"], id="ids of tokens"),
        pytest.param(
            [],
            chunk({"content": "bad"}, message={"role": "assistant", "content": "bad"}),
            [chunk(message={"role": "assistant", "content": "bad"})],
            ["message"],
            id="all of the text once more",
        ),
    ],
)
def test_what_describes_the_text_waits_with_it_and_goes_with_it(
    ask: Callable[..., str], before: list[str], text: str, after: list[str], dropped: list[str]
) -> None:
    objects, [note] = split(raw := ask(ROLE, *before, text, *after, END, DONE))
    assert (note["outcome"], note["dropped"]) == ("corrected", dropped)
    assert '"bad"' not in raw
    assert "xf0" not in raw
    saying = chunk({"content": "good"}, **{name: None for name in dropped if name in ("logprobs", "token_ids")})
    expected = [chunk({"content": "good"}) if before else saying]
    assert objects == list(deltas("".join([ROLE, *expected, END])))
    fine = [event.replace('"bad"', '"fine"') for event in (ROLE, *before, text, *after, END)]
    assert split(ask(*fine, DONE))[0] == list(deltas("".join(fine)))


def test_what_is_known_of_the_tokens_of_a_thought_does_not_wait(ask: Callable[..., str]) -> None:
    thought = chunk({"reasoning_content": "bad"}, logprobs={"content": [{"token": "bad"}]})
    objects, _ = split(ask(ROLE, thought, chunk({"content": "bad"}), END, DONE))
    assert objects == list(deltas("".join([ROLE, thought, chunk({"content": "good"}), END])))


def test_whose_turn_it_is_is_said_whatever_goes(ask: Callable[..., str]) -> None:
    first = chunk({"role": "assistant", "content": ""}, message={"role": "assistant", "content": ""})
    objects, _ = split(ask(first, chunk({"content": "bad"}), END, DONE))
    assert objects == list(deltas(chunk({"role": "assistant"}) + chunk({"content": "good"}) + END))


def test_the_halves_of_a_character_are_one_in_the_record(ask: Callable[..., str], told: list[Correction]) -> None:
    """An upstream that cuts its text between the two units of UTF-16."""
    assert said(split(ask(chunk({"content": "bad \ud83d"}), chunk({"content": "\ude00"}), END, DONE))[0]) == "good 😀"
    assert told[0].exchange.answer == "bad 😀"
    ask(chunk({"content": "bad \ud83d"}), chunk({"content": " x"}), END, DONE)
    assert told[1].exchange.answer == "bad \ud83d x"  # a half that stays alone is what the upstream said


def test_no_text_goes_out_before_it_was_checked(behind: Upstream) -> None:
    allowed = threading.Event()

    def script(exchange: Exchange) -> str:
        if exchange.question == "how?":
            assert allowed.wait(20)
        return better(exchange)

    behind.handler = streaming(ROLE, THOUGHT, chunk({"content": "bad"}), END, DONE)
    with (
        proxy(behind.url, aligner=Aligner.scripted(script), keep_alive_s=0.05) as url,
        CLIENT.stream("POST", f"{url}/chat/completions", json=asked(stream=True)) as response,
    ):
        lines = response.iter_lines()
        before = ""
        while before.count(": keep-alive") < 3:
            before += next(lines) + "\n"
        allowed.set()
        after = "\n".join(lines)
    assert split(before)[0] == list(deltas(ROLE + THOUGHT))
    assert "good" in after
    assert '"bad"' not in after


def test_a_tool_call_passes_as_it_comes_and_so_does_what_was_said_before(behind: Upstream, base: str) -> None:
    seen = threading.Event()

    async def pieces() -> AsyncIterator[str]:
        for one in (ROLE, chunk({"content": "a bad plan"}), *CALLS[:2]):
            yield one
        while not seen.is_set():  # noqa: ASYNC110  It is set by another thread.
            await asyncio.sleep(0.01)
        for one in (CALLS[2], chunk(finish="tool_calls"), DONE):
            yield one

    async def handler(_: Request) -> Response:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    behind.handler = handler
    with CLIENT.stream("POST", f"{base}/chat/completions", json=asked(stream=True)) as response:
        lines, text = response.iter_lines(), ""
        while '{\\"bad\\": ' not in text:
            text += next(lines) + "\n"
        seen.set()
        text += "\n".join(lines)
    objects, [note] = split(text)
    assert note["reason"] == "the answer calls a tool"
    assert objects == list(
        deltas("".join([ROLE, chunk({"content": "a bad plan"}), *CALLS, chunk(finish="tool_calls")]))
    )


@pytest.mark.parametrize(
    ("events", "fields", "reason"),
    [
        ([chunk({"content": "bad"}), chunk({"refusal": "bad"})], {}, "the answer is a refusal"),
        ([chunk({"audio": {"transcript": "bad"}})], {}, "the answer is spoken"),
        ([chunk({"content": '{"bad'}), chunk({"content": '": 1}'})], {}, "the answer is structured output"),
        ([chunk({"content": "bad"})], {"response_format": {"type": "json_object"}}, "the answer is structured output"),
        ([chunk({"function_call": {"name": "bad", "arguments": ""}})], {}, "the answer calls a tool"),
        ([], {}, "the answer is empty"),
    ],
)
def test_what_is_not_for_an_aligner_passes(
    ask: Callable[..., str], events: list[str], fields: dict[str, Any], reason: str, told: list[Correction]
) -> None:
    objects, [note] = split(ask(ROLE, *events, END, USAGE, DONE, **fields))
    assert (note["outcome"], note["reason"]) == ("skipped", reason)
    assert objects == list(deltas("".join([ROLE, *events, END, USAGE])))
    assert [one.outcome for one in told] == ["skipped"]


def test_choices_are_corrected_each_for_itself(ask: Callable[..., str]) -> None:
    two = json.loads(chunk({"content": "ba"})[6:])
    two["choices"].append({"index": 1, "delta": {"content": "fi"}, "finish_reason": None})
    events = [
        event(two),
        chunk({"content": "ne"}, index=1),
        chunk({"content": "d"}),
        CALLS[0].replace('"index": 0, "d', '"index": 2, "d'),
    ]
    ends = [chunk(finish="stop", index=index) for index in (1, 0, 2)]
    objects, notes = split(ask(*events, *ends, USAGE, DONE, n=3))
    assert (said(objects, 0), said(objects, 1)) == ("good", "fine")
    assert [note["outcome"] for note in notes] == ["corrected", "approved", "skipped"]
    assert objects[-1]["usage"] == {"total_tokens": 9}


def test_parts_of_a_content_are_read_too(ask: Callable[..., str]) -> None:
    thinking = {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "bad"}]}]}
    text = {"content": [{"type": "text", "text": "bad"}]}
    objects, [note] = split(ask(chunk(thinking), chunk(text), chunk({"content": "!"}), END, DONE))
    assert note["outcome"] == "corrected"
    assert objects == list(deltas(chunk(thinking) + chunk({"content": [{"type": "text", "text": "good!"}]}) + END))
    objects, [note] = split(ask(chunk(text), chunk(thinking), chunk(text), END, DONE))
    assert note["reason"] == "the text stands on both sides of other content"
    assert objects == list(deltas(chunk(text) + chunk(thinking) + chunk(text) + END))


@pytest.mark.parametrize(
    ("events", "cut", "code"),
    [
        ([ROLE, chunk({"content": "bad"})], True, "upstream_unreachable"),
        ([ROLE, chunk({"content": "bad"})], False, "upstream_cut"),
        ([ROLE, chunk({"content": "bad"}), chunk({"content": "x"}, index=1), END], False, "upstream_cut"),
        ([], False, "upstream_cut"),
        ([ROLE, chunk({"content": "bad"}), "data: {bad\n\n"], False, "upstream_cut"),
        ([ROLE, chunk({"content": "bad"}), "data: [1]\n\n"], False, "upstream_cut"),
        ([ROLE, chunk({"content": "bad"}), event({"choices": ["bad"]})], False, "upstream_cut"),
        ([ROLE, chunk({"content": "bad"}), chunk({"content": " worse"})[:-20]], False, "upstream_cut"),
        (
            [ROLE, chunk({"content": "bad"}), 'id: 7\nevent:error\ndata: {"error": {"code": "own"}}\n\n', DONE],
            False,
            "own",
        ),
    ],
)
def test_an_upstream_that_breaks_off_is_an_error_and_nothing_half_corrected(
    ask: Callable[..., str], events: list[str], cut: bool, code: str, told: list[Correction]
) -> None:
    text = ask(*events, cut=cut)
    *before, last = deltas(text)
    assert last["error"]["code"] == code
    assert before == list(deltas(ROLE))[: len(before)]
    assert "[DONE]" not in text
    assert told == []


def test_an_error_that_is_told_by_its_name_alone_is_one(ask: Callable[..., str], told: list[Correction]) -> None:
    error = 'id: 7\nevent:error\ndata: {"message": "no"}\n\n'
    text = ask(ROLE, chunk({"content": "bad"}), error, DONE)
    assert text == ROLE + error
    assert told == []


def test_an_end_with_something_behind_it_is_one_as_for_the_clients(ask: Callable[..., str]) -> None:
    assert said(split(ask(chunk({"content": "bad"}), "data: [DONE] \n\n"))[0]) == "good"


def test_an_upstream_that_forgets_to_say_done_is_whole(ask: Callable[..., str]) -> None:
    text = ask(ROLE, chunk({"content": "bad"}), END)
    assert said(split(text)[0]) == "good"
    assert text.endswith(DONE)


def test_a_stream_leaves_its_connection_to_the_next(ask: Callable[..., str], behind: Upstream) -> None:
    behind.requests.clear()
    for _ in range(3):
        ask(ROLE, chunk({"content": "bad"}), END, DONE)
    assert len({request.client.port for request in behind.requests if request.client}) == 1


def test_a_stream_that_was_not_asked_for_is_corrected_and_so_is_an_answer_where_one_was(
    ask: Callable[..., str], behind: Upstream, base: str
) -> None:
    async def whole(_: Request) -> Response:
        return Response(json.dumps(completion({"content": "bad"})), media_type="application/json")

    behind.handler = whole
    answer = CLIENT.post(f"{base}/chat/completions", json=asked(stream=True)).json()
    assert answer["choices"][0]["message"]["content"] == "good"
    assert said(split(ask(chunk({"content": "bad"}), END, DONE, stream=False))[0]) == "good"


def test_a_request_that_takes_too_long_ends_with_an_error_event(behind: Upstream) -> None:
    from aligner_chain.proxy.settings import Limits

    behind.handler = streaming(*[ROLE] * 20, wait=0.1)
    with proxy(behind.url, limits=Limits(request_s=0.5)) as url:
        text = CLIENT.post(f"{url}/chat/completions", json=asked(stream=True)).text
    assert deltas(text)[-1]["error"]["code"] == "request_timeout"


def test_the_aligner_reads_while_the_upstream_writes(behind: Upstream, playing: Any) -> None:
    answer = "You may return it within 90 days, and we pay for it. Ask us where to."
    aligner = playing("You may return it within 30 days.", overlap=True)
    aligner.engine.beats.release(10_000)
    read_along = threading.Event()

    async def pieces() -> AsyncIterator[str]:
        for start in range(0, len(answer), 4):
            yield chunk({"content": answer[start : start + 4]})
        while len(aligner.engine.fed) < 2:  # noqa: ASYNC110  The engine has no event to wait for.
            await asyncio.sleep(0.01)
        read_along.set()
        yield END + DONE

    async def handler(_: Request) -> Response:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    behind.handler = handler
    with proxy(behind.url, aligner=aligner) as url:
        text = CLIENT.post(f"{url}/chat/completions", json=asked("how long?", stream=True)).text
        assert read_along.is_set()
        assert said(split(text)[0]) == "You may return it within 30 days."
        behind.handler = streaming(chunk({"content": answer}), CALLS[0], chunk(finish="tool_calls"), DONE)
        CLIENT.post(f"{url}/chat/completions", json=asked("how long?", stream=True))
        behind.handler = streaming(chunk({"content": answer}), then=RuntimeError("cut"))
        CLIENT.post(f"{url}/chat/completions", json=asked("how long?", stream=True))
    assert [ticket.cancelled for ticket in aligner.engine.opened] == [False, True, True]


def test_a_client_that_goes_away_ends_the_work_of_upstream_and_aligner(behind: Upstream, playing: Any) -> None:
    aligner = playing("good", overlap=True)
    aligner.engine.beats.release(100)  # for the warming up
    ended = threading.Event()

    async def pieces() -> AsyncIterator[str]:
        try:
            for _ in range(2000):
                yield chunk({"content": "some forty characters of an answer to it. "})
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async def handler(_: Request) -> Response:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    behind.handler = handler
    with proxy(behind.url, aligner=aligner) as url:
        with CLIENT.stream("POST", f"{url}/chat/completions", json=asked(stream=True)) as response:
            while not aligner.engine.opened:
                assert response.status_code == 200
        assert ended.wait(20)
        while not aligner.engine.opened[0].cancelled:
            pass


def test_events_are_read_wherever_their_bytes_are_cut() -> None:
    wire = (
        ': hello\r\n\r\ndata: {"a": "x\u2028y é"}\n\n\nevent: error\ndata:one\ndata: two\n\nid: 7\n\ndata: cut'.encode()
    )
    expected = [(": hello", ""), ('data: {"a": "x\u2028y é"}',) * 1 + ('{"a": "x\u2028y é"}',)]
    expected += [("event: error\ndata:one\ndata: two", "one\ntwo"), ("id: 7", "")]
    for size in range(1, len(wire) + 1):
        decoder = Decoder()
        pieces = [wire[start : start + size] for start in range(0, len(wire), size)]
        assert [(one.raw, one.data) for piece in pieces for one in decoder.feed(piece)] == expected
    assert [one.data for one in Decoder().feed(b"data: old\r\rdata: new\r")] == ["old"]


def test_what_an_upstream_thinks_aloud_stays_as_it_is(behind: Upstream) -> None:
    """In the first frames it thinks of what is bad, which is not for the Aligner."""
    events = [chunk({"content": text}) for text in ("<think>\nit is ", "bad\n</thi", "nk>\n\nThat is", " bad.")]
    with proxy(behind.url, policy=Policy(thoughts=True)) as url:
        behind.handler = streaming(ROLE, *events, END, DONE)
        stream = CLIENT.post(f"{url}/chat/completions", json=asked(stream=True)).text
        behind.handler = saying({"role": "assistant", "content": "<think>\nit is bad\n</think>\n\nThat is bad."})
        whole = CLIENT.post(f"{url}/chat/completions", json=asked()).json()["choices"][0]
    objects, [note] = split(stream)
    assert said(objects) == whole["message"]["content"] == "<think>\nit is bad\n</think>\n\nThat is good."
    assert note["outcome"] == whole["aligner"]["outcome"] == "corrected"
