"""What the commands do alike.

They name what may be meant where something was typed wrong, say why a number or a place cannot be used, and get along
with standard streams that cannot hold a text, are closed, or are gone before the end.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that names the command, value or option that a misspelt one is nearest to; so do those below it."""

    # Its overloads in the type stubs tell namespaces apart, which makes no difference here.
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does, but an option that this parser does not know is its own error, with its own usage."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown[0], self._option_string_actions)}"
            )
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Prints usage, what is wrong and the ways out, and ends the process with the exit code 2."""
        if wrong := _CHOICE.search(message):
            message += self._meant(wrong[1], re.findall(r"[\w./-]+", wrong[2]))
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}\nHelp:  {self.prog} --help\n")

    @staticmethod
    def _meant(typed: str, known: Iterable[str]) -> str:
        near = get_close_matches(typed.partition("=")[0], list(known), n=1)
        return f"\nDid you mean {near[0]}?" if near else ""


def place_refused(error: OSError) -> str | None:
    """Why a file or folder that a command works with cannot be used; None for an error that names none."""
    if error.errno == errno.ENOSPC:
        return f"The disk of {error.filename or 'a file'} is full. Free some space, and run the command again."
    if error.filename is None:
        return None
    return (
        f"{error.filename} cannot be used: {error.strerror}. Check the path, and whether you may read and write there."
    )


def whole_number(least: int = 0, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A type of argparse: whole numbers from `least` to `most`, by default as many as databases and clocks can count."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return read


PORT = whole_number(0, 65535)
"""The type of a port; 0 is any that is free."""


# --- the standard streams ---------------------------------------------------------------------------------------------

_ESCAPED = "aligner-chain.json"


def speaking(program: str, command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code, whatever becomes of the standard output.

    What its encoding has no word for (half of a character, an umlaut in ASCII) is written as JSON escapes it: it ends no
    command, and JSON stays JSON. A reader that has gone (`| head`) is no error to be told; the exit code is then 1, if the
    command's was 0. A full disk behind `>` is told.
    """
    _open_closed()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors=_ESCAPED)
    try:
        code = command()
    except SystemExit:  # of the parser, which has printed help or what was wrong
        _flushed()
        raise
    except BrokenPipeError:
        code = 1
    problem = _flushed()
    if problem is not None and not isinstance(problem, BrokenPipeError):
        sys.stderr.write(f"{program}: {place_refused(problem) or problem}\n")
        return code or 2
    return code or int(problem is not None)


def _open_closed() -> None:
    """Gives streams that were closed (`>&-`) a place: Python has None for them, and the next file opened would be theirs."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (until the process ends)


def _flushed() -> OSError | None:
    """Writes what is left of the output; what prevented it, if anything: then Python need not try, and complain, at exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _as_json_escapes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ESCAPED, _as_json_escapes)
