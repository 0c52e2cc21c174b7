"""A first training set for a team without an Aligner: a strong chat model corrects answers with as few changes as it can.

It is asked as `Aligner.from_chat_model` asks it, and what it writes passes the same checks. Every paid reply is journaled
beside the output, so that a second run goes on where the first one ended.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.aligner import Aligner
from aligner_chain.engines.chat import ChatEngine
from aligner_chain.exchange import Correction, Exchange
from bootstrap.annotate.journal import Entry, Journal
from bootstrap.annotate.rows import (
    AnnotationReport,
    Estimate,
    Row,
    Stop,
    outcome_of,
    passed,
    pending,
    row_of,
    triple_of,
)
from bootstrap.annotate.spending import Budget, Prices, Purse, Tokens
from bootstrap.calling import ATTEMPTS, CONCURRENCY, limited, require_positive
from bootstrap.errors import AnnotationError
from bootstrap.files import replace_file, sync
from bootstrap.pairs import write_triples

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

LEAST_FAILURES = 12
"""Calls that fail one after the other before the run stops, or twice as many as run at once."""

PROGRESS_EVERY_S = 1.0

_LOG = logging.getLogger(__name__)


def annotate(
    exchanges: Iterable[Exchange],
    chat_model: Runnable[Any, Any],
    out: Path,
    *,
    criteria: Sequence[str] = (),
    requests_per_minute: float | None = None,
    concurrency: int = CONCURRENCY,
    attempts: int = ATTEMPTS,
    prices: Prices | None = None,
    budget: Budget | None = None,
    on_progress: Callable[[AnnotationReport], None] | None = None,
) -> AnnotationReport:
    """Writes question-answer-correction rows to `out`, one for each exchange whose correction passed.

    Every reply is kept in `out` + ".journal" as it comes: a run that was stopped or killed, or whose input has grown, goes on
    where it was and pays for nothing twice. An exchange that is there several times is paid for once.

    Args:
        exchanges: What was asked and answered; held in memory.
        chat_model: Any chat model of LangChain that follows instructions.
        out: A JSONL file for `aligner-bootstrap train-aligner --data`, put in place whole when the run ends.
        criteria: What to judge by besides, in plain words.
        requests_per_minute: The most calls in a minute, retries among them; None: as many as come.
        concurrency: Calls in flight at once; so many replies at most are lost by a kill.
        attempts: Times that a call is tried, with growing pauses.
        prices: Gives the cost in money.
        budget: The run stops before a call that could exceed it. Calls that cost more than any before them can.
        on_progress: Is told where it stands, at most once a second, from one thread at a time.

    Raises:
        AnnotationError: the journal cannot be used, or `out` is a file of something else.
        ConfigurationError: a number is out of its bounds, `chat_model` is none, or a budget of money lacks prices.
    """
    require_positive(concurrency=concurrency, attempts=attempts, requests_per_minute=requests_per_minute)
    rows = [row_of(exchange, criteria) for exchange in exchanges]
    aligner = _aligner(chat_model, requests_per_minute, attempts, concurrency)
    purse = Purse(budget or Budget(), prices)
    with open_journal(out) as journal:
        purse.add(journal.tokens)
        run = _Run(partial(aligner.correct, criteria=criteria), journal, rows, purse, on_progress)
        run.go(concurrency)
        _write(out, rows, journal)
    aligner.close()
    return run.report()


def estimate(
    exchanges: Iterable[Exchange], out: Path, *, criteria: Sequence[str] = (), prices: Prices | None = None
) -> Estimate:
    """What `annotate` with the same arguments would cost at most, about; asks no model and writes nothing."""
    rows = [row_of(exchange, criteria) for exchange in exchanges]
    done: Mapping[str, Entry] = {}
    if journal_of(out).exists():
        with open_journal(out) as journal:
            done = journal.entries
    calls = pending(rows, done)
    tokens = sum((row.estimate for row in calls), Tokens())
    skipped = sum(bool(row.obstacle) for row in rows)
    return Estimate(
        rows=len(rows),
        done=sum(row.key in done for row in rows),
        skipped=skipped,
        calls=len(calls),
        tokens=tokens,
        money=None if prices is None else prices.of(tokens),
    )


def journal_of(out: Path) -> Path:
    """The journal beside an output."""
    return out.with_name(f"{out.name}.journal")


def open_journal(out: Path) -> Journal:
    """The journal of an output. Raises `AnnotationError` where `out` is there without one: it is not ours to replace."""
    if out.exists() and not journal_of(out).exists():
        raise AnnotationError(
            f"{out} is there already and has no journal ({journal_of(out).name}), so it is not replaced. Name another --out, "
            "or move it away."
        )
    return Journal(journal_of(out))


class _Run:
    """One run over rows: which of them are asked about, in how many threads, and when it stops.

    Workers journal what they paid for, never the main thread: an interrupt cannot come between.
    """

    def __init__(
        self,
        correct: Callable[[Sequence[Exchange]], Sequence[Correction]],
        journal: Journal,
        rows: Sequence[Row],
        purse: Purse,
        on_progress: Callable[[AnnotationReport], None] | None,
    ) -> None:
        self._correct, self._journal, self._rows, self._purse = correct, journal, rows, purse
        self._on_progress = on_progress
        self._changing = threading.Lock()
        self._failed: set[str] = set()
        self._failures_in_a_row = 0
        self._stopped: Stop = ""
        self._last_error = ""
        self._told_at = 0.0

    def go(self, concurrency: int) -> None:
        """Asks about all that is not journaled yet, until something stops it; then waits for the calls in flight."""
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="annotate")
        running: set[Future[None]] = set()
        try:
            for row in pending(self._rows, self._journal.entries):
                self._make_room(row, running, concurrency)
                if self._must_stop(row, concurrency):
                    break
                self._purse.reserve(row.key, row.estimate)
                running.add(pool.submit(self._annotate, row))
            pool.shutdown()
        except KeyboardInterrupt:
            self._stopped = "interrupted"
            _LOG.warning("Interrupted. Calls in flight are paid for and waited for; interrupt again to lose them.")
            pool.shutdown()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        _raise_errors(running)

    def report(self) -> AnnotationReport:
        """Where it stands."""
        outcomes = Counter(outcome_of(row, self._journal.entries, self._failed) for row in self._rows)
        refused = [self._journal.entries[row.key] for row in self._rows if self._is_refused(row)]
        return AnnotationReport(
            rows=len(self._rows),
            corrected=outcomes["corrected"],
            kept_as_right=outcomes["approved"],
            refused_rows=outcomes["kept"],
            refused=dict(Counter(check for entry in refused for check in entry.why).most_common()),
            failed=outcomes["failed"],
            skipped=dict(Counter(row.obstacle for row in self._rows if row.obstacle)),
            left=outcomes["left"],
            tokens=self._journal.tokens,
            untold_replies=self._journal.untold,
            money=self._purse.money(self._journal.tokens),
            stopped=self._stopped,
            last_error=self._last_error,
        )

    def _is_refused(self, row: Row) -> bool:
        entry = self._journal.entries.get(row.key)
        return entry is not None and entry.outcome == "kept"

    def _make_room(self, row: Row, running: set[Future[None]], concurrency: int) -> None:
        """Waits until fewer calls are in flight than may be, and until what they really cost shows whether one more fits."""
        while len(running) >= concurrency or (running and not self._purse.fits(row.estimate)):
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            running -= done
            _raise_errors(done)

    def _must_stop(self, row: Row, concurrency: int) -> bool:
        if self._failures_in_a_row >= max(LEAST_FAILURES, 2 * concurrency):
            self._stopped = "failures"
        elif not self._purse.fits(row.estimate):
            self._stopped = "budget"
        return bool(self._stopped)

    def _annotate(self, row: Row) -> None:
        [correction] = self._correct([row.exchange])
        entry = Entry.of(row.key, correction, row.estimate)
        self._journal.append(entry)
        self._purse.settle(row.key, entry.tokens, told=entry.told)
        with self._changing:
            self._count(entry)
            if self._on_progress is not None and time.monotonic() - self._told_at >= PROGRESS_EVERY_S:
                self._told_at = time.monotonic()
                self._on_progress(self.report())

    def _count(self, entry: Entry) -> None:
        if entry.outcome == "failed":
            self._failed.add(entry.key)
            self._last_error = entry.why[0]
            self._failures_in_a_row += 1
        else:
            self._failures_in_a_row = 0


def _aligner(chat_model: Runnable[Any, Any], per_minute: float | None, attempts: int, workers: int) -> Aligner:
    """`Aligner.from_chat_model`, where every try of every call waits for its turn."""
    retried = limited(chat_model, requests_per_minute=per_minute, attempts=attempts)
    named: Any = chat_model
    return Aligner(ChatEngine(retried, workers=workers), metadata=Aligner.from_chat_model(named).metadata)


def _write(out: Path, rows: Iterable[Row], journal: Journal) -> None:
    """Puts the rows that passed into place; leaves what is there where none did, since no training takes an empty file."""
    triples = [triple_of(row, journal.entries[row.key]) for row in rows if passed(row, journal.entries)]
    if triples:
        staged = out.with_name(f".{out.name}.{os.getpid()}")
        write_triples(staged, triples)
        sync(staged)
        replace_file(out, staged)


def _raise_errors(done: Iterable[Future[None]]) -> None:
    """What a worker could not do: the journal cannot be written."""
    for future in done:
        if not future.cancelled():
            future.result()
