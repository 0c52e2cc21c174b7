"""When rounds are due, that each is started once, and the command that does so."""

from __future__ import annotations

import configparser
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import scheduling
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pages import run_examples
from sqlalchemy import select

from aligner_chain.errors import ConfigurationError
from bootstrap.cli import _parser, main
from bootstrap.commands.schedule import _stopped_by_signals
from bootstrap.database import Database
from bootstrap.database.leases import Leases
from bootstrap.errors import NotEnoughPairsError
from bootstrap.registry import Registry
from bootstrap.registry.tables import ROUNDS, SCHEMA
from bootstrap.scheduler import FakeClock, FunctionRounds, RoundOutcome, Schedule, Scheduler
from bootstrap.scheduler.data import new_pairs
from bootstrap.scheduler.rounds import MOST_ATTEMPTS

PAGE = Path(__file__).parents[2] / "docs" / "scheduling.md"
BERLIN = "Europe/Berlin"
WEEKLY = Schedule(cron="0 3 * * sun")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local_fires(cron: str, zone: str, after: str, number: int) -> list[str]:
    schedule = Schedule(cron=cron, zone=zone)
    start = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    fires = [schedule.local(fire) for fire in islice(schedule.fires(start), number)]
    return [f"{fire:%m-%d %H:%M %Z}" for fire in fires]


# --- times ---


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("30 2 * * *", "2026-10-24 12:00", ["10-25 02:30 CEST", "10-26 02:30 CET"]),
        ("30 2 * * *", "2026-03-28 12:00", ["03-29 03:00 CEST", "03-30 02:30 CEST"]),
        ("0,30 2 * * *", "2026-03-28 12:00", ["03-29 03:00 CEST", "03-30 02:00 CEST"]),
        ("30 2 * * *", "2026-03-29 03:00", ["03-30 02:30 CEST", "03-31 02:30 CEST"]),
        ("0 * * * *", "2026-10-25 01:30", ["10-25 02:00 CEST", "10-25 02:00 CET"]),
        ("0 3 * * sun", "2026-11-22 09:00", ["11-29 03:00 CET", "12-06 03:00 CET"]),
        ("0 3 * * 7", "2026-11-22 09:00", ["11-29 03:00 CET", "12-06 03:00 CET"]),
        ("0 3 * * 0", "2026-11-22 09:00", ["11-29 03:00 CET", "12-06 03:00 CET"]),
        ("0 0 13 * fri", "2026-11-10 00:00", ["11-13 00:00 CET", "11-20 00:00 CET"]),
        ("0 0 24 * fri", "2026-11-22 00:00", ["11-24 00:00 CET", "11-27 00:00 CET"]),
    ],
)
def test_times_are_those_of_cron(cron: str, after: str, expected: list[str]) -> None:
    assert local_fires(cron, BERLIN, after, 2) == expected


def test_the_second_of_two_hours_sees_nothing_of_the_first() -> None:
    schedule = Schedule(cron="30 2 * * *", zone=BERLIN)
    second_ten_past_two = utc("2026-10-25T01:10:00")
    assert next(schedule.fires(second_ten_past_two)) == utc("2026-10-26T01:30:00")
    assert schedule.newest_fire(utc("2026-10-24T12:00:00"), second_ten_past_two) == utc("2026-10-25T00:30:00")


parts_of_cron = (
    st.sampled_from(["0", "30", "*/20", "5,45", "*"]),
    st.sampled_from(["*", "2", "0", "1-3", "*/2", "23"]),
    st.sampled_from(["*", "1", "31", "L"]),
    st.sampled_from(["*", "3,10"]),
    st.sampled_from(["*", "sun", "5", "7"]),
)
zones = st.sampled_from(["UTC", BERLIN, "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Asia/Beirut"])
moments = st.integers(0, 3 * 365 * 86_400).map(lambda seconds: utc("2025-01-01") + timedelta(seconds=seconds))


@settings(max_examples=60)
@given(st.tuples(*parts_of_cron), zones, moments, st.floats(0, 1))
@example(("30", "2", "*", "*", "*"), BERLIN, utc("2026-10-25T01:10:00"), 0.5)
def test_fires_are_later_and_the_same_wherever_one_begins(
    parts: tuple[str, ...], zone: str, start: datetime, share: float
) -> None:
    schedule = Schedule(cron=" ".join(parts), zone=zone)
    first, second = islice(schedule.fires(start), 2)
    assert start < first < second
    between = first + (second - first) * share
    expected = second if between < second else next(schedule.fires(second))
    assert next(schedule.fires(between)) == expected
    assert schedule.newest_fire(start, second) == second
    assert schedule.newest_fire(first, second - timedelta(seconds=1)) is None


def test_years_of_missed_fires_are_one() -> None:
    often = Schedule(cron="* * * * *")
    assert often.newest_fire(utc("1970-01-01"), utc("2026-11-22T09:00:30")) == utc("2026-11-22T09:00:00")
    leap = Schedule(cron="0 0 29 2 *")
    assert leap.newest_fire(utc("1970-01-01"), utc("2026-11-22")) == utc("2024-02-29")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cron": "0 3 * *"}, r"it has 4 fields and not five.*0 3 \* \* sun"),
        ({"cron": "0 0 3 * * sun"}, "it has 6 fields"),
        ({"cron": "0 25 * * *"}, "Bad hour"),
        ({"cron": "9" * 5000 + " * * * *"}, r"9\.\.\.' cannot be used"),
        ({"cron": "0 0 31 2 *"}, "'0 0 31 2 \\*' cannot be used"),
        ({"cron": "0 0 31 2,4 *"}, "cannot be used"),
        ({"cron": "0 3 * * sun", "zone": "berlin"}, "'berlin' is no time zone.*Europe/Berlin"),
        ({"cron": "0 3 * * sun", "zone": "Europe"}, "'Europe' is no time zone.*Europe/"),
        ({"cron": "0 3 * * sun", "zone": "../etc"}, "is no time zone"),
        ({"cron": "0 3 * * sun", "name": "a@b"}, "no name of a schedule"),
        ({"min_pairs": 0}, "at least 1"),
        ({"max_age": timedelta()}, "above 0"),
        ({}, "never due"),
    ],
)
def test_what_cannot_be_used_is_answered_with_what_can(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Schedule(**wrong)
    assert re.search(said, str(caught.value), re.DOTALL)


# --- one process ---


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "registry.db", SCHEMA)


class Machine:
    """Schedulers on one clock over one database, and the rounds that they started."""

    def __init__(self, database: Database, start: str) -> None:
        self.database, self.clock = database, FakeClock(utc(start))
        self.ends: list[Callable[[], RoundOutcome]] = []

    def scheduler(self, *schedules: Schedule, new_pairs: Callable[[datetime], int] | None = None) -> Scheduler:
        def work(fence: object, stop: threading.Event) -> RoundOutcome:
            return self.ends.pop(0)() if self.ends else RoundOutcome(status="promoted")

        rounds = FunctionRounds(self.database, work, clock=self.clock)
        leases = Leases(self.database, clock=lambda: self.clock.now().timestamp())
        return Scheduler(schedules, rounds, leases, clock=self.clock, new_pairs=new_pairs)

    def run(self, until: str, *schedules: Schedule, **options: object) -> None:
        """Lets a scheduler run until a time, as a new process would."""
        end = utc(until)
        stop = FakeClock(self.clock.now(), end=end)
        scheduler = self.scheduler(*schedules, **options)  # type: ignore[arg-type]
        scheduler._clock = self.clock = stop
        scheduler._poll_s = 86_400
        scheduler.run()

    def rounds(self) -> list[tuple[str, str]]:
        with self.database.read() as connection:
            rows = connection.execute(select(ROUNDS.c.fire_key, ROUNDS.c.status).order_by(ROUNDS.c.number))
            return [(row.fire_key, row.status) for row in rows]

    def keys(self) -> list[str]:
        return [key for key, _ in self.rounds()]


def test_each_fire_has_its_round_over_a_change_of_time(database: Database) -> None:
    machine = Machine(database, "2026-10-20")
    machine.run("2026-11-03", Schedule(cron="30 2 * * sun", zone=BERLIN), Schedule(name="other", cron="0 0 1 * *"))
    assert machine.keys() == [
        "rounds@2026-10-25T00:30:00Z",
        "other@2026-11-01T00:00:00Z",
        "rounds@2026-11-01T01:30:00Z",
    ]


def test_a_new_service_waits_for_its_first_fire_and_makes_up_for_one_that_it_missed(database: Database) -> None:
    machine = Machine(database, "2026-11-18")
    machine.run("2026-11-21", WEEKLY)
    assert machine.keys() == []
    machine.clock.jump(2 * 86_400)
    machine.run("2026-11-24", WEEKLY)
    assert machine.keys() == ["rounds@2026-11-22T03:00:00Z"]


def test_missed_fires_become_one_and_a_clock_set_back_fires_none_again(database: Database) -> None:
    machine = Machine(database, "2026-11-01T04:00:00")
    scheduler = machine.scheduler(WEEKLY)
    assert [one.status for one in scheduler.once()] == ["promoted"]
    assert scheduler.once() == []
    machine.clock.jump(21 * 86_400)
    assert len(scheduler.once()) == 1
    machine.clock.jump(-20 * 86_400)
    assert scheduler.once() == []
    machine.clock.jump(20 * 86_400)
    assert scheduler.once() == []
    assert machine.keys() == ["rounds@2026-11-01T03:00:00Z", "rounds@2026-11-22T03:00:00Z"]


def begun_years_ahead(database: Database) -> Machine:
    machine = Machine(database, "2026-11-01T04:00:00")
    machine.clock.jump(3650 * 86_400)
    machine.scheduler(WEEKLY).once()
    machine.clock.jump(-3650 * 86_400)
    return machine


def test_a_schedule_begun_by_a_clock_that_was_ahead_waits_and_says_how_to_go_on(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    machine = begun_years_ahead(database)
    scheduler = machine.scheduler(WEEKLY)
    machine.clock.jump(7 * 86_400)
    assert scheduler.once() == []
    assert "--from-now" in caplog.text
    scheduler.begin_again()
    machine.clock.jump(7 * 86_400)
    assert len(scheduler.once()) == 1
    assert machine.keys()[1:] == ["rounds@2026-11-15T03:00:00Z"]


def test_a_service_goes_on_by_itself_after_an_hour_before_the_beginning(database: Database) -> None:
    machine = begun_years_ahead(database)
    machine.run("2026-11-10", WEEKLY)
    assert machine.keys()[1:] == ["rounds@2026-11-08T03:00:00Z"]


def test_a_clock_set_back_to_before_the_beginning_and_then_less_far_fires_nothing(database: Database) -> None:
    machine = Machine(database, "2026-11-01T04:00:00")
    scheduler = machine.scheduler(WEEKLY)
    assert len(scheduler.once()) == 1
    for weeks in (-9, 2, 1):
        machine.clock.jump(weeks * 7 * 86_400)
        assert scheduler.once() == []
    assert machine.keys() == ["rounds@2026-11-01T03:00:00Z"]


def test_jitter_delays_a_fire_by_the_same_time_for_everybody(database: Database) -> None:
    late = Schedule(cron="0 3 * * sun", jitter=timedelta(hours=2))
    fire = utc("2026-11-22T03:00:00")
    delay = late.delay(fire)
    assert timedelta() < delay < timedelta(hours=2)
    assert delay != late.delay(fire + timedelta(days=7))
    machine = Machine(database, "2026-11-22T03:00:00")
    scheduler = machine.scheduler(late)
    machine.clock.jump(delay.total_seconds() - 1)
    assert scheduler.once() == []
    machine.clock.jump(2)
    assert len(scheduler.once()) == 1
    assert machine.keys() == ["rounds@2026-11-22T03:00:00Z"]


def test_data_is_a_reason_too_once(database: Database) -> None:
    machine, asked = Machine(database, "2026-11-01"), []

    def count(since: datetime) -> int:
        asked.append(since)
        return 100 if since < utc("2026-11-02") else 0

    schedule = Schedule(min_pairs=100, max_age=timedelta(days=14))
    scheduler = machine.scheduler(schedule, new_pairs=count)
    machine.clock.jump(2 * 86_400)
    assert [len(scheduler.once()) for _ in range(3)] == [1, 0, 0]
    assert asked == [utc("1970-01-01"), utc("1970-01-01"), utc("2026-11-03"), utc("2026-11-03")]
    machine.clock.jump(14 * 86_400 - 1)
    assert scheduler.once() == []
    machine.clock.jump(1)
    assert len(scheduler.once()) == 1
    assert machine.keys() == ["rounds@data:0", "rounds@data:1"]


def test_new_pairs_are_the_changed_ones_of_the_training_split(store, make_correction) -> None:
    keys = [{"split_key": f"visitor {number}"} for number in range(40)]
    store.append([make_correction(f"q{number}", **key) for number, key in enumerate(keys)])
    store.append([make_correction("kept", "same", "same", **key) for key in keys])
    trained = sum(one.outcome == "corrected" for one in store.corrections("train"))
    assert 0 < trained < 40
    count = new_pairs(store)
    assert count(utc("1970-01-01")) == trained
    assert count(datetime.now(UTC) + timedelta(days=1)) == 0


def test_no_failing_round_ends_the_loop(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bootstrap.scheduler")
    machine = Machine(database, "2026-10-31")

    def broken() -> RoundOutcome:
        raise RuntimeError("the judge is away")

    def too_few() -> RoundOutcome:
        raise NotEnoughPairsError(3, 50)

    def interrupted() -> RoundOutcome:
        raise KeyboardInterrupt

    machine.ends += [broken, too_few, lambda: RoundOutcome(status="rejected", reason="the gate")]
    machine.run("2026-11-20", WEEKLY)
    assert [status for _, status in machine.rounds()] == ["failed", "held", "rejected"]
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    events = ["waiting", "fire", "the round raised", "round", "fire", "round", "fire", "round"]
    assert [line["event"] for line in lines] == events
    assert "in broken\n" in lines[2]["traceback"]
    assert lines[3] | {"time": ""} == {
        "time": "",
        "event": "round",
        "schedule": "rounds",
        "fire": "rounds@2026-11-01T03:00:00Z",
        "round": 1,
        "status": "failed",
        "reason": "RuntimeError: the judge is away",
    }
    machine.ends += [interrupted]
    with pytest.raises(KeyboardInterrupt):
        machine.run("2026-11-24", WEEKLY)
    machine.clock.jump(7 * 86_400)
    machine.run("2026-12-01", WEEKLY)
    assert machine.rounds()[3:] == [
        ("rounds@2026-11-22T03:00:00Z", "promoted"),
        ("rounds@2026-11-29T03:00:00Z", "promoted"),
    ]


def test_a_database_that_is_away_does_not_end_the_loop(
    database: Database, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    machine, aside = Machine(database, "2026-10-31"), tmp_path / "aside.db"

    class Moving(FakeClock):
        """Takes the file away for the time of the second week's fire."""

        def sleep(self, seconds: float, stop: threading.Event) -> None:
            super().sleep(seconds, stop)
            away = utc("2026-11-08") < self.now() < utc("2026-11-08T12:00:00")
            if away and database.path.exists():
                database.path.rename(aside)
            elif not away and aside.exists():
                aside.rename(database.path)

    scheduler = machine.scheduler(WEEKLY)
    scheduler._clock = machine.clock = Moving(machine.clock.now(), end=utc("2026-11-10"))
    scheduler._poll_s = 3600.0
    scheduler.run()
    assert "cannot be used as a database" in caplog.text
    assert machine.keys() == ["rounds@2026-11-01T03:00:00Z", "rounds@2026-11-08T03:00:00Z"]


def test_a_round_that_always_kills_its_process_is_given_up(database: Database) -> None:
    machine = Machine(database, "2026-11-01T04:00:00")

    def killed() -> RoundOutcome:
        raise KeyboardInterrupt

    machine.ends += [killed] * MOST_ATTEMPTS
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            machine.scheduler(WEEKLY).once()
    assert [one.status for one in machine.scheduler(WEEKLY).once()] == ["failed"]
    assert machine.scheduler(WEEKLY).once() == []


def test_who_lost_the_lease_cannot_end_the_round(database: Database) -> None:
    machine = Machine(database, "2026-11-01T04:00:00")
    taken_over = []

    def paused() -> RoundOutcome:
        machine.clock.jump(61)
        taken_over.extend(machine.scheduler(WEEKLY).once())
        return RoundOutcome(status="rejected")

    machine.run("2026-11-08T02:00:00", WEEKLY)
    machine.ends += [paused]
    machine.run("2026-11-08T05:00:00", WEEKLY)
    assert [one.status for one in taken_over] == ["promoted"]
    assert machine.rounds() == [("rounds@2026-11-08T03:00:00Z", "promoted")]


# --- many processes ---


def test_six_processes_and_a_killed_leader_run_five_rounds(url: str, tmp_path: Path) -> None:
    fires = list(
        islice(scheduling.SCHEDULE.fires(scheduling.START), 5)
    )  # the fourth is on the night with two 2 o'clocks
    keys = [f"rounds@{fire:%Y-%m-%dT%H:%M:%SZ}" for fire in fires]
    with scheduling.swarm(url, tmp_path, processes=6) as swarm:
        for number, (fire, key) in enumerate(zip(fires, keys, strict=True)):
            swarm.set_time(fire)
            if number == 2:
                with swarm.held():
                    swarm.wait_for(key, "running")
                    swarm.kill_leader()
                    swarm.set_time(fire + timedelta(seconds=61))
            swarm.wait_for(key, "promoted")
        found = swarm.rounds()
        assert {key: status for key, (status, _) in found.items()} == dict.fromkeys(keys, "promoted")
        assert found[keys[2]][1] >= 2  # begun again by the next leader; on a busy machine others may be, too


# --- the command ---


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store) -> Path:
    """A round whose models are never read: nothing was collected."""
    registry = Registry(tmp_path / "home")
    made = [registry.add(kind, lambda folder: None, {}) for kind in ("upstream", "aligner")]
    registry.promote(*made, figures={})
    monkeypatch.setenv("ALIGNER_HOME", str(registry.home))
    monkeypatch.chdir(tmp_path)
    names = [f'{name} = "some_desk:{name}"' for name in ("judge", "verifier")]
    paths = [
        f'{name} = "{path}"'
        for name, path in (("store", "corrections.db"), ("base_upstream", "u"), ("base_aligner", "a"))
    ]
    roles = "".join(f"def {name}(rows): raise NotImplementedError\n" for name in ("judge", "verifier"))
    (tmp_path / "some_desk.py").write_text(roles)
    for folder in ("u", "a"):
        (tmp_path / folder).mkdir()
    (tmp_path / "round.toml").write_text("\n".join([*names, *paths]))
    return tmp_path / "round.toml"


def test_once_runs_what_is_due_and_says_how_it_ended(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["schedule", "--config", str(config), "--cron", "* * 1 1 *", "--once", "--json"]
    assert main(command) == 3
    held = json.loads(capsys.readouterr().out)
    assert (held["status"], held["number"]) == ("held", 1)
    assert "0 preference pairs were found and a round needs 50" in held["reason"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"status": "nothing due"}
    assert main([*command, "--name", "other"]) == 3


def test_a_signal_ends_the_service(config: Path) -> None:
    command = [sys.executable, "-m", "bootstrap.cli", "schedule", "--config", str(config), "--cron", "0 0 1 1 *"]
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=config.parent) as service:
        assert service.stderr
        assert json.loads(service.stderr.readline())["event"] == "waiting"
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
        assert service.stderr.read() == b""


def test_a_second_signal_breaks_a_round_off() -> None:
    stop, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    with _stopped_by_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_missing_is_named(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["schedule", "--cron", "0 3 * * sun", "--once"]) == 2
    assert "--config says what a round is made of" in capsys.readouterr().err
    assert main(["schedule", "--min-pairs", "5", "--next", "1"]) == 2
    assert "give one with --cron" in capsys.readouterr().err
    monkeypatch.setenv("ALIGNER_HOME", str(config.parent / "empty"))
    assert main(["schedule", "--config", str(config), "--max-age", "14d"]) == 1
    assert f"round run --config {config} --start" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["schedule", "--config", str(config), "--max-age", "soon"])
    assert "'soon' is no span of time" in capsys.readouterr().err


def test_next_shows_fires_here_and_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["schedule", "--cron", "0 3 * * sun", "--tz", BERLIN, "--next", "2"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"Sun \S{10} 03:00:00 CES?T   \S{10}T0[12]:00:00Z", line) for line in lines)
    assert main([*command, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [fire["utc"] for fire in shown["fires"]] == [line.split()[-1] for line in lines]


# --- the page ---


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(PAGE)
    assert capsys.readouterr().out.splitlines() == [
        "1 None",
        "2",
        "1 rounds@2026-10-25T00:30:00Z promoted",
        "2 rounds@2026-11-01T01:30:00Z promoted",
    ]


def test_every_example_calls_the_command_as_it_is() -> None:
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
    job = yaml.safe_load(blocks["yaml"])
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    service = configparser.ConfigParser()
    service.optionxform = str  # type: ignore[assignment,method-assign]
    service.read_string(blocks["ini"])
    compile(blocks["py"], "dag.py", "exec")
    assert set(json.loads(blocks["json"])) == {field.name for field in fields(RoundOutcome)}
    dag = re.search(r"bash_command='(.*)'", blocks["py"])
    assert dag
    written = [service["Service"]["ExecStart"], dag[1], blocks["cron"].partition("&&")[2].partition(" 2>>")[0]]
    for words in [container["command"] + container["args"], *map(shlex.split, written)]:
        name = next(index for index, word in enumerate(words) if word.endswith("aligner-bootstrap"))
        parsed = _parser().parse_args(words[name + 1 :])
        Schedule(cron=parsed.cron, zone=parsed.tz)


def test_the_fires_on_the_page_are_those() -> None:
    shown = re.findall(r"^(\w{3} \S{10} \S{8}) (\w+)   (\S+)Z$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    schedule = Schedule(cron="30 2 * * sun", zone=BERLIN)
    fires = islice(schedule.fires(utc("2026-10-12")), 3)
    assert shown == [
        (f"{schedule.local(one):%a %Y-%m-%d %H:%M:%S}", f"{schedule.local(one):%Z}", f"{one:%Y-%m-%dT%H:%M:%S}")
        for one in fires
    ]
