"""What the bank says: the truth of each candidate, what became of it in its gate runs, and the two lines that count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Any

from candidates import Candidate
from measuring import Measured

from bootstrap.evaluation import GatePolicy, GateResult, decide, paired_interval, wilson
from bootstrap.health import Health, Likelihoods, health_limits

Figures = dict[str, Any]
Gates = Sequence[GateResult]
KINDS = (
    "worse by 3 points or more",
    "better by 10 points or more, harmless",
    "not worse by 3 points, but harmful elsewhere",
    "between, harmless",
)
WORSE, BETTER = -3.0, 10.0
"""Points of fully right answers from which on a candidate is truly worse, or truly better."""


def truth(before: Measured, after: Measured, changed: Likelihoods) -> Figures:
    """What holds of a candidate on the whole pool: how its share of right answers changed, and all that else did."""
    rows = range(len(before.texts))
    change = paired_interval(before.right, after.right)
    health = Health(likelihoods=changed, before=before.shares(rows), after=after.shares(rows))
    return {
        "right": sum(after.right) / len(rows),
        "points": 100 * change.change,
        "interval_95": [100 * change.low, 100 * change.high],
        "gained": change.gained,
        "lost": change.lost,
        "criteria_points": {name: 100 * _change(before, after, name) for name in before.verdicts[0]},
        "health": {name: value for name, value, _, _ in health_limits(health)},
        "characters": sum(map(len, after.texts)) / max(1, sum(map(len, before.texts))),
    }


def row(candidate: Candidate, found: Figures, runs: Sequence[Gates]) -> Figures:
    decisions = Counter(decide(gates).decision for gates in runs)
    stopped = Counter(f"{gate.name}: {gate.decision}" for gates in runs for gate in gates if not gate.passed)
    counts = {verdict: decisions[verdict] for verdict in ("promote", "hold", "reject")}
    return {
        "candidate": candidate.name,
        "truth": found,
        "harms": harms(found, GatePolicy()),
        "runs": len(runs),
        **counts,
        "promoted_interval_95": list(wilson(counts["promote"], len(runs))),
        "stopped_by": dict(stopped.most_common()),
    }


def harms(found: Figures, policy: GatePolicy) -> list[str]:
    """What is truly worse on the whole pool, by more than the policy allows, whatever became of the right answers."""
    health, limits = found["health"], policy.health
    lost = [name for name, points in found["criteria_points"].items() if points < -100 * policy.criterion_margin]
    looks = [name for name in ("repetition", "broken_off", "garbled") if health[name] > limits[name]]
    refuses = ["refusals"] if health["refusals"] > policy.refusal_margin else []
    least, most = policy.least_length_ratio or 0.0, policy.length_ratio or inf
    length = [] if least <= found["characters"] <= most else ["length"]
    return [*(f"criterion {name}" for name in lost), *looks, *refuses, *length]


def claims(rows: Sequence[Figures]) -> dict[str, Figures]:
    """Runs that promoted, of all runs of the candidates of a kind."""
    kinds: dict[str, list[Figures]] = {name: [] for name in KINDS}
    for one in rows:
        kinds[_kind(one["truth"]["points"], bool(one["harms"]))].append(one)
    return {name: _promoted(some) for name, some in kinds.items()}


def _kind(points: float, harmful: bool) -> str:
    worse, better, harmed, between = KINDS
    if points <= WORSE:
        return worse
    if harmful:
        return harmed
    return better if points >= BETTER else between


def _promoted(rows: Sequence[Figures]) -> Figures:
    promoted, runs = sum(one["promote"] for one in rows), sum(one["runs"] for one in rows)
    shares = [one["promote"] / one["runs"] for one in rows]
    return {
        "candidates": len(rows),
        "runs": runs,
        "promoted": promoted,
        "share": promoted / runs if runs else None,
        "lowest_of_a_candidate": min(shares, default=None),
        "highest_of_a_candidate": max(shares, default=None),
    }


def table(result: Figures) -> list[str]:
    served, ordered = result["served"], sorted(result["rows"], key=lambda one: -one["truth"]["points"])
    lines = [
        f"served: {served['right']:.1%} right of {result['pool']} prompts; {served['answers_per_second']:.0f} answers/s",
        f"\n{'candidate':<42}{'right':>7}{'points':>8}{'interval':>18}{'promote':>9}{'hold':>6}{'reject':>8}   stopped most often by",
    ]
    for one in ordered:
        low, high = one["truth"]["interval_95"]
        known = f"{one['truth']['right']:>7.1%}{one['truth']['points']:>+8.1f}{f'{low:+.1f} to {high:+.1f}':>18}"
        shares = [f"{one[key] / one['runs']:.0%}" for key in ("promote", "hold", "reject")]
        by = next(iter(one["stopped_by"]), "")
        name = one["candidate"] + (" *" if one["harms"] else "")
        lines.append(f"{name:<42}{known}{shares[0]:>9}{shares[1]:>6}{shares[2]:>8}   {by}")
    lines.append("* truly past what the policy allows of a criterion, refusals, length or garbled answers\n")
    for name, found in result["claims"].items():
        lines.append(
            f"{name}: {found['candidates']} candidates, promoted in {found['promoted']} of {found['runs']} runs"
        )
    return lines


def _change(before: Measured, after: Measured, name: str) -> float:
    pairs = zip(before.verdicts, after.verdicts, strict=True)
    return sum(new[name] - old[name] for old, new in pairs) / len(before.verdicts)
