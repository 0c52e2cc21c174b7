"""The time as the scheduler sees it, so that a test can let a year pass in a second."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_SLICE_S = 0.5


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> datetime:
        """The time, in UTC."""

    def monotonic(self) -> float:
        """Seconds that have passed since some moment; nobody can set it."""

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """Waits so long, or until `stop` is set."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        """As `Clock.now`."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """As `Clock.monotonic`."""
        return time.monotonic()

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """As `Clock.sleep`, noticing `stop` within half a second.

        `stop.wait` would hold the event's lock for moments, in the thread in which a signal's handler sets it: such a
        handler would wait for itself.
        """
        end = time.monotonic() + seconds
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            time.sleep(min(_SLICE_S, left))


class FakeClock:
    """A clock for tests that stands still: only `sleep` and `jump` move it.

    Args:
        start: the time that it shows first, with its zone.
        end: whoever sleeps beyond it is told to stop. None lets it run for ever.
    """

    def __init__(self, start: datetime, *, end: datetime | None = None) -> None:
        self._now, self._end, self._slept_s = start.astimezone(UTC), end, 0.0

    def now(self) -> datetime:
        """As `Clock.now`."""
        return self._now

    def monotonic(self) -> float:
        """As `Clock.monotonic`: what was slept, without the jumps."""
        return self._slept_s

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """As `Clock.sleep`, without waiting."""
        self._slept_s += seconds
        self.jump(seconds)
        if self._end is not None and self._now >= self._end:
            stop.set()

    def jump(self, seconds: float) -> None:
        """Sets the clock forward, or back where `seconds` is below 0."""
        self._now += timedelta(seconds=seconds)
