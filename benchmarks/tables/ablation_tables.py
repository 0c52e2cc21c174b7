"""The tables of docs/ablations.md from the stored figures alone: means over seeds, and differences seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from cells import interval, lines
from stored import Figures

MEASURES = {
    "wrong_fixed": "wrong, now right",
    "wrong_left": "wrong, left",
    "right_changed": "right, changed",
    "right_harmed": "right, now wrong",
    "accepted": "left as they are",
    "garbled": "garbled",
    "right_after": "right in all",
}
COPYING = {"wrong_fixed": 0.0, "wrong_left": 1.0, "right_changed": 0.0, "right_harmed": 0.0, "accepted": 1.0}
"""What is known of serving every answer as it came."""
_COUNTED = {
    **dict.fromkeys(("wrong_fixed", "wrong_left"), ("n_wrong",)),
    **dict.fromkeys(("right_changed", "right_harmed"), ("n_right",)),
}
"""Of how many answers a measure is the share; all others are of all."""
EVERY = "all answers"
"""All sources of answers together, each answer counted once."""
POLICY, BARE = "default policy", "checks off"


def tables(found: Figures) -> list[str]:
    """Every table, and what the checks matter."""
    told = f"The checks make at most {_points(checks_matter(found))} points of difference to a mean."
    return [*together(found), "", *by_source(found), "", told]


def together(found: Figures) -> list[str]:
    """All answers together, and what differs from the reference."""
    return [*_levels(found), "", *_differences(found)]


def by_source(found: Figures) -> list[str]:
    """Two measures by the source of the answers."""
    return [*_by_source(found, "wrong_fixed"), "", *_by_source(found, "right_changed")]


def levels(found: Figures, arm: str, source: str, measure: str, policy: str = POLICY) -> list[float]:
    """One measure of one arm, by seed; a seed of which no answer counts for it is left out."""
    return [value for value in _by_seed(found, arm, source, measure, policy).values() if value is not None]


def differences(found: Figures, arm: str, source: str, measure: str, policy: str = POLICY) -> list[float]:
    """What the arm has more than the one it is held against, seed by seed, where both were measured."""
    ours, others = (_by_seed(found, name, source, measure, policy) for name in (arm, found["arms"][arm]["against"]))
    pairs = ((value, others.get(seed)) for seed, value in ours.items())
    return [one - other for one, other in pairs if one is not None and other is not None]


def checks_matter(found: Figures) -> float:
    """The largest difference between the means with the default policy and those with the checks off."""
    return max(
        abs(fmean(one) - fmean(other))
        for arm in _arms(found)
        for source in _sources(found)
        for measure in MEASURES
        for one, other in [[levels(found, arm, source, measure, policy) for policy in (POLICY, BARE)]]
        if one and other
    )


def _levels(found: Figures) -> list[str]:
    before = {measure: [value] for measure, value in COPYING.items()}
    before["garbled"], before["right_after"] = (
        levels(found, "default", EVERY, f"{name}_before") for name in ("garbled", "right")
    )
    rows = [["copying", "-", *(_level(before[name]) for name in MEASURES)]]
    for arm in _arms(found):
        seeds = sum(arm in arms for arms in found["runs"].values())
        rows.append([arm, str(seeds), *(_level(levels(found, arm, EVERY, name)) for name in MEASURES)])
    return lines([f"{EVERY}, %", "seeds", *MEASURES.values()], rows)


def _differences(found: Figures) -> list[str]:
    rows = [
        [_named(found, arm), *(_difference(differences(found, arm, EVERY, name)) for name in MEASURES)]
        for arm in _arms(found)
        if arm != found["arms"][arm]["against"]
    ]
    return lines(["difference, points", *MEASURES.values()], rows)


def _by_source(found: Figures, measure: str) -> list[str]:
    """For each source the level, and under it what differs from the reference."""
    # Right answers alone have no share of wrong ones.
    some = _arms(found)[0]
    sources = [source for source in _sources(found) if levels(found, some, source, measure)]
    rows = []
    for arm in _arms(found):
        rows.append([arm, *(_level(levels(found, arm, source, measure)) for source in sources)])
        if arm != found["arms"][arm]["against"]:
            row = [_difference(differences(found, arm, source, measure)) for source in sources]
            rows.append([f"- less {found['arms'][arm]['against']}", *row])
    return lines([f"{MEASURES[measure]}, %", *sources], rows)


def _by_seed(found: Figures, arm: str, source: str, measure: str, policy: str) -> dict[str, float | None]:
    runs = {seed: arms[arm]["sources"] for seed, arms in found["runs"].items() if arm in arms}
    if source == EVERY:
        return {seed: _pooled([one[policy] for one in told.values()], measure) for seed, told in runs.items()}
    return {seed: told[source][policy][measure] for seed, told in runs.items()}


def _pooled(sources: Sequence[Figures], measure: str) -> float | None:
    counted = _COUNTED.get(measure, ("n_right", "n_wrong"))
    known = [(sum(one[name] for name in counted), one[measure]) for one in sources if one[measure] is not None]
    total = sum(count for count, _ in known)
    # Not `sum`, whose last digit, and so now and then a rounded one, changed with Python 3.12.
    return math.fsum(count * value for count, value in known) / total if total else None


def _arms(found: Figures) -> list[str]:
    return [arm for arm in found["arms"] if any(arm in arms for arms in found["runs"].values())]


def _sources(found: Figures) -> list[str]:
    arms = next(iter(found["runs"].values()))
    return list(next(iter(arms.values()))["sources"])


def _named(found: Figures, arm: str) -> str:
    against = found["arms"][arm]["against"]
    return arm if against == "default" else f"{arm}, against {against}"


def _level(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    return f"{_points(mean)} ± {_points(half)}" if half > 0 else _points(mean)


def _difference(values: Sequence[float]) -> str:
    """With a star where the interval leaves out 0."""
    if not values:
        return "-"
    mean, half = interval(values)
    shown = f"{round(100 * mean, 1) + 0.0:+.1f}"  # no -0.0
    return shown if math.isnan(half) else f"{shown} ± {_points(half)}{' *' if abs(mean) > half else ''}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
