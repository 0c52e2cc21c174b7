"""What waits in memory, and the thread that brings it to the store: straight, or through the log where that must be."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aligner_chain.exchange import Correction
from bootstrap.collect.delivery import Delivery, OnceLog
from bootstrap.collect.memory import Memory
from bootstrap.collect.spill import Log, line_of
from bootstrap.errors import RecordError
from bootstrap.records import Record

if TYPE_CHECKING:
    from bootstrap.store import CorrectionStore

Redact = Callable[[Correction], Correction]

BATCH = 500  # records of one transaction; more are hardly faster, and hold up other writers for longer
_GATHER_S = 0.1  # a transaction costs about a millisecond: without a pause every record would cost one
_HELP_PAUSE_S = 1.0
_LOCK_TIMEOUT_S = 5.0
_NEVER = sys.maxsize

_UNWRITABLE = (
    "The log in {folder} cannot be written; corrections wait in memory as far as there is room, and submit returns False "
    "where that is not enough: {error}.\n"
    "Free some space (to see it:  df -h), or name a folder on another disk:  Collector(store, spill=...)"
)


class Writer:
    """Takes records into memory or log, and has a thread bring them to the store. Nothing of it raises into a chain.

    Args:
        store: where records are written.
        log: where they wait on a disk.
        capacity: the most records in memory.
        durable: whether `submit` writes to the log before it returns.
        redact: takes personal data out of a correction before any disk sees it; None for nothing.
    """

    def __init__(
        self, store: CorrectionStore, log: Log, *, capacity: int, durable: bool, redact: Redact | None
    ) -> None:
        self._store, self._log, self._capacity, self._durable, self._redact = store, log, capacity, durable, redact
        # What the writer has in hand while the store is slow must leave room for what comes.
        self._batch = max(1, min(BATCH, capacity // 4))
        self._closed = False
        self._start_afresh()
        if log.names():  # of a process that has ended, perhaps
            with self._changed:
                self._obstacle()
                self._asked += 1

    def _start_afresh(self) -> None:
        self._memory = Memory(self._capacity)
        self._changed = self._memory.changed  # guards all below too
        self._alarm = _NEVER  # so many records that the writer can act on wake it
        self._asked = self._done = self._clean = 0  # flushes: asked for, done, and done with all of it in the store
        self._thread: threading.Thread | None = None
        self._ended = False
        self._look = True  # for what ended processes left: at the start, and when the store is back
        self._helper: threading.Thread | None = None
        self._no_help_before = 0.0
        self._helping = threading.Lock()  # held while the helper has records in hand
        self._once = OnceLog()
        self._delivery = Delivery(self._store, self._once)
        self._held_for_fork: list[threading.Lock] = []

    # --- asked by other threads ---------------------------------------------------------------------------------

    def submit(self, record: Record) -> bool:
        """Takes a record. False: it was refused, or in durable mode is on no disk."""
        obstacle = self._admit(record)
        if obstacle is not None:
            self._once.lost(obstacle, obstacle)
            return False
        return not self._durable or self._spill(self._redacted([record]), awaited=True)

    def stop(self) -> None:
        """Takes nothing more; the thread ends once it has done what it can."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def flush(self, timeout: float | None) -> bool:
        """Has everything tried now, and waits for that. Whether all is in the store."""
        with self._changed:
            if self._thread is None and (not self._log.names() or self._begin()):
                return True
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or (self._done >= mine and not self._closed), timeout)
            return self._clean >= mine or (self._ended and not self._memory.held + self._memory.in_log)

    @property
    def memory(self) -> Memory:
        """What waits in memory, and the account."""
        return self._memory

    def _admit(self, record: Record) -> str | None:
        """Takes a record into memory; in durable mode into the caller's hand. Else says why it cannot."""
        memory = self._memory
        with memory.lock:
            obstacle = self._obstacle()
            if obstacle is None:
                if not memory.admit(record, queue=not self._durable):
                    obstacle = f"{self._capacity} wait already; Collector(store, capacity=...) sets how many may"
                if memory.crowded and not self._durable:
                    self._call_helper()
                self._ring()
            memory.count(submitted=1, refused=int(obstacle is not None))
        return obstacle

    def _obstacle(self) -> str | None:
        """Why nothing can be taken now, or None."""
        if self._closed:
            return "the collector is closed"
        return self._begin() if self._thread is None else None

    def _begin(self) -> str | None:
        """Starts the thread, or says why it cannot."""
        thread = threading.Thread(target=self._run, name="aligner-collector", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the process may start no more threads, or is exiting
            return str(error)
        self._thread = thread
        return None

    def _awaited(self) -> int:
        """Records that the writer can act on now: what lies in the log, it cannot while the store is away."""
        memory = self._memory
        return len(memory.queue) + (0 if self._delivery.away else len(memory.ready) + memory.in_log)

    def _ring(self) -> None:
        """Wakes the writer if it waits for so many. To wake it for every record would cost more than the rest of it."""
        if self._awaited() >= self._alarm:
            self._alarm = _NEVER
            self._changed.notify_all()

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        closed = False
        while not closed:
            closed, asked, urgent = self._rest()
            complete = self._pass(urgent=urgent)
            with self._changed:
                self._done = asked
                self._clean = asked if complete else self._clean
                self._changed.notify_all()
        self._end()

    def _rest(self) -> tuple[bool, int, bool]:
        """Sleeps until something waits and a moment longer, a retry is due, a flush is asked for, or the end is near."""
        with self._changed:
            if self._sleep(1, self._delivery.retry_in()):
                self._sleep(self._batch, _GATHER_S)
            if self._closed:
                # What is in hand now is on its way into the log, and shall be moved on with the rest.
                self._changed.wait_for(lambda: not self._memory.in_hand, _LOCK_TIMEOUT_S)
            return self._closed, self._asked, self._closed or self._asked > self._done

    def _sleep(self, level: int, timeout: float | None) -> bool:
        self._alarm = level
        self._changed.wait_for(lambda: self._closed or self._asked > self._done or self._awaited() >= level, timeout)
        self._alarm = _NEVER
        return self._awaited() >= level

    def _pass(self, *, urgent: bool) -> bool:
        """Brings on what waits now. True: the store has all of it, and all that ended processes left."""
        try:
            return self._bring(urgent=urgent)
        finally:
            self._delivery.rest()

    def _bring(self, *, urgent: bool) -> bool:
        up = urgent or not self._delivery.retry_in()
        self._look = self._look or urgent or self._delivery.away
        up = self._bring_on(self._waiting_now(), up)
        with self._helping:
            pass
        up = self._bring_on(self._ready(), up)  # what the helper had in hand and could not log
        try:
            return up and self._move() and (not self._look or self._adopt()) and not self._memory.ready
        except OSError as error:  # the log cannot be read
            self._delivery.pause(error)
            return False

    def _bring_on(self, batches: Iterable[list[Record]], up: bool) -> bool:
        """Brings batches in hand to the store while it is up, and to the log from then on. Whether it still is."""
        for records in batches:
            left = self._write(records) if up else records
            up = up and not left
            self._spill(left)
        return up

    def _ready(self) -> Iterator[list[Record]]:
        """What is redacted already and found no room in the log, in hand, as much at a time as one transaction takes."""
        with self._memory.lock:
            ready = self._memory.take_ready()
        yield from (ready[at : at + self._batch] for at in range(0, len(ready), self._batch))

    def _waiting_now(self) -> Iterator[list[Record]]:
        """What is in memory at this moment, redacted and in hand, as much at a time as one transaction takes."""
        with self._memory.lock:
            left = len(self._memory.queue)
        yield from self._ready()
        while taken := self._memory.take(min(self._batch, left)):
            left -= len(taken)
            yield self._redacted(taken)

    def _redacted(self, records: list[Record]) -> list[Record]:
        """The records without personal data. One that the redactor fails on is refused: no disk may see it."""
        if self._redact is None:
            return records
        ready = []
        for record in records:
            try:
                correction = self._redact(record.correction)
            except Exception as error:  # noqa: BLE001 - whatever a redactor raises, the chain goes on
                # Its message may hold what should have been redacted, so that only its kind is logged.
                self._memory.settle(1, refused=1)
                self._once.lost(f"redact {type(error).__name__}", f"the redactor raised a {type(error).__name__}")
            else:
                ready.append(replace(record, correction=correction, redactor=_name(self._redact)))
        return ready

    def _write(self, records: Sequence[Record]) -> Sequence[Record]:
        """Writes records in hand to the store, and returns those that it cannot take now."""
        failed, left = self._delivery.put(records)
        settled = len(records) - len(left)
        self._memory.settle(settled, written=settled - failed, failed=failed)
        return left

    def _end(self) -> None:
        """What neither store nor log took is lost now."""
        with self._changed:
            lost = len(self._memory.take_ready())
            self._memory.settle(lost, failed=lost)
        if lost:
            self._once.lost("end", f"neither the store nor the log could be written at the end ({lost} corrections)")
        self._log.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    # --- the log ------------------------------------------------------------------------------------------------

    def _spill(self, records: Sequence[Record], *, awaited: bool = False) -> bool:
        """Puts records in hand into the log. False: not all are there; what it could not take waits in memory.

        `awaited`: their `submit` has not returned, and this is the first attempt.
        """
        ready, lines = [], []
        for record in records:
            try:
                lines.append(line_of(record))
                ready.append(record)
            except RecordError as error:
                self._memory.settle(1, failed=1)
                self._once.lost(type(error).__name__, str(error))
        return bool(ready) and self._append(ready, b"".join(lines), awaited)

    def _append(self, records: list[Record], lines: bytes, awaited: bool) -> bool:
        self._memory.start_logging(len(records))
        try:
            self._log.append(lines)
        except OSError as error:
            if self._memory.not_logged(records) and awaited:
                self._memory.count(undurable=len(records))
            self._once.warn(f"log {error.errno}", _UNWRITABLE.format(folder=self._log.folder, error=error))
            return False
        else:
            self._memory.logged(len(records))
            return True
        finally:
            with self._memory.lock:
                self._ring()

    def _move(self) -> bool:
        """Moves what the log holds now to the store. False: the store is away."""
        left = self._memory.in_log
        while left > 0 and (piece := self._log.read(BATCH)):
            failed, unsettled = self._delivery.put(piece.records)
            if unsettled:
                return False
            if self._log.fsync:
                self._delivery.settle()
            self._log.stored(piece)
            moved = len(piece.records) + piece.torn
            self._memory.count(replayed=moved, written=len(piece.records) - failed, failed=failed + piece.torn)
            left -= moved
        return True

    def _adopt(self) -> bool:
        """Moves what ended processes left to the store. False: the store is away."""
        for segment in self._log.abandoned():
            while piece := segment.read(BATCH):
                failed, unsettled = self._delivery.put(piece.records)
                if unsettled:
                    return False
                segment.start = piece.end
                self._memory.count(adopted=len(piece.records) - failed, torn=piece.torn + failed)
            self._delivery.settle()
            segment.remove()
        self._look = False
        return True

    # --- a second thread, while the first one waits for the store -----------------------------------------------

    def _call_helper(self) -> None:
        if self._helper is None and time.monotonic() >= self._no_help_before:
            self._helper = threading.Thread(target=self._help, name="aligner-collector-log", daemon=True)
            try:
                self._helper.start()
            except RuntimeError:  # no more threads: what finds no room is refused
                self._helper = None

    def _help(self) -> None:
        """Moves what is in the queue into the log until it is nearly empty, or the log cannot be written."""
        while self._is_needed():
            with self._helping:
                taken = self._memory.take(self._batch)
                if taken and not self._spill(self._redacted(taken)):
                    self._no_help_before = time.monotonic() + _HELP_PAUSE_S

    def _is_needed(self) -> bool:
        with self._memory.lock:
            needed = len(self._memory.queue) > self._capacity // 4 and time.monotonic() >= self._no_help_before
            if not needed:
                self._helper = None
            return needed

    # --- forks --------------------------------------------------------------------------------------------------

    # A child that is forked in the middle of a write inherits SQLite's inner locks as they are, held by a thread that it
    # does not have, or an open file that nobody knows of; so a fork waits until store and log are at rest.

    def before_fork(self) -> None:
        """Waits for the end of a write."""
        locks = (self._delivery.at_work, self._log.lock)
        self._held_for_fork = [lock for lock in locks if lock.acquire(timeout=_LOCK_TIMEOUT_S)]

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        for lock in self._held_for_fork:
            lock.release()
        self._held_for_fork = []

    def after_fork_in_child(self) -> None:
        """Forgets what is the parent's to write."""
        self._log.forget()
        self._start_afresh()


def _name(redact: Redact) -> str:
    return str(getattr(redact, "name", "") or getattr(redact, "__qualname__", type(redact).__qualname__))
