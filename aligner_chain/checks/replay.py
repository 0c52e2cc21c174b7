"""Recorded corrections through the checks: how many are served, and what the served answers lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aligner_chain.checks import CHECKS, Checks
from aligner_chain.checks.comparison import Comparison
from aligner_chain.checks.facts import fates
from aligner_chain.exchange import Correction, Exchange, Turn, edits_between
from aligner_chain.jsonl import lines, parsed

LOSSES = ("code", "links", "json")
"""What a served answer must never have lost."""


@dataclass(slots=True)
class Policy:
    """What one way to decide comes to: corrections that are served, and answers that lost something by it."""

    served: int = 0
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0))


@dataclass(slots=True)
class Report:
    """The counts over all recorded corrections.

    `outcomes` are those after the checks; `restored` corrections are served with something put back. `by_check` counts
    the corrections that a check found something in, `numbers` those of the answers that the corrections, as they were
    written, replaced or lost. `policies` sets what the checks serve beside keeping every original and serving every
    correction.
    """

    total: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    restored: int = 0
    by_check: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHECKS, 0))
    numbers: dict[str, int] = field(default_factory=lambda: {"replaced": 0, "lost": 0})
    policies: dict[str, Policy] = field(
        default_factory=lambda: {name: Policy() for name in ("keep_all", "checks", "serve_all")}
    )

    def add(self, written: Correction, served: Correction) -> None:
        """Counts a correction as it was written, and as the checks have it served."""
        self.total += 1
        self.outcomes[served.outcome] += 1
        self.restored += served.outcome == "corrected" and served.text != written.text
        for name in {finding.check for finding in served.findings}:
            self.by_check[name] += 1
        if written.outcome == "corrected":
            replaced, lost = fates(_comparison(written))
            self.numbers["replaced"] += len(replaced)
            self.numbers["lost"] += len(lost)
        for name, correction in (("checks", served), ("serve_all", written)):
            _add(self.policies[name], correction)

    def as_json(self) -> dict[str, Any]:
        """The counts as one object. `lost_after` are the served answers that lost something all the same."""
        counts = asdict(self)
        return {**counts, "outcomes": dict(self.outcomes), "lost_after": counts["policies"]["checks"]["lost"]}

    def table(self) -> Iterator[str]:
        """The counts for a person, line by line."""
        told = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        yield f"{self.total} corrections: {told or 'none'}; {self.restored} with something put back"
        yield ""
        yield f"{'':12}{'served':>14}" + "".join(f"{f'lost {name}':>12}" for name in LOSSES)
        for name, policy in self.policies.items():
            share = f"({policy.served / max(self.total, 1):.0%})"
            losses = "".join(f"{policy.lost[one]:>12}" for one in LOSSES)
            yield f"{name.replace('_', ' '):12}{policy.served:>7} {share:>6}{losses}"
        yield ""
        yield from (f"{name:12}{count:>7}" for name, count in self.by_check.items() if count)
        yield f"numbers: {self.numbers['replaced']} replaced, {self.numbers['lost']} lost"


def replay(corrections: Iterable[Correction], checks: Checks) -> Report:
    """Runs the corrections through the checks and counts what comes of them."""
    report = Report()
    for correction in corrections:
        report.add(correction, checks(correction))
    return report


def recorded(path: Path) -> Iterator[Correction]:
    """The corrections in a file of JSON lines, as they were written.

    A line holds "answer" and "correction", and where they are known "question", "context" (passages) and "criteria"
    (those that were broken); what else it holds is passed over.
    """
    yield from parsed(lines(path), str(path), _correction, "check")


def _correction(row: object) -> Correction:
    if not isinstance(row, Mapping):
        raise TypeError("not a JSON object")
    texts = {name: row.get(name, "" if name == "question" else None) for name in ("question", "answer", "correction")}
    lists = {name: row.get(name, []) for name in ("context", "criteria")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f'"{name}" is {"missing" if text is None else "not a text"}')
    for name, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise TypeError(f'"{name}" is not a list of texts')
    turns = (Turn(role="user", text=texts["question"]),)
    exchange = Exchange(turns=turns, answer=texts["answer"], context=tuple(lists["context"]))
    return _written(exchange, texts["correction"], tuple(lists["criteria"]))


def _written(exchange: Exchange, text: str, criteria: tuple[str, ...]) -> Correction:
    answer = exchange.answer
    if text == answer:
        return Correction(exchange=exchange, text=answer, outcome="approved")
    if not text.strip():
        return Correction(exchange=exchange, text=answer, outcome="kept", reason="the correction was empty")
    edits = edits_between(answer, text)
    return Correction(exchange=exchange, text=text, outcome="corrected", edits=edits, criteria=criteria)


def _add(policy: Policy, correction: Correction) -> None:
    if correction.outcome == "corrected":
        policy.served += 1
        pair = _comparison(correction)
        for name in LOSSES:
            policy.lost[name] += any(not damage.mild for damage in CHECKS[name](pair))


def _comparison(correction: Correction) -> Comparison:
    return Comparison(correction.exchange, correction.text, correction.edits)
