"""`aligner-bootstrap round`: run, resume, retry and abort rounds, and see how they stand."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from aligner_chain.command_line import whole_number
from bootstrap.commands.base import add_command, home_of, require, say, say_to_stderr

if TYPE_CHECKING:
    from bootstrap.registry import Registry
    from bootstrap.rounds import Round, RoundConfig, RoundResult, Rounds

PROMOTED, REFUSED = 0, 3

NEEDED = ("collect,train", "sqlalchemy", "alembic", "torch", "trl")
"""The extras of a round, and what they bring."""

_WIDTH = 100
"""Characters of a reason in a list; `round status` and `--json` have all of it."""


def add(commands: Any) -> None:
    """Adds `round` with its commands."""
    round_ = commands.add_parser("round", help="bootstrap rounds").add_subparsers(required=True, metavar="COMMAND")
    _add_working(round_)
    _add_looking(round_)


def _add_working(commands: Any) -> None:
    """The commands that make a round, which need to know what of."""
    run = _working(commands, "run", "run one round and promote what passes its gates", " --start", _run)
    run.add_argument("--start", action="store_true", help="first register the base pair, if nothing is served yet")
    _working(commands, "resume", "go on with the round that a kill or a failed stage stopped", "", _resume)
    about = "go on with the stopped round from a stage on, as if it had not been begun"
    retry = _working(commands, "retry", about, " --stage train_upstream", _retry)
    retry.add_argument("--stage", required=True, help="the first stage to run again; `round status` lists them")


def _working(
    commands: Any, name: str, about: str, more: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = add_command(commands, name, about, f"aligner-bootstrap round {name} --config round.toml{more}", run)
    parser.add_argument(
        "--config", type=Path, required=True, help="a TOML file; a missing one is answered with an example"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def _add_looking(commands: Any) -> None:
    """The commands that need the registry only."""
    status = add_command(commands, "status", "show the stages of a round", "aligner-bootstrap round status 3", _status)
    status.add_argument("round", type=whole_number(1), nargs="?", help="its number (default: the newest)")
    list_ = add_command(commands, "list", "list all rounds", "aligner-bootstrap round list", _list)
    abort = add_command(
        commands, "abort", "give a round up that is not ended", "aligner-bootstrap round abort 3", _abort
    )
    abort.add_argument("round", type=whole_number(1), help="its number")
    abort.add_argument("--reason", default="given up by a person", help="what the ledger says of it")
    for parser in (status, list_, abort):
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--config", type=Path, help="the file that the rounds are run with: its registry")
        where.add_argument("--home", type=Path, help="folder of the registry (default: $ALIGNER_HOME)")
        parser.add_argument("--database", metavar="URL", help="its database (default: HOME/registry.db, see the docs)")
        parser.add_argument("--json", action="store_true", help="print JSON")


def _run(arguments: argparse.Namespace) -> int:
    rounds = _rounds(arguments)
    from bootstrap.rounds import register_start

    if arguments.start and rounds.open_registry().served() is None:
        register_start(rounds.config, say=rounds.say)
    with reported(rounds):
        return _show_result(arguments, rounds.run(), rounds.open_registry().home)


def _resume(arguments: argparse.Namespace) -> int:
    rounds = _rounds(arguments)
    with reported(rounds):
        return _show_result(arguments, rounds.resume(), rounds.open_registry().home)


def _retry(arguments: argparse.Namespace) -> int:
    rounds = _rounds(arguments)
    with reported(rounds):
        return _show_result(arguments, rounds.retry(arguments.stage), rounds.open_registry().home)


@contextmanager
def reported(rounds: Rounds) -> Iterator[None]:
    """Writes the page of the newest round, and the index, however the round ended; says how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        say_to_stderr("The round was broken off; what was served still is.")
        say_to_stderr("Go on with it:  aligner-bootstrap round resume --config round.toml")
        raise
    finally:
        _report(rounds)


def _report(rounds: Rounds) -> None:
    from aligner_chain.errors import AlignerError
    from bootstrap.report import write_reports
    from bootstrap.rounds import Ledger

    try:
        made = Ledger(rounds.open_registry().database).rounds()
        if made:
            number, config = made[-1].number, rounds.config
            written = write_reports(config.home, database=config.registry, round=number)
            rounds.say(f"report: {written.rounds[number]}")
    except AlignerError as error:  # how the round ended is what the caller must hear
        rounds.say(f"no report was written: {error}")


def _rounds(arguments: argparse.Namespace) -> Rounds:
    require(*NEEDED)
    from bootstrap.rounds import Rounds

    tell = say_to_stderr if arguments.json else say
    return Rounds(config=_config(arguments.config), say=tell, progress=not arguments.json)


def _config(path: Path) -> RoundConfig:
    from bootstrap.config import read_config

    sys.path.insert(0, str(Path.cwd()))  # the judge and its like live in the user's folder
    return read_config(path)


def _show_result(arguments: argparse.Namespace, result: RoundResult | None, home: Path) -> int:
    if result is None:
        print(json.dumps(None) if arguments.json else "No round is waiting to be resumed.")
        return PROMOTED
    if arguments.json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        refused = ", ".join(gate.name for gate in result.gates if not gate.passed)
        reason = f"not passed: {refused}" if refused and result.status != "promoted" else result.reason
        say(f"Round {result.number} was {result.status} after {result.seconds:.0f} s, {reason}.")
        for way in result.reason.splitlines()[1:]:
            say(way)
        if refused:
            say(f"What each gate found and needs:  aligner-bootstrap gate explain --home {home}")
    return PROMOTED if result.status == "promoted" else REFUSED


def _status(arguments: argparse.Namespace) -> int:
    from bootstrap.rounds import Ledger

    registry = _registry(arguments)
    ledger = Ledger(registry.database)
    rounds = ledger.rounds() if arguments.round is None else [ledger.round(arguments.round)]
    if arguments.json:
        print(json.dumps(_as_json(rounds[-1]) if rounds else None, indent=2))
    else:
        for line in _lines(rounds[-1], registry.home) if rounds else [no_round(registry.home)]:
            print(line)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from bootstrap.rounds.ledger import Ledger

    registry = _registry(arguments)
    rounds = Ledger(registry.database).rounds()
    if arguments.json:
        print(json.dumps([_as_json(one) for one in rounds], indent=2))
        return 0
    for line in map(_line, rounds) if rounds else [no_round(registry.home)]:
        print(line)
    return 0


def _abort(arguments: argparse.Namespace) -> int:
    from bootstrap.rounds.running import abort

    ended = abort(_registry(arguments), arguments.round, arguments.reason)
    print(json.dumps(_as_json(ended), indent=2) if arguments.json else _line(ended))
    return 0


def no_round(home: Path) -> str:
    """What is said of a registry that has seen no round, which may be another one than was meant."""
    return (
        f"No round was begun yet in {home}:  aligner-bootstrap round run --help\n"
        "Another registry is named by  --home FOLDER  or  export ALIGNER_HOME=FOLDER"
    )


def _registry(arguments: argparse.Namespace) -> Registry:
    from bootstrap.registry import Registry

    if arguments.config is None:
        return Registry(home_of(arguments), arguments.database)
    config = _config(arguments.config)
    return Registry(config.home, arguments.database or config.registry)


def _as_json(one: Round) -> dict[str, Any]:
    names = ("number", "fire_key", "status", "parent", "pair", "reason")
    stages = [
        {"stage": run.stage, "status": run.status, "attempt": run.attempt, "seconds": run.seconds, "error": run.error}
        for run in one.stages
    ]
    times = {"created": one.created.isoformat(), "ended": one.ended and one.ended.isoformat()}
    return {**{name: getattr(one, name) for name in names}, **times, "gates": one.gates, "stages": stages}


def _line(one: Round) -> str:
    fired = f", fired by {one.fire_key}" if one.fire_key else ""
    made = f", pair {one.pair}" if one.pair is not None else ""
    reason = f": {shorten(one.reason.splitlines()[0], _WIDTH, placeholder=' ...')}" if one.reason else ""
    return f"{one.created:%Y-%m-%d %H:%M} UTC  round {one.number} {one.status}{made}{fired}{reason}"


def _lines(one: Round, home: Path) -> Iterator[str]:
    from bootstrap.rounds import STAGE_NAMES
    from bootstrap.rounds.progress import training_lines

    yield _line(one)
    for name in STAGE_NAMES:
        run = one.stage(name)
        if run is None:
            yield f"  {name:<18} -"
            continue
        seconds = f"{run.seconds:8.1f} s" if run.seconds is not None else f"{'':>10}"
        yield f"  {name:<18} {run.status:<8}{seconds}  attempt {run.attempt}{f'  {run.error}' if run.error else ''}"
        if skipped := run.result.get("skipped"):
            yield f"  {'':<18} nothing to do: {skipped}"
        for line in training_lines(home, one.number, run):
            yield f"  {'':<18} {line}"
    for gate in one.gates:
        if gate["decision"] != "promote":
            yield f"  {gate['name']}: {gate['decision']}, {gate['reason']}"
    yield from (f"  {way}" for way in one.reason.splitlines()[1:])
