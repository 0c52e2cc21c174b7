"""Right answers and wrong ones, always side by side: what is kept of the right, changed and fixed of the wrong.

Keeping everything would leave every right answer alone, so the null corrector that only copies stands beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from report import Figures, share, shown, table

from aligner_chain import Aligner, Correction, Exchange
from aligner_chain.calibration import auc
from aligner_chain.checks import Checks
from aligner_chain.policy import Policy

Judge = Callable[[Exchange, str], bool]
COLUMNS = ("", "right: kept", "right: still right", "wrong: changed", "wrong: fixed", "score AUC")


def measure(aligner: Aligner, right: Sequence[Exchange], wrong: Sequence[Exchange], judge: Judge) -> Figures:
    """The policy as it is by default, without checks, and the null corrector."""
    scored = _auc(aligner, right, wrong)
    return {
        "default checks": _row(aligner.correct(right), aligner.correct(wrong), judge) | scored,
        "checks off": _without_checks(aligner, right, wrong, judge) | scored,
        "copy only": _copied(right, wrong, judge),
    }


def _without_checks(aligner: Aligner, right: Sequence[Exchange], wrong: Sequence[Exchange], judge: Judge) -> Figures:
    bare = aligner.under(Policy(checks=Checks.off()))
    return _row(bare.correct(right), bare.correct(wrong), judge)


def _row(right: Sequence[Correction], wrong: Sequence[Correction], judge: Judge) -> Figures:
    return {
        "right_kept": share(not one.changed for one in right),
        "right_still_right": share(judge(one.exchange, one.text) for one in right),
        "wrong_changed": share(one.changed for one in wrong),
        "wrong_fixed": share(judge(one.exchange, one.text) for one in wrong),
        "outcomes": {
            "right": dict(Counter(one.outcome for one in right)),
            "wrong": dict(Counter(one.outcome for one in wrong)),
        },
        "refused_because": dict(Counter(one.reason for one in (*right, *wrong) if one.outcome == "kept")),
    }


def _copied(right: Sequence[Exchange], wrong: Sequence[Exchange], judge: Judge) -> Figures:
    return {
        "right_kept": share(True for _ in right),
        "right_still_right": share(judge(one, one.answer) for one in right),
        "wrong_changed": share(False for _ in wrong),
        "wrong_fixed": share(judge(one, one.answer) for one in wrong),
        # One score for all of them tells nothing.
        "auc": {"value": 0.5, "interval_95": None},
    }


def _auc(aligner: Aligner, right: Sequence[Exchange], wrong: Sequence[Exchange]) -> Figures:
    good, bad = ([score for one in aligner.inspect(answers) for score in one.values()] for answers in (right, wrong))
    value, low, high = auc(good, bad)
    return {"auc": {"value": value, "interval_95": [low, high], "n_right": len(good), "n_wrong": len(bad)}}


def show(title: str, figures: Figures) -> None:
    """Prints the rows of `measure` as a table."""
    print(f"\n{title}")
    names = ("right_kept", "right_still_right", "wrong_changed", "wrong_fixed")
    table(
        COLUMNS, ([row, *(shown(one[name]) for name in names), _shown_auc(one["auc"])] for row, one in figures.items())
    )


def _shown_auc(one: Figures) -> str:
    if one["interval_95"] is None:
        return f"{one['value']:.3f}"
    low, high = one["interval_95"]
    return f"{one['value']:.3f} ({low:.3f} to {high:.3f})"
