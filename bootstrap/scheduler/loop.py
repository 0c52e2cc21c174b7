"""The loop that starts rounds when they are due. Any number of processes may run it; each fire has one round."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta

from bootstrap.database.leases import Leases
from bootstrap.errors import LeaseLostError
from bootstrap.scheduler.clock import Clock, SystemClock
from bootstrap.scheduler.cron import Schedule
from bootstrap.scheduler.firing import EPOCH, Fire, History, NewPairs, begin, due, read_history
from bootstrap.scheduler.lines import log_event
from bootstrap.scheduler.rounds import RoundOutcome, Rounds

LONGEST_PAUSE_S = 3600.0

PATIENCE_S = 3600.0
"""So long a clock that shows a time before a schedule's beginning is taken to be wrong, in seconds that really passed.

A clock that is set wrong is mostly set right soon. Which one was wrong, the one at the beginning or this one, nothing here can
tell; so long a difference is the beginning's fault, and without an end to it the schedule would be silent for years.
"""

_HINT = "Nothing is due until then. If this clock is right, --from-now has fires count from now on."


class Scheduler:
    """Starts the round of each fire once, with whatever number of processes beside it.

    Who wants to start a round takes the lease `schedule:<name>`, looks again what is due, and hands the lease on as a
    fence; an unfinished round of the schedule goes first. What happens is logged in lines of JSON.

    Args:
        schedules: when rounds are due. Schedules of different names know nothing of each other.
        rounds: carries them out.
        leases: of the registry's database, which holds the rounds too.
        clock: the time.
        stop: ends `run`, as soon as the round that runs has ended or stopped.
        new_pairs: counts new corrections, for schedules with `min_pairs`.
        poll_s: how often, in seconds, it looks at the data, for unfinished rounds, and for a clock that was set.
        ttl_s: after so many seconds without a sign of life, another process takes over.
    """

    def __init__(
        self,
        schedules: Sequence[Schedule],
        rounds: Rounds,
        leases: Leases,
        *,
        clock: Clock | None = None,
        stop: threading.Event | None = None,
        new_pairs: NewPairs | None = None,
        poll_s: float = 30.0,
        ttl_s: float = 60.0,
    ) -> None:
        self.stop = stop or threading.Event()
        self._schedules, self._rounds, self._leases = tuple(schedules), rounds, leases
        self._clock = clock or SystemClock()
        self._new_pairs, self._poll_s, self._ttl_s = new_pairs, poll_s, ttl_s
        self._behind_since = dict[str, float]()  # by schedule, when its beginning was first seen to lie in the future

    def run(self) -> None:
        """Starts rounds as they become due, until `stop` is set. No error of a round or of the database ends it."""
        for schedule in self._schedules:
            fire = next(schedule.fires(self._clock.now()), None)
            self._log(logging.INFO, "waiting", schedule, next=fire and schedule.local(fire).isoformat())
        failures = 0
        while not self.stop.is_set():
            fine = [self._is_fine(schedule) for schedule in self._schedules if not self.stop.is_set()]
            failures = 0 if all(fine) else failures + 1
            self._clock.sleep(self._pause(failures), self.stop)

    def once(self) -> list[RoundOutcome]:
        """Runs what is due now, at most one round of each schedule, and returns how they ended.

        A schedule that is new here counts from just before its newest fire: what calls this has its own clock, and the
        first call is meant to start a round.

        Raises:
            BootstrapError: the database cannot be used, or another process took over meanwhile.
        """
        found = [self._check(schedule, first=self._newest_fire(schedule)) for schedule in self._schedules]
        return [outcome for outcome in found if outcome is not None]

    def begin_again(self) -> None:
        """Has fires count from now on: the way out where a schedule was begun by a clock that was ahead."""
        with self._leases.database.write() as connection:
            for schedule in self._schedules:
                begin(connection, schedule, self._clock.now(), again=True)

    def _is_fine(self, schedule: Schedule) -> bool:
        try:
            outcome = self._check(schedule, first=self._clock.now())
        except LeaseLostError as error:
            self._log(logging.WARNING, "lease lost", schedule, error=str(error))
            return True
        except Exception as error:  # noqa: BLE001 - a database that is away, anything that a round raises: both may pass
            self._log(logging.ERROR, "error", schedule, error=f"{type(error).__name__}: {error}")
            return False
        return outcome is None or outcome.status != "failed"

    def _check(self, schedule: Schedule, *, first: datetime) -> RoundOutcome | None:
        """Runs the round that is due, if there is one and no other process has the lease."""
        if self._due(schedule, first) is None:
            return None
        lease = self._leases.take(f"schedule:{schedule.name}", ttl_s=self._ttl_s)
        if lease is None:
            self._log(logging.DEBUG, "another process has the lease", schedule)
            return None
        with lease.held():
            fire = self._due(schedule, first)  # again: whoever had the lease before may have fired it
            if fire is None:
                return None
            self._log(logging.INFO, "fire", schedule, fire=fire.key, reason=fire.reason, token=lease.token)
            outcome = self._rounds.run(fire.key, fence=lease, stop=self.stop)
        if outcome is not None:
            level = logging.ERROR if outcome.status == "failed" else logging.INFO
            told = {"round": outcome.number, "status": outcome.status, "reason": outcome.reason}
            self._log(level, "round", schedule, fire=fire.key, **told)
        return outcome

    def _due(self, schedule: Schedule, first: datetime) -> Fire | None:
        now = self._clock.now()
        return due(schedule, now, self._history(schedule, now, first), self._new_pairs)

    def _history(self, schedule: Schedule, now: datetime, first: datetime) -> History:
        """What is known of a schedule; since when its fires count is noted where it is not known yet."""
        with self._leases.database.read() as connection:
            history = read_history(connection, schedule, now)
        if history.began is not None and not self._is_mistaken(schedule, history.began, now):
            return history
        with self._leases.database.write() as connection:
            begin(connection, schedule, min(first, now), again=history.began is not None)
            return read_history(connection, schedule, now)

    def _is_mistaken(self, schedule: Schedule, began: datetime, now: datetime) -> bool:
        """Whether a schedule's beginning has lain in the future for too long to be true."""
        if began <= now:
            self._behind_since.pop(schedule.name, None)
            return False
        passed = self._clock.monotonic()
        if schedule.name not in self._behind_since:
            told = {"began": schedule.local(began).isoformat(timespec="seconds"), "hint": _HINT}
            self._log(logging.WARNING, "the clock shows a time before the schedule began", schedule, **told)
        return passed - self._behind_since.setdefault(schedule.name, passed) >= PATIENCE_S

    def _newest_fire(self, schedule: Schedule) -> datetime:
        now = self._clock.now()
        newest = schedule.newest_fire(EPOCH, now)
        return now if newest is None else newest - timedelta(seconds=1)

    def _pause(self, failures: int) -> float:
        """Seconds until the next look: the next fire, or a poll, or longer the more often something failed."""
        if failures:
            return min(self._poll_s * 2.0 ** min(failures, 20), LONGEST_PAUSE_S)
        now, coming = self._clock.now(), []
        for schedule in self._schedules:
            fire = next(schedule.fires(now), None)
            if fire is not None:
                coming.append((fire + schedule.delay(fire) - now).total_seconds())
        return min([self._poll_s, *coming])

    def _log(self, level: int, event: str, schedule: Schedule, **fields: object) -> None:
        log_event(level, event, time=self._clock.now().isoformat(timespec="seconds"), schedule=schedule.name, **fields)
