"""The seam between the scheduler and what it starts, and the plainest thing behind it: a function for each fire."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from sqlalchemy import Connection, insert, select, update

from bootstrap.database import Database, insert_into
from bootstrap.database.fences import Fence
from bootstrap.errors import LeaseLostError, NotEnoughPairsError
from bootstrap.registry.tables import ROUNDS, STAGES
from bootstrap.scheduler.clock import Clock, SystemClock
from bootstrap.scheduler.firing import milliseconds
from bootstrap.scheduler.lines import log_event

Status = Literal["promoted", "held", "rejected", "failed", "stopped"]

MOST_ATTEMPTS = 3

_STAGE = "round"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOutcome:
    """How a round ended. `stopped` is no end: it was interrupted, and is gone on with when it is asked for again.

    `held` found too little to decide, `rejected` was refused by a gate; `number` is the round's, in the table `rounds`.
    """

    status: Status
    reason: str = ""
    number: int | None = None


class Rounds(Protocol):
    """What carries out the round of a fire."""

    def run(self, fire_key: str, *, fence: Fence, stop: threading.Event) -> RoundOutcome | None:
        """Carries out the round of a fire: begins it, or goes on where a killed process left it.

        Args:
            fire_key: the fire's name; of all calls with it only one may begin a round.
            fence: to be checked in each transaction that writes.
            stop: once set, the round is to end soon, with the outcome `stopped`.

        Returns:
            None where the round of this fire has ended already.
        """


Work = Callable[[Fence, threading.Event], RoundOutcome]


class FunctionRounds:
    """Rounds that are one function each, recorded in the table `rounds`.

    A function that was interrupted is called again, from its start, in all at most `MOST_ATTEMPTS` times: a round that
    kills its process would else kill each one after it. One that raises an error has failed.

    Args:
        database: the registry's.
        work: carries out a round. It may check the fence in its own transactions and look at the event now and then.
        config_hash: what tells the settings apart with which rounds were run.
        clock: for the times that are recorded.
    """

    def __init__(self, database: Database, work: Work, *, config_hash: str = "", clock: Clock | None = None) -> None:
        self._database, self._work, self._config_hash = database, work, config_hash
        self._clock = clock or SystemClock()

    def run(self, fire_key: str, *, fence: Fence, stop: threading.Event) -> RoundOutcome | None:
        """As `Rounds.run`."""
        begun = self._begin(fire_key, fence)
        if begun is None:
            return None
        number, attempt = begun
        if attempt > MOST_ATTEMPTS:
            reason = f"It was begun {MOST_ATTEMPTS} times and interrupted each time."
            outcome = RoundOutcome(status="failed", reason=reason)
        else:
            outcome = self._carry_out(fence, stop)
        if outcome.status != "stopped":
            self._end(number, outcome, fence)
        return replace(outcome, number=number)

    def _begin(self, fire_key: str, fence: Fence) -> tuple[int, int] | None:
        """Notes that a round is begun; its number and which attempt this is, or None where it has ended."""
        with self._database.write() as connection:
            fence.check(connection)
            new = insert_into(connection, ROUNDS).values(self._row(fire_key)).on_conflict_do_nothing()
            connection.execute(new)
            row = connection.execute(select(ROUNDS).where(ROUNDS.c.fire_key == fire_key)).one()
            return None if row.ended_ms is not None else (row.number, self._count(connection, row.number))

    def _row(self, fire_key: str) -> dict[str, Any]:
        now = milliseconds(self._clock.now())
        fixed = {"fire_key": fire_key, "status": "running", "reason": "", "created_ms": now}
        return {**fixed, "config_hash": self._config_hash}

    def _count(self, connection: Connection, number: int) -> int:
        """Counts the attempts at a round, as those of its one stage."""
        stage = (STAGES.c.round == number, STAGES.c.stage == _STAGE)
        attempt = (connection.execute(select(STAGES.c.attempt).where(*stage)).scalar() or 0) + 1
        row = {"status": "running", "attempt": attempt, "started_ms": milliseconds(self._clock.now())}
        if attempt > 1:
            connection.execute(update(STAGES).where(*stage).values(row))
        else:
            fixed = {"round": number, "stage": _STAGE, "result": {}, "sha256": "", "error": ""}
            connection.execute(insert(STAGES).values({**row, **fixed}))
        return attempt

    def _carry_out(self, fence: Fence, stop: threading.Event) -> RoundOutcome:
        try:
            return self._work(fence, stop)
        except LeaseLostError:
            raise
        except NotEnoughPairsError as error:
            return RoundOutcome(status="held", reason=str(error))
        except Exception as error:  # noqa: BLE001 - judges and trainers raise anything; the fire has had its round
            log_event(logging.ERROR, "the round raised", error=f"{type(error).__name__}: {error}")
            return RoundOutcome(status="failed", reason=f"{type(error).__name__}: {error}")

    def _end(self, number: int, outcome: RoundOutcome, fence: Fence) -> None:
        now = milliseconds(self._clock.now())
        ended = {"status": outcome.status, "reason": outcome.reason, "ended_ms": now}
        stage = {"status": "done" if outcome.status != "failed" else "failed", "ended_ms": now}
        with self._database.write() as connection:
            fence.check(connection)
            connection.execute(update(ROUNDS).where(ROUNDS.c.number == number).values(ended))
            connection.execute(update(STAGES).where(STAGES.c.round == number, STAGES.c.stage == _STAGE).values(stage))
