"""A running chain picks up what is promoted: between requests, whole, and without dropping one."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pairs_that_tell import CORRECTIONS, Promoter, Tally, write_models

from aligner_chain import Correction, Exchange
from aligner_chain.errors import ConfigurationError
from aligner_chain.langchain import AlignedChatModel, AlignerCorrector, LocalChatModel
from aligner_chain.shared import catch_up, following, hold, hold_upstream
from aligner_chain.switching import VARIABLE, follow_every


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("tellers"))


@pytest.fixture
def promoter(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Promoter:
    """A home that serves pair 1, and looks at every request."""
    monkeypatch.setenv("ALIGNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGNER_MODEL", raising=False)
    monkeypatch.setenv(VARIABLE, "0")
    made = Promoter(tmp_path / "home", models)
    made.promote(1)
    return made


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def chain(promoter: Promoter, tally: Tally) -> Any:
    return LocalChatModel.served(max_new_tokens=16) | AlignerCorrector(on_correction=tally)


@pytest.fixture
def held_loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds whoever loads weights until the event is set."""
    from aligner_chain.engines import huggingface

    go, load = threading.Event(), huggingface.load

    def slowly(*given: Any, **named: Any) -> Any:
        assert go.wait(60)
        return load(*given, **named)

    monkeypatch.setattr(huggingface, "load", slowly)
    yield go
    go.set()


def settled() -> None:
    """Waits until the pair of this moment answers and the one before is closed."""
    assert catch_up(60)
    give_up = time.monotonic() + 60
    while following().draining and time.monotonic() < give_up:
        time.sleep(0.01)
    assert following().draining is None


def test_requests_of_threads_and_tasks_get_each_one_whole_version(promoter: Promoter, chain: Any, tally: Tally) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            chain.invoke("ask")

    async def ask_in_tasks() -> None:
        async def one() -> None:
            while not stop.is_set():
                await chain.ainvoke("ask")

        await asyncio.gather(*(one() for _ in range(4)))

    before = following()
    with ThreadPoolExecutor(5) as pool:
        askers = [pool.submit(ask) for _ in range(4)] + [pool.submit(asyncio.run, ask_in_tasks())]
        try:
            assert tally.wait_for(20)
            for step, number in enumerate((2, 3, 4, 0), 1):
                pair = promoter.promote(number) if number else promoter.registry.rollback()
                assert catch_up(60)
                answered = tally.pairs[str(pair.number)]
                assert tally.wait_for(answered + 20, str(pair.number)), "nobody asks any more"
                assert following().switched - before.switched == step
            assert tally.wait_for(250)
        finally:
            stop.set()
        for asker in askers:
            asker.result(60)
    assert promoter.faults(tally.corrections) == []
    assert set(tally.pairs) == {"1", "2", "3", "4"}
    # Only requests that were on their way when the pair was switched: nine at a time, four times.
    mismatched = [one for one in tally.corrections if one.mismatched]
    assert len(mismatched) == following().mismatched - before.mismatched <= 36
    assert {one.pair == one.exchange.upstream.partition("@")[2] for one in mismatched} <= {False}
    assert following().failed == before.failed


def test_while_a_new_pair_loads_the_old_one_answers_and_then_both_models_turn_together(
    promoter: Promoter, chain: Any, tally: Tally, held_loads: threading.Event
) -> None:
    held_loads.set()
    chain.invoke("ask")
    held_loads.clear()
    promoter.promote(2)
    for _ in range(5):
        chain.invoke("ask")
    assert not catch_up(0.05)
    assert set(tally.pairs) == {"1"}
    held_loads.set()
    assert catch_up(60)
    chain.invoke("ask")
    assert [(one.pair, one.exchange.upstream, one.mismatched) for one in tally.corrections[-2:]] == [
        ("1", "upstream@1", False),
        ("2", "upstream@2", False),
    ]
    assert promoter.faults(tally.corrections) == []


async def test_the_event_loop_is_free_while_the_first_pair_loads(
    promoter: Promoter, chain: Any, held_loads: threading.Event
) -> None:
    asked = asyncio.create_task(chain.ainvoke("ask"))
    for _ in range(20):
        await asyncio.sleep(0.005)  # would not come back, if the loop waited for what only it can let go
    assert not asked.done()
    held_loads.set()
    assert (await asked).text == CORRECTIONS[0]


def test_the_models_before_are_closed_and_freed_and_a_shared_one_stays(promoter: Promoter, chain: Any) -> None:
    chain.invoke("ask")
    with hold(None) as aligner, hold_upstream("auto", "auto") as (engine, _):
        old = [weakref.ref(aligner.engine.model), weakref.ref(engine.model)]
        engines = [aligner.engine, engine]
    del aligner, engine
    promoter.promote(2, upstream=1)
    settled()
    chain.invoke("ask")
    gc.collect()
    assert [one() is None for one in old] == [True, False]
    assert [one.closed for one in engines] == [True, False]
    assert chain.invoke("ask").response_metadata["upstream"] == "upstream@1"
    promoter.promote(3)
    settled()
    gc.collect()
    assert old[1]() is None


def test_a_pair_that_cannot_be_loaded_leaves_the_old_one_until_the_file_changes_again(
    promoter: Promoter, chain: Any, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    chain.invoke("ask")
    failed = following().failed
    folder = promoter.promote(2).aligner.path
    (folder / "model.safetensors").write_bytes(b"half of it")
    with caplog.at_level(logging.WARNING, "aligner_chain.switching"):
        for _ in range(3):
            assert catch_up(60)
            chain.invoke("ask")
    [told] = [record.getMessage() for record in caplog.records if record.name == "aligner_chain.switching"]
    for part in ("Pair 2", "pair 1 goes on", "aligner-bootstrap rollback", str(folder)):
        assert part in told
    assert following().failed == failed + 1
    assert {one.pair for one in tally.corrections} == {"1"}
    gone = promoter.promote(3).aligner.path
    gone.rename(gone.with_name("away"))
    assert catch_up(60)
    chain.invoke("ask")
    assert (tally.corrections[-1].pair, following().failed) == ("1", failed + 2)
    promoter.promote(4)
    assert catch_up(60)
    chain.invoke("ask")
    assert tally.corrections[-1].pair == "4"
    assert promoter.faults(tally.corrections) == []


def test_a_record_that_is_gone_or_broken_leaves_the_pair(promoter: Promoter, chain: Any, tally: Tally) -> None:
    chain.invoke("ask")
    failed = following().failed
    served = promoter.registry.home / "served.json"
    text = served.read_text()
    served.unlink()
    assert catch_up(60)
    chain.invoke("ask")
    served.write_text("{")
    assert catch_up(60)
    chain.invoke("ask")
    assert following().failed == failed + 2
    served.write_text(text)
    assert catch_up(60)
    assert (following().pair, following().failed, tally.pairs) == ("1", failed + 2, {"1": 3})


async def test_a_stream_ends_on_the_version_it_began_with_and_no_third_is_loaded_before(
    promoter: Promoter, tally: Tally
) -> None:
    corrector = AlignerCorrector(question="q", stream_unchecked=True, on_correction=tally)
    stream, astream = corrector.stream("a bad answer"), corrector.astream("a bad answer")
    first, afirst = next(stream), await anext(astream)
    promoter.promote(2)
    assert await asyncio.to_thread(catch_up, 60)
    assert corrector.invoke("a bad answer") == CORRECTIONS[1]
    assert (following().pair, following().draining) == ("2", "1")
    promoter.promote(3)
    assert not await asyncio.to_thread(catch_up, 0.1)
    assert corrector.invoke("a bad answer") == CORRECTIONS[1]
    assert afirst + "".join([piece async for piece in astream]) == CORRECTIONS[0]
    assert not await asyncio.to_thread(catch_up, 0.1)
    assert first + "".join(stream) == CORRECTIONS[0]
    await asyncio.to_thread(settled)
    assert corrector.invoke("a bad answer") == CORRECTIONS[2]


def test_going_back_to_a_pair_that_is_still_in_use_needs_no_loading(
    promoter: Promoter, held_loads: threading.Event
) -> None:
    held_loads.set()
    corrector = AlignerCorrector(question="q", stream_unchecked=True)
    stream = corrector.stream("a bad answer")
    first = next(stream)
    promoter.promote(2)
    assert catch_up(60)
    held_loads.clear()
    promoter.registry.rollback()
    assert catch_up(60)
    assert corrector.invoke("a bad answer") == CORRECTIONS[0]
    assert first + "".join(stream) == CORRECTIONS[0]
    settled()
    assert corrector.invoke("a bad answer") == CORRECTIONS[0]


def test_an_abandoned_stream_and_a_failed_request_hold_nothing(promoter: Promoter, tally: Tally) -> None:
    corrector = AlignerCorrector(question="q", stream_unchecked=True, on_correction=tally)
    stream = corrector.stream("a bad answer")
    next(stream)
    failing = AlignerCorrector(question="q" * 4000, on_correction=tally)
    with pytest.raises(Exception, match="window"):
        failing.invoke("a bad answer")
    del stream
    promoter.promote(2)
    settled()
    assert corrector.invoke("a bad answer") == CORRECTIONS[1]
    assert tally.corrections[0].error is not None  # kept, with all that its traceback holds


def test_every_face_follows_but_not_who_was_given_an_aligner(
    promoter: Promoter, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_index.core.base.response.schema import Response

    from aligner_chain.llama_index import AlignerResponsePostprocessor

    chat = AlignedChatModel(llm=LocalChatModel.served(max_new_tokens=16), corrector=AlignerCorrector())
    postprocessor = AlignerResponsePostprocessor()
    fixed = AlignerCorrector(models / "aligner" / "1", question="q")
    given = AlignerCorrector(fixed_aligner := hold_of(models / "aligner" / "1"), question="q")
    copied = pickle.loads(pickle.dumps(AlignerCorrector(question="q")))

    def texts() -> list[str]:
        response = postprocessor.postprocess_response(Response("a bad answer"), query_str="q")
        return [chat.invoke("ask").text, str(response), copied.invoke("a bad answer")]

    assert texts() == [CORRECTIONS[0]] * 3
    promoter.promote(2)
    settled()
    assert texts() == [CORRECTIONS[1]] * 3
    assert [one.invoke("a bad answer") for one in (fixed, given)] == [CORRECTIONS[0]] * 2
    monkeypatch.setenv("ALIGNER_MODEL", str(models / "aligner" / "3"))
    assert copied.invoke("a bad answer") == CORRECTIONS[2]
    assert fixed_aligner.correct([Exchange.of("q", "a bad answer")])[0].pair is None


def hold_of(folder: Path) -> Any:
    from aligner_chain import Aligner

    return Aligner.from_pretrained(folder)


def test_the_decision_line_names_the_pair_and_a_mismatch_with_its_upstream(
    promoter: Promoter, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Correction] = []
    corrector = AlignerCorrector(question="q", on_correction=seen.append)
    before = following().mismatched
    with caplog.at_level(logging.INFO, "aligner_chain.decisions"):
        for upstream in ("upstream@1", "upstream@7", None):
            with hold(None) as aligner:
                aligner.correct([Exchange(turns=Exchange.of("q", "").turns, answer="a", upstream=upstream)])
        corrector.invoke("a bad answer")
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "aligner_chain.decisions"]
    assert [(line["pair"], line["mismatched"]) for line in lines] == [("1", False), ("1", True), *[("1", False)] * 2]
    assert following().mismatched == before + 1
    assert (seen[0].pair, seen[0].exchange.upstream) == ("1", None)


def test_following_can_be_turned_off(promoter: Promoter, chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    chain.invoke("ask")
    promoter.promote(2)
    assert catch_up(0)
    assert chain.invoke("ask").text == CORRECTIONS[0]
    monkeypatch.setenv(VARIABLE, "0.25")
    assert follow_every() == 0.25
    for wrong in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(ConfigurationError, match="export ALIGNER_FOLLOW=off"):
            chain.invoke("ask")
