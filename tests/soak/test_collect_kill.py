"""Two hundred processes that collect are killed at random moments; what they accepted is found again, once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from collecting import Killed, Load, ServerDatabase, SqliteFolder

pytestmark = pytest.mark.soak

ROUNDS = 5  # of four processes each; ten cases make 200 kills, for each kind of database

Backend = SqliteFolder | ServerDatabase

CASES = {
    "plain": Load(durable=False),
    "durable": Load(durable=True),
    "plain after fork": Load(durable=False, fork=True),
    "durable after fork": Load(durable=True, fork=True),
    "plain with a full disk": Load(durable=False, limit=256 << 10),
    "durable with a full disk": Load(durable=True, limit=256 << 10),
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


def check(killed: Killed) -> None:
    killed.restart()
    bound = 0 if killed.load.durable else killed.load.capacity
    missing = killed.missing()
    assert len(missing) == killed.load.processes
    assert max(missing.values()) <= bound, missing
    again = killed.restart()
    assert (again.adopted, again.torn) == (0, 0)
