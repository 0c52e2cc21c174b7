"""What waits for an engine: each caller in turn, and no more than there is room for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from exactness import Vocabulary, greedy, random_model

from aligner_chain.engines.base import Request, Ticket
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.queueing import Waiting
from aligner_chain.engines.rows import Row
from aligner_chain.errors import OverloadedError


def rows(*keys: str) -> list[Row]:
    return [Row(Ticket(Request(key=key, prompt=(1,)))) for key in keys]


def keys(of: list[Row]) -> str:
    return "".join(row.ticket.request.key for row in of)


def test_callers_take_turns() -> None:
    waiting = Waiting(limit=100)
    for call in ("abcd", "1", "xy"):
        waiting.add(rows(*call))
    assert len(waiting) == 7
    taken = [waiting.take() for _ in range(3)]
    waiting.put_back(taken[:1])
    assert keys([*taken, *(waiting.take() for _ in range(5))]) == "a1x" + "a" + "bycd"
    assert not waiting


def test_rows_can_be_taken_out_of_the_middle() -> None:
    waiting = Waiting(limit=100)
    waiting.add(rows(*"abc"))
    waiting.add(rows(*"x"))
    chosen = [row for row in waiting.all() if row.ticket.request.key in "bx"]
    waiting.remove(chosen)
    assert keys(waiting.all()) == "ac"


def test_one_call_may_bring_any_number_but_not_on_top_of_others() -> None:
    waiting = Waiting(limit=3)
    waiting.add(rows(*"abcdef"))
    with pytest.raises(OverloadedError, match=r"6 requests wait already.*takes 3.*max_waiting="):
        waiting.add(rows("x"))
    while waiting:
        waiting.take()
    waiting.add(rows(*"ab"))
    waiting.add(rows("c"))


def test_the_time_in_the_queue_counts_and_the_time_of_reading_along_does_not() -> None:
    waited = Row(Ticket(Request(key="", prompt=(1,), deadline_s=5.0)))
    submitted = waited.deadline
    waited.start()  # as when it is admitted
    assert waited.deadline == submitted
    ticket = Ticket(Request(key=""), sealed=False)
    reading = Row(ticket)
    assert reading.deadline == math.inf
    ticket.seal(Request(key="", prompt=(1,), deadline_s=5.0))
    reading.start()
    assert submitted < reading.deadline < math.inf


def test_rows_that_read_along_give_way_where_that_makes_room() -> None:
    model = random_model("Llama")
    engine = HuggingFaceEngine(model, Vocabulary(), max_tokens=70)
    reading = engine.open(Request(key="", prompt=tuple(range(2, 52))))
    prompt = tuple(range(2, 42))
    [ticket] = engine.submit([Request(key="", prompt=prompt, max_new=10)])
    assert ticket.result(30).ids == greedy(model, prompt, 10)
    reading.seal(Request(key="", prompt=tuple(range(2, 60)), max_new=10))
    assert reading.result(30).ids == greedy(model, range(2, 60), 10)
    engine.close()


def test_memory_bounds_the_rows_that_run_together() -> None:
    model = random_model("Llama")
    engine = HuggingFaceEngine(model, Vocabulary(), max_tokens=60)
    running: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: running.append(len(kwargs["logits_to_keep"])), with_kwargs=True
    )
    asked = [Request(key=str(at), prompt=tuple(range(2 + at, 12 + at)), max_new=10) for at in range(7)]
    texts = [ticket.result(30).ids for ticket in engine.submit(asked)]
    # A row that could never fit runs alone.
    [long] = engine.submit([Request(key="", prompt=tuple(range(2, 62)), max_new=10)])
    alone = long.result(30).ids
    engine.close()
    handle.remove()
    assert alone == greedy(model, range(2, 62), 10)
    assert max(running) == 3
    assert texts == [greedy(model, one.prompt, 10) for one in asked]


def test_rows_that_made_room_for_others_come_to_the_same_end() -> None:
    """Out of memory in the middle of decoding: half of the rows start again later."""
    model = random_model("Llama")
    engine = HuggingFaceEngine(model, Vocabulary())
    forwards = iter(range(10**6))

    def fail_now_and_then(_module: Any, _args: Any, kwargs: Any) -> None:
        if next(forwards) % 5 == 4 and len(kwargs["logits_to_keep"]) > 1:
            raise torch.OutOfMemoryError("no room")

    asked = [Request(key=str(at), prompt=tuple(range(2 + at, 12 + at)), max_new=20, stream=True) for at in range(9)]
    expected = [greedy(model, one.prompt, 20) for one in asked]
    handle = model.register_forward_pre_hook(fail_now_and_then, with_kwargs=True)
    tickets = engine.submit(asked)
    assert [ticket.result(60).ids for ticket in tickets] == expected
    assert [tuple(ticket.ids) for ticket in tickets] == expected
    handle.remove()
    engine.close()
