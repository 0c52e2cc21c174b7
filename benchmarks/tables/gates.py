"""How often the gates are wrong, simulated and on real weights: docs/gates.md."""

from __future__ import annotations

import re

from cells import between, lines, percent, share
from stored import Figures

VERDICTS = ("promote", "hold", "reject")
PAST = {
    "not worse by 3 points, but harmful elsewhere": "not worse by 3 points, but past the policy elsewhere (length, a criterion)"
}
SHOWN = (
    "DPO, 80 steps",
    "right, but verbose",
    "right, refuses one product",
    "60% of the way to the good DPO",
    "30% of the way to the good DPO",
    "15% of the way to the good DPO",
    "DPO, 30 steps",
    "DPO, 8 steps",
    "the same weights",
    "noise of 0.5%",
    "noise of 3.0%",
    "DPO, swapped pairs, 8 steps",
    "noise of 4.0%",
    "50% of the way to swapped pairs",
    "DPO, learning rate x 30, 30 steps",
    "DPO, swapped pairs, 60 steps",
)
"""Of the candidates with weights of their own."""


def sequential(found: Figures) -> list[str]:
    head = [
        "true win rate",
        "ties",
        "promoted",
        "rejected",
        "items asked, mean",
        "a sign test at 5 %, peeked at: promoted",
    ]
    rows = []
    for one in found["sequential"]:
        promoted, rejected, peeked = (
            one[name] / one["simulations"] for name in ("promoted", "rejected", "fixed_test_peeked_at")
        )
        truth = [percent(one["win_rate"], 0), percent(one["ties"], 0)]
        rows.append(
            [*truth, share(promoted, one["interval"]), percent(rejected), f"{one['mean_items']:.0f}", percent(peeked)]
        )
    return lines(head, rows)


def rounds(found: Figures) -> list[str]:
    head = ["better candidates", "level of each test", "false promotions", "true promotions"]
    rows = [
        [
            one["better"],
            one["level"],
            f"{one['false_promotions']:.2f}",
            f"{one['true_promotions']:.2f}",
            percent(one["share_false"]),
        ]
        for one in found["rounds"]
    ]
    return lines([*head, "share of promotions that are false"], rows)


def simulated(found: Figures) -> list[str]:
    head = ["candidate", "better by, points", "promoted", "held", "rejected", "wanted"]
    rows = [[one["candidate"], f"{one['lead_points']:+.0f}", *_verdicts(one), one["wanted"]] for one in found["bank"]]
    return lines(head, rows)


def kinds(found: Figures) -> list[str]:
    rows = [
        [PAST.get(name, name), str(one["candidates"]), f"{one['runs']:,}", percent(one["share"])]
        for name, one in found["claims"].items()
    ]
    return lines([f"truly, on all {found['pool']:,} prompts", "candidates", "runs", "promoted"], rows)


def candidates(found: Figures) -> list[str]:
    known = sorted((one for one in found["rows"] if one["candidate"] in SHOWN), key=lambda one: -one["truth"]["points"])
    rows = [[_named(one["candidate"]), _points(one["truth"]), *_verdicts(one)] for one in known]
    return lines(["candidate", "points, with interval", "promoted", "held", "rejected"], rows)


def _verdicts(one: Figures) -> list[str]:
    return [percent(one[verdict] / one["runs"], 0) for verdict in VERDICTS]


def _points(truth: Figures) -> str:
    if not truth["gained"] and not truth["lost"]:
        return "0.0"
    return f"{truth['points']:+.1f} {between(truth['interval_95'], digits=1)}"


def _named(candidate: str) -> str:
    return re.sub(r"(\.0)?%", " %", candidate).replace("the good DPO", "that DPO")
