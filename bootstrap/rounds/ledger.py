"""The ledger: which rounds there were, and what of each is done. Every change is one transaction.

A round that is not ended is the only one of its registry, so none starts twice and none is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from bootstrap.database import Database
from bootstrap.database.fences import Fence
from bootstrap.errors import RoundBusyError, RoundError
from bootstrap.registry.tables import ROUNDS, STAGES
from bootstrap.rounds.values import UNFINISHED, Round, RoundStatus, StageRun

_R, _S = ROUNDS.c, STAGES.c


class Ledger:
    """The rounds in a registry's database.

    Args:
        database: the registry's.
        fence: of the lease that the caller works under; where that is lost, nothing is written any more.
    """

    def __init__(self, database: Database, fence: Fence | None = None) -> None:
        self._database, self._fence = database, fence

    def plan(self, *, config_hash: str, parent: int, fire_key: str | None = None) -> Round | None:
        """Begins a round and returns it; None where one with this `fire_key` was begun before.

        Raises:
            RoundBusyError: another round is not ended.
        """
        with self._writing() as connection:
            if fire_key is not None and self._fired(connection, fire_key):
                return None
            if (busy := _unfinished(connection)) is not None:
                raise RoundBusyError(_busy(busy))
            number = 1 + (connection.execute(select(func.max(_R.number))).scalar_one() or 0)
            row = {"number": number, "fire_key": fire_key, "status": "running", "config_hash": config_hash}
            row |= {"parent": parent, "pair": None, "reason": "", "created_ms": _now_ms(), "ended_ms": None}
            connection.execute(insert(ROUNDS), row)
            return _round(connection, number)

    def begin(self, number: int, stage: str) -> int:
        """Notes that a stage is begun and returns the number of the attempt, from 1."""
        with self._writing(number) as connection:
            found = connection.execute(_stages(number).where(_S.stage == stage)).one_or_none()
            # Attempts count on after a reset: what an earlier one left under its number must not be taken for the new one's.
            attempt, since = (1, 0) if found is None else (found.attempt + 1, found.result.get("since", 0))
            values = {"status": "running", "attempt": attempt, "result": {"since": since}, "ended_ms": None}
            _put(connection, number, stage, values)
            connection.execute(update(ROUNDS).where(_R.number == number).values(status="running", reason=""))
            return attempt

    def finish(self, number: int, stage: str, result: Mapping[str, Any], sha256: str) -> None:
        """Notes that a stage is done: from now on what it left is what later stages read."""
        with self._writing(number) as connection:
            done = {"status": "done", "result": dict(result), "sha256": sha256, "error": "", "ended_ms": _now_ms()}
            _change(connection, number, stage, done)

    def fail(self, number: int, stage: str, error: str) -> None:
        """Notes that a stage failed, and the round with it, until it is resumed."""
        with self._writing(number) as connection:
            _change(connection, number, stage, {"status": "failed", "error": error, "ended_ms": _now_ms()})
            reason = f"{stage}: {error}"
            connection.execute(update(ROUNDS).where(_R.number == number).values(status="failed", reason=reason))

    def reset(self, number: int, stages: Sequence[str]) -> None:
        """Forgets what these stages left, so that they are run again, as often as a new stage may."""
        with self._writing(number) as connection:
            for row in connection.execute(_stages(number).where(_S.stage.in_(stages))).all():
                again = {"status": "reset", "result": {"since": row.attempt}, "sha256": "", "error": ""}
                _change(connection, number, row.stage, again)
            connection.execute(update(ROUNDS).where(_R.number == number).values(status="failed", reason="reset"))

    def end(self, number: int, status: RoundStatus, reason: str, *, pair: int | None = None) -> Round:
        """Ends a round for good and returns it."""
        with self._writing(number) as connection:
            ended = {"status": status, "reason": reason, "pair": pair, "ended_ms": _now_ms()}
            connection.execute(update(ROUNDS).where(_R.number == number).values(**ended))
            return _round(connection, number)

    def round(self, number: int) -> Round:
        """A round by its number.

        Raises:
            RoundError: there is none.
        """
        with self._database.read() as connection:
            return _round(connection, number)

    def rounds(self) -> list[Round]:
        """All rounds, oldest first."""
        with self._database.read() as connection:
            numbers = connection.execute(select(_R.number).order_by(_R.number)).scalars().all()
            return [_round(connection, number) for number in numbers]

    def unfinished(self) -> Round | None:
        """The round that is not ended, if there is one."""
        with self._database.read() as connection:
            row = _unfinished(connection)
            return None if row is None else _round(connection, row.number)

    @contextmanager
    def _writing(self, number: int | None = None) -> Iterator[Connection]:
        """A transaction of a writer whose lease holds, for a round that is not ended."""
        with self._database.write() as connection:
            if self._fence is not None:
                self._fence.check(connection)
            if number is not None:
                _require_unfinished(connection, number)
            yield connection

    def _fired(self, connection: Connection, fire_key: str) -> bool:
        return connection.execute(select(_R.number).where(_R.fire_key == fire_key)).first() is not None


def _put(connection: Connection, number: int, stage: str, values: Mapping[str, Any]) -> None:
    fresh = {"sha256": "", "error": "", "started_ms": _now_ms(), **values}
    if not _change(connection, number, stage, fresh):
        connection.execute(insert(STAGES), {"round": number, "stage": stage, **fresh})


def _change(connection: Connection, number: int, stage: str, values: Mapping[str, Any]) -> int:
    return connection.execute(update(STAGES).where(_S.round == number, _S.stage == stage).values(**values)).rowcount


def _require_unfinished(connection: Connection, number: int) -> None:
    found = _round(connection, number)
    if found.finished:
        raise RoundError(
            f"Round {number} has ended ({found.status}); nothing of it was changed.\n"
            "See all rounds:  aligner-bootstrap round list"
        )


def _unfinished(connection: Connection) -> Row[Any] | None:
    return connection.execute(select(ROUNDS).where(_R.status.in_(UNFINISHED))).first()


def _stages(number: int) -> Any:
    return select(STAGES).where(_S.round == number).order_by(_S.started_ms, _S.stage)


def _round(connection: Connection, number: int) -> Round:
    row = connection.execute(select(ROUNDS).where(_R.number == number)).one_or_none()
    if row is None:
        raise RoundError(f"There is no round {number}.\nSee all rounds:  aligner-bootstrap round list")
    values = row._asdict()
    created, ended = _time(values.pop("created_ms")), _time(values.pop("ended_ms"))
    stages = tuple(_stage(one) for one in connection.execute(_stages(number)))
    return Round(**values, created=created, ended=ended, stages=stages)


def _stage(row: Row[Any]) -> StageRun:
    values = row._asdict()
    del values["round"]
    started, ended = _time(values.pop("started_ms")), _time(values.pop("ended_ms"))
    return StageRun(**values, started=started, ended=ended)


def _busy(row: Row[Any]) -> str:
    return (
        f"Round {row.number} is not ended ({row.status}), and one round is made at a time.\n"
        "Go on with it:  aligner-bootstrap round resume --config round.toml\n"
        f"Or give it up:  aligner-bootstrap round abort {row.number} --config round.toml"
    )


def _time(milliseconds: int | None) -> Any:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
