"""When rounds are due: a cron expression in a time zone, and what else may start one.

Expressions mean what they mean to Debian's cron (the library is cronsim): 0 and 7 are Sunday, names of days and months
may be used, and where both the day of the month and the day of the week are restricted, either may match. A fixed time
that daylight saving skips comes right after the gap, one that happens twice comes the first time only. Hours or minutes
that begin with `*` follow the time that passes instead: `*/30 2 * * *` comes four times on the night with two 2 o'clocks.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from aligner_chain.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from cronsim import CronSim

EXAMPLES = """\
  0 3 * * sun        Sundays at 03:00
  30 2 * * mon-fri   02:30 on working days
  0 */6 * * *        every six hours
  0 4 1,15 * *       the 1st and the 15th at 04:00"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LOOK_BACK_H = (1, 24, 24 * 32, 24 * 400, 24 * 4000, 24 * 20_000)  # the longest exceeds the 50 years that cronsim looks


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """When rounds are due. At least one of `cron`, `min_pairs` and `max_age` is given.

    Args:
        name: what tells it from others in the same registry; part of what makes each fire unique.
        cron: five fields: minute, hour, day of the month, month, day of the week.
        zone: the IANA name of the time zone that `cron` is meant in.
        jitter: each fire of `cron` starts up to so much later, always the same for one fire, so that many schedules do
            not all start at the full hour.
        min_pairs: also due once so many corrections that may make pairs are new since the last round began.
        max_age: also due once the last round began so long ago.

    Raises:
        ConfigurationError: one of them cannot be used; the message shows some that can.
        MissingExtraError: there is a `cron`, and cronsim is not installed.
    """

    name: str = "rounds"
    cron: str | None = None
    zone: str = "UTC"
    jitter: timedelta = timedelta()
    min_pairs: int | None = None
    max_age: timedelta | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            message = f"{self.name!r} is no name of a schedule: up to 64 letters (a-z), digits, '-', '_' and '.'."
            raise ConfigurationError(message)
        if self.cron is None and self.min_pairs is None and self.max_age is None:
            message = (
                f"The schedule {self.name!r} is never due. Give a cron expression, min_pairs or max_age.\n{EXAMPLES}"
            )
            raise ConfigurationError(message)
        if self.min_pairs is not None and self.min_pairs < 1:
            raise ConfigurationError(f"min_pairs must be at least 1, not {self.min_pairs}.")
        if self.jitter < timedelta() or (self.max_age is not None and self.max_age <= timedelta()):
            raise ConfigurationError("jitter must not be below 0, and max_age must be above 0.")
        _zone(self.zone)
        if self.cron is not None:
            _check(self.cron)

    def fires(self, after: datetime) -> Iterator[datetime]:
        """The times after this one at which `cron` is due, in UTC, each later than the one before; jitter left out."""
        if self.cron is None:
            return
        # On the night with two 2 o'clocks, cronsim begins with one that is over if it starts in the second.
        for fire in _simulated(self.cron, after.astimezone(_zone(self.zone))):
            if (fire := fire.astimezone(UTC)) > after:
                yield fire
                after = fire

    def newest_fire(self, after: datetime, until: datetime) -> datetime | None:
        """The last time after `after` and not after `until` at which `cron` was due, or None.

        It is looked for in ever longer spans before `until`: years of missed fires are not counted one by one.
        """
        for hours in _LOOK_BACK_H:
            start = max(after, until - timedelta(hours=hours))
            found = deque(takewhile(lambda fire: fire <= until, self.fires(start)), maxlen=1)
            if found:
                return found[0]
            if start == after:
                break
        return None

    def delay(self, fire: datetime) -> timedelta:
        """How much later than scheduled a fire starts: the same for every process that asks."""
        digest = hashlib.sha256(f"{self.name}@{fire.isoformat()}".encode()).digest()
        return self.jitter * (int.from_bytes(digest[:8], "big") / 2**64)

    def local(self, fire: datetime) -> datetime:
        """The same time in the schedule's time zone."""
        return fire.astimezone(_zone(self.zone))


def _check(expression: str) -> None:
    """Refuses an expression that cannot be read, and one that never comes."""
    problem = None
    if len(expression.split()) != 5:
        problem = f"it has {len(expression.split())} fields and not five"
    elif next(_simulated(expression, datetime(2024, 1, 1, tzinfo=UTC)), None) is None:
        problem = "there is no such day in 50 years"
    if problem:
        raise ConfigurationError(_not_understood(expression, problem))


def _simulated(expression: str, after: datetime) -> Iterator[datetime]:
    try:
        from cronsim import CronSim, CronSimError
    except ModuleNotFoundError as error:
        raise MissingExtraError("cronsim", "train") from error
    try:
        simulated: CronSim = CronSim(expression, after)
    except (CronSimError, ValueError) as error:  # the second: a number of thousands of digits
        raise ConfigurationError(_not_understood(expression, str(error)[:200])) from error
    return simulated


def _not_understood(expression: str, problem: str) -> str:
    shown = expression if len(expression) <= 100 else f"{expression[:100]}..."
    return (
        f"The cron expression {shown!r} cannot be used: {problem}.\n"
        f"It is five fields, minute hour day-of-month month day-of-week:\n{EXAMPLES}"
    )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: "Europe" is a folder
        raise ConfigurationError(_no_zone(name)) from error


def _no_zone(name: str) -> str:
    known = available_timezones()
    if not known:
        return f"{name!r} cannot be looked up: this system has no time zones. Install them:  pip install tzdata"
    wanted = name.replace(" ", "_").lower()
    cities = {zone.lower().rpartition("/")[2]: zone for zone in sorted(known)}
    by_key = {zone.lower(): zone for zone in known} | cities
    close = [by_key[key] for key in difflib.get_close_matches(wanted, by_key, n=3)]
    near = close or [zone for zone in sorted(known) if zone.lower().startswith(f"{wanted}/")][:3]
    shown = ", ".join(near or ["UTC", "Europe/Berlin", "America/New_York"])
    return f"{name!r} is no time zone of the IANA's list. For example: {shown}."
