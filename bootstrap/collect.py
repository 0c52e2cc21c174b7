"""Collects corrections from a live chain without holding it up: a queue, and one thread that writes it to the store."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bootstrap.errors import RecordError

if TYPE_CHECKING:
    from types import TracebackType

    from aligner_chain.exchange import Correction
    from bootstrap.store import CorrectionStore

_LOG = logging.getLogger(__name__)

_BATCH = 200
_EXIT_TIMEOUT_S = 10.0
_FORK_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """What became of the corrections that were submitted: each was written, refused or failed, or waits in the queue.

    `written` are in the store, `refused` came when the queue was full or closed, `failed` could not be written.
    """

    submitted: int = 0
    written: int = 0
    refused: int = 0
    failed: int = 0


class Collector:
    """Takes corrections from a chain at once and writes them to a store behind its back.

        collector = Collector(CorrectionStore("corrections.db"))
        chain = prompt | llm | AlignerCorrector(on_correction=collector.submit)

    Corrections wait in memory for the one thread that writes them in batches. What waits is written at the interpreter's
    exit (for at most 10 s), by `flush` and by `close`; a process that is killed loses what its queue held. A broken store
    is logged, once for each kind of error, and counted, and never reaches the chain. A forked child starts with an empty
    queue and a thread of its own.

    Args:
        store: where corrections are written.
        capacity: the most corrections that may wait; further ones are refused and counted.
    """

    def __init__(self, store: CorrectionStore, *, capacity: int = 10_000) -> None:
        self._writer = _Writer(store, capacity)
        # The writer's thread knows the writer and not this object: a collector that nobody holds any more can go, and
        # its thread ends once the queue is empty. Waiting for that would be wrong in a garbage collection.
        weakref.finalize(self, self._writer.stop).atexit = False

    def submit(self, correction: Correction) -> None:
        """Takes one correction to be written. Neither waits nor raises; safe to call from any thread."""
        self._writer.submit(correction)

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until everything that was submitted before is written or has failed.

        Args:
            timeout: the longest wait in seconds; None waits without limit.

        Returns:
            False where the time was over before.
        """
        return self._writer.flush(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Takes nothing more and waits like `flush`; safe to call again. What is submitted afterwards is refused."""
        self._writer.stop()
        return self._writer.flush(timeout)

    @property
    def counters(self) -> Counters:
        """What became of the corrections so far."""
        return self._writer.counters

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Writer:
    """The queue and the thread of a collector."""

    def __init__(self, store: CorrectionStore, capacity: int) -> None:
        self._store, self._capacity = store, capacity
        self._closed = False
        self._start_afresh()
        _WRITERS.add(self)

    def _start_afresh(self) -> None:
        self._changed = threading.Condition()  # guards all below; never held while anything is waited for or written
        self._queue: deque[Correction] = deque()
        self._thread: threading.Thread | None = None
        self._settled = 0  # accepted corrections that were written or have failed; they settle in the order they came
        self._reported: set[str] = set()
        self.counters = Counters()
        self._storing = threading.Lock()  # held while the store is at work
        self._stopped_for_fork = False

    def submit(self, correction: Correction) -> None:
        with self._changed:
            obstacle = self._obstacle()
            self._count(submitted=1, refused=int(obstacle is not None))
            if obstacle is None:
                self._queue.append(correction)
                self._changed.notify_all()
                return
        self._report(obstacle, obstacle)

    def stop(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def flush(self, timeout: float | None) -> bool:
        with self._changed:
            target = self.counters.submitted - self.counters.refused
            return self._changed.wait_for(lambda: self._settled >= target, timeout)

    def waiting(self) -> int:
        with self._changed:
            return self.counters.submitted - self.counters.refused - self._settled

    def _obstacle(self) -> str | None:
        """Why a correction cannot be taken now, or None."""
        if self._closed:
            return "the collector is closed"
        if len(self._queue) >= self._capacity:
            return f"{self._capacity} wait already; Collector(store, capacity=...) sets how many may"
        return self._start_thread() if self._thread is None else None

    def _start_thread(self) -> str | None:
        thread = threading.Thread(target=self._run, name="aligner-collector", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the process may start no more threads, or is exiting
            return str(error)
        self._thread = thread
        return None

    def _run(self) -> None:
        while batch := self._take():
            written = self._write(batch)
            with self._changed:
                self._count(written=written, failed=len(batch) - written)
                self._settled += len(batch)
                self._changed.notify_all()

    def _take(self) -> list[Correction]:
        """The next corrections to write, as soon as there are any; none once the collector is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]

    def _write(self, batch: list[Correction]) -> int:
        """Writes a batch and returns how many of it are in the store."""
        try:
            with self._storing:
                self._store.append(batch)
        except RecordError as error:
            if len(batch) > 1:  # one of them is bad, and the others shall not be lost with it
                return sum(self._write([correction]) for correction in batch)
            self._report(type(error).__name__, str(error))
            return 0
        except Exception as error:  # noqa: BLE001 - whatever a store raises, the chain goes on and later ones are tried
            self._report(f"{type(error).__name__} from {type(error.__cause__).__name__}", str(error))
            return 0
        return len(batch)

    def _count(self, **more: int) -> None:
        self.counters = replace(self.counters, **{name: getattr(self.counters, name) + more[name] for name in more})

    def _report(self, kind: str, message: str) -> None:
        if kind not in self._reported:
            self._reported.add(kind)
            _LOG.warning("A correction is lost (logged once of this kind; see Collector.counters): %s", message)

    # A child that is forked in the middle of a write inherits SQLite's inner locks as they are, held by a thread that it
    # does not have; so a fork waits until the store is at rest.

    def before_fork(self) -> None:
        self._stopped_for_fork = self._storing.acquire(timeout=_FORK_TIMEOUT_S)

    def after_fork_in_parent(self) -> None:
        if self._stopped_for_fork:
            self._stopped_for_fork = False
            self._storing.release()

    def after_fork_in_child(self) -> None:
        self._start_afresh()


_WRITERS: weakref.WeakSet[_Writer] = weakref.WeakSet()


def _before_fork() -> None:
    for writer in list(_WRITERS):
        writer.before_fork()


def _after_fork_in_parent() -> None:
    for writer in list(_WRITERS):
        writer.after_fork_in_parent()


def _after_fork_in_child() -> None:
    for writer in list(_WRITERS):
        writer.after_fork_in_child()


def _write_the_rest() -> None:
    deadline = time.monotonic() + _EXIT_TIMEOUT_S
    writers = list(_WRITERS)
    for writer in writers:
        writer.stop()
    for writer in writers:
        if not writer.flush(max(0.0, deadline - time.monotonic())):
            _LOG.warning("%d corrections could not be written before the exit and are lost", writer.waiting())


atexit.register(_write_the_rest)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
