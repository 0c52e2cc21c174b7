"""What every command is made with: its parser, and how it speaks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from bootstrap.store import CorrectionStore


STORE_HELP = "the store: a file's path, or postgresql://user:password@host/name"


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


def home_of(arguments: argparse.Namespace) -> Path | None:
    """The registry's folder as `--home` names it, for commands that only look into what is there.

    Raises:
        ConfigurationError: There is no such folder: making one would answer a slip of the pen with an empty registry.
    """
    home: Path | None = arguments.home
    if home is not None and arguments.database is None and not home.expanduser().is_dir():
        raise ConfigurationError(
            f"There is no registry in {home}: no such folder. Name the one that a round, a demo or registry pull has filled: "
            "--home FOLDER, or export ALIGNER_HOME=FOLDER"
        )
    return home


def require(extra: str, *modules: str) -> None:
    """Raises `MissingExtraError` before a command begins that could not end, naming all that it needs at once."""
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(module, extra)


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def say_to_stderr(line: str) -> None:
    """Prints a line beside what a program reads from the standard output."""
    print(line, file=sys.stderr, flush=True)


def load_judge(reference: str) -> Any:
    """What `module:name` names, in this folder or where modules are found; anything may be a judge.

    Raises:
        ConfigurationError: there is no such module or name.
    """
    from bootstrap.judges import load_callable

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the judge's module lives in the user's folder
    return load_callable(reference)


def existing_store(url: str) -> CorrectionStore:
    """The store at a URL or path that is there already; a mistyped path makes no new one.

    Raises:
        StoreError: there is no such file, or it is no store.
    """
    from bootstrap.store import CorrectionStore

    require_store(url)
    return CorrectionStore(url)


def require_store(url: str) -> None:
    """Raises `StoreError` where a URL or path names a file that is not there."""
    from bootstrap.errors import StoreError

    scheme, _, rest = url.rpartition("://")
    path = Path(rest.removeprefix("/") if scheme else rest).expanduser()
    if scheme in ("", "sqlite") and not path.exists():
        raise StoreError(
            f"There is no store at {path}. Check the path given; a store is made by what collects into it:\n"
            "  AlignerCorrector(on_correction=Collector(CorrectionStore(...)).submit)"
        )
