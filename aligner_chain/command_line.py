"""What the commands do with what was typed wrong: name what may be meant, and say why a number or a place cannot be used."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
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


def positive(text: str) -> int:
    """The type of an option that is a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def place_refused(error: OSError) -> str | None:
    """Why a file or folder that a command works with cannot be used; None for an error that names none."""
    if error.errno == errno.ENOSPC:
        return f"The disk of {error.filename or 'a file'} is full. Free some space, and run the command again."
    if error.filename is None:
        return None
    return (
        f"{error.filename} cannot be used: {error.strerror}. Check the path, and whether you may read and write there."
    )
