"""What is due: one round for each fire, whatever number of processes look, and whatever their clocks do.

A fire is a name, and the name is in the table `rounds` once: `rounds@2026-03-29T01:00:00Z` for a time of the cron
expression (always UTC), `rounds@data:7` for what the data made due after round 7. From this follows:

- Fires that were missed, because no process ran or a clock was set forward, become one: the newest of them.
- A clock that was set back fires nothing again: only fires newer than the newest one in the table that is not in the
  future are looked at, and each name can be written once. Before the schedule's beginning nothing is due.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, func, select

from bootstrap.database import insert_into
from bootstrap.registry.tables import LEASES, ROUNDS
from bootstrap.scheduler.cron import Schedule

NewPairs = Callable[[datetime], int]
"""Tells how many corrections that may make pairs were collected since a time."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_TIME_CHARACTERS = len("2026-03-29T01:00:00Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fire:
    """One round that is due: the name by which it is started once, and why, for people to read."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What the database knows of a schedule's past. Times are in UTC.

    Args:
        began: since when fires count; None where the schedule is new.
        fired: the newest time of the cron expression that was fired and is not in the future.
        unfinished: the key of this schedule's oldest round that has no end.
        last_round: the number of the registry's newest round, whatever started it; 0 where there is none.
        last_began: when that was started.
    """

    began: datetime | None
    fired: datetime | None
    unfinished: str | None
    last_round: int
    last_began: datetime | None


def read_history(connection: Connection, schedule: Schedule, now: datetime) -> History:
    """Reads what is known of a schedule, in one transaction."""
    last = connection.execute(select(ROUNDS).order_by(ROUNDS.c.number.desc()).limit(1)).one_or_none()
    began_ms = connection.execute(select(LEASES.c.expires_ms).where(LEASES.c.name == _beginning(schedule))).scalar()
    timed = (_is_of(schedule), func.length(ROUNDS.c.fire_key) == len(schedule.name) + 1 + _TIME_CHARACTERS)
    fired = select(func.max(ROUNDS.c.fire_key)).where(*timed, ROUNDS.c.fire_key <= timed_key(schedule, now))
    running = select(ROUNDS.c.fire_key).where(_is_of(schedule), ROUNDS.c.ended_ms.is_(None)).order_by(ROUNDS.c.number)
    return History(
        began=None if began_ms is None else _moment(began_ms),
        fired=_fired_at(connection.execute(fired).scalar()),
        unfinished=connection.execute(running.limit(1)).scalar(),
        last_round=0 if last is None else last.number,
        last_began=None if last is None else _moment(last.created_ms),
    )


def due(schedule: Schedule, now: datetime, history: History, new_pairs: NewPairs | None = None) -> Fire | None:
    """What is to be done now: an unfinished round first, then the cron expression, then the data.

    Args:
        schedule: whose fires.
        now: the time, in UTC.
        history: with `began`.
        new_pairs: needed where the schedule has `min_pairs`; asked only where nothing else is due.
    """
    if history.unfinished is not None:
        return Fire(key=history.unfinished, reason="was begun and has no end")
    since = max(moment for moment in (history.began or now, history.fired) if moment is not None)
    scheduled = schedule.newest_fire(since, now)
    if scheduled is not None and scheduled + schedule.delay(scheduled) <= now:
        return Fire(key=timed_key(schedule, scheduled), reason=f"was due at {schedule.local(scheduled).isoformat()}")
    reason = _due_by_data(schedule, now, history, new_pairs)
    return None if reason is None else Fire(key=f"{schedule.name}@data:{history.last_round}", reason=reason)


def begin(connection: Connection, schedule: Schedule, at: datetime, *, again: bool = False) -> None:
    """Notes since when the fires of a schedule count, where that is not known yet or `again` is said.

    It is kept as the end of a lease that nobody ever takes: so it outlives the process, and needs no table of its own.
    """
    row = {"name": _beginning(schedule), "owner": "", "token": 0, "expires_ms": milliseconds(at)}
    statement = insert_into(connection, LEASES).values(row)
    if again:
        changed = {"expires_ms": statement.excluded.expires_ms}
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changed))
    else:
        connection.execute(statement.on_conflict_do_nothing(index_elements=["name"]))


def timed_key(schedule: Schedule, moment: datetime) -> str:
    """The name of a fire of the cron expression."""
    return f"{schedule.name}@{moment.astimezone(UTC).strftime(_TIME)}"


def milliseconds(moment: datetime) -> int:
    """Milliseconds since the epoch."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def _due_by_data(schedule: Schedule, now: datetime, history: History, new_pairs: NewPairs | None) -> str | None:
    last = history.last_began or history.began
    if schedule.max_age is not None and last is not None and now - last >= schedule.max_age:
        return f"the last round began at {last.isoformat(timespec='seconds')}"
    if schedule.min_pairs is None or new_pairs is None:
        return None
    found = new_pairs(history.last_began or EPOCH)
    return f"{found} corrections are new since the last round" if found >= schedule.min_pairs else None


def _beginning(schedule: Schedule) -> str:
    return f"schedule-began:{schedule.name}"


def _is_of(schedule: Schedule) -> ColumnElement[bool]:
    prefix = f"{schedule.name}@"
    return func.substr(ROUNDS.c.fire_key, 1, len(prefix)) == prefix


def _fired_at(key: str | None) -> datetime | None:
    return None if key is None else datetime.strptime(key[-_TIME_CHARACTERS:], _TIME).replace(tzinfo=UTC)


def _moment(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)
