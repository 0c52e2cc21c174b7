"""`aligner-bootstrap gate explain`: why a round was promoted, held or rejected."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from aligner_chain.command_line import whole_number
from bootstrap.commands.base import add_command, home_of
from bootstrap.commands.rounds import no_round


def add(commands: Any) -> None:
    """Adds `gate`."""
    gate = commands.add_parser("gate", help="what decided a round").add_subparsers(required=True, metavar="COMMAND")
    about = "say what the gates of a round measured, required and decided"
    explain = add_command(gate, "explain", about, "aligner-bootstrap gate explain 3", _explain)
    explain.add_argument("round", type=whole_number(1), nargs="?", help="its number (default: the newest)")
    explain.add_argument("--home", type=Path, help="folder of the registry (default: $ALIGNER_HOME)")
    explain.add_argument("--database", metavar="URL", help="its database (default: HOME/registry.db, see the docs)")
    explain.add_argument("--json", action="store_true", help="print JSON")


def _explain(arguments: argparse.Namespace) -> int:
    from bootstrap.evaluation import GateResult, explain
    from bootstrap.registry import Registry
    from bootstrap.rounds import Ledger

    registry = Registry(home_of(arguments), arguments.database)
    ledger = Ledger(registry.database)
    rounds = ledger.rounds() if arguments.round is None else [ledger.round(arguments.round)]
    gates = rounds[-1].gates if rounds else []
    if arguments.json:
        found = {"round": rounds[-1].number, "status": rounds[-1].status, "gates": gates} if rounds else None
        print(json.dumps(found, indent=2))
        return 0
    for gate in gates:
        print(explain(GateResult.of(gate)))
    if rounds:
        print(f"Round {rounds[-1].number}: {rounds[-1].status}" if gates else f"Round {rounds[-1].number} met no gate.")
    else:
        print(no_round(registry.home))
    return 0
