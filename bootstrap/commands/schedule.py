"""`aligner-bootstrap schedule`."""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.command_line import whole_number
from bootstrap.commands.base import add_command, require, say, say_to_stderr
from bootstrap.commands.rounds import NEEDED, reported

if TYPE_CHECKING:
    from bootstrap.scheduler import RoundOutcome, Rounds, Schedule, Scheduler

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EXIT_CODES = {"promoted": 0, "held": 3, "rejected": 3, "failed": 1, "stopped": 1}


def add(commands: Any) -> None:
    """Adds `schedule`."""
    example = 'aligner-bootstrap schedule --config round.toml --cron "0 3 * * sun" --tz Europe/Berlin'
    about = "start rounds when they are due, each once, whatever number of processes do so"
    schedule = add_command(commands, "schedule", about, example, _schedule)
    schedule.add_argument("--config", type=Path, help="the round, as for `round run`; not needed with --next")
    schedule.add_argument("--cron", metavar="EXPRESSION", help='when: "0 3 * * sun" is Sundays at 03:00')
    schedule.add_argument("--tz", default="UTC", metavar="ZONE", help="the time zone of --cron (default: UTC)")
    schedule.add_argument(
        "--jitter", type=_duration, default=timedelta(), metavar="TIME", help="start up to so much later: 90s, 10m, 1h"
    )
    schedule.add_argument(
        "--min-pairs", type=int, metavar="N", help="also start once N corrections that may make pairs are new"
    )
    schedule.add_argument(
        "--max-age", type=_duration, metavar="TIME", help="also once the last round began so long ago: 36h, 14d, 4w"
    )
    schedule.add_argument("--name", default="rounds", help="tells schedules of one registry apart (default: rounds)")
    from_now = "have fires count from now on, for a schedule that was begun by a clock that was ahead"
    schedule.add_argument("--from-now", action="store_true", help=from_now)
    what = schedule.add_mutually_exclusive_group()
    what.add_argument(
        "--next", type=whole_number(1, 9999), metavar="N", help="print the next N fires of --cron and do nothing"
    )
    once = "run what is due now, at most one round, and end: for cron, Airflow, Kubernetes"
    what.add_argument("--once", action="store_true", help=once)
    schedule.add_argument("--json", action="store_true", help="print what --next or --once found as one JSON object")


def make_rounds(path: Path) -> Rounds:
    """What carries out the rounds that a configuration file describes.

    Raises:
        ConfigurationError: the file cannot be used.
        RegistryError: no pair is served yet, so every round would fail.
    """
    from bootstrap.config import read_config
    from bootstrap.rounds import Rounds as RoundsOfOne
    from bootstrap.scheduler.ledger_rounds import LedgerRounds

    rounds = RoundsOfOne(config=read_config(path), say=say_to_stderr)
    return LedgerRounds(rounds=rounds, around=lambda: reported(rounds))


def _schedule(arguments: argparse.Namespace) -> int:
    require(*NEEDED)
    from aligner_chain.errors import ConfigurationError
    from bootstrap.scheduler import Schedule

    if arguments.cron is None and arguments.min_pairs is None and arguments.max_age is None:
        raise ConfigurationError('Say when a round is due: --cron "0 3 * * sun", --min-pairs 500 or --max-age 14d.')
    schedule = Schedule(
        name=arguments.name,
        cron=arguments.cron,
        zone=arguments.tz,
        jitter=arguments.jitter,
        min_pairs=arguments.min_pairs,
        max_age=arguments.max_age,
    )
    if arguments.next:
        return _show_next(schedule, arguments.next, as_json=arguments.json)
    with _scheduler(arguments.config, schedule) as scheduler, _stopped_by_signals(scheduler.stop), _logged():
        if arguments.from_now:
            scheduler.begin_again()
        if arguments.once:
            return _once(scheduler, as_json=arguments.json)
        scheduler.run()
    return 0


def _show_next(schedule: Schedule, number: int, *, as_json: bool) -> int:
    from aligner_chain.errors import ConfigurationError

    if schedule.cron is None:
        raise ConfigurationError("--next shows the fires of a cron expression; give one with --cron '0 3 * * sun'.")
    fires = [(schedule.local(fire), fire) for fire in islice(schedule.fires(datetime.now(UTC)), number)]
    if as_json:
        shown = [{"local": local.isoformat(), "utc": _utc(fire)} for local, fire in fires]
        say(json.dumps({"cron": schedule.cron, "zone": schedule.zone, "fires": shown}, indent=2))
    else:
        for local, fire in fires:
            say(f"{local:%a %Y-%m-%d %H:%M:%S %Z}   {_utc(fire)}")
    return 0


def _once(scheduler: Scheduler, *, as_json: bool) -> int:
    outcomes = scheduler.once()
    outcome: RoundOutcome | None = outcomes[0] if outcomes else None
    if as_json:
        say(json.dumps({"status": "nothing due"} if outcome is None else asdict(outcome), indent=2))
    elif outcome is None:
        say("Nothing is due, or another process has it.")
    else:
        say(f"Round {outcome.number}: {outcome.status}{f', {outcome.reason}' if outcome.reason else ''}.")
    return 0 if outcome is None else _EXIT_CODES[outcome.status]


@contextmanager
def _scheduler(path: Path | None, schedule: Schedule) -> Iterator[Scheduler]:
    from aligner_chain.errors import ConfigurationError
    from bootstrap.config import EXAMPLE, read_config
    from bootstrap.database.leases import Leases
    from bootstrap.errors import RegistryError
    from bootstrap.registry import Registry
    from bootstrap.scheduler import Scheduler
    from bootstrap.scheduler.data import new_pairs
    from bootstrap.store import CorrectionStore

    if path is None:
        raise ConfigurationError(f"--config says what a round is made of; give a file like this:\n\n{EXAMPLE}")
    sys.path.insert(0, str(Path.cwd()))  # the judge and its like live in the user's folder
    config = read_config(path)
    registry = Registry(config.home, config.registry)
    if registry.served() is None:
        raise RegistryError(
            f"No pair is served by the registry {registry.home}, so there is nothing that rounds could improve on. "
            f"Register a start pair first:\n  aligner-bootstrap round run --config {path} --start"
        )
    with closing(CorrectionStore(config.store)) as store:
        yield Scheduler([schedule], make_rounds(path), Leases(registry.database), new_pairs=new_pairs(store))


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT let the running stage end; a second one breaks it off. The next leader goes on with the round."""

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logged() -> Iterator[None]:
    """Writes the scheduler's log to the standard error, a line of JSON for each thing that happens."""
    log, handler = logging.getLogger("bootstrap.scheduler"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time: a number and s, m, h, d or w, like 14d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
