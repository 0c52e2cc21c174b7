"""Hundreds of processes that collect are killed at random moments, also on a full disk; what they accepted is found again, once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from collecting import Killed, Load, ServerDatabase, SqliteFolder
from small_disk import SmallDisk, small_disk

from bootstrap.store import CorrectionStore

pytestmark = pytest.mark.soak

ROUNDS = 5  # of four processes each; ten cases make 200 kills, for each kind of database
DISK_ROUNDS = 5  # the same on a full disk; three cases make 60 kills
MB = 1 << 20

Backend = SqliteFolder | ServerDatabase

CASES = {
    "plain": Load(durable=False),
    "durable": Load(durable=True),
    "plain after fork": Load(durable=False, fork=True),
    "durable after fork": Load(durable=True, fork=True),
    "plain with short files": Load(durable=False, limit=256 << 10),
    "durable with short files": Load(durable=True, limit=256 << 10),
}


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "sqlite":
        yield SqliteFolder(tmp_path)
        return
    if reason := postgres.missing():
        pytest.skip(reason)
    server = postgres.PostgresServer()
    try:
        yield ServerDatabase(server)
    finally:
        server.remove()


@pytest.mark.parametrize("case", CASES)
def test_what_was_accepted_is_found_after_a_kill(tmp_path: Path, backend: Backend, case: str) -> None:
    load, noise = CASES[case], random.Random(case)
    killed = Killed(backend.url, tmp_path, load)
    for _ in range(ROUNDS):
        with killed.running() as pids:
            time.sleep(noise.uniform(0, 1))
            killed.kill(noise, pids)
        check(killed)


@pytest.mark.parametrize("case", ["plain", "durable", "plain after fork", "durable after fork"])
def test_so_it_is_with_a_store_that_goes_and_comes(tmp_path: Path, backend: Backend, case: str) -> None:
    load, noise = CASES[case], random.Random(case)
    killed = Killed(backend.url, tmp_path, load)
    for _ in range(ROUNDS):
        with killed.running() as pids:
            time.sleep(noise.uniform(0, 0.5))
            backend.stop()
            time.sleep(noise.uniform(0, 1))
            if noise.random() < 0.5:
                backend.start()
                time.sleep(noise.uniform(0, 1))
            killed.kill(noise, pids)
        backend.start()
        check(killed)


FULL_DISK = ("plain", "durable", "durable after fork")


@pytest.mark.parametrize("case", FULL_DISK)
def test_so_it_is_on_a_disk_that_is_full(tmp_path: Path, case: str) -> None:
    load, noise = CASES[case], random.Random(case)
    with small_disk(tmp_path / "disk", 128 * MB) as disk:
        store = disk.path / "corrections.db"
        CorrectionStore(store)
        killed = Killed(str(store), tmp_path, load, spill=disk.path / "spill")
        for turn in range(1, DISK_ROUNDS + 1):
            with killed.running() as pids:
                time.sleep(noise.uniform(0, 0.5))
                disk.fill(leave=noise.choice([0, 4096, 64 << 10]))
                time.sleep(noise.uniform(0, 1))
                if noise.random() < 0.5:  # it goes on by itself, or is killed while it does
                    make_room(disk, turn)
                    time.sleep(noise.uniform(0, 1))
                killed.kill(noise, pids)
            make_room(disk, turn)
            check(killed)
    assert killed.refused
    print(f"{case}: {killed.stored} stored, {killed.refused} refused")  # noqa: T201


def make_room(disk: SmallDisk, turn: int) -> None:
    """What took the room goes, or the disk is made larger for what is there."""
    if turn % 2:
        disk.make_room()
    else:
        disk.grow(128 * (1 + turn) * MB)


def check(killed: Killed) -> None:
    killed.restart()
    bound = 0 if killed.load.durable else killed.load.capacity
    missing = killed.missing()
    assert len(missing) == killed.load.processes
    assert max(missing.values()) <= bound, missing
    again = killed.restart()
    assert (again.adopted, again.torn) == (0, 0)
