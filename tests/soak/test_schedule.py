"""Six processes over fifty fires: leaders are killed, clocks jump, daylight saving begins and ends; fifty rounds.

    python -m pytest -m soak tests/soak/test_schedule.py

Takes about a minute for each kind of database.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

import postgres
import pytest
import scheduling
from scheduling import Swarm

from bootstrap.scheduler.rounds import MOST_ATTEMPTS

pytestmark = pytest.mark.soak

FIRES = list(islice(scheduling.SCHEDULE.fires(scheduling.START), 50))
KEYS = [f"rounds@{fire:%Y-%m-%dT%H:%M:%SZ}" for fire in FIRES]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "registry.db")
        return
    if reason := postgres.missing():
        pytest.skip(reason)
    server = postgres.PostgresServer()
    try:
        yield server.new_database()
    finally:
        server.remove()


def kill_the_leader(swarm: Swarm, noise: random.Random, fire: datetime, key: str) -> None:
    """In the middle of its round, once or twice; others go on with it, and new processes take the killed ones' place."""
    attempt = 0
    with swarm.held():
        swarm.set_time(fire)
        for killed in range(noise.choice([1, 1, 2])):
            swarm.wait(lambda before=attempt: swarm.attempt(key) > before)
            attempt = swarm.attempt(key)
            if attempt == MOST_ATTEMPTS:  # a clock that was ahead had it begun before: one more, and it is given up
                break
            swarm.kill_leader()
            swarm.set_time(fire + timedelta(seconds=61 * (killed + 1)))
    swarm.wait_for(key, "promoted")
    swarm.start(6 - len(swarm.pids))


def set_a_clock(swarm: Swarm, noise: random.Random, fire: datetime, key: str) -> None:
    """One process believes that it is weeks earlier or later, for a while."""
    swarm.set_time(fire)
    pid = noise.choice(swarm.pids)
    swarm.set_skew(pid, timedelta(weeks=noise.choice([-30, -4, -1, 1, 2, 3]), hours=noise.randrange(24)))
    time.sleep(noise.uniform(0, 0.3))
    swarm.set_skew(pid, timedelta())


def set_all_clocks(swarm: Swarm, noise: random.Random, fire: datetime, key: str) -> None:
    """The machine's clock is wrong for a while, also in the middle of a round."""
    with swarm.held():
        swarm.set_time(fire)
        swarm.set_time(fire + timedelta(weeks=noise.choice([-40, -1, 1, 2]), hours=noise.randrange(24)))
        time.sleep(noise.uniform(0, 0.3))
        swarm.set_time(fire)


def nothing(swarm: Swarm, noise: random.Random, fire: datetime, key: str) -> None:
    """Only the time comes."""
    swarm.set_time(fire)


def test_fifty_fires_are_fifty_rounds(url: str, tmp_path: Path) -> None:
    noise = random.Random(50)
    offsets = {scheduling.SCHEDULE.local(fire).utcoffset() for fire in FIRES}
    assert len(offsets) == 2  # summer and winter
    kills = 0
    with scheduling.swarm(url, tmp_path, processes=6) as swarm:
        for number, (fire, key) in enumerate(zip(FIRES, KEYS, strict=True)):
            fault = noise.choice([nothing, kill_the_leader, set_a_clock, set_all_clocks] if number < 46 else [nothing])
            if fault is kill_the_leader and key in swarm.rounds():
                fault = nothing  # a clock that was ahead has had this fire's round
            kills += fault is kill_the_leader
            fault(swarm, noise, fire, key)
            swarm.set_time(fire + timedelta(minutes=10))
            swarm.wait_for(key, "promoted")
        ended = swarm.rounds()
    assert {key: status for key, (status, _) in ended.items()} == dict.fromkeys(KEYS, "promoted")
    assert kills >= 5
