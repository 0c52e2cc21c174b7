"""`aligner-bootstrap registry` and `rollback`: what was promoted, and the way back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bootstrap.commands.base import add_command


def add(commands: Any) -> None:
    """Adds `registry` and `rollback`."""
    registry = commands.add_parser("registry", help="what was promoted").add_subparsers(
        required=True, metavar="COMMAND"
    )
    list_ = add_command(
        registry, "list", "list pairs and what is served", "aligner-bootstrap registry list", _registry_list
    )
    back = add_command(
        commands, "rollback", "serve the pair before this one again", "aligner-bootstrap rollback", _rollback
    )
    for parser in (list_, back):
        parser.add_argument("--home", type=Path, help="folder of the registry (default: $ALIGNER_HOME)")
        parser.add_argument("--json", action="store_true", help="print JSON")


def _registry_list(arguments: argparse.Namespace) -> int:
    from bootstrap.registry import Registry

    registry = Registry(arguments.home)
    served = registry.served()
    events = [
        {
            "time": event.time.isoformat(timespec="seconds"),
            "action": event.action,
            "pair": event.pair.number,
            "upstream": event.pair.upstream.identity if event.pair.upstream else None,
            "aligner": event.pair.aligner.identity,
        }
        for event in registry.history()
    ]
    if arguments.json:
        print(json.dumps({"home": str(registry.home), "served": served and served.number, "history": events}, indent=2))
        return 0
    for event in events:
        print("{time}  {action:<9} pair {pair}: {upstream} with {aligner}".format(**event))
    print(f"Served from {registry.home}: {f'pair {served.number}' if served else 'nothing'}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from bootstrap.registry import Registry

    pair = Registry(arguments.home).rollback()
    served = {"served": pair.number, "aligner": pair.aligner.identity}
    print(json.dumps(served) if arguments.json else f"Pair {pair.number} is served again ({pair.aligner.identity}).")
    return 0
