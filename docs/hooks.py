"""What the site adds to the pages as they stand: the help of every command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import aligner_chain.cli
import bootstrap.cli

PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with each page."""
    return markdown.replace(PLACE, "\n".join(commands()))


def commands() -> Iterator[str]:
    """Every command of both programs with its help, as Markdown."""
    for parser in (aligner_chain.cli._parser(), bootstrap.cli._parser()):
        yield f"## `{parser.prog}`\n"
        for one in leaves(parser):
            yield f"### `{one.prog}`\n\n```text\n{one.format_help().rstrip()}\n```\n"


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of those commands that have none below them."""
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for choices in below:
        for one in choices.values():
            yield from leaves(one)
