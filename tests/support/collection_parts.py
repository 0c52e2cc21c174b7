"""Corrections that share much, and a process that collects them as it is told."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aligner_chain.exchange import Correction, Exchange, Turn
from bootstrap.collect import Collector
from bootstrap.collect.spill import line_of
from bootstrap.records import Feedback, Record
from bootstrap.store import CorrectionStore

_FORK = multiprocessing.get_context("fork")
NUMBERS = 9
SUBJECTS, TENANTS, KEYS = (None, "ann", "bob"), (None, "x", "y"), (None, "k1", "k5")


def correction_of(number: int) -> Correction:
    """One of the corrections that there are; they share questions, runs, subjects and tenants. Some changed nothing."""
    exchange = Exchange(
        turns=(Turn(role="user", text=f"question {number % 3}"),),
        answer=f"bad {number}",
        message_id=f"m{number}",
        run_id=f"r{number // 2}",
        subject=SUBJECTS[number // 2 % 3],
        tenant=TENANTS[number % 3],
        split_key=KEYS[number // 3 % 3],
    )
    text = f"good {number}" if number % 5 else exchange.answer
    outcome = "corrected" if number % 5 else "approved"
    return Correction(exchange=exchange, text=text, outcome=outcome, id=f"c{number:02}")


CORRECTIONS = {one.id: one for one in map(correction_of, range(NUMBERS))}


class Process:
    """A process that collects."""

    def __init__(self, url: str, spill: Path, *, durable: bool) -> None:
        self._pipe, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_collect, args=(theirs, url, spill, durable), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.recv() == "opened"
        self.torn = 0

    def ask(self, what: str, argument: object = None) -> Any:
        """Has it done and returns the answer."""
        self._pipe.send((what, argument))
        assert self._pipe.poll(60), "the process hangs"
        return self._pipe.recv()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _collect(pipe: Connection, url: str, spill: Path, durable: bool) -> None:
    store = CorrectionStore(url)  # a store can be opened only where it is
    pipe.send("opened")
    collector: Any = None
    while True:
        what, argument = pipe.recv()
        if what == "begin":
            collector = Collector(store, durable=durable, spill=spill, redact=None)
            answer: object = None
        elif what == "submit":
            answer = all(collector.submit(correction_of(number)) for number in argument)
        else:
            complete = collector.close(timeout=30) if what == "close" else collector.flush(timeout=30)
            answer = complete, asdict(collector.counters)
        pipe.send(answer)


def line(number: int, at_ms: int) -> bytes:
    return line_of(Record(correction=correction_of(number), at_ms=at_ms))


def names_of(one: str) -> set[tuple[str, str]]:
    """By what feedback may be about a correction."""
    exchange = CORRECTIONS[one].exchange
    return {("correction", one), ("message", str(exchange.message_id)), ("run", str(exchange.run_id))}


def target_of(feedback: Feedback) -> tuple[str, str]:
    for kind in ("correction", "message"):
        if key := getattr(feedback, f"{kind}_id"):
            return kind, key
    return "run", str(feedback.run_id)


def exported(out: Path) -> dict[str, tuple[str, str]]:
    """The rows of an export by the id: the rejected and the chosen text."""
    ids = (out / "ids.txt").read_text().split()
    rows = map(json.loads, (out / "preference.jsonl").read_text().splitlines())
    return {
        one: (row["rejected"][0]["content"], row["chosen"][0]["content"]) for one, row in zip(ids, rows, strict=True)
    }


def feedback_of(about: str, number: int, said: tuple[Any, Any], name: int, at_ms: int) -> Feedback:
    one, (kind, value) = correction_of(number), said
    key = {"correction": one.id, "message": one.exchange.message_id, "run": one.exchange.run_id}[about]
    value = f"own {name}" if kind == "edit" else value
    return Feedback(kind=kind, value=value, id=f"f{name:02}", at_ms=at_ms, **{f"{about}_id": str(key)})


def is_of(exchange: Exchange, subject: str, tenant: str | None) -> bool:
    return exchange.subject == subject and tenant in (None, exchange.tenant)
