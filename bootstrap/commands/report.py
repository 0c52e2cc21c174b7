"""`aligner-bootstrap report`: the pages of rounds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from aligner_chain.command_line import whole_number
from bootstrap.commands.base import add_command, say


def add(commands: Any) -> None:
    """Adds `report`."""
    about = "write the pages that tell of rounds: one for each, and an index"
    report = add_command(commands, "report", about, "aligner-bootstrap report 3 --out reports", _report)
    report.add_argument(
        "round", type=whole_number(1), nargs="?", help="write the page of this one alone (default: of all)"
    )
    report.add_argument("--home", type=Path, help="folder of the registry (default: $ALIGNER_HOME)")
    report.add_argument("--database", metavar="URL", help="its database (default: HOME/registry.db, see the docs)")
    report.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the pages (default: reports in the registry's)"
    )
    report.add_argument("--json", action="store_true", help="print where the pages are as one JSON object")


def _report(arguments: argparse.Namespace) -> int:
    from bootstrap.report import write_reports

    written = write_reports(arguments.home, database=arguments.database, round=arguments.round, out=arguments.out)
    if arguments.json:
        pages = {str(number): str(path) for number, path in written.rounds.items()}
        say(json.dumps({"index": str(written.index), "rounds": pages}, indent=2))
        return 0
    if arguments.round is not None:
        say(f"The page of round {arguments.round}: {written.rounds[arguments.round]}")
    say(f"All rounds: {written.index}")
    return 0
