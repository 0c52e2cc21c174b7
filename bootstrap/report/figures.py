"""What a round's page and the index tell of a round, read from the ledger. A stage that is not done has no figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from html import escape

from bootstrap.markup import Html
from bootstrap.registry import Event
from bootstrap.report.parts import LONGEST, Figures, dig
from bootstrap.rounds import STAGE_NAMES, Round
from bootstrap.rounds.values import RoundStatus

STYLES: dict[RoundStatus, str] = {
    "promoted": "passed",
    "held": "held",
    "rejected": "refused",
    "skipped": "held",
    "aborted": "held",
    "failed": "refused",
    "running": "held",
}
"""The class name that each status is written in; the word stands beside it always."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """What was measured of Aligners on held-out answers, as `Measured.figures` has it: empty where nothing was.

    `served_on_old` is the pair that was served, `candidate_on_new` the pair of the round, and `served_on_new` the
    served Aligner on the answers of the new upstream. The latter two are one where that Aligner stayed.
    """

    served_on_old: Figures
    served_on_new: Figures
    candidate_on_new: Figures


def pairs_of(one: Round) -> Pairs:
    """What the round measured of both pairs."""
    found, names = one.result("evaluate_pair"), {field.name: field.name for field in fields(Pairs)}
    if one.result("gate_pair").get("refused"):
        names["candidate_on_new"] = "served_on_new"
    return Pairs(**{field: dig(found, name) or {} for field, name in names.items()})


def served_after(one: Round) -> Figures:
    """What was measured of the pair that was served when the round was over."""
    pairs = pairs_of(one)
    return pairs.candidate_on_new if one.status == "promoted" else pairs.served_on_old


def sentence(one: Round) -> str:
    """What happened, and why."""
    why = f": {one.reason}" if one.reason else ""
    told = {
        "promoted": f"Pair {one.pair} took the place of pair {one.parent}{why}",
        "held": f"Not decided yet, so nothing changed and pair {one.parent} stayed{why}",
        "rejected": f"Nothing changed, pair {one.parent} stayed{why}",
        "skipped": f"Too little to train on, pair {one.parent} stayed{why}",
        "aborted": f"Given up{_where(one)}, pair {one.parent} stayed{why}",
        "failed": f"Stopped{_where(one)}, pair {one.parent} stayed; the round waits to be resumed{why}",
        "running": f"At work{_where(one)}, or killed there and waiting to be resumed; pair {one.parent} stays",
    }[one.status]
    text = told if len(told) <= LONGEST else f"{told[:LONGEST]}…"
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def standing(one: Round, history: Sequence[Event]) -> str:
    """What became of the pair that the round promoted; "" where it promoted none."""
    events = [number for number, event in enumerate(history) if event.pair.number == one.pair]
    if one.pair is None or not events:
        return ""
    if events[-1] == len(history) - 1:
        return f"Pair {one.pair} is served now."
    after = history[events[-1] + 1]
    how = "rolled back to" if after.action == "rollback" else "followed by"
    return f"Pair {one.pair} was {how} pair {after.pair.number} on {after.time:%Y-%m-%d %H:%M} UTC."


def status(one: Round) -> Html:
    """The status as a word in its colour."""
    return Html(f'<strong class="{STYLES[one.status]}">{escape(one.status.capitalize())}</strong>')


def fired_by(one: Round) -> str:
    """What started the round."""
    return "a person" if one.fire_key is None else one.fire_key


def moment(time: datetime | None) -> str:
    """A time for people."""
    return "–" if time is None else f"{time:%Y-%m-%d %H:%M} UTC"


def file_name(number: int) -> str:
    """The name of a round's page."""
    return f"round-{number}.html"


def _where(one: Round) -> str:
    """The stage that is not done, of those that were begun the last."""
    begun = [run for name in STAGE_NAMES if (run := one.stage(name)) is not None]
    open_ = [run.stage for run in begun if run.status != "done"]
    if open_:
        return f" at {open_[0]}"
    return f" after {begun[-1].stage}" if begun else " before the first stage"
