"""Processes that wait for the same fires, on a clock that the test moves, and what became of their rounds.

Run as a script, it forks a scheduler for each line that it reads, and prints its process's number. The time is in a file
that all of them read; a file of its own can put the clock of one process wrong. While the file `hold` is there, no round
comes to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from bootstrap.database import Database
from bootstrap.database.leases import Leases
from bootstrap.registry.tables import LEASES, ROUNDS, SCHEMA, STAGES
from bootstrap.scheduler import FunctionRounds, RoundOutcome, Schedule, Scheduler

SCHEDULE = Schedule(cron="30 2 * * sun", zone="Europe/Berlin")
START = datetime(2026, 9, 30, tzinfo=UTC)
PATIENCE_S = 60.0


class FileClock:
    """A clock that shows what stands in a file, and as much more as stands in the file of its process."""

    def __init__(self, folder: Path) -> None:
        self._common, self._own = folder / "time", folder / f"skew-{os.getpid()}"

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.common() + self._skew(), UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def common(self) -> float:
        return float(self._common.read_text())

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        time.sleep(0.1)  # not more often: six processes share a core

    def _skew(self) -> float:
        with contextlib.suppress(FileNotFoundError):
            return float(self._own.read_text())
        return 0.0


class Swarm:
    """The processes, from the outside."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder, self.pids = folder, list[int]()
        self.database = Database(url, SCHEMA)
        self.set_time(START)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with (folder / "log").open("w") as log:
            self._starter = subprocess.Popen(
                [sys.executable, __file__, url, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                text=True, start_new_session=True,
            )  # fmt: skip

    def start(self, number: int) -> None:
        assert self._starter.stdin
        assert self._starter.stdout
        for _ in range(number):
            self._starter.stdin.write("\n")
            self._starter.stdin.flush()
            self.pids.append(int(self._starter.stdout.readline()))

    def end(self) -> None:
        os.killpg(self._starter.pid, signal.SIGKILL)
        self._starter.communicate()
        self.database.close()

    def set_time(self, moment: datetime) -> None:
        self._write("time", moment.timestamp())

    def set_skew(self, pid: int, skew: timedelta) -> None:
        self._write(f"skew-{pid}", skew.total_seconds())

    def kill_leader(self) -> int:
        """Kills whoever carries out a round, in the middle of it, and returns its number."""
        with self.database.read() as connection:
            owner = connection.execute(select(LEASES.c.owner).where(LEASES.c.name == "schedule:rounds")).scalar_one()
        pid = int(owner.split(":")[1])
        os.kill(pid, signal.SIGKILL)
        self.pids.remove(pid)
        return pid

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No round comes to its end meanwhile."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()

    def rounds(self) -> dict[str, tuple[str, int]]:
        """By the key of each fire, the status of its round and how often it was begun."""
        query = select(ROUNDS.c.fire_key, ROUNDS.c.status, STAGES.c.attempt).join(
            STAGES, STAGES.c.round == ROUNDS.c.number
        )
        with self.database.read() as connection:
            return {row.fire_key: (row.status, row.attempt) for row in connection.execute(query)}

    def attempt(self, key: str) -> int:
        """How often the round of a fire was begun; 0 where it was not, or has ended."""
        status, attempt = self.rounds().get(key, ("", 0))
        return attempt if status == "running" else 0

    def has_begun(self) -> bool:
        with self.database.read() as connection:
            query = select(LEASES.c.name).where(LEASES.c.name == "schedule-began:rounds")
            return connection.execute(query).one_or_none() is not None

    def wait(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.rounds()}\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.02)

    def wait_for(self, key: str, status: str) -> None:
        self.wait(lambda: self.rounds().get(key, ("",))[0] == status)

    def _write(self, name: str, value: float) -> None:
        staged = self.folder / f"{name}.new"
        staged.write_text(repr(value))
        staged.replace(self.folder / name)


@contextlib.contextmanager
def swarm(url: str, folder: Path, processes: int) -> Iterator[Swarm]:
    running = Swarm(url, folder)
    try:
        running.start(processes)
        running.wait(running.has_begun)
        yield running
    finally:
        running.end()


def schedule(url: str, folder: Path) -> None:
    """One scheduler, until it is killed."""

    def work(fence: object, stop: threading.Event) -> RoundOutcome:
        time.sleep(0.02)
        while (folder / "hold").exists():
            time.sleep(0.02)
        return RoundOutcome(status="promoted")

    clock, database = FileClock(folder), Database(url, SCHEMA)
    # A file's leases go by the time of the test, a server's by its own.
    leases, ttl_s = Leases(database, clock=clock.common), 60.0 if database.path else 1.0
    rounds = FunctionRounds(database, work, clock=clock)
    Scheduler([SCHEDULE], rounds, leases, clock=clock, ttl_s=ttl_s).run()


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            schedule(sys.argv[1], Path(sys.argv[2]))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
