"""What of a collector waits in memory, and the account of all that was submitted to it."""

from __future__ import annotations

import threading
from collections import Counter, deque

from bootstrap.collect.counting import Counters
from bootstrap.records import Record


class Memory:
    """A record is in one place at a time, and counted there; all but the log is memory, and bounded together.

    The queue holds records as they were submitted; a thread has some in hand; the log has some; and what is redacted and
    could not be logged is ready for the next attempt. Every method takes `lock`, which is never held while anything is
    waited for or written. `changed` belongs to it.

    Args:
        capacity: the most records in memory.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # Reentrant: a collector that nobody holds is stopped by the garbage collection, in whichever thread that runs.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.queue: deque[Record] = deque()
        self.ready: list[Record] = []
        self._in_hand = 0
        self._logging = 0  # of those in hand, the ones on their way into the log, which are counted as spilled already
        self._counts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """How many records a kill would lose now; in durable mode, those included whose `submit` has not returned."""
        return len(self.queue) + len(self.ready) + self._in_hand

    @property
    def in_hand(self) -> int:
        """How many records are being written."""
        return self._in_hand

    @property
    def in_log(self) -> int:
        """How many records wait in the log, or are on their way into it."""
        return self._counts["spilled"] - self._counts["replayed"]

    @property
    def crowded(self) -> bool:
        """Whether three quarters of the room are taken."""
        return self.held >= self.capacity - self.capacity // 4

    def counters(self) -> Counters:
        """The account at one moment."""
        with self.lock:
            return Counters(**self._counts, waiting=self.held + self.in_log - self._logging)

    def count(self, **more: int) -> None:
        """Adds to the account."""
        with self.lock:
            for name, value in more.items():
                self._counts[name] += value

    def admit(self, record: Record, *, queue: bool) -> bool:
        """Takes a record: into the queue, where there is room, or else into the caller's hand."""
        with self.lock:
            if not queue:
                self._in_hand += 1
            elif self.held < self.capacity:
                self.queue.append(record)
            else:
                return False
            return True

    def take(self, most: int) -> list[Record]:
        """The oldest records of the queue, in the caller's hand."""
        with self.lock:
            taken = [self.queue.popleft() for _ in range(min(most, len(self.queue)))]
            self._in_hand += len(taken)
            return taken

    def take_ready(self) -> list[Record]:
        """What is redacted already, in the caller's hand."""
        with self.lock:
            ready, self.ready = self.ready, []
            self._in_hand += len(ready)
            return ready

    def settle(self, records: int, **counts: int) -> None:
        """So many records are in hand no more, and this became of them."""
        with self.changed:
            self._in_hand -= records
            self.count(**counts)
            if not self._in_hand:
                self.changed.notify_all()

    def start_logging(self, records: int) -> None:
        """Records in hand are about to be logged. Counted before, since the log may pass them on before it is told."""
        with self.lock:
            self._logging += records
            self.count(spilled=records)

    def logged(self, records: int) -> None:
        """They are in the log, and in hand no more."""
        with self.lock:
            self._logging -= records
            self.settle(records)

    def not_logged(self, records: list[Record]) -> bool:
        """They could not be logged: they are ready for the next attempt, or refused where memory has no room for them."""
        count = len(records)
        with self.lock:
            self._logging -= count
            room = self.held <= self.capacity  # what came out of the queue has its room
            self.settle(count, spilled=-count, refused=0 if room else count)
            if room:
                self.ready.extend(records)
            return room
