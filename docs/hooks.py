"""What the site changes in the pages as they stand: it adds the help of every command, and leaves out what only tests read."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator
from typing import Any

import aligner_chain.cli
import bootstrap.cli

PLACE = "<!-- commands -->"
CODE = re.compile(r"<(pre|code)\b.*?</\1>", re.DOTALL)
UNREAD = re.compile(r"```|^ *(?:\?\?\?|!!!)\+? \w|^#{1,6} ", re.MULTILINE)
"""Marks of Markdown that a reader sees only where the page could not be read."""

_LOG = logging.getLogger("mkdocs.hooks")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with each page."""
    # A second word behind a fence ends all Markdown there: the rest of the page came out as it is written.
    return markdown.replace("```python notest", "```python").replace(PLACE, "\n".join(commands()))


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page as HTML; a warning fails the build."""
    text = re.sub(r"<[^>]+>", "", CODE.sub("", html))
    if unread := UNREAD.search(text):
        _LOG.warning("%s has Markdown that was not read: %r", page.file.src_uri, text[unread.start() :][:80])
    return html


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
