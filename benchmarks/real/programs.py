"""DebugBench: Python with one bug and its accepted repair; what an Aligner trained from nothing does to both."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Sequence

from real import Labelled, Row, replace_key, same_text
from report import Figures, share

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.checks import Checks
from aligner_chain.policy import Policy


def debugbench(rows: Sequence[Row]) -> Labelled:
    """The accepted programs, which need nothing, and the buggy ones; `split_key` is the row's own."""
    right = [replace_key(Exchange.of(row["question"], row["correction"]), row["id"]) for row in rows]
    wrong = [replace_key(Exchange.of(row["question"], row["answer"]), row["id"]) for row in rows]
    return Labelled(right, wrong, {row["id"]: frozenset([row["correction"]]) for row in rows})


def parses(code: str) -> bool:
    """Whether Python reads it; nothing of it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is a warning, and no concern of ours
            ast.parse(code)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return False
    return True


def measure(aligner: Aligner, known: Labelled) -> Figures:
    """The policy as it is by default, without checks, and copying alone.

    Many bugs are of the same program, so each accepted program counts once.
    """
    answers = [*{(one.question, one.answer): one for one in known.right}.values(), *known.wrong]
    figures = {
        name: row(known, [(one.exchange, one.text) for one in served]) | outcomes(served)
        for name, served in both_policies(aligner, answers).items()
    }
    return figures | {"copying": row(known, [(one, one.answer) for one in answers])}


def row(known: Labelled, texts: Sequence[tuple[Exchange, str]]) -> Figures:
    """What became of accepted programs and buggy ones; of those that parsed, how many do so no more."""
    right = [(one, text) for one, text in texts if same_text(known, one, one.answer)]
    wrong = [(one, text) for one, text in texts if not same_text(known, one, one.answer)]
    return {
        "right_kept": share(one.answer == text for one, text in right),
        "wrong_changed": share(one.answer != text for one, text in wrong),
        "wrong_fixed": share(same_text(known, one, text) for one, text in wrong),
        "right_stops_parsing": share(not parses(text) for one, text in right if parses(one.answer)),
        "wrong_stops_parsing": share(not parses(text) for one, text in wrong if parses(one.answer)),
    }


def both_policies(aligner: Aligner, answers: Sequence[Exchange]) -> dict[str, Sequence[Correction]]:
    """What is served by default, and without checks."""
    unchecked = aligner.under(Policy(checks=Checks.off())).correct(answers)
    # Checks only refuse changes, so the others need no second correction.
    again = iter(aligner.correct([one.exchange for one in unchecked if one.changed]))
    return {"default checks": [next(again) if one.changed else one for one in unchecked], "checks off": unchecked}


def outcomes(corrections: Sequence[Correction]) -> Figures:
    return {
        "outcomes": dict(Counter(one.outcome for one in corrections)),
        "refused_because": dict(Counter(one.reason for one in corrections if one.outcome == "kept")),
    }
