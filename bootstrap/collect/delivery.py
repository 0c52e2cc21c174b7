"""Brings records to a store that may be away, and says when to try again."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bootstrap.errors import RecordError, StoreError
from bootstrap.files import sync

if TYPE_CHECKING:
    from bootstrap.records import Record
    from bootstrap.store import CorrectionStore

_LOG = logging.getLogger(__name__)

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_MOST_AT_WORK_S, _TURN_S = 1.0, 0.001


class OnceLog:
    """Warns once of each kind: a log must not grow with every correction."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def lost(self, kind: str, reason: str) -> None:
        """A correction is lost."""
        self.warn(kind, f"A correction is lost (logged once of this kind; see Collector.counters): {reason}")

    def warn(self, kind: str, message: str) -> None:
        """Warns, where nothing of this kind was told before."""
        if kind not in self._told:
            self._told.add(kind)
            _LOG.warning("%s", message)


class Delivery:
    """Writes records to a store. After a failure it pauses, for longer each time, up to half a minute.

    Only one thread calls `put` and `rest`; `at_work` is held in between, so that a fork can wait for the end. It is also
    how long the store is kept open: to close SQLite's last connection costs more than to write a batch, and a child must
    not inherit one that is open.
    """

    def __init__(self, store: CorrectionStore, once: OnceLog) -> None:
        self._store, self._once = store, once
        self._pause_s, self._retry_at = 0.0, 0.0
        self.at_work = threading.Lock()
        self._open: contextlib.ExitStack | None = None
        self._rest_at = 0.0

    @property
    def away(self) -> bool:
        """Whether the last attempt failed."""
        return self._pause_s > 0

    def retry_in(self) -> float | None:
        """Seconds until it is time to try again; None where the store is not known to be away."""
        return max(0.0, self._retry_at - time.monotonic()) if self.away else None

    def put(self, records: Sequence[Record]) -> tuple[int, Sequence[Record]]:
        """Writes records. How many of them no store can hold, and those that it did not take now.

        What was written of the latter all the same does no harm: the store knows it by its id.
        """
        try:
            if records:
                self._work()
                self._store.append(records)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, the thread must go on
            if isinstance(error, StoreError | OSError) and not isinstance(error, RecordError):
                self.pause(error)
                return 0, records
            if len(records) > 1:  # one of them is bad, and the others shall not be lost with it
                return self._put_singly(records)
            self._once.lost(type(error).__name__, str(error))
            return 1, ()
        self._pause_s = 0.0
        return 0, ()

    def rest(self) -> None:
        """Lets the store go, if it is open."""
        opened, self._open = self._open, None
        if opened is not None:
            try:
                opened.close()
            except StoreError as error:  # what was written is committed
                self._once.warn("close", f"The store could not be closed: {error}")
            finally:
                self.at_work.release()

    def _work(self) -> None:
        """Opens the store, unless it is open. A fork that waits gets its turn every second."""
        if self._open is not None and time.monotonic() > self._rest_at:
            self.rest()
            time.sleep(_TURN_S)
        if self._open is None:
            self.at_work.acquire()
            self._open, self._rest_at = contextlib.ExitStack(), time.monotonic() + _MOST_AT_WORK_S
            self._open.enter_context(self._store.kept_open())

    def pause(self, error: Exception) -> None:
        """Waits with the next attempt, since this happened."""
        self.rest()
        if not self.away:
            _LOG.warning("The store cannot be written now; corrections wait, and it is tried again: %s", error)
        self._pause_s = min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, 2 * self._pause_s))
        self._retry_at = time.monotonic() + self._pause_s

    def settle(self) -> None:
        """Waits until what was written survives a loss of power: SQLite's log is not synced with every transaction.

        What left the log for the file SQLite has synced. To open and close the file here would end its locks (POSIX ends
        those of the whole process): another process would then remove the log, with what is written to it afterwards.

        Raises:
            OSError: the disk fails.
        """
        file: Path | None = getattr(self._store, "path", None)  # a server sees to it by itself
        if file is not None:
            for path in (file.with_name(file.name + "-wal"), file.parent):
                if path.exists():
                    sync(path)

    def _put_singly(self, records: Sequence[Record]) -> tuple[int, Sequence[Record]]:
        failed = 0
        for at, record in enumerate(records):
            bad, left = self.put([record])
            failed += bad
            if left:
                return failed, records[at:]
        return failed, ()
