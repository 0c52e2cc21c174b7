"""`aligner-bootstrap review`: a local page on which a person accepts, rejects or edits corrections."""

from __future__ import annotations

import argparse
import contextlib
import threading
import webbrowser
from typing import Any, get_args

from aligner_chain.command_line import PORT, whole_number
from aligner_chain.exchange import Outcome
from bootstrap.commands.base import STORE_HELP, add_command, existing_store, require, say
from bootstrap.commands.feedback import add_redaction, redaction
from bootstrap.records import SPLITS


def add(commands: Any) -> None:
    """Adds `review`."""
    parser = add_command(
        commands,
        "review",
        "accept, reject or edit corrections on a local page",
        "aligner-bootstrap review --store corrections.db --author ann",
        _review,
    )
    parser.add_argument("--store", required=True, help=STORE_HELP)
    parser.add_argument("--author", help="your name, kept with every decision")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of which split (default train)")
    parser.add_argument(
        "--outcome", choices=(*get_args(Outcome), "any"), default="corrected", help="only these (default corrected)"
    )
    parser.add_argument("--criterion", help="only those that the Aligner says broke this criterion")
    parser.add_argument(
        "--unreviewed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out what was accepted, rejected or edited before (default: yes)",
    )
    parser.add_argument(
        "--limit", type=whole_number(1), default=500, help="the most corrections, the newest first (default 500)"
    )
    parser.add_argument(
        "--port", type=PORT, default=7860, help="port of 127.0.0.1, 0 for any that is free (default 7860)"
    )
    parser.add_argument("--no-browser", action="store_true", help="open no browser, print the address only")
    add_redaction(parser)


def _review(arguments: argparse.Namespace) -> int:
    require("review", "sqlalchemy", "alembic", "gradio")
    from bootstrap.review import ReviewQueue
    from bootstrap.review.server import ReviewServer

    queue = ReviewQueue(
        existing_store(arguments.store),
        split=arguments.split,
        outcome=None if arguments.outcome == "any" else arguments.outcome,
        criterion=arguments.criterion,
        unreviewed=arguments.unreviewed,
        limit=arguments.limit,
        redact=redaction(arguments),
    )
    if not queue.progress.total:
        say(
            "There is nothing to review. See --outcome, --criterion, --split and --no-unreviewed for other corrections."
        )
        return 0
    server = ReviewServer(queue, port=arguments.port, author=arguments.author)
    say(f"{queue.progress.total:,} corrections to review at {server.url} (Ctrl-C ends)")
    if not arguments.no_browser:
        # Some browsers return only when they are closed.
        threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # it is how a review ends
        server.run()
    done = queue.progress
    say(f"{done.accepted:,} accepted, {done.rejected:,} rejected, {done.edited:,} edited.")
    return 0
