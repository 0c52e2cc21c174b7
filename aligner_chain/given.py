"""What people give in the place of an Aligner or of exchanges, and what to give instead."""

from __future__ import annotations

from collections.abc import Iterable

from aligner_chain.exchange import Exchange


def not_an_aligner(given: object) -> TypeError:
    """The error for what is neither an Aligner nor names one, with the ways to one."""
    return TypeError(
        f"This {type(given).__name__} is neither an Aligner nor the name of one. Ways to one:\n"
        "- correct with a chat model at hand, no training:  Aligner.from_chat_model(chat_model)\n"
        '- name a folder or hub id:  "path-or-hub-id"\n'
        "- let a function play one, in a test:  Aligner.scripted(function)\n"
        "- take the one that is configured: give none, and leave out no brackets:  llm | AlignerCorrector()"
    )


def require_exchanges(exchanges: Iterable[object]) -> None:
    """Raises `TypeError` for anything but exchanges in a sequence."""
    if isinstance(exchanges, Exchange | str):
        raise TypeError(f"Give a list of exchanges and not one {type(exchanges).__name__}:  {_EXAMPLE}")
    for one in exchanges:
        if not isinstance(one, Exchange):
            raise TypeError(
                f"This {type(one).__name__} is no Exchange. Make one of each question and answer:  {_EXAMPLE}"
            )


_EXAMPLE = "aligner.correct([Exchange.of(question, answer)])"
