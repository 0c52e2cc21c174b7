"""Processes that collect under load and are killed, and what must be found again afterwards.

Run as a script, it starts processes that submit from many threads until they are killed. Each writes the id of every
correction whose `submit` returned True to a file of its own, unbuffered, `REFUSED` for each of the others, and the number
of its process to its output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from aligner_chain.exchange import Correction, Exchange, edits_between
from bootstrap.collect import Collector, Counters
from bootstrap.store import CorrectionStore

WORDS = (
    "the",
    "bad",
    "button",
    "of",
    "a",
    "red",
    "door",
    "in",
    "an",
    "old",
    "house",
    "is",
    "under",
    "the",
    "long",
    "table",
)
REFUSED = "refused"


def make_corrections(seed: int) -> Iterator[Correction]:
    """Corrections of the size of a short chat, without end."""
    noise = random.Random(seed)
    for number in count():
        answer = " ".join(noise.choices(WORDS, k=noise.randrange(5, 80)))
        text = answer.replace("bad", "good")
        yield Correction(
            exchange=Exchange.of(f"question {seed}-{number}", answer),
            text=text,
            outcome="approved" if text == answer else "corrected",
            edits=edits_between(answer, text),
            aligner="tiny@1",
            template="aligner-chain/1",
        )


class SqliteFolder:
    """A store that can be taken away and brought back: a SQLite file in a folder that is moved."""

    def __init__(self, folder: Path) -> None:
        self._here, self._elsewhere = folder / "data", folder / "moved"
        self._here.mkdir()
        self.url = str(self._here / "corrections.db")

    def stop(self) -> None:
        self._here.rename(self._elsewhere)

    def start(self) -> None:
        if not self._here.exists():
            self._elsewhere.rename(self._here)


class ServerDatabase:
    """A store whose PostgreSQL server is stopped and started."""

    def __init__(self, server: Any) -> None:
        self._server, self._runs = server, True
        self.url = server.new_database()

    def stop(self) -> None:
        self._server.stop()
        self._runs = False

    def start(self) -> None:
        if not self._runs:
            self._server.start()
            self._runs = True


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the processes do. `fork`: they are forked off one that collects already. `limit`: no file larger, in bytes."""

    durable: bool
    processes: int = 4
    threads: int = 8
    capacity: int = 300
    fork: bool = False
    limit: int = 0

    def arguments(self) -> list[str]:
        return [f"--{name}={int(value)}" for name, value in vars(self).items()]


class Killed:
    """Processes under load on a store, killed one after the other; then a new one starts and takes over.

    `folder` takes notes of what was accepted, and the log unless `spill` says otherwise. `refused` counts what was not
    accepted, as far as the processes told of it before they were killed.
    """

    def __init__(self, url: str, folder: Path, load: Load, *, spill: Path | None = None) -> None:
        self.url, self.load, self.spill = url, load, spill or folder / "spill"
        self._folder = folder / "accepted"
        self._folder.mkdir(exist_ok=True)
        self.refused = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[list[int]]:
        """The numbers of the processes, all under load; whoever is left is killed in the end."""
        command = [sys.executable, __file__, self.url, str(self._folder), str(self.spill), *self.load.arguments()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2])])}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closed with this process, however it ends: then they end too
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        ) as starter:
            assert starter.stdout
            try:
                yield [int(starter.stdout.readline()) for _ in range(self.load.processes)]
            finally:
                os.killpg(starter.pid, signal.SIGKILL)

    def wait_for_refusals(self) -> None:
        """Waits until each process has refused something."""
        deadline = time.monotonic() + 30
        while not all(REFUSED in file.read_text(encoding="ascii") for file in self._folder.iterdir()):
            assert time.monotonic() < deadline, "nothing is refused"
            time.sleep(0.05)

    def kill(self, noise: random.Random, pids: list[int]) -> None:
        for pid in noise.sample(pids, len(pids)):
            time.sleep(noise.uniform(0, 0.2))
            os.kill(pid, signal.SIGKILL)

    def restart(self) -> Counters:
        """Starts anew, and waits until everything that was found is in the store."""
        with Collector(CorrectionStore(self.url), spill=self.spill) as collector:
            assert collector.flush(timeout=60)
            return collector.counters

    def missing(self) -> dict[str, int]:
        """How many accepted corrections of each process are not in the store; each is asked about once."""
        stored = [correction.id for correction in CorrectionStore(self.url).corrections()]
        assert len(stored) == len(set(stored))
        self.stored = len(stored)
        missing = {}
        for file in self._folder.iterdir():
            told = file.read_text(encoding="ascii").split("\n")[:-1]  # the last line may be cut off
            assert told, "a process was killed before it did anything"
            self.refused += told.count(REFUSED)
            missing[file.name] = len(set(told).difference(stored, [REFUSED]))
            file.unlink()
        return missing


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("url", "folder", "spill"):
        parser.add_argument(name)
    for name in ("durable", "processes", "threads", "capacity", "fork", "limit"):
        parser.add_argument(f"--{name}", type=int)
    given = parser.parse_args()
    if given.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.limit, given.limit))
    before = collector_of(given) if given.fork else None
    if before is not None:
        before.submit(next(make_corrections(0)))
    for number in range(given.processes):
        if not os.fork():
            work(given, before or collector_of(given), seed=os.getpid() * 1000 + number)
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def collector_of(given: Any) -> Collector:
    return Collector(
        CorrectionStore(given.url), durable=bool(given.durable), capacity=given.capacity, spill=given.spill
    )


def work(given: Any, collector: Collector, seed: int) -> None:
    accepted = os.open(Path(given.folder) / f"{os.getpid()}-{seed}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ready = threading.Barrier(given.threads + 1)

    def submit(corrections: Iterator[Correction]) -> None:
        for number, correction in enumerate(corrections):
            told = correction.id if collector.submit(correction) else REFUSED
            os.write(accepted, told.encode() + b"\n")
            if number == 0:
                ready.wait()
            time.sleep(0.001)

    for thread in range(given.threads):
        threading.Thread(target=submit, args=(make_corrections(seed * 100 + thread),), daemon=True).start()
    ready.wait()
    os.write(1, b"%d\n" % os.getpid())
    signal.pause()


if __name__ == "__main__":
    main()
