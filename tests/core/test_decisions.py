"""The decision line: one per correction, whatever became of it and however it was asked for, and no text in it unasked."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest

from aligner_chain import Aligner, Correction, Exchange, Turn, __version__, decisions
from aligner_chain.errors import EngineError
from aligner_chain.exchange import Usage, edits_between

SECRET = "Mrs Diaz"
NAME = "aligner_chain.decisions"


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(decisions.VARIABLE, raising=False)
    with caplog.at_level(logging.INFO, NAME):
        yield


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == NAME]


def script(exchange: Exchange) -> str:
    if "break" in exchange.question:
        raise ValueError(f"cannot correct {exchange.answer}")
    return exchange.answer.replace("bad", "good")


EXCHANGES = [
    Exchange.of("q", f"bad {SECRET}"),
    Exchange.of("q", f"fine {SECRET}"),
    Exchange.of("break", f"bad {SECRET}"),
    Exchange.of("q", " "),
    Exchange(turns=(), answer=f"blind {SECRET}"),
]
OUTCOMES = ["corrected", "approved", "failed", "skipped", "failed"]


def full(**fields: Any) -> Correction:
    exchange = Exchange(
        turns=(Turn(role="user", text=f"who is {SECRET}?"),),
        answer=f"{SECRET} is 90.",
        upstream="desk@3",
        message_id="m1",
        run_id="r1",
        tenant="t1",
        subject=SECRET,
    )
    text = f"{SECRET} is 30."
    values: dict[str, Any] = {
        "exchange": exchange,
        "text": text,
        "outcome": "corrected",
        "edits": edits_between(exchange.answer, text),
        "scores": MappingProxyType({"keep": 0.25}),
        "thresholds": {"keep": 0.5},
        "criteria": ("true",),
        "aligner": "tiny@7",
        "template": "aligner-chain/1",
        "usage": Usage(prompt_tokens=9, forwards=2),
    }
    return Correction(**{**values, **fields})


def test_the_line_says_all_but_the_texts(caplog: pytest.LogCaptureFixture) -> None:
    made = full(reason="2 oldest turns left out to fit the window")
    decisions.tell([made], ("true",))
    [record] = caplog.records
    assert (record.levelname, record.name) == ("INFO", NAME)
    [line] = lines(caplog)
    assert line == {
        "event": "correction",
        "id": made.id,
        "outcome": "corrected",
        "reason": "2 oldest turns left out to fit the window",
        "error": None,
        "scores": {"keep": 0.25},
        "thresholds": {"keep": 0.5},
        "criteria": ["true"],
        "edits": 1,
        "findings": [],
        "aligner": "tiny@7",
        "template": "aligner-chain/1",
        "upstream": "desk@3",
        "pair": None,
        "mismatched": False,
        "message_id": "m1",
        "run_id": "r1",
        "tenant": "t1",
        "usage": {
            "prompt_tokens": 9,
            "new_tokens": 0,
            "forwards": 2,
            "accepted_draft_tokens": 0,
            "latency_s": 0.0,
        },
        "version": __version__,
    }
    assert record.__dict__["decision"] == line
    assert "\n" not in record.getMessage()


def test_every_correction_of_a_batch_has_one_line_in_order(caplog: pytest.LogCaptureFixture) -> None:
    corrections = Aligner.scripted(script).correct(EXCHANGES)
    assert [one.outcome for one in corrections] == OUTCOMES
    assert [line["id"] for line in lines(caplog)] == [one.id for one in corrections]
    assert [line["outcome"] for line in lines(caplog)] == OUTCOMES
    assert SECRET not in caplog.text


async def test_so_it_is_without_blocking(caplog: pytest.LogCaptureFixture) -> None:
    corrections = await Aligner.scripted(script).acorrect(EXCHANGES)
    assert [line["id"] for line in lines(caplog)] == [one.id for one in corrections]


@pytest.mark.parametrize("exchange", EXCHANGES)
async def test_a_stream_has_one_line(exchange: Exchange, caplog: pytest.LogCaptureFixture) -> None:
    aligner = Aligner.scripted(script)
    ended = [list(aligner.stream(exchange))[-1], [piece async for piece in aligner.astream(exchange)][-1]]
    assert [line["id"] for line in lines(caplog)] == [one.id for one in ended if isinstance(one, Correction)]
    assert SECRET not in caplog.text


def test_a_session_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with Aligner.scripted(script).begin((Turn(role="user", text="q"),)) as session:
        session.feed("bad")
        made = session.finish()
    assert [line["id"] for line in lines(caplog)] == [made.id]


@pytest.mark.parametrize(
    "made",
    [
        full(outcome="failed", reason=f"it said {SECRET}", error=EngineError(f"it said {SECRET}. Sorry.")),
        full(criteria=(SECRET,)),
        full(exchange=Exchange.of(SECRET, SECRET, context=(SECRET,)), edits=()),
    ],
)
def test_no_text_gets_in_by_a_side_door(made: Correction, caplog: pytest.LogCaptureFixture) -> None:
    """An error quotes what a model or a provider wrote, and a criterion is what the Aligner wrote."""
    decisions.tell([made], ("true",), None)
    assert SECRET not in caplog.text
    assert not any(SECRET in str(value) for value in caplog.records[0].__dict__.values())


@pytest.mark.parametrize(("value", "asked"), [("1", True), ("True", True), ("0", False), ("", False), ("no", False)])
def test_texts_are_there_where_they_were_asked_for(
    value: str, asked: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNER_LOG_TEXTS", value)
    decisions.tell([full(criteria=("new",), reason="why", error=EngineError("it broke"))])
    [line] = lines(caplog)
    told = {"question", "answer", "text", "error_message"} & set(line)
    assert told == ({"question", "answer", "text", "error_message"} if asked else set())
    assert (line["reason"], line["criteria"]) == (("why", ["new"]) if asked else ("", [decisions.OTHER]))


def test_nothing_is_computed_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    class Untouchable:
        def __iter__(self) -> Iterator[Correction]:
            raise AssertionError("looked at")

    untouchable: Any = Untouchable()
    caplog.set_level(logging.WARNING, NAME)
    decisions.tell(untouchable, untouchable)
    caplog.set_level(logging.INFO, NAME)
    with pytest.raises(AssertionError, match="looked at"):
        decisions.tell([full()], untouchable)


def test_an_applications_own_fields_of_a_record_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()

    def with_tenant(*values: Any, **named: Any) -> logging.LogRecord:
        record = before(*values, **named)
        record.tenant = record.run_id = record.event = record.id = "the application's"
        return record

    logging.setLogRecordFactory(with_tenant)
    try:
        decisions.tell([full()])
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.records[0].__dict__["tenant"] == "the application's"
    assert lines(caplog)[0]["tenant"] == "t1"


def test_what_json_cannot_say_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    exchange: Any = Exchange(turns=(), answer="", message_id=object())  # type: ignore[arg-type]
    decisions.tell([full(exchange=exchange, scores={"keep": float("nan")})])
    [line] = lines(caplog)
    assert line["scores"] == {"keep": None}
    assert line["message_id"].startswith("<object")
