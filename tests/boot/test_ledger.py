"""The ledger of rounds, in a file and in a server's database: begun once, by one at a time, and never half."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bootstrap.database import Database
from bootstrap.database.leases import Lease, Leases
from bootstrap.errors import LeaseLostError, RoundBusyError, RoundError
from bootstrap.registry.tables import SCHEMA
from bootstrap.rounds import Ledger


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url, SCHEMA)
    yield database
    database.close()


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def plan(ledger: Ledger, fire_key: str | None = None) -> int:
    planned = ledger.plan(config_hash="x", parent=1, fire_key=fire_key)
    assert planned is not None
    return planned.number


def test_a_stage_is_begun_done_and_read_again(ledger: Ledger) -> None:
    number = plan(ledger)
    assert ledger.begin(number, "freeze") == 1
    ledger.fail(number, "freeze", "ValueError: no")
    failed = ledger.round(number)
    assert (failed.status, failed.reason, failed.result("freeze")) == ("failed", "freeze: ValueError: no", {})
    assert ledger.begin(number, "freeze") == 2
    ledger.finish(number, "freeze", {"pairs": 3}, "abc")
    done = ledger.round(number)
    assert (done.status, done.result("freeze")) == ("running", {"pairs": 3})
    assert done.stages[0].sha256 == "abc"
    assert done.stages[0].seconds is not None
    assert ledger.unfinished() == done


def test_attempts_count_on_after_a_reset_and_tries_do_not(ledger: Ledger) -> None:
    number = plan(ledger)
    for _ in range(3):
        ledger.begin(number, "freeze")
    assert ledger.round(number).stages[0].tries == 3
    ledger.reset(number, ["freeze"])
    assert ledger.begin(number, "freeze") == 4
    assert ledger.round(number).stages[0].tries == 1


def test_one_round_at_a_time_and_one_for_each_fire(ledger: Ledger) -> None:
    first = plan(ledger, "weekly@1")
    with pytest.raises(RoundBusyError, match=f"Round {first} is not ended"):
        plan(ledger, "weekly@2")
    assert ledger.plan(config_hash="x", parent=1, fire_key="weekly@1") is None
    ledger.end(first, "rejected", "no better")
    assert ledger.plan(config_hash="x", parent=1, fire_key="weekly@1") is None
    assert plan(ledger, "weekly@2") == first + 1
    assert [one.status for one in ledger.rounds()] == ["rejected", "running"]


def test_of_many_who_begin_the_same_round_one_does(database: Database) -> None:
    begun: list[int] = []

    def work() -> None:
        planned = Ledger(database).plan(config_hash="x", parent=1, fire_key="weekly@1")
        if planned is not None:
            begun.append(planned.number)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert begun == [1]


def test_an_ended_round_is_never_changed(ledger: Ledger) -> None:
    number = plan(ledger)
    ledger.begin(number, "freeze")
    ended = ledger.end(number, "aborted", "by a person")
    for change in (
        lambda: ledger.begin(number, "freeze"),
        lambda: ledger.finish(number, "freeze", {}, ""),
        lambda: ledger.fail(number, "freeze", "late"),
        lambda: ledger.reset(number, ["freeze"]),
        lambda: ledger.end(number, "promoted", "late"),
    ):
        with pytest.raises(RoundError, match="has ended"):
            change()
    assert ledger.round(number) == ended
    with pytest.raises(RoundError, match="There is no round 7"):
        ledger.round(7)


def test_who_lost_the_lease_writes_nothing(database: Database) -> None:
    leases = Leases(database)
    lease = leases.take("round")
    assert isinstance(lease, Lease)
    held = Ledger(database, lease)
    number = plan(held)
    lease.release()
    assert leases.take("round") is not None
    with pytest.raises(LeaseLostError):
        held.begin(number, "freeze")
    assert held.round(number).stages == ()
