"""What is measured of a corrector: harm, fix, how much it changes, time. Pure functions over what it wrote."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from aligner_chain.audit.results import Result
from aligner_chain.calibration import Z_95, wilson
from aligner_chain.checks import CHECKS

REWRITE = 0.9
"""Share of the words changed from which on a correction is a rewrite and no edit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """`count` of `n`, and as a share with its 95 % interval (Wilson); None where `n` is 0."""

    count: int
    n: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, flags: Iterable[bool]) -> Share:
        """The share of true ones."""
        told = list(flags)
        count, n = sum(told), len(told)
        low, high = wilson(count, n) if n else (None, None)
        return cls(count=count, n=n, share=count / n if n else None, low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """The mean of `n` numbers from -1 to 1 with its 95 % interval (normal approximation).

    The mean is None where there are none, the interval where all are the same and so tell nothing of how they scatter.
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Mean:
        """The mean of the numbers."""
        n, mean = len(numbers), statistics.fmean(numbers) if numbers else None
        if mean is None or min(numbers) == max(numbers):
            return cls(n=n, mean=mean, low=None, high=None)
        half = Z_95 * statistics.stdev(numbers) / sqrt(n)
        return cls(n=n, mean=mean, low=max(mean - half, -1.0), high=min(mean + half, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """Answers in which a check found damage, by any of them and `by_check`; an answer left as it was has none."""

    any: Share
    by_check: Mapping[str, Share]


@dataclass(frozen=True, kw_only=True, slots=True)
class Harm:
    """Of the answers that need nothing: those left byte for byte, those changed, and those damaged by it."""

    kept: Share
    changed: Share
    damage: Damage


@dataclass(frozen=True, kw_only=True, slots=True)
class Fix:
    """Of the answers that need something: those `changed`, and where a right answer is known what came of it.

    `fixed` ones equal the right answer, white space aside. `closer` is the mean part of the way to it, in words and marks:
    1 is all of it, 0 is what copying does (and failing), -1 is at least as far again. `worse` ones are further from it than before.
    """

    changed: Share
    fixed: Share
    closer: Mean
    worse: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class Edits:
    """How much is changed, over all answers. The medians are of the changed ones, None where there are none.

    `copied` answers came back byte for byte; of `rewritten` ones at least 90 % of the words and marks changed.
    `edit_ratio` is the share of them that changed, `length_ratio` the characters by those of the answer. `over_needed` is
    the size of the edit by that of the one that leads to the right answer: above 1, more was changed than had to be.
    """

    copied: Share
    rewritten: Share
    edit_ratio: float | None
    length_ratio: float | None
    over_needed: float | None
    damage: Damage


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Seconds by the clock, one answer at a time, of the `n` calls that did not fail.

    The first call often loads something and is apart from median and 95th percentile (nearest rank), unless it is alone.
    """

    n: int
    first_s: float | None
    median_s: float | None
    p95_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """All of one corrector. A failed answer counts in every `n` but that of the latency: it was neither kept nor changed.

    `forwards` is the mean number of runs of the corrector's model for an answer, None where it tells of none: a function, or
    a model somewhere else. `failures` holds how often which class of error was raised.
    """

    harm: Harm
    fix: Fix
    edits: Edits
    latency: Latency
    forwards: float | None
    failures: Mapping[str, int]


def figures(results: Sequence[Result]) -> Figures:
    """The figures of one corrector from what it made of every row."""
    return Figures(
        harm=_harm([one for one in results if one.row.needs_nothing is True]),
        fix=_fix([one for one in results if one.row.needs_nothing is False]),
        edits=_edits(results),
        latency=_latency([one.seconds for one in results if one.error is None]),
        forwards=_forwards([one.forwards for one in results if one.error is None]),
        failures=dict(Counter(type(one.error).__name__ for one in results if one.error is not None)),
    )


def _harm(results: Sequence[Result]) -> Harm:
    return Harm(
        kept=Share.of(one.kept for one in results),
        changed=Share.of(one.changed for one in results),
        damage=_damage(results),
    )


def _fix(results: Sequence[Result]) -> Fix:
    known = [one for one in results if one.row.right is not None]
    # Where only white space is wrong, there is no way in words that could be gone.
    closer = [one.closer for one in known if one.needed]
    return Fix(
        changed=Share.of(one.changed for one in results),
        fixed=Share.of(one.fixed for one in known),
        closer=Mean.of(closer),
        worse=Share.of(part < 0 for part in closer),
    )


def _edits(results: Sequence[Result]) -> Edits:
    changed = [one for one in results if one.changed]
    return Edits(
        copied=Share.of(one.kept for one in results),
        rewritten=Share.of(one.changed and one.edit_ratio >= REWRITE for one in results),
        edit_ratio=_median([one.edit_ratio for one in changed]),
        length_ratio=_median([_longer(one) for one in changed if one.row.exchange.answer]),
        over_needed=_median([one.edited / one.needed for one in changed if one.needed]),
        damage=_damage(results),
    )


def _damage(results: Sequence[Result]) -> Damage:
    # A check knows no right answer: where one took the place of a refusal, it says that a refusal was lost.
    found = [set() if one.fixed else {finding.check for finding in one.findings} for one in results]
    return Damage(
        any=Share.of(map(bool, found)),
        by_check={name: Share.of(name in checks for checks in found) for name in CHECKS},
    )


def _latency(seconds: Sequence[float]) -> Latency:
    later = sorted(seconds[1:] or seconds)
    return Latency(
        n=len(seconds),
        first_s=seconds[0] if seconds else None,
        median_s=_median(later),
        p95_s=later[ceil(0.95 * len(later)) - 1] if later else None,
    )


def _forwards(counts: Sequence[int]) -> float | None:
    return statistics.fmean(counts) if any(counts) else None


def _longer(result: Result) -> float:
    return len(result.text or "") / len(result.row.exchange.answer)


def _median(numbers: Sequence[float]) -> float | None:
    return statistics.median(numbers) if numbers else None
