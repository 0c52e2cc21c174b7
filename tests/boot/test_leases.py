"""Leases: one owner at a time, and a fence that holds whatever clocks do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from bootstrap.database import Database
from bootstrap.database.leases import LONGEST_S, Lease, Leases
from bootstrap.errors import LeaseLostError
from bootstrap.registry.tables import SCHEMA


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url, SCHEMA)
    yield database
    database.close()


def passes(database: Database, lease: Lease) -> bool:
    with database.write() as connection:
        try:
            lease.check(connection)
        except LeaseLostError:
            return False
    return True


def taken(leases: Leases, ttl_s: float = 60.0) -> Lease:
    lease = leases.take("a thing", ttl_s=ttl_s)
    assert lease is not None
    return lease


def write(database: Database, lease: Lease) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM leases")
        lease.check(connection)


def wait_for_end(leases: Leases, hand: Hand) -> Lease:
    """The lease once the time of its owner is over: a server's clock goes by itself."""
    hand.time += 60
    while (lease := leases.take("a thing")) is None:
        time.sleep(0.01)
    return lease


def test_one_owner_at_a_time_and_a_token_that_grows(database: Database) -> None:
    leases, hand = Leases(database), Hand()
    first = taken(leases)
    assert leases.take("a thing", owner=first.owner) is None
    assert leases.take("another thing") is not None
    first.renew()
    first.release()
    assert not passes(database, first)
    second = taken(Leases(database, clock=hand), ttl_s=0.2)
    third = wait_for_end(Leases(database, clock=hand), hand)
    assert first.token < second.token < third.token
    assert [passes(database, lease) for lease in (first, second, third)] == [False, False, True]
    with pytest.raises(LeaseLostError, match=f"{third.owner}.*token {third.token}"):
        second.renew()
    with pytest.raises(LeaseLostError):
        second.release()
    assert passes(database, third)


def test_a_transaction_that_lost_its_lease_writes_nothing(database: Database) -> None:
    hand = Hand()
    leases = Leases(database, clock=hand)
    late = taken(leases, ttl_s=0.05)
    wait_for_end(leases, hand)
    with pytest.raises(LeaseLostError):
        write(database, late)
    assert leases.take("a thing") is None


def test_a_server_goes_by_its_own_clock(postgres) -> None:
    database = Database(postgres.new_database(), SCHEMA)
    taken(Leases(database))
    for wrong in (1e6, -1e6):
        assert Leases(database, clock=lambda wrong=wrong: time.time() + wrong).take("a thing") is None
    database.close()


def test_while_it_is_held_it_is_renewed_and_then_given_back(database: Database) -> None:
    leases, renewed = Leases(database), threading.Event()
    with taken(leases, ttl_s=0.3).held() as lease:
        renewed.wait(1.0)
        assert passes(database, lease)
        assert leases.take("a thing") is None
        assert not lease.lost
    assert taken(leases).token == lease.token + 1


def test_a_loss_is_noted_and_the_new_owner_left_alone(tmp_path: Path) -> None:
    hand, database = Hand(), Database(tmp_path / "registry.db", SCHEMA)
    with taken(Leases(database, clock=hand), ttl_s=0.3).held() as lease:
        other = taken(Leases(database, clock=lambda: hand.time + 100))
        while not lease.lost:
            time.sleep(0.01)
    assert passes(database, other)


def test_a_clock_set_back_and_a_name_used_again_are_no_way_around(tmp_path: Path) -> None:
    hand, database = Hand(), Database(tmp_path / "registry.db", SCHEMA)
    leases = Leases(database, clock=hand)
    first = leases.take("a thing", owner="ann")
    hand.time -= LONGEST_S - 61
    assert leases.take("a thing", owner="ann") is None
    hand.time -= 120
    second = leases.take("a thing", owner="ann")
    assert first is not None
    assert second is not None
    assert [passes(database, lease) for lease in (first, second)] == [False, True]


@pytest.mark.parametrize(("ttl_s", "owner"), [(0, None), (LONGEST_S + 1, None), (float("nan"), None), (60, "")])
def test_what_is_no_lease_is_refused(tmp_path: Path, ttl_s: float, owner: str | None) -> None:
    leases = Leases(Database(tmp_path / "registry.db", SCHEMA))
    with pytest.raises(ValueError, match="must"):
        leases.take("a thing", ttl_s=ttl_s, owner=owner)


class Owners(RuleBasedStateMachine):
    """Owners take, renew, release and forget leases of one name while the clock is set to and fro."""

    leases = Bundle("leases")
    database: Database
    names = 0

    def __init__(self) -> None:
        super().__init__()
        Owners.names += 1
        self.name, self.hand, self.handed_out = f"thing {Owners.names}", Hand(), list[Lease]()
        self.room = Leases(self.database, clock=self.hand)
        self.end_s: float | None = None  # of the newest lease, unless it was released

    @rule(target=leases, ttl_s=st.sampled_from([1.0, 60.0, LONGEST_S]), owner=st.sampled_from(["ann", "ben"]))
    def take(self, ttl_s: float, owner: str):
        lease = self.room.take(self.name, ttl_s=ttl_s, owner=owner)
        now = self.hand.time
        free = self.end_s is None or self.end_s <= now or self.end_s > now + LONGEST_S
        assert (lease is not None) == free
        if lease is None:
            return multiple()
        assert lease.token == len(self.handed_out) + 1
        self.handed_out.append(lease)
        self.end_s = now + ttl_s
        return lease

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        newest = lease is self.handed_out[-1] and self.end_s is not None
        try:
            lease.renew()
        except LeaseLostError:
            assert not newest
        else:
            assert newest
            self.end_s = self.hand.time + lease._ttl_s

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        newest = lease is self.handed_out[-1] and self.end_s is not None
        try:
            lease.release()
        except LeaseLostError:
            assert not newest
        else:
            assert newest
            self.end_s = None

    @rule(seconds=st.sampled_from([0.5, 1.0, 59.0, 61.0, LONGEST_S, 1e6, -1.0, -61.0, -1e6]))
    def set_clock(self, seconds: float) -> None:
        self.hand.time += seconds

    @invariant()
    def at_most_one_passes(self) -> None:
        passing = [lease for lease in self.handed_out if passes(self.database, lease)]
        assert passing == ([] if self.end_s is None else self.handed_out[-1:])


def test_never_do_two_pass(tmp_path: Path) -> None:
    Owners.database = Database(tmp_path / "registry.db", SCHEMA)
    machine = Owners.TestCase
    machine.settings = settings(max_examples=15, stateful_step_count=15)
    with Owners.database.kept_open():
        machine().runTest()
