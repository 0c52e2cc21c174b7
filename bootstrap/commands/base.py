"""What every command is made with: its parser, and how it speaks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any, name: str, about: str, example: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Adds a command with its help and an example; `run` gets the arguments and returns the exit code."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about[:1].upper() + about[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def say_to_stderr(line: str) -> None:
    """Prints a line beside what a program reads from the standard output."""
    print(line, file=sys.stderr, flush=True)
