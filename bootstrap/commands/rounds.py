"""`aligner-bootstrap round`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bootstrap.commands.base import add_command, say, say_to_stderr


def add(commands: Any) -> None:
    """Adds `round`."""
    round_ = commands.add_parser("round", help="bootstrap rounds").add_subparsers(required=True, metavar="COMMAND")
    example = "aligner-bootstrap round run --config round.toml --start"
    run = add_command(round_, "run", "run one round and promote what passes its gates", example, _round_run)
    run.add_argument(
        "--config", type=Path, required=True, help="a TOML file; a missing one is answered with an example"
    )
    run.add_argument("--start", action="store_true", help="first register the base pair, if nothing is served yet")
    run.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _round_run(arguments: argparse.Namespace) -> int:
    from bootstrap.config import read_config
    from bootstrap.registry import Registry
    from bootstrap.rounds import register_start, run_round

    sys.path.insert(0, str(Path.cwd()))  # the judge and its like live in the user's folder
    config = read_config(arguments.config)
    tell = say_to_stderr if arguments.json else say
    if arguments.start and Registry(config.home).served() is None:
        register_start(config, say=tell)
    result = run_round(config, say=tell, progress=not arguments.json)
    if arguments.json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        say(f"The round was {result.status} after {result.seconds:.0f} s.")
    return 0 if result.status == "promoted" else 3
